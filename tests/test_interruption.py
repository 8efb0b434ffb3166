"""A job's time limit: what a signal's handler raises reaches the job, whatever it came into."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import socket
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from kv_store_adapter import (
    DiskKVStore,
    KVStoreProtocol,
    MemoryKVStore,
    PickleSerializer,
    RedisKVStore,
    SerializationError,
    StoreUnavailableError,
    cached,
    cached_many,
)
from kv_store_adapter.caching.drivers import AsyncDriver, PlainDriver
from kv_store_adapter.interruption import interruption
from server import free_port
from signals import needs_timers

pytestmark = needs_timers


class JobTimeoutError(Exception):
    """No BaseException, as those of the usual job queues are none."""


@pytest.fixture(params=[JobTimeoutError, TimeoutError, ValueError])
def limit(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What the handler of SIGALRM raises; drivers have their own use for the last two."""

    def over(*_: Any) -> None:
        raise request.param("the job took too long")

    before = signal.signal(signal.SIGALRM, over)
    yield request.param
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class Late:
    """The time is over while this is pickled, or while it is read."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __getstate__(self) -> Any:
        if self.when == "written":
            signal.raise_signal(signal.SIGALRM)
        return self.when

    def __setstate__(self, when: str) -> None:
        self.when = when
        if when == "read":
            signal.raise_signal(signal.SIGALRM)


@pytest.fixture(params=["memory", "disk", pytest.param("redis", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KVStoreProtocol]:
    """Stores that pickle."""
    if request.param == "memory":
        yield MemoryKVStore(serializer=PickleSerializer())
    elif request.param == "disk":
        with DiskKVStore(tmp_path / "store", spill_threshold=4096) as disk:
            yield disk
    else:
        with RedisKVStore(
            port=request.getfixturevalue("redis_server").port, prefix="late"
        ) as redis:
            redis.clear_namespace(None)
            yield redis


def _calls(store: KVStoreProtocol) -> List[Callable[[], Any]]:
    filler = b"x" * 5000  # a file of its own on disk
    store.set_many({"small": Late("read"), "large": [Late("read"), filler]})
    return [
        lambda: store.set("key", Late("written")),
        lambda: store.set_many({"key": Late("written"), "more": 1}),
        lambda: store.add("key", Late("written")),
        lambda: store.get("small"),
        lambda: store.get("large"),
        lambda: store.get_many(["small", "large"]),
        lambda: store.pop("small"),
        lambda: cached(store, namespace="c")(lambda: Late("written"))(),
    ]


def test_a_time_limit_is_no_serializer_s_error(store: KVStoreProtocol, limit: Any) -> None:
    """What a handler raises while a value is pickled or read is what the caller sees."""
    for call in _calls(store):
        with pytest.raises(limit, match="^the job took too long$"):
            call()
    assert sorted(store.keys()) == ["large", "small"]


@contextlib.contextmanager
def _deaf() -> Iterator[int]:
    """The port of a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_time_limit_is_no_outage(limit: Any) -> None:
    """What a handler raises while a server is waited for is no trouble of the store's."""
    with _deaf() as port, RedisKVStore(port=port, socket_timeout=2) as store:

        @cached(store, namespace="one")
        def one(x: int) -> int:
            raise AssertionError("computed, as if the store were down")

        @cached_many(store, namespace="many")
        def many(ids: List[int]) -> Any:
            raise AssertionError("computed, as if the store were down")

        calls: List[Callable[[], Any]] = [
            lambda: store.get("key"),
            lambda: store.set("key", 1),
            lambda: store.set_many({"key": 1}),
            lambda: store.lock("key").__enter__(),
            lambda: store.keys(),
            lambda: one(1),
            lambda: many([1]),
        ]
        for call in calls:
            with pytest.raises(limit, match="^the job took too long$"), _limited():
                call()
        for function in (one, many):
            assert function.cache_info().errors == 0
            assert not function._self_cached.flow.health.reading.open  # type: ignore[attr-defined]


def test_others_do_not_inherit_a_time_limit(limit: Any) -> None:
    """Who waits for a call that its time limit ended computes for himself."""
    calls, inside = [], threading.Event()

    @cached(MemoryKVStore(), namespace="n")
    def f() -> str:
        calls.append(threading.current_thread())
        if threading.current_thread() is threading.main_thread():
            inside.set()
            until = time.monotonic() + 30
            while not f.cache_info().waits:
                assert time.monotonic() < until
                time.sleep(0.001)
            signal.raise_signal(signal.SIGALRM)
        return "computed"

    found: List[Any] = []

    def other() -> None:
        inside.wait(30)
        found.append(f())

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(limit):
        f()
    thread.join(30)
    assert found == ["computed"]
    assert len(calls) == 2


