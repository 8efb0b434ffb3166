"""The bookkeeping of `@cached` over long runs: nothing per key, call, instance or function is kept."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pytest
from cached_child import wait_for
from plateau import KINDS, opener_of, used

from kv_store_adapter import KVStoreProtocol, MemoryKVStore, cached, leases, renewal, thread_lease
from kv_store_adapter.caching import decorator, drivers, flights, health


@pytest.fixture(params=KINDS)
def opener(request: Any) -> Callable[[], KVStoreProtocol]:
    return opener_of(request.param, request)


OPTIONS = [{}, {"lock": "store"}, {"ttl": 0.001, "stale": 60}, {"tags": ("t",)}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_instances_behind_cached_methods_die(options: Any, opener: Any, rounds: Any) -> None:
    """Hundreds of instances, some of whose bodies raise, are collected once their calls are over."""
    store = opener()

    class Heavy:
        def __init__(self, number: int) -> None:
            self.number = number

        def __cache_key__(self) -> int:
            return self.number % 50

        @cached(store, **options)
        def plain(self, x: int) -> int:
            if x < 0:
                raise ValueError(x)
            return x

        @cached(store, **options)
        async def awaited(self, x: int) -> int:
            await asyncio.sleep(0)
            return self.plain(x)

        @cached(store, ignore=("self",), **options)
        def ignored(self, x: int) -> int:
            return x

    async def tasks(one: Heavy) -> None:
        await asyncio.gather(*[one.awaited(x) for x in (1, 1, 2)])
        cancelled = asyncio.ensure_future(one.awaited(one.number + 10))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, one.awaited(-1), return_exceptions=True)

    def use(number: int) -> Any:
        one = Heavy(number)
        for x in (1, 1, number):
            assert one.plain(x) == one.ignored(x) == x
        with pytest.raises(ValueError):
            one.plain(-1)
        one.plain.refresh(1)
        one.plain.invalidate(1)
        if number % 10 == 0:
            asyncio.run(tasks(one))
        return weakref.ref(one)

    with store:
        gone = [use(number) for number in range(rounds(60, 300))]
        boards = [f._self_cached.flow.board for f in (Heavy.plain, Heavy.awaited, Heavy.ignored)]
        wait_for(lambda: not any(len(board) for board in boards))
        # The threads of refreshes may be ending still.
        wait_for(lambda: gc.collect() >= 0 and not [ref for ref in gone if ref() is not None], 20)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_bookkeeping_per_key_empties_itself(
    options: Any, opener: Any, rounds: Any, seed: int, count: Any
) -> None:
    """Thousands of keys, from threads and tasks, with errors and refreshes, leave nothing per key behind."""
    store, number = opener(), rounds(60, 2000)
    chance = random.Random(seed)

    @cached(store, namespace="plain", lock_timeout=30, **options)
    def f(key: int) -> int:
        if key % 7 == 0:
            raise LookupError(key)
        return key

    @cached(store, namespace="awaited", lock_timeout=30, **options)
    async def g(key: int) -> int:
        await asyncio.sleep(0)
        return f(key)

    @cached(store, namespace="unserialisable", **options)
    def h(key: int) -> Any:
        return lambda: key

    def work(key: int) -> None:
        for _ in range(2):
            try:
                f(key // 2)
            except LookupError:
                pass
        h(key)
        if chance.random() < 0.1:
            f.invalidate(key)

    async def tasks(first: int) -> None:
        running = [asyncio.ensure_future(g(first + key // 2)) for key in range(100)]
        await asyncio.sleep(0)
        for task in chance.sample(running, 20):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def turn(first: int, size: int) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(first, first + size), timeout=150))
        asyncio.run(tasks(first))
        store.clear_namespace("plain")
        store.clear_namespace("awaited")
        store.clear_namespace("unserialisable")
        store.clear_namespace("kv-store-adapter.tags")
        flows = [function._self_cached.flow for function in (f, g, h)]
        wait_for(lambda: not any(len(flow.board) for flow in flows))
        wait_for(lambda: not g._self_cached.driver._tasks)
        assert all(not flow.board._flights and not flow.board._alone for flow in flows)

    with store:
        # 4096 keys of recent calls are remembered, so that much may come before the plateau.
        turn(0, rounds(60, 2000))
        warned, before = len(health._last_warned), used()
        for part in range(3):
            turn(100_000 * (part + 1), number // 3)
        assert len(health._last_warned) <= warned + 5
        assert not thread_lease._thread_locks
        assert not leases._giving_back
        assert flights.chain.get() == ()
        assert all(keeper._next() is None for keeper in renewal._keepers.values())
        # All sixteen places for refreshes in the background were given back.
        wait_for(lambda: drivers._refreshing._value == 16)
        assert used() < before + rounds(400_000, 1_000_000)
        count("keys of @cached in long runs", number)


def test_functions_that_come_and_go(opener: Any, rounds: Any, count: Any) -> None:
    """Functions that are cached and dropped by the thousand, each in its own namespace, are forgotten."""
    with opener() as store:
        for index in range(rounds(80, 1500)):
            f = cached(store, namespace=f"session {index}")(lambda x: x)
            if index % 10 == 0:
                assert f(1) == f(1) == 1
                f.cache_clear()
            count("functions decorated and dropped")
        del f
        gc.collect()
        assert len(decorator._places[store]) < 10
        assert len(flights._boards) < 50


def test_namespaces_of_functions_that_come_and_go(rounds: Any) -> None:
    """A memory store drops the table of a namespace that is empty once the functions that read it are gone."""
    store = MemoryKVStore()
    for index in range(rounds(80, 1500)):
        f = cached(store, namespace=f"session {index}")(lambda x: x)
        assert f(1) == f(1) == 1
        f.cache_clear()
    del f
    gc.collect()
    assert len(store._tables) < 10


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_functions_made_again_and_again(options: Any, rounds: Any) -> None:
    """A function that is decorated anew in every call of another one costs no memory in the end."""
    store = MemoryKVStore()

    def outer(number: int) -> None:
        @cached(store, **options)
        def inner(x: int) -> int:
            return x

        assert inner(number) == inner(number) == number
        inner.cache_clear()

    def some(number: int) -> int:
        for index in range(number):
            outer(index)
        wait_for(lambda: drivers._refreshing._value == 16)
        return used()

    before = some(100)
    assert some(rounds(150, 1500)) < before + 60_000
    assert len(flights._boards) < 50
