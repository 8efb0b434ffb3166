"""Bad input: hostile names, wrong ttls and values that won't serialise, through every way in.

What one backend promises through the store, a view and aio is held by `KVStoreContract` and
`AsyncKVStoreContract` (tests/test_contract.py). Here are the other ways in, the ways across (in by
one, out by another), and what a refused write leaves behind.
"""

from __future__ import annotations

import decimal
import itertools
import os
import pickle
import random
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
from ways import BACKENDS, Ground, under_key, writes

from kv_store_adapter import (
    CompressedSerializer,
    DiskKVStore,
    InvalidKeyError,
    InvalidTTLError,
    JSONSerializer,
    KVStoreError,
    MemoryKVStore,
    SerializationError,
    StoreUnavailableError,
    cached,
    cached_many,
)
from kv_store_adapter.testing import samples

#: All texts of up to three of the characters that separate, escape or match somewhere.
TEXTS = [
    "".join(letters)
    for length in range(4)
    for letters in itertools.product(":\\/%a*", repeat=length)
]

#: Longer than any backend's own names, and as long as a key may be.
LONGEST = ["x" * 65536, "🙂" * 16384]

WRONG_TTLS = [
    *((bad, InvalidTTLError) for bad in samples.WRONG_TTLS),
    *((bad, TypeError) for bad in samples.WRONG_TTL_TYPES),
]
WRONG_KEYS = [
    *((bad, InvalidKeyError) for bad in samples.WRONG_TEXTS),
    *((bad, TypeError) for bad in samples.WRONG_TYPES),
]


@pytest.fixture(params=BACKENDS)
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None
    made = Ground(request.param, tmp_path, server)
    yield made
    made.close()


# ---------------------------------------------------------------------- rule 1: keys, namespaces


def test_no_two_short_places_meet(ground: Ground, rounds: Any, count: Any, seed: int) -> None:
    """All pairs of (namespace, key) up to length 3 over separators are entries of their own."""
    store = ground.open()
    named = random.Random(seed).sample(
        TEXTS[1:], rounds(10, 60 if ground.kind == "files" else len(TEXTS) - 1)
    )
    names: List[Optional[str]] = [None, *named]
    for number, name in enumerate(names):
        items = {key: [name, key] for key in TEXTS}
        # In by three ways in turn, so that these must agree, too.
        if number % 3 == 0:
            store.set_many(items, name)
        elif number % 3 == 1:
            store.as_mapping(name).update(items)
        else:
            ground.wait(store.namespace(name).aio.set_many(items))
    count("pairs of namespace and key that must not meet", len(names) * len(TEXTS))
    for name in names:
        assert store.get_many(TEXTS, name) == {key: [name, key] for key in TEXTS}
        assert sorted(store.keys(name)) == sorted(TEXTS)
    assert sorted(store.list_namespaces()) == sorted(named)
    for gone in named[::2]:
        assert store.clear_namespace(gone) == len(TEXTS)
    assert sorted(store.list_namespaces()) == sorted(named[1::2])
    for name in [None, *named[1::2]]:
        assert store.get_many(TEXTS, name) == {key: [name, key] for key in TEXTS}


@pytest.mark.parametrize("key", [None, "{a}:{b}", "{a}/{b}", "x{b}*{a}", "{a!r}%{b}", "a{a}\\{b}a"])
def test_no_two_calls_meet(key: Optional[str], rounds: Any, seed: int) -> None:
    """All pairs of arguments up to length 3 over separators give keys of their own, in templates."""
    make = cached(MemoryKVStore(), key=key)(lambda a, b: None).cache_key
    texts = random.Random(seed).sample(TEXTS, rounds(130, len(TEXTS)))
    keys = {make(a, b) for a, b in itertools.product(texts, texts)}
    assert len(keys) == len(texts) ** 2