def test_a_time_limit_in_the_middle_of_files(
    tmp_path: Path, limit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a handler raises between two calls of the system is not the disk's trouble."""

    def late(*_: Any) -> Any:
        signal.raise_signal(signal.SIGALRM)
        raise AssertionError("the handler raised nothing")

    with DiskKVStore(tmp_path / "store", spill_threshold=10) as store:
        store.set("key", b"x" * 100, "n")
        (file,) = (tmp_path / "store").glob("namespaces/*/*.value")
        for name, call in {
            "mkdir": lambda: store.set("key", b"y" * 100, "new"),
            "unlink": lambda: store.delete("key", "n"),
            "pread": lambda: [store.get("small", "n") for _ in range(5)],
        }.items():
            store.set("small", 1, "n")
            store.get("small", "n")
            with monkeypatch.context() as patch:
                patch.setattr(os, name, late)
                with pytest.raises(limit, match="^the job took too long$"):
                    call()
        assert store.get("small", "n") == 1
        assert file.exists()


def test_what_was_caught_before_is_no_interruption(tmp_path: Path, limit: Any) -> None:
    """A program that handles its time limit may use a store for that, with the usual errors."""
    bad = [lambda: None]
    with RedisKVStore(port=free_port()) as down, DiskKVStore(tmp_path / "store") as disk:

        @cached(down, namespace="n")
        def f(x: int) -> int:
            return x

        @cached(disk, namespace="n")
        def g() -> Any:
            return bad

        for interrupted in (lambda: signal.raise_signal(signal.SIGALRM), lambda: _late_get(disk)):
            try:
                interrupted()
            except limit:
                with pytest.raises(StoreUnavailableError, match="can't be reached"):
                    down.set("status", "timed out")
                with pytest.raises(SerializationError):
                    disk.set("status", bad)
                assert f(1) == 1
                assert g() is bad
            else:
                raise AssertionError("nothing was raised")


def _late_get(store: KVStoreProtocol) -> None:
    store.set("late", Late("read"))
    store.get("late")


def test_a_handler_s_decorator_may_be_anybody_s(limit: Any) -> None:
    """One decorator makes handlers and other functions of one code: how it was called tells."""

    def told(function: Any) -> Any:
        @functools.wraps(function)
        def telling(*args: Any) -> Any:
            return function(*args)

        return telling

    @told
    def over(number: int, frame: Any) -> None:
        raise JobTimeoutError

    class Value:
        @told
        def __getstate__(self) -> Any:
            raise OSError("its own")

    signal.signal(signal.SIGALRM, over)
    with pytest.raises(SerializationError, match="its own"):
        MemoryKVStore(serializer=PickleSerializer()).set("key", Value())
    with pytest.raises(JobTimeoutError):
        MemoryKVStore(serializer=PickleSerializer()).set("key", Late("written"))


@pytest.mark.parametrize("is_async", [False, True])
def test_an_interrupted_conversation_ends(is_async: bool) -> None:
    """What comes between two steps of a call ends it, and leaves nobody waiting for it."""
    ended: List[BaseException] = []

    def steps() -> Any:
        try:
            yield ("three", "things", "where two are due")
        except ValueError as error:
            ended.append(error)
            raise

    flow = cached(MemoryKVStore(), namespace="n")(lambda: None)._self_cached.flow  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="unpack"):
        if is_async:
            asyncio.run(AsyncDriver(flow).drive(steps()))
        else:
            PlainDriver(flow).drive(steps())
    assert len(ended) == 1


class Big:
    """Something that a caller has for the length of a call."""


