"""`@cached` on coroutine functions, and `store.aio` under it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Dict, List

import pytest
import time_machine

from kv_store_adapter import (
    KeyNotFoundError,
    KVStoreProtocol,
    MemoryKVStore,
    NamespaceView,
    cached,
    cached_many,
)


def test_awaits_and_remembers(store: KVStoreProtocol) -> None:
    """The result is stored, never the coroutine; the function stays a coroutine function."""
    calls: List[int] = []

    @cached(store, ttl=60)
    async def f(x: int, y: int = 2) -> List[int]:
        calls.append(x)
        return [x, y]

    async def main() -> None:
        assert await f(1) == await f(1, 2) == await f(x=1, y=2) == [1, 2]

    asyncio.run(main())
    assert calls == [1]
    assert inspect.iscoroutinefunction(f)
    assert f.cache_info()[:2] == (2, 1)


def test_exceptions_pass(store: KVStoreProtocol) -> None:
    """What the coroutine raises is raised, and not remembered."""
    calls: List[int] = []

    @cached(store)
    async def f(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            raise KeyError("once")
        return x

    async def main() -> int:
        with pytest.raises(KeyError, match="once"):
            await f(1)
        return await f(1)

    assert asyncio.run(main()) == 1


def test_handles_are_awaited(store: KVStoreProtocol) -> None:
    """invalidate, refresh, peek, bypass and cache_clear are awaited; the rest is plain."""

    @dataclass
    class Api:
        base: str

        @cached(store)
        async def load(self, page: int) -> List[Any]:
            calls.append(page)
            return [self.base, page, len(calls)]

    calls: List[int] = []
    api = Api("x")

    async def main() -> None:
        assert await api.load(1) == ["x", 1, 1]
        assert await api.load.peek(1) == ["x", 1, 1]
        assert await api.load.refresh(1) == ["x", 1, 2]
        assert await api.load.bypass(1) == ["x", 1, 3]
        assert await api.load(1) == ["x", 1, 2]
        assert await api.load.invalidate(1) is True
        assert await api.load.invalidate(1) is False
        with pytest.raises(KeyNotFoundError) as info:
            await api.load.peek(1)
        assert info.value.key == api.load.cache_key(1)
        assert info.value.namespace == api.load.cache_parameters()["namespace"]
        await api.load(1)
        await api.load.cache_clear()
        with pytest.raises(KeyError):
            await api.load.peek(1)
        assert api.load.cache_info().hits == 0
        assert isinstance(api.load.cache_key(1), str)

    asyncio.run(main())
    assert inspect.iscoroutinefunction(api.load)


def test_several_loops_one_after_another(store: KVStoreProtocol) -> None:
    """A program may run one event loop after another with the same function and store."""

    @cached(store)
    async def f(x: int) -> int:
        return x

    assert [asyncio.run(f(1)) for _ in range(5)] == [1] * 5
    assert f.cache_info().hits == 4


def test_the_loop_is_never_blocked(shared_store: KVStoreProtocol) -> None:
    """No disk or network call runs on the event loop's thread."""
    loops_thread = threading.get_ident()
    seen: List[str] = []

    if hasattr(shared_store, "_database"):
        database = shared_store._database
        take = database._take

        def watched() -> Any:
            if threading.get_ident() == loops_thread:
                seen.append("disk")
            return take()

        database._take = watched
    else:
        client = shared_store._client
        ask = client.execute_command

        def watched_ask(*args: Any, **kwargs: Any) -> Any:
            seen.append(args[0])
            return ask(*args, **kwargs)

        client.execute_command = watched_ask

    @cached(shared_store, ttl=60, stale=60, tags=("t",), lock="store")
    async def f(x: int) -> int:
        return x

    async def main() -> None:
        assert await f(1) == await f(1) == 1
        await f.refresh(1)
        await shared_store.aio.invalidate_tag("t")
        await f(1)
        await f.cache_clear()

    asyncio.run(main())
    if hasattr(shared_store, "_database"):
        assert seen == []
    else:
        # The lock alone is redis-py's plain one, in a thread; all else is redis.asyncio.
        assert "GET" not in seen
        assert set(seen) <= {"SET", "EVALSHA", "SCRIPT LOAD", "EVAL"}


