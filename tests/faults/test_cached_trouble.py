"""A store in trouble under `@cached`: it costs warnings and time, never the answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterator, List, Optional

import pytest
from cached_child import wait_for

from kv_store_adapter import (
    KVStoreProtocol,
    MemoryKVStore,
    SerializationError,
    StoreUnavailableError,
    cached,
    cached_many,
)
from kv_store_adapter.caching import health
from kv_store_adapter.thread_lease import _thread_locks

ERRORS = (
    StoreUnavailableError("the server is down"),
    SerializationError("foreign bytes"),
    OSError(5, "Input/output error"),
    RuntimeError("dictionary changed size during iteration"),
    KeyError("a driver's own"),
    AssertionError("a driver's own"),
    MemoryError(),
    TimeoutError("timed out"),
)


class Shaky(KVStoreProtocol):
    """A third party's store of eight methods: each may fail, before or after it did its work."""

    def __init__(self, seed: int) -> None:
        self.inner = MemoryKVStore()
        self.chance = random.Random(seed)
        self.rate = 0.0
        self.raised = 0

    def _do(self, name: str, *args: Any) -> Any:
        early = self.chance.random() < self.rate
        late = self.chance.random() < self.rate
        if early:
            self._fail()
        done = getattr(self.inner, name)(*args)
        if late:
            self._fail()
        return done

    def _fail(self) -> None:
        self.raised += 1
        raise self.chance.choice(ERRORS)

    def get(self, key: str, namespace: Optional[str] = None) -> Any:
        return self._do("get", key, namespace)

    def set(self, key: str, value: Any, namespace: Optional[str] = None, ttl: Any = None) -> None:
        self._do("set", key, value, namespace, ttl)

    def delete(self, key: str, namespace: Optional[str] = None) -> bool:
        return bool(self._do("delete", key, namespace))

    def ttl(self, key: str, namespace: Optional[str] = None) -> Optional[float]:
        return self._do("ttl", key, namespace)  # type: ignore[no-any-return]

    def exists(self, key: str, namespace: Optional[str] = None) -> bool:
        return bool(self._do("exists", key, namespace))

    def keys(self, namespace: Optional[str] = None, pattern: str = "*") -> List[str]:
        return list(self._do("keys", namespace, pattern))

    def clear_namespace(self, namespace: Optional[str]) -> int:
        return int(self._do("clear_namespace", namespace))

    def list_namespaces(self) -> List[str]:
        return list(self._do("list_namespaces"))