def test_hostile_names_go_in_and_out_by_every_way(
    ground: Ground, rounds: Any, seed: int, count: Any
) -> None:
    """What goes in by a mapping comes out by the store, a view and aio, under any name, and back."""
    store = ground.open()
    keys = [*samples.KEYS, *LONGEST]
    short = random.Random(seed).sample(samples.NAMESPACES, 8)
    for name in [*rounds(short, samples.NAMESPACES), LONGEST[0]]:
        view, expected = store.namespace(name), {key: [name[:9], key] for key in keys}
        view.as_mapping().update(expected)
        assert store.get_many(keys, name) == expected
        assert ground.wait(store.aio.get_many(keys, name)) == expected
        assert ground.wait(view.aio.get_many(keys)) == expected
        assert sorted(store.as_mapping(name)) == sorted(view.keys()) == sorted(keys)
        assert dict(store.as_mapping(name).items()) == expected
        assert all(key in view.as_mapping() for key in keys)
        ground.wait(view.aio.set_many(dict.fromkeys(keys, "again")))
        assert dict(view.as_mapping()) == dict.fromkeys(keys, "again")
        count("hostile names that went through every way", len(keys))
        assert store.list_namespaces() == [name]
        assert view.delete_many(keys) == len(keys)
        assert store.list_namespaces() == []


@pytest.mark.parametrize("key", [None, "{text}", "u:{text}", lambda text: text])
def test_hostile_arguments_of_cached(ground: Ground, key: Any, rounds: Any, seed: int) -> None:
    """Under @cached any text is an argument, each has one entry of its own, in any namespace."""
    store = ground.open()
    for name in random.Random(seed).sample(samples.NAMESPACES, rounds(4, 30)):
        bodies: List[str] = []
        echo = cached(store, namespace=name, key=key)(_echo(bodies))
        for _ in range(2):
            assert [echo(text) for text in samples.KEYS] == [["value of", t] for t in samples.KEYS]
        assert bodies == samples.KEYS
        assert sorted(store.keys(name)) == sorted(map(echo.cache_key, samples.KEYS))
        echo.cache_clear()


def _echo(bodies: List[str]) -> Any:
    def echo(text: str) -> List[str]:
        bodies.append(text)
        return ["value of", text]

    return echo


@pytest.mark.parametrize(("bad", "error"), WRONG_KEYS)
def test_bad_keys_change_nothing_anywhere(ground: Ground, bad: Any, error: Any) -> None:
    """Mappings and @cached refuse what can't be a key with the contract's error, and run no body."""
    store = ground.open()
    mapping = store.as_mapping("n")
    mapping["fine"] = "old"
    if error is TypeError:
        assert bad not in mapping
        assert mapping.get(bad, "absent") == mapping.pop(bad, "absent") == "absent"
        for read in (mapping.__getitem__, mapping.__delitem__, mapping.pop):
            with pytest.raises(KeyError):
                read(bad)
    refused: List[Callable[[], Any]] = [
        lambda: mapping.__setitem__(bad, 1),
        lambda: mapping.setdefault(bad, 1),
        lambda: mapping.update([("fine", "new"), (bad, 1)]),
    ]
    for on_error in ("compute", "raise"):
        function = under_key(store, bad, on_error=on_error)(lambda: mapping.clear())
        refused += [function, function.peek, function.invalidate]
        # refresh() computes first: it is told by the store.
        refused.append(under_key(store, bad, on_error=on_error)(lambda: "new").refresh)
        awaited = under_key(store, bad, on_error=on_error)(_clearing(mapping))
        refused += [lambda awaited=awaited: ground.wait(awaited())]
    for call in refused:
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
    assert dict(mapping) == {"fine": "old"}


def _clearing(mapping: Any) -> Any:
    async def clear() -> None:
        mapping.clear()

    return clear


# ---------------------------------------------------------------------- rule 3: ttl


@pytest.mark.parametrize("inside", [False, True], ids=["store", "view"])
def test_bad_ttls_change_nothing_awaited(ground: Ground, inside: bool) -> None:
    """Each awaitable operation that takes a ttl refuses a bad one, before anything is changed."""
    store = ground.open()
    store.set("fine", "old", "n", 1000)
    aio = store.namespace("n").aio if inside else store.aio
    here: Any = {} if inside else {"namespace": "n"}
    calls: List[Callable[[Any], Any]] = [
        lambda bad: aio.set("fine", "new", ttl=bad, **here),
        lambda bad: aio.add("absent", "new", ttl=bad, **here),
        lambda bad: aio.touch("fine", ttl=bad, **here),
        lambda bad: aio.set_many({"fine": 1, "absent": 1}, ttl=bad, **here),
        lambda bad: aio.namespace("a", ttl=bad),
        lambda bad: aio.lock("fine", ttl=bad),
    ]
    for bad, error in WRONG_TTLS:
        for call in calls:
            with pytest.raises(error) as caught:
                ground.wait(call(bad))
            assert type(caught.value) is error, bad
        assert samples.contents(store, [None, "n"]) == {None: {}, "n": {"fine": "old"}}, bad
        assert 900 < store.ttl("fine", "n") <= 1000.001, bad