def test_views_in_async_with() -> None:
    """A view works in `async with`, and clears itself on the way out if told to."""
    store = MemoryKVStore()

    async def main() -> None:
        async with store.namespace("job", clear_on_exit=True) as view:
            assert isinstance(view, NamespaceView)
            await view.aio.set("a", 1)
            assert await store.aio.get("a", "job") == 1
        assert await store.aio.list_namespaces() == []
        with pytest.raises(ZeroDivisionError):
            async with store.aio.namespace("job", clear_on_exit=True) as inner:
                await inner.set("a", 1)
                raise ZeroDivisionError
        assert not await store.aio.exists("a", "job")

    asyncio.run(main())


def test_results_expire() -> None:
    """After its ttl a coroutine's result is computed anew, and so is each item of many."""
    calls: List[Any] = []
    store = MemoryKVStore()

    @cached(store, ttl=30)
    async def one(x: int) -> int:
        calls.append(x)
        return x

    @cached_many(store, ttl=30)
    async def many(ids: List[int]) -> Dict[int, int]:
        calls.append(ids)
        return dict.fromkeys(ids, 1)

    async def both() -> None:
        assert (await one(1), await many([1])) == (1, {1: 1})

    with time_machine.travel(1_700_000_000, tick=False) as clock:
        asyncio.run(both())
        clock.shift(29.999)
        asyncio.run(both())
        assert calls == [1, [1]]
        clock.shift(0.001)
        asyncio.run(both())
        assert calls == [1, [1], 1, [1]]


def test_tags_are_those_of_plain_functions(store: KVStoreProtocol) -> None:
    """A tag means the same to coroutine functions and to plain ones: one token, one invalidation."""
    calls: List[str] = []

    @cached(store, tags=("user:{user}", "all"))
    async def f(user: str) -> int:
        calls.append(f"f {user}")
        return len(calls)

    @cached(store, tags=("user:{user}",))
    def g(user: str) -> int:
        calls.append(f"g {user}")
        return len(calls)

    async def both(user: str) -> List[int]:
        return [await f(user), g(user), await f(user), g(user)]

    async def main() -> None:
        assert [await both("ann"), await both("bob")] == [[1, 2, 1, 2], [3, 4, 3, 4]]
        await store.aio.invalidate_tag("user:ann")
        with pytest.raises(KeyError):
            await f.peek("ann")
        assert [await f.peek("bob"), g.peek("bob")] == [3, 4]
        assert [await both("ann"), await both("bob")] == [[5, 6, 5, 6], [3, 4, 3, 4]]
        store.invalidate_tag("all")
        assert [await both("ann"), await both("bob")] == [[7, 6, 7, 6], [8, 4, 8, 4]]

    asyncio.run(main())


def test_tags_outlive_a_views_default_ttl() -> None:
    """A tag in a view is kept for ever, so that it does not drop results that live longer."""
    view = MemoryKVStore().namespace("v", ttl=60)

    @cached(view, ttl=3600, tags=("t",))
    async def f() -> int:
        return 1

    assert asyncio.run(f()) == 1
    assert view.ttl("t", "kv-store-adapter.tags") is None


