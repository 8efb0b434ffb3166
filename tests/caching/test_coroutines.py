"""`@cached` on coroutine functions, and `store.aio` under it."""

from __future__ import annotations

import asyncio
import inspect
import threading
from dataclasses import dataclass
from typing import Any, List

import pytest

from kv_store_adapter import KVStoreProtocol, MemoryKVStore, NamespaceView, cached


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
        with pytest.raises(KeyError):
            await api.load.peek(1)
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