@pytest.mark.parametrize("decorator", [cached, cached_many])
@pytest.mark.parametrize(("bad", "error"), WRONG_TTLS)
def test_bad_ttls_are_refused_at_decoration(decorator: Any, bad: Any, error: Any) -> None:
    """A bad ttl= or stale= is refused at decoration, with the contract's error."""
    store = MemoryKVStore()
    for options in ({"ttl": bad}, {"ttl": 5, "stale": bad}):
        if decorator is cached_many and "stale" in options:
            continue  # it has none
        with pytest.raises(error) as caught:
            decorator(store, **options)(lambda ids: {})
        assert type(caught.value) is error


def test_bad_ttls_of_results_store_nothing(ground: Ground) -> None:
    """A ttl= function that gives a bad ttl raises the contract's error, and nothing is stored."""
    store = ground.open()
    for (bad, error), on_error in itertools.product(WRONG_TTLS, ("compute", "raise")):
        store.set("key", "old", "n", 1000)
        function = under_key(store, ttl=_returning(bad), on_error=on_error)(lambda: "new")
        with pytest.raises(error):
            function.refresh()
        assert store.get("key", "n") == "old" and store.ttl("key", "n") > 900, bad
        store.delete("key", "n")
        with pytest.raises(error):
            function()
        assert store.keys("n") == [], bad


# ---------------------------------------------------------------------- rule 2: values


class Refuses:
    """Says how to be pickled by raising."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Mumbles(Exception):
    def __str__(self) -> str:
        raise ValueError("no text, either")


class Endless:
    def __reduce__(self) -> Any:
        return list, (Endless(),)


class Lies:
    def __reduce__(self) -> Any:
        return 5


WONT_PICKLE: Dict[str, Callable[[], Any]] = {
    "a lambda": lambda: lambda: None,
    "a generator in a list": lambda: [(x for x in "ab")],
    "an open file": lambda: open(os.devnull),  # closed by the garbage collector
    "a lock": threading.Lock,
    "raises": lambda: Refuses(ValueError("no")),
    "raises what has no text": lambda: Refuses(Mumbles()),
    "stops an iteration": lambda: Refuses(StopIteration()),
    "one of ours": lambda: Refuses(StoreUnavailableError("no")),
    "no memory": lambda: Refuses(MemoryError()),
    "endless": Endless,
    "lies": Lies,
    "late in a large value": lambda: [b"x" * 2_000_000, lambda: None],
}
WONT_JSON: Dict[str, Callable[[], Any]] = {
    **WONT_PICKLE,
    "a tuple": lambda: (1, 2),
    "a number as key": lambda: {1: 2},
    "nan": lambda: [float("nan")],
    "infinite": lambda: float("-inf"),
    "bytes": lambda: b"x",
    "half a character": lambda: {"x": "\ud800"},
    "a decimal": lambda: decimal.Decimal(1),
}


def _unharmed(ground: Ground, store: Any) -> None:
    assert samples.contents(store, [None, "n"]) == {None: {}, "n": {"key": "old"}}
    assert 900 < store.ttl("key", "n") <= 1000.001


@pytest.mark.usefixtures("deep_stack")
@pytest.mark.parametrize("kind", ["pickle", "json"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the open file
def test_what_wont_serialise_changes_nothing(ground: Ground, kind: str, count: Any) -> None:
    """A value that won't serialise is a SerializationError by every way in; nothing is left of it."""
    store = ground.open(pickle if kind == "pickle" else JSONSerializer())
    store.set("key", "old", "n", 1000)
    before = ground.files()
    for name, make in (WONT_PICKLE if kind == "pickle" else WONT_JSON).items():
        for way, write in writes(ground, store).items():
            with pytest.raises(SerializationError, match="Nothing was stored") as caught:
                write(make())
            assert type(caught.value) is SerializationError, (name, way)
            pickle.loads(pickle.dumps(caught.value))
            count("values that would not serialise")
        _unharmed(ground, store)
        assert ground.files() == before, name
    for write in writes(ground, store).values():
        write("fine")  # whatever they held on the way is given back
    assert store.get("key", "n") == "fine"


