"""`AsyncKVStoreContract`: the same promises, awaited."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import AbstractContextManager
from typing import Any, AsyncIterator, Awaitable, Callable, ClassVar, List, Optional

import pytest

from ..aio import AsyncKVStore
from ..exceptions import InvalidKeyError, InvalidTTLError, KeyNotFoundError, LockTimeoutError
from ..protocol import KVStoreProtocol
from ..rules import NO_EXPIRY
from . import samples

__all__ = ["AsyncKVStoreContract"]

_TASKS = 8

# What every `aio` has; each means what the plain operation of its name means.
_OPERATIONS = (
    *("get", "set", "delete", "ttl", "exists", "keys", "clear_namespace", "list_namespaces"),
    *("add", "pop", "touch", "get_many", "set_many", "delete_many", "iter_keys", "lock", "close"),
)


async def _all(keys: AsyncIterator[str]) -> List[str]:
    return [key async for key in keys]


class AsyncKVStoreContract:
    """Inherit this and give it a `store` fixture: the plain store, whose ``aio`` is tested.

    Needs no plugin for asyncio: each test runs one event loop of its own.

    Attributes:
        values: As in `KVStoreContract`.
        life: As in `KVStoreContract`.
    """

    values: ClassVar[List[Any]] = samples.VALUES
    life: ClassVar[float] = 60.0

    @pytest.fixture
    def store(self) -> Any:
        """A store that is fresh and empty."""
        raise NotImplementedError("Give your class a fixture named store: a fresh, empty store.")

    def travel(self, seconds: float) -> AbstractContextManager[Any]:
        """Let `seconds` pass for the store, until the block ends."""
        pytest.importorskip("time_machine")
        return samples.travel(seconds)

    def full_namespace(self, namespace: Optional[str]) -> Optional[str]:
        """The namespace that errors name; a view's hold the names it is nested in."""
        return namespace

    async def finish(self, store: KVStoreProtocol) -> None:
        """Close what the test's event loop had open, before that loop ends."""
        await store.aio.close()

    def run(
        self, store: KVStoreProtocol, scenario: Callable[[AsyncKVStore], Awaitable[Any]]
    ) -> None:
        """Run `scenario` with ``store.aio`` in an event loop of its own, with an end to waiting."""

        async def whole() -> None:
            loop = asyncio.get_running_loop()
            task = asyncio.ensure_future(scenario(store.aio))
            # Not wait_for(): travelling moves the event loop's clock as well (time-machine before
            # version 3), and a thread's not.
            alarm = threading.Timer(120, lambda: loop.call_soon_threadsafe(task.cancel))
            alarm.daemon = True
            alarm.start()
            try:
                await task
            finally:
                alarm.cancel()
                await self.finish(store)

        asyncio.run(whole())

    # ------------------------------------------------------------------ the operations

    def test_it_has_every_operation(self, store: KVStoreProtocol) -> None:
        """Aio has each operation of the protocol, with the same parameters."""
        for name in _OPERATIONS:
            plain = inspect.signature(getattr(KVStoreProtocol, name))
            awaited = inspect.signature(getattr(type(store.aio), name))
            assert set(plain.parameters) <= set(awaited.parameters), name
        assert isinstance(store.aio, AsyncKVStore)

    def test_the_eight(self, store: KVStoreProtocol) -> None:
        """Every value set is there for both colours; delete, keys and the counts agree."""

        async def scenario(aio: AsyncKVStore) -> None:
            for number, value in enumerate(self.values):
                await aio.set(f"k{number}", value, "n")
                assert store.get(f"k{number}", "n") == value
                assert await aio.get(f"k{number}", "n") == value
            store.set("plain", 1)
            assert await aio.get("plain") == 1
            assert await aio.exists("plain") is True
            assert await aio.exists("plain", "n") is False
            assert await aio.keys() == ["plain"]
            assert sorted(await aio.keys("n", "k?")) == sorted(f"k{n}" for n in range(10))
            assert await aio.list_namespaces() == ["n"]
            assert await aio.delete("plain") is True
            assert await aio.delete("plain") is False
            assert await aio.clear_namespace("n") == len(self.values)
            assert await aio.list_namespaces() == []

        self.run(store, scenario)

    def test_hostile_texts(self, store: KVStoreProtocol) -> None:
        """Any text is a key and a namespace, and comes back exactly."""

        async def scenario(aio: AsyncKVStore) -> None:
            await aio.set_many({key: number for number, key in enumerate(samples.KEYS)}, "n")
            for number, key in enumerate(samples.KEYS):
                assert await aio.get(key, "n") == number
            assert sorted(await aio.keys("n")) == sorted(samples.KEYS)
            assert sorted(await _all(aio.iter_keys("n"))) == sorted(samples.KEYS)
            await aio.clear_namespace("n")
            for name in samples.NAMESPACES:
                await aio.set("key", name, name)
            assert sorted(await aio.list_namespaces()) == sorted(samples.NAMESPACES)

        self.run(store, scenario)

    def test_absent(self, store: KVStoreProtocol) -> None:
        """What is absent is a KeyNotFoundError that says where, or the default."""

        async def scenario(aio: AsyncKVStore) -> None:
            for call in (aio.get, aio.ttl, aio.pop):
                with pytest.raises(KeyNotFoundError) as caught:
                    await call("absent", "n")
                assert (caught.value.key, caught.value.namespace) == (
                    "absent",
                    self.full_namespace("n"),
                )
            assert await aio.get("absent", default=None) is None
            assert await aio.pop("absent", default=3) == 3

        self.run(store, scenario)

    def test_add_pop_touch(self, store: KVStoreProtocol) -> None:
        """add(), pop() and touch() do what the plain ones do."""

        async def scenario(aio: AsyncKVStore) -> None:
            assert await aio.add("key", None, "n", 1000) is True
            assert await aio.add("key", 2, "n") is False
            left = await aio.ttl("key", "n")
            assert left is not None and 900 < left <= 1000.001
            assert await aio.touch("key", "n") is True
            assert await aio.ttl("key", "n") is None
            assert await aio.touch("absent", "n", 5) is False
            assert await aio.pop("key", "n", default=3) is None
            assert await aio.exists("key", "n") is False

        self.run(store, scenario)

    def test_batches(self, store: KVStoreProtocol) -> None:
        """get_many(), set_many(), delete_many() and iter_keys() take more than one batch."""

        async def scenario(aio: AsyncKVStore) -> None:
            items = {f"k{number}": number for number in range(1700)}
            await aio.set_many(items, "n", 1000)
            assert await aio.get_many([*items, "absent"], "n") == items
            assert sorted(await _all(aio.iter_keys("n"))) == sorted(items)
            assert sorted(await _all(aio.iter_keys("n", "k1?"))) == [f"k1{n}" for n in range(10)]
            assert await _all(aio.iter_keys("absent")) == []
            assert await aio.delete_many([*items, "absent"], "n") == 1700
            assert await aio.get_many(items, "n") == {}

        self.run(store, scenario)

    def test_bad_input(self, store: KVStoreProtocol) -> None:
        """What can't be a key, a namespace or a ttl is refused, and nothing is changed."""

        async def scenario(aio: AsyncKVStore) -> None:
            await aio.set("fine", "old", ttl=1000)
            for key in (1, None, b"key"):
                for call in (aio.get, aio.delete, aio.exists, aio.ttl, aio.pop, aio.touch):
                    with pytest.raises(TypeError):
                        await call(key)  # type: ignore[arg-type]  # the promise
            for text in samples.WRONG_TEXTS:
                with pytest.raises(InvalidKeyError):
                    await aio.set_many({"fine": "new", text: 1})
                with pytest.raises(InvalidKeyError):
                    await aio.set("fine", "new", text)
                with pytest.raises(InvalidKeyError):
                    await _all(aio.iter_keys(text))
            for ttl in (0, -1, True, float("nan")):
                with pytest.raises(InvalidTTLError):
                    await aio.set("fine", "new", ttl=ttl)
            with pytest.raises(InvalidKeyError):
                await aio.clear_namespace("")
            assert await aio.keys() == ["fine"]
            assert await aio.get("fine") == "old"
            assert await aio.list_namespaces() == []

        self.run(store, scenario)

    def test_expired_is_absent(self, store: KVStoreProtocol) -> None:
        """What has expired is absent for every operation."""

        async def scenario(aio: AsyncKVStore) -> None:
            await aio.set("gone", 1, "n", self.life)
            await aio.set("kept", 1, "n")
            with self.travel(self.life * 1.05 + 0.005):
                assert await aio.exists("gone", "n") is False
                assert await aio.get("gone", "n", default="absent") == "absent"
                assert await aio.keys("n") == ["kept"]
                assert await _all(aio.iter_keys("n")) == ["kept"]
                assert await aio.delete("gone", "n") is False
                assert await aio.touch("gone", "n", 5) is False
                assert await aio.add("gone", 2, "n") is True
                assert await aio.clear_namespace("n") == 2

        self.run(store, scenario)

    # ------------------------------------------------------------------ tasks at the same time

    def test_add_and_pop_have_one_winner(self, store: KVStoreProtocol) -> None:
        """Of many tasks exactly one adds, and exactly one pops."""

        async def scenario(aio: AsyncKVStore) -> None:
            for number in range(5):
                key = f"k{number}"
                won = await asyncio.gather(*(aio.add(key, me, "n") for me in range(_TASKS)))
                assert won.count(True) == 1
                got = await asyncio.gather(
                    *(aio.pop(key, "n", default="nothing") for _ in range(_TASKS))
                )
                assert got.count("nothing") == _TASKS - 1
                assert won.index(True) in got

        self.run(store, scenario)

    def test_many_at_once(self, store: KVStoreProtocol) -> None:
        """A hundred operations at the same time all come back."""

        async def scenario(aio: AsyncKVStore) -> None:
            await asyncio.gather(*(aio.set(f"k{number}", number, "n") for number in range(100)))
            got = await asyncio.gather(*(aio.get(f"k{number}", "n") for number in range(100)))
            assert got == list(range(100))

        self.run(store, scenario)

    def test_a_lock_lets_one_in(self, store: KVStoreProtocol) -> None:
        """Inside lock() is one task at a time, and the lock is the plain store's too."""

        async def scenario(aio: AsyncKVStore) -> None:
            inside: List[int] = []

            async def work(me: int) -> None:
                async with aio.lock("key", "n"):
                    inside.append(me)
                    assert inside == [me]
                    await aio.set("key", me, "n")
                    inside.remove(me)

            await asyncio.gather(*(work(me) for me in range(4)))
            async with aio.lock("key", "n"):
                with pytest.raises(LockTimeoutError), store.lock("key", "n", timeout=0):
                    raise AssertionError("two were inside")
                with pytest.raises(LockTimeoutError):
                    async with aio.lock("key", "n", timeout=0):
                        raise AssertionError("two were inside")
            async with aio.lock("key", "n", timeout=0):
                pass

        self.run(store, scenario)

    # ------------------------------------------------------------------ views

    def test_a_namespace(self, store: KVStoreProtocol) -> None:
        """namespace() is the plain store's, nests, has a default ttl, and names full namespaces."""

        async def scenario(aio: AsyncKVStore) -> None:
            async with aio.namespace("a", ttl=1000, clear_on_exit=True) as view:
                await view.set("key", 1)
                await view.set("ever", 2, ttl=NO_EXPIRY)
                await view.namespace("b").set("key", 3)
                assert (store.get("key", "a"), store.get("key", "a:b")) == (1, 3)
                left = await view.ttl("key")
                assert left is not None and 900 < left <= 1000.001
                assert await view.ttl("ever") is None
                assert await view.list_namespaces() == ["b"]
                assert sorted(await _all(view.iter_keys())) == ["ever", "key"]
                assert await _all(view.iter_keys("b")) == ["key"]
                with pytest.raises(KeyNotFoundError) as caught:
                    await view.get("absent")
                assert caught.value.namespace == self.full_namespace("a")
            assert store.keys("a") == []
            assert store.keys("a:b") == ["key"]

        self.run(store, scenario)

    def test_a_view_in_async_with(self, store: KVStoreProtocol) -> None:
        """A plain view works in async with, and clears itself there."""

        async def scenario(aio: AsyncKVStore) -> None:
            async with store.namespace("a", clear_on_exit=True) as view:
                await view.aio.set("key", 1)
                assert store.exists("key", "a")
            assert not store.exists("key", "a")

        self.run(store, scenario)