@pytest.mark.parametrize("handler", [False, True])
def test_an_error_holds_nothing_of_its_caller_s(handler: bool, request: Any) -> None:
    """What was raised and handled leaves nothing to the garbage collector, as of plain functions."""
    if handler:

        def over(*_: Any) -> None:
            raise JobTimeoutError

        before = signal.signal(signal.SIGALRM, over)
        request.addfinalizer(lambda: signal.signal(signal.SIGALRM, before))
    store = MemoryKVStore(serializer=PickleSerializer())

    def fails(*_: Any) -> Any:
        raise ValueError

    one = cached(store, namespace="one")(fails)
    many = cached_many(store, namespace="many")(lambda ids: fails())
    calls: List[Callable[[], Any]] = [
        lambda: one(1),
        lambda: one.refresh(1),
        lambda: many([1]),
        lambda: store.set("key", fails),
        lambda: store.set_many({"key": fails}),
    ]
    if handler:
        calls += [
            lambda: store.set("key", Late("written")),
            lambda: cached(store, namespace="late")(lambda: Late("written"))(),
            lambda: cached(store, namespace="ends")(lambda: signal.raise_signal(signal.SIGALRM))(),
        ]

    def request_of(call: Callable[[], Any]) -> Any:
        big = Big()
        alive = weakref.ref(big)
        with contextlib.suppress(ValueError, SerializationError, JobTimeoutError):
            call()
            raise AssertionError("it raised nothing")
        return alive

    gc.collect()
    gc.disable()
    try:
        assert [request_of(call)() for call in calls] == [None] * len(calls)
    finally:
        gc.enable()


@pytest.mark.server
def test_a_time_limit_while_an_awaited_store_connects(
    redis_server: Any, limit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes while redis-py connects is no reason to try once more."""
    import redis.asyncio.connection as driver

    real, calls = driver.Connection._connect, []  # type: ignore[attr-defined]

    async def connect(self: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGALRM)
        await real(self)

    monkeypatch.setattr(driver.Connection, "_connect", connect)
    with RedisKVStore(port=redis_server.port) as store, pytest.raises(limit, match="took too long"):
        asyncio.run(store.aio.set("key", 1))
    assert calls == [1]


@pytest.mark.parametrize("kind", [cached, cached_many])
@pytest.mark.parametrize("how", ["unavailable", "limit"])
def test_a_write_that_raises_leaves_nothing_that_was_invalidated(
    kind: Any, how: str, limit: Any
) -> None:
    """What was invalidated during a write is dropped, also where that raises: it may have worked."""

    class Failing(MemoryKVStore):
        def _fail(self) -> None:
            if value[0] == "old":
                value[0] = "new"
                f.invalidate(argument)
                if how == "limit":
                    signal.raise_signal(signal.SIGALRM)
                raise StoreUnavailableError("no answer")

        def set(self, *args: Any, **kwargs: Any) -> None:
            super().set(*args, **kwargs)
            self._fail()

        def set_many(self, *args: Any, **kwargs: Any) -> None:
            super().set_many(*args, **kwargs)
            self._fail()

    store, value = Failing(), ["old"]
    argument: Any = 1 if kind is cached else [1]

    @kind(store, namespace="n", on_error="raise")
    def f(x: Any) -> Any:
        return value[0] if kind is cached else dict.fromkeys(x, value[0])

    with pytest.raises(limit if how == "limit" else StoreUnavailableError):
        f(argument)
    assert store.keys("n") == []


def test_errors_of_anybody_else_s_are_none() -> None:
    """Only what a handler raised counts, and what came of that."""

    def over(*_: Any) -> None:
        raise JobTimeoutError

    class Handler:
        def __call__(self, *_: Any) -> None:
            over()

        def method(self, *_: Any) -> None:
            over()

    def raised(handler: Any, number: int = signal.SIGALRM) -> BaseException:
        try:
            handler(number, sys._getframe())
        except JobTimeoutError as error:
            return error
        raise AssertionError("it raised nothing")

    def wrapped(handler: Any) -> BaseException:
        """As if a driver, and then a serializer, had made an error of theirs of it."""

        def in_between() -> None:
            try:
                handler(signal.SIGALRM, sys._getframe())
            except JobTimeoutError as error:
                wrapped.came = error  # type: ignore[attr-defined]
                raise SerializationError("in between") from None

        try:
            try:
                in_between()
            except SerializationError as error:
                raise StoreUnavailableError("driver's") from error
        except StoreUnavailableError as error:
            return error

    assert interruption(raised(over)) is None  # not in place
    for handler in (over, Handler(), Handler().method, functools.partial(over)):
        before = signal.signal(signal.SIGALRM, handler)
        try:
            error = raised(handler)
            assert interruption(error) is error
            assert interruption(wrapped(handler)) is wrapped.came  # type: ignore[attr-defined]
            assert interruption(ValueError("never raised")) is None
            circle = ValueError()
            circle.__context__ = circle.__cause__ = other = ValueError()
            other.__context__ = circle
            assert interruption(circle) is None
            elsewhere: List[Any] = []
            thread = threading.Thread(target=lambda: elsewhere.append(interruption(error)))  # noqa: B023
            thread.start()
            thread.join()
            assert elsewhere == [None]
        finally:
            signal.signal(signal.SIGALRM, before)