def _returning(value: Any) -> Any:
    return lambda *_: value


@pytest.mark.usefixtures("deep_stack")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_wont_serialise_is_still_an_answer(ground: Ground) -> None:
    """Under @cached a result that won't serialise is returned; the old one stays in the store."""
    store = ground.open()
    store.set("key", "old", "n", 1000)
    for make in WONT_PICKLE.values():
        result = make()
        assert under_key(store)(_returning(result)).refresh() is result
        assert under_key(store, "other")(_returning(result))() is result
    _unharmed(ground, store)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_while_serialising_passes_through(ground: Ground, error: Any) -> None:
    """An interrupt that comes while a value is serialised is raised as it is, and costs nothing."""
    store = ground.open()
    store.set("key", "old", "n", 1000)
    plain = {way: w for way, w in writes(ground, store).items() if not way.startswith("aio")}
    del plain["cached coroutine"]  # a loop that is interrupted so is over
    for write in plain.values():
        with pytest.raises(error):
            write(Refuses(error()))
    _unharmed(ground, store)
    for write in plain.values():
        write("fine")


# ---------------------------------------------------------------------- values that are too large


class AsItIs:
    """Stores bytes as they are: a large value costs no second copy."""

    name = "as it is"

    def dumps(self, value: Any) -> bytes:
        return value if isinstance(value, bytes) else repr(value).encode()

    def loads(self, data: bytes) -> Any:
        return data


def _refused_large(ground: Ground, store: Any, large: Any, error: Any) -> None:
    store.set("key", b"old", "n", 1000)
    before = ground.files()
    for way, write in writes(ground, store).items():
        with pytest.raises(KVStoreError) as caught:
            write(large)
        assert type(caught.value) is error, way
        assert samples.contents(store, [None, "n"]) == {None: {}, "n": {"key": b"old"}}, way
        assert store.ttl("key", "n") > 900
    assert ground.files() == before
    assert under_key(store)(lambda: large).refresh() is large
    store.set("key", b"new", "n")
    assert store.get("key", "n") == b"new"


@pytest.fixture
def redis_ground(tmp_path: Path, redis_server: Any) -> Iterator[Ground]:
    made = Ground("redis", tmp_path, redis_server)
    yield made
    made.close()


def test_a_value_over_the_limit_of_redis(redis_ground: Ground) -> None:
    """A value of more than 512 MiB is a SerializationError by every way in, and is never sent."""
    store = redis_ground.open(AsItIs())
    # All zeros, and never looked at: it takes no memory.
    large = bytes(512 * 1024 * 1024 + 1)
    _refused_large(redis_ground, store, large, SerializationError)
    assert store._client.info("stats")["total_net_input_bytes"] < 1 << 30


@pytest.mark.parametrize("size", [2_000_000, 40_000_000])
def test_a_value_over_the_limit_of_this_server(redis_ground: Ground, size: int) -> None:
    """A server that takes less refuses or hangs up: one typed error, old value and connection stay."""
    store = redis_ground.open(AsItIs())
    usual = store._client.config_get("proto-max-bulk-len")
    store._client.config_set("proto-max-bulk-len", 1 << 20)
    try:
        _refused_large(redis_ground, store, b"x" * size, StoreUnavailableError)
    finally:
        store._client.config_set("proto-max-bulk-len", usual["proto-max-bulk-len"])


@pytest.mark.parametrize("size", [1_000_000_001, 1 << 31])
def test_a_value_over_the_limit_of_the_index(tmp_path: Path, size: int) -> None:
    """A value that is no file and too large for SQLite is a typed error, and the old one stays."""
    with DiskKVStore(tmp_path / "store", serializer=AsItIs(), spill_threshold=1 << 40) as store:
        store.set("key", b"old")
        large = bytes(size)
        for write in (store.set, store.add):
            with pytest.raises(KVStoreError):
                write("key", large)
        with pytest.raises(KVStoreError):
            store.set_many({"key": large})
        assert store.get("key") == b"old"


def test_a_value_over_the_limit_of_its_serializer(ground: Ground) -> None:
    """What CompressedSerializer could not read again is refused when it is written."""
    store = ground.open(CompressedSerializer(AsItIs(), limit=1000))
    _refused_large(ground, store, b"x" * 1001, SerializationError)
