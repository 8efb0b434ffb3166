"""`@cached_many`: ids from the store in one round trip, the rest from the function in one call."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Dict, List

import pytest

from kv_store_adapter import (
    KVStoreProtocol,
    MemoryKVStore,
    PickleSerializer,
    StoreUnavailableError,
    cached_many,
    caching_disabled,
)


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


def test_bad_options_are_refused() -> None:
    """Every bad option is refused at decoration, by name."""
    for options, error, message in (
        ({"on_error": "ignore"}, ValueError, "on_error= is one of 'compute', 'raise'"),
        ({"version": 1.5}, TypeError, "version= is a str or an int"),
        ({"namespace": ""}, ValueError, "can't be empty"),
        ({"ttl": 0}, ValueError, "above zero"),
        ({"ttl": 9, "jitter": 2}, ValueError, "jitter="),
        ({"jitter": 0.5}, ValueError, "need a ttl"),
        ({"ttl": lambda result, ids: 60}, TypeError, "ttl= .* not a function"),
    ):
        with pytest.raises(error, match=message):
            cached_many(MemoryKVStore(), **options)(lambda ids: {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a store"):
        cached_many({})  # type: ignore[arg-type]


def test_two_functions_never_share_items(store: KVStoreProtocol) -> None:
    """Lambdas of one name are refused, and another version= sees none of the old items."""
    first = cached_many(store)(lambda ids: dict.fromkeys(ids, "first"))
    with pytest.raises(ValueError, match="namespace="):
        cached_many(store)(lambda ids: dict.fromkeys(ids, "second"))

    def load(ids: List[int]) -> Dict[int, str]:
        return dict.fromkeys(ids, answer)

    answer = "old"
    assert cached_many(store, version=1)(load)([1]) == {1: "old"}
    answer = "new"
    assert cached_many(store, version=2)(load)([1]) == {1: "new"}
    assert cached_many(store, version=1)(load)([1]) == {1: "old"}
    assert first([1]) == {1: "first"}


def test_ignored_parameters_do_not_count(store: KVStoreProtocol) -> None:
    """ignore= takes one name or several, as that of cached does."""
    for ignore in ("session", ("session", "log")):

        @cached_many(store, ignore=ignore, namespace=f"n-{ignore}")
        def load(ids: List[int], session: object = None, log: Any = None) -> Dict[int, int]:
            return {i: -i for i in ids}

        assert load([1], object()) == load([1], session=object()) == {1: -1}
        assert load.cache_info()[:2] == (1, 1)


def test_methods_of_every_kind(store: KVStoreProtocol) -> None:
    """Class methods, static methods, and methods asked of their class: the ids are found in all."""

    class Repo:
        def __cache_key__(self) -> str:
            return "repo"

        @cached_many(store)
        def plain(self, ids: List[int]) -> Dict[int, int]:
            return {i: -i for i in ids}

        @cached_many(store)
        @classmethod
        def of_class(cls, ids: List[int]) -> Dict[int, str]:
            return dict.fromkeys(ids, cls.__name__)

        @cached_many(store)
        @staticmethod
        def of_none(ids: List[int]) -> Dict[int, int]:
            return {i: i for i in ids}

    class Derived(Repo):
        pass

    repo = Repo()
    assert repo.plain([1]) == Repo.plain(repo, [1]) == {1: -1}
    assert Repo.of_class([1]) == repo.of_class([1]) == {1: "Repo"}
    assert Derived.of_class([1]) == {1: "Derived"}
    assert Repo.of_none([1]) == repo.of_none([1]) == {1: 1}
    assert Repo.of_class.cache_parameters()["ids"] == "ids"
    for each, hits, misses in ((Repo.plain, 1, 1), (Repo.of_class, 1, 2), (Repo.of_none, 1, 1)):
        assert each.cache_info()[:2] == (hits, misses)


def test_errors_say_which_function_and_what() -> None:
    """Errors name the function by its qualified name, or by its place, and what it returned."""
    store = MemoryKVStore()

    class Repo:
        @staticmethod
        def load(ids: List[int], kind: Any) -> Any:
            return kind(ids)

    mine = f"{Repo.load.__qualname__}\\(\\) "
    load = cached_many(store)(Repo.load)
    nameless = cached_many(store, namespace="place")(functools.partial(Repo.load, kind=tuple))
    with pytest.raises(TypeError, match=f"^{mine}takes a list"):
        load("ab", list)
    with pytest.raises(TypeError, match=f"^{mine}returned a tuple, not a dictionary"):
        load([1], tuple)
    with pytest.raises(TypeError, match=r"^place\(\) returned a tuple"):
        nameless([1])


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


def test_one_store_is_switched_off_and_another_is_not() -> None:
    """caching_disabled(store) reaches functions of many ids in that store and its views only."""
    store, other = MemoryKVStore(), MemoryKVStore()
    load = cached_many(store.namespace("view"), namespace="n")(lambda ids: dict.fromkeys(ids))
    load([1])
    with caching_disabled(other):
        load([1])
    assert load.cache_info()[:2] == (1, 1)
    with caching_disabled(store):
        load([1])
        load([2])
    assert load.cache_info()[:2] == (1, 1)
    assert load.peek([1, 2]) == {1: None}


def test_items_live_as_long_as_they_are_told(store: KVStoreProtocol) -> None:
    """ttl= and jitter= are those of each item; without them an item is kept for ever."""

    @cached_many(store, ttl=1000, jitter=0.1, namespace="short")
    def short(ids: List[int]) -> Dict[int, int]:
        return dict.fromkeys(ids, 1)

    @cached_many(store, namespace="ever")
    def ever(ids: List[int]) -> Dict[int, int]:
        return dict.fromkeys(ids, 1)

    short([1, 2]), ever([1, 2])
    for key in store.keys("short"):
        left = store.ttl(key, "short")
        assert left is not None
        assert 890 < left <= 1000.001
    assert [store.ttl(key, "ever") for key in store.keys("ever")] == [None, None]


def test_refresh_replaces_those_asked_for(store: KVStoreProtocol) -> None:
    """refresh() computes all it is given, stored or not, returns them, and leaves the others."""
    calls: List[List[int]] = []

    @cached_many(store)
    def load(ids: List[int]) -> Dict[int, Any]:
        calls.append(list(ids))
        return {i: [i, len(calls)] for i in ids}

    load([1, 2])
    assert load.refresh([2, 3]) == {2: [2, 2], 3: [3, 2]}
    assert load([1, 2, 3]) == {1: [1, 1], 2: [2, 2], 3: [3, 2]} == load.peek([1, 2, 3, 4])
    assert load.bypass([1]) == {1: [1, 3]}
    assert load.invalidate([1, 9]) is True
    assert load.invalidate([1, 9]) is False
    assert load.peek([1, 2]) == {2: [2, 2]}
    assert calls == [[1, 2], [2, 3], [1]]


def test_items_invalidated_meanwhile_are_not_kept(store: KVStoreProtocol) -> None:
    """An item that is invalidated while it is computed goes to the caller alone; others are kept."""

    @cached_many(store)
    def load(ids: List[int]) -> Dict[int, int]:
        load.invalidate([1])
        return dict.fromkeys(ids, 7)

    assert load([1, 2]) == {1: 7, 2: 7}
    assert load.peek([1, 2]) == {2: 7}
    assert len(load._self_cached.flow.board) == 0


class Watched:
    """Calls back when it is serialised: the write of a batch is under way then."""

    def __init__(self, number: int, during: Any) -> None:
        self.number, self.during = number, during

    def __getstate__(self) -> Any:
        self.during()
        return self.number

    def __setstate__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize("how", ["invalidate", "cache_clear"])
def test_items_invalidated_during_the_write_are_not_kept(how: str) -> None:
    """What is invalidated while it is being stored does not come back: not within a process."""
    store = MemoryKVStore(serializer=PickleSerializer())

    @cached_many(store)
    def load(ids: List[int]) -> Dict[int, Any]:
        def during() -> None:
            load.cache_clear() if how == "cache_clear" else load.invalidate([1])

        return {each: Watched(each, during if each == 1 else list) for each in ids}

    assert {key: each.number for key, each in load([1, 2]).items()} == {1: 1, 2: 2}
    assert list(load.peek([1, 2])) == ([2] if how == "invalidate" else [])


def test_refresh_is_the_last_word(store: KVStoreProtocol) -> None:
    """What began before a refresh() and ends after it does not take the place of what that stored."""
    calls: List[int] = []

    @cached_many(store)
    def load(ids: List[int]) -> Dict[int, int]:
        calls.append(1)
        number = len(calls)
        if number == 1:
            assert load.refresh([1]) == {1: 2}
        return dict.fromkeys(ids, number)

    assert load([1, 2]) == {1: 1, 2: 1}
    assert load.peek([1, 2]) == {1: 2, 2: 1}


def test_what_can_be_used_once_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    """A generator goes to the caller alone, with a warning; the other items are kept."""

    @cached_many(MemoryKVStore())
    def load(ids: List[int]) -> Dict[int, Any]:
        return {each: iter_of(each) if each == 1 else each for each in ids}

    def iter_of(number: int) -> Any:
        yield number

    for _ in range(2):
        found = load([1, 2])
        assert (list(found[1]), found[2]) == ([1], 2)
    assert list(load.peek([1, 2])) == [2]
    assert "can be used once only" in caplog.text


def test_what_nobody_asked_for_is_not_kept(store: KVStoreProtocol) -> None:
    """Of what the function returns only the ids it was given count."""

    @cached_many(store)
    def load(ids: List[int]) -> Dict[int, int]:
        return {i: i for i in range(5)}

    assert load([1, 9]) == {1: 1}
    assert load.peek(range(10)) == {1: 1}
    assert load([2, 1]) == {2: 2, 1: 1}
    assert load.cache_info()[:2] == (1, 3)


def test_its_parameters_are_told() -> None:
    """cache_parameters() has what the decorator was told, and where results are stored."""
    store = MemoryKVStore()
    options = {"ttl": 60, "ids": "b", "ignore": ("a",), "version": 2, "jitter": 0.5}
    load = cached_many(store, namespace="n", on_error="raise", **options)(lambda a, b: {})
    assert load.cache_parameters() == {
        "maxsize": None,
        "typed": True,
        "namespace": "n",
        "on_error": "raise",
        **options,
    }
    assert load.cache_key(1, ["x"]) == load.cache_key(2, ["x"])
    assert cached_many(store, namespace="m")(lambda ids: {}).cache_parameters()["ids"] == "ids"


def test_trouble_is_raised_where_told_so() -> None:
    """With on_error="raise" a store that fails to read or to write raises; else it is answered."""

    class Failing(MemoryKVStore):
        fails = ""

        def get_many(self, *args: Any, **kwargs: Any) -> Any:
            if self.fails == "read":
                raise StoreUnavailableError("no reading")
            return super().get_many(*args, **kwargs)

        def set_many(self, *args: Any, **kwargs: Any) -> None:
            if self.fails == "write":
                raise StoreUnavailableError("no writing")
            super().set_many(*args, **kwargs)

    for fails in ("read", "write"):
        store = Failing()
        store.fails = fails
        strict = cached_many(store, on_error="raise", namespace="a")(lambda ids: dict.fromkeys(ids))
        with pytest.raises(StoreUnavailableError, match=f"no {fails[:4]}"):
            strict([1])
        with pytest.raises(StoreUnavailableError, match="a moment ago"):
            strict([1])
        store = Failing()
        store.fails = fails
        lax = cached_many(store, namespace="b")(lambda ids: dict.fromkeys(ids, 3))
        assert [lax([1]), lax([1])] == [{1: 3}, {1: 3}]
        assert lax.cache_info().errors >= 2