class ShakyLock(Shaky):
    """The same with a lock of its own, that may fail as it is taken."""

    @contextlib.contextmanager
    def lock(self, key: str, namespace: Optional[str] = None, **options: Any) -> Iterator[None]:
        with self.inner.lock(key, namespace, **options):
            if self.chance.random() < self.rate:
                self._fail()
            yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A breaker whose pauses are over at the next look: every call meets the store."""
    ticks = itertools.count(0, 100)
    monkeypatch.setattr(health, "time", types.SimpleNamespace(monotonic=lambda: float(next(ticks))))


def answer(key: int) -> str:
    return f"{key}:" + "v" * (key * 997 % 5000)


OPTIONS = [
    {},
    {"lock": "store"},
    {"ttl": 0.01, "stale": 60},
    {"ttl": 60, "early": 1.0, "jitter": 0.5},
    {"ttl": 0.01, "stale": 60, "lock": "store"},
    {"tags": ("t:{key}",), "lock": "store"},
]


def _combinations() -> Iterator[Any]:
    for kind, options in itertools.product((Shaky, ShakyLock), OPTIONS):
        name = "-".join((kind.__name__, *options))
        yield pytest.param(kind, options, id=name)


@pytest.mark.parametrize(("kind", "options"), list(_combinations()))
def test_a_store_that_fails_at_random(
    kind: Any, options: Any, impatient: None, rounds: Any, seed: int, count: Any
) -> None:
    """Whatever a store raises, in whatever step, before or after its effect: every answer is right."""
    store = kind(seed)
    number = rounds(150, 1500)

    @cached(store, lock_timeout=30, **options)
    def f(key: int) -> str:
        return answer(key)

    def work(me: int) -> None:
        mine = random.Random(seed + me)
        for _ in range(number):
            key = mine.randrange(40)
            assert f(key) == answer(key)
            if mine.random() < 0.1:
                with contextlib.suppress(Exception):
                    f.invalidate(key)

    store.rate = 0.15
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4), timeout=120))
    assert time.monotonic() - began < 120
    assert store.raised
    assert f.cache_info().errors
    wait_for(lambda: not len(f._self_cached.flow.board) and not _thread_locks)
    store.rate = 0.0
    # Two calls: the first may be the one that tries the store again.
    assert [f(1), f(1)] == [answer(1)] * 2
    before = f.cache_info()
    assert f(1) == answer(1)
    after = f.cache_info()
    assert after.hits + after.stale == before.hits + before.stale + 1
    count("errors raised by a store under @cached", store.raised)
    count("answers checked on a store in trouble", 4 * number)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_coroutines_on_a_store_that_fails_at_random(
    options: Any, impatient: None, rounds: Any, seed: int, count: Any
) -> None:
    """The same for coroutine functions, hundreds of tasks at a time."""
    store = Shaky(seed)

    @cached(store, lock_timeout=30, **options)
    async def f(key: int) -> str:
        await asyncio.sleep(0)
        return answer(key)

    async def main() -> None:
        mine = random.Random(seed)
        for _ in range(rounds(2, 20)):
            keys = [mine.randrange(40) for _ in range(150)]
            assert await asyncio.gather(*[f(key) for key in keys]) == [answer(k) for k in keys]
            with contextlib.suppress(Exception):
                await f.invalidate(keys[0])
            count("answers checked on a store in trouble", len(keys))
        board = f._self_cached.flow.board
        while len(board):
            await asyncio.sleep(0.01)

    store.rate = 0.15
    asyncio.run(asyncio.wait_for(main(), 120))
    assert store.raised
    wait_for(lambda: not _thread_locks)
    count("errors raised by a store under @cached", store.raised)


def test_batches_on_a_store_that_fails_at_random(
    impatient: None, rounds: Any, seed: int, count: Any
) -> None:
    """cached_many answers for every id, whatever its store raises."""
    store = Shaky(seed)
    number = rounds(150, 1500)

    @cached_many(store)
    def load(ids: List[int]) -> Any:
        return {i: answer(i) for i in ids}

    def work(me: int) -> None:
        mine = random.Random(seed + me)
        for _ in range(number):
            ids = mine.sample(range(60), 5)
            assert load(ids) == {i: answer(i) for i in ids}

    store.rate = 0.1
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4), timeout=120))
    count("errors raised by a store under @cached", store.raised)
    count("answers checked on a store in trouble", 4 * number * 5)


def test_a_quick_store_may_raise_anything() -> None:
    """A third party's store that never waits costs no answer either, whatever its look-up raises."""

    class Quick(Shaky):
        waits = False  # so that a hit is compiled code

        def _fail(self) -> None:
            raise OSError(5, "Input/output error")  # not one of ours

    store = Quick(1)
    f = cached(store, namespace="quick")(lambda x: -x)
    assert [f(1), f(1)] == [-1, -1]
    store.rate = 1.0
    assert [f(1), f(1)] == [-1, -1]


def test_a_refresh_that_gets_no_lock(impatient: None) -> None:
    """Who waits for a refresh in the background that the store gives no lock to gets an answer, not its error."""
    trying, go_on = threading.Event(), threading.Event()

    class NoLock(Shaky):
        @contextlib.contextmanager
        def lock(self, key: str, namespace: Optional[str] = None, **options: Any) -> Iterator[None]:
            if f.cache_info().stale and not go_on.is_set():
                trying.set()
                go_on.wait(60)
                raise StoreUnavailableError("the server is down")
            yield

    store = NoLock(1)
    f = cached(store, lock="store", namespace="refresh", ttl=0.001, stale=60)(lambda x: -x)
    assert f(1) == -1
    wait_for(lambda: f(1) == -1 and f.cache_info().stale)
    assert trying.wait(60)
    store.clear_namespace("refresh")
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(f, 1)
        wait_for(lambda: f.cache_info().waits)
        go_on.set()
        assert waiter.result(60) == -1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_lock_that_cant_be_given_back(is_async: bool) -> None:
    """A third party's lock that raises on the way out costs a warning, not the answer."""

    class Leaves(Shaky):
        @contextlib.contextmanager
        def lock(self, key: str, namespace: Optional[str] = None, **options: Any) -> Iterator[None]:
            yield
            raise ConnectionError("gone")

    if is_async:

        @cached(Leaves(1), lock="store", namespace="async")
        async def g(x: int) -> int:
            return -x

        # The base's aio has a lock of its own making; a third party's may raise as well.
        async def main() -> int:
            class Exits:
                async def __aenter__(self) -> None:
                    pass

                async def __aexit__(self, *exc_info: object) -> None:
                    raise ConnectionError("gone")

            aio = g._self_cached.flow.store.aio
            aio.lock = lambda *args, **options: Exits()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Leaves, "aio", aio)
                return int(await g(1))

        assert asyncio.run(main()) == -1
    else:
        assert cached(Leaves(1), lock="store", namespace="plain")(lambda x: -x)(1) == -1
