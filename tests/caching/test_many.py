"""`@cached_many`: ids from the store in one round trip, the rest from the function in one call."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List

import pytest

from kv_store_adapter import KVStoreProtocol, MemoryKVStore, cached_many, caching_disabled


def test_only_the_missing_reach_the_function(store: KVStoreProtocol) -> None:
    """Cached ids come from the store; the missing ones in one call, each once, in order."""
    calls: List[List[Any]] = []

    @cached_many(store, ttl=60)
    def load(ids: List[int], scale: int = 1) -> Dict[int, int]:
        calls.append(list(ids))
        return {i: i * scale for i in ids}

    assert load([1, 2]) == {1: 1, 2: 2}
    assert list(load([3, 2, 4, 3])) == [3, 2, 4]
    assert calls == [[1, 2], [3, 4]]
    assert load([1, 2, 3, 4]) == {1: 1, 2: 2, 3: 3, 4: 4}
    assert load([1], scale=5) == {1: 5}
    assert calls == [[1, 2], [3, 4], [1]]
    assert load([]) == {}
    assert len(calls) == 3
    assert load.cache_info()[:2] == (5, 5)


def test_one_round_trip_each_way() -> None:
    """One get_many and one set_many, whatever the number of ids."""
    asked: List[str] = []

    class Counting(MemoryKVStore):
        def get_many(self, *args: Any, **kwargs: Any) -> Any:
            asked.append("get_many")
            return super().get_many(*args, **kwargs)

        def set_many(self, *args: Any, **kwargs: Any) -> None:
            asked.append("set_many")
            super().set_many(*args, **kwargs)

    @cached_many(Counting())
    def load(ids: List[int]) -> Dict[int, int]:
        return dict.fromkeys(ids, 0)

    load(range(100))  # type: ignore[arg-type]
    load(range(150))  # type: ignore[arg-type]
    load(range(150))  # type: ignore[arg-type]
    assert asked == ["get_many", "set_many", "get_many", "set_many", "get_many"]


def test_left_out_ids_are_asked_again(store: KVStoreProtocol) -> None:
    """Ids that the function leaves out are absent from the result, and asked for next time."""
    known = {1: "one"}

    @cached_many(store)
    def load(ids: List[int]) -> Dict[int, str]:
        return {i: known[i] for i in ids if i in known}

    assert load([1, 2]) == {1: "one"}
    known[2] = "two"
    assert load([1, 2]) == {1: "one", 2: "two"}


def test_methods_and_coroutines(store: KVStoreProtocol) -> None:
    """On methods the ids are the parameter after self; coroutine functions are awaited."""

    class Repo:
        def __cache_key__(self) -> str:
            return "repo"

        @cached_many(store)
        async def load(self, ids: List[int]) -> Dict[int, int]:
            calls.append(list(ids))
            return {i: -i for i in ids}

    calls: List[List[int]] = []
    repo = Repo()

    async def main() -> None:
        assert await repo.load([1, 2]) == {1: -1, 2: -2}
        assert await repo.load([2, 3]) == {2: -2, 3: -3}
        assert await repo.load.peek([1, 9]) == {1: -1}
        assert await repo.load.invalidate([1, 2]) is True
        assert await repo.load([2, 3]) == {2: -2, 3: -3}

    asyncio.run(main())
    assert calls == [[1, 2], [3], [2]]


def test_mistakes_are_told() -> None:
    """One id instead of many, a result that is no dictionary, and bad options are refused."""
    store = MemoryKVStore()

    @cached_many(store)
    def load(ids: Any) -> Any:
        return list(ids)

    with pytest.raises(TypeError, match="Write \\[id\\]"):
        load("abc")
    with pytest.raises(TypeError, match="not a dictionary"):
        load([1])
    with pytest.raises(TypeError, match="no parameter"):
        cached_many(store)(lambda: {})  # noqa: PIE807  # a class would be refused as one
    with pytest.raises(ValueError, match="does not have"):
        cached_many(store, ids="x", namespace="a")(lambda y: {})
    with pytest.raises(ValueError, match="can't be ignored"):
        cached_many(store, ignore="y", namespace="b")(lambda y: {})
    assert load.cache_key([1]) == "(ids=1)"
    with pytest.raises(ValueError, match="ask for one"):
        load.cache_key([1, 2])


def test_the_switch_holds_here_too() -> None:
    """caching_disabled() makes it call its function with all ids."""
    calls: List[List[int]] = []

    @cached_many(MemoryKVStore())
    def load(ids: List[int]) -> Dict[int, int]:
        calls.append(list(ids))
        return dict.fromkeys(ids, 1)

    load([1])
    with caching_disabled():
        load([1, 2])
    assert calls == [[1], [1, 2]]