def test_who_waits_too_long_computes(caplog: pytest.LogCaptureFixture) -> None:
    """After lock_timeout a task that waits for another one computes for itself, with a warning."""
    calls: List[int] = []

    @cached(MemoryKVStore(), lock_timeout=0.05)
    async def f(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            await asyncio.sleep(600)
        return x

    async def main() -> None:
        stuck = asyncio.ensure_future(f(1))
        while not calls:
            await asyncio.sleep(0)
        assert await asyncio.wait_for(f(1), 30) == 1
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck

    asyncio.run(main())
    assert calls == [1, 1]
    assert "computing it here, too" in caplog.text


def test_invalidated_while_it_is_written_is_not_kept() -> None:
    """An invalidate() between the last look and the end of the write is not lost."""
    truth = ["old"]

    class Overtaken(MemoryKVStore):
        def set(self, *args: Any, **kwargs: Any) -> None:
            if truth == ["old"]:
                truth[:] = ["new"]
                f._self_cached.flow.board.doom(f.cache_key(1))  # as f.invalidate() does at first
            super().set(*args, **kwargs)

    @cached(Overtaken(), namespace="n")
    async def f(x: int) -> str:
        return truth[0]

    assert asyncio.run(f(1)) == "old"
    assert asyncio.run(f(1)) == "new"


def test_invalidating_one_result_reaches_no_other(store: KVStoreProtocol) -> None:
    """What is computed for another call meanwhile is kept."""

    @cached(store)
    async def f(x: int) -> int:
        if x == 1:
            await f.invalidate(2)
        if x == 2:
            await f.invalidate(2)
        return x

    async def main() -> None:
        assert [await f(1), await f(2)] == [1, 2]
        assert await f.peek(1) == 1
        with pytest.raises(KeyError):
            await f.peek(2)

    asyncio.run(main())


def test_what_a_closed_loop_left_holds_nobody_up() -> None:
    """A computation whose event loop was closed is nobody's: the next caller computes at once."""
    hangs = True

    @cached(MemoryKVStore(), ttl=10, stale=60, lock_timeout=600)
    async def f(x: int) -> str:
        if hangs:
            await asyncio.sleep(3600)
        return "new"

    for step in range(4):
        loop = asyncio.new_event_loop()
        task = loop.create_task(f(1))
        with time_machine.travel(1_700_000_000 + 11 * step):
            loop.run_until_complete(asyncio.sleep(0.01))
            if step:
                assert task.result() == "new"  # an old one, and the refresh hangs
            loop.close()
            hangs = False
            assert asyncio.run(asyncio.wait_for(f(1), 60)) == "new"
            assert asyncio.run(asyncio.wait_for(f(1), 60)) == "new"
            hangs = True
        del task, loop
    assert len(f._self_cached.driver._tasks) <= 1  # type: ignore[attr-defined]


def test_who_waits_for_a_loop_that_is_closed_takes_over() -> None:
    """A computation that the garbage collector ends was abandoned: one of those who wait computes."""
    calls: List[int] = []

    @cached(MemoryKVStore(), lock_timeout=600)
    async def f(x: int) -> str:
        calls.append(x)
        await asyncio.sleep(3600 if len(calls) == 1 else 0)
        return "value"

    loop = asyncio.new_event_loop()
    task = loop.create_task(f(1))
    loop.run_until_complete(asyncio.sleep(0.01))
    found: List[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(f(1))))
    thread.start()
    while not f.cache_info().waits:
        threading.Event().wait(0.001)
    loop.close()
    del task, loop
    gc.collect()
    thread.join(60)
    assert found == ["value"]
    assert calls == [1, 1]


def test_a_refresh_is_held_on_to() -> None:
    """A refresh in the background ends, although nobody but asyncio knows its task: that is weak."""
    hangs = False
    waiting: List[Any] = []

    @cached(MemoryKVStore(), ttl=10, stale=60)
    async def f() -> str:
        if not hangs:
            return "old"
        future = asyncio.get_running_loop().create_future()
        waiting.append(weakref.ref(future))
        await future
        return "new"

    async def main() -> None:
        assert await f() == "old"
        while not waiting:
            await asyncio.sleep(0)
        gc.collect()
        assert waiting[0]() is not None
        waiting[0]().set_result(None)
        while await f() == "old":
            await asyncio.sleep(0)
        while f._self_cached.driver._tasks:  # and then it is let go
            await asyncio.sleep(0)

    with time_machine.travel(1_700_000_000, tick=False) as clock:
        assert asyncio.run(f()) == "old"
        clock.shift(11)
        hangs = True
        asyncio.run(asyncio.wait_for(main(), 60))
