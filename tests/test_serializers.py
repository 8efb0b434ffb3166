"""A value to bytes and back: what each serializer takes, refuses, and survives."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import json
import math
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_store_adapter import (
    CompressedSerializer,
    DiskKVStore,
    JSONSerializer,
    MemoryKVStore,
    PickleSerializer,
    RestrictedPickleSerializer,
    SerializationError,
    SignedSerializer,
)
from kv_store_adapter.serializers import Codec, name_of

SECRET = b"0123456789abcdef"

plain_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


class Planted:
    """Unpickling this would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("echo planted",)


class Size(enum.IntEnum):
    SMALL = 1


ALL = [
    PickleSerializer(),
    RestrictedPickleSerializer(),
    JSONSerializer(),
    JSONSerializer(strict=False),
    CompressedSerializer(),
    CompressedSerializer(JSONSerializer(), threshold=0),
    SignedSerializer(SECRET),
    SignedSerializer(SECRET, CompressedSerializer()),
    CompressedSerializer(SignedSerializer(SECRET), threshold=0),
    pickle,
]


@pytest.mark.parametrize("serializer", ALL, ids=name_of)
@given(value=plain_json)
def test_plain_data_comes_back(serializer: Any, value: Any) -> None:
    """Every serializer gives plain data back equal, for any key and namespace."""
    codec = Codec(serializer)
    data = codec.encode(value, "key", "n")
    assert type(data) is bytes
    assert codec.decode(data, "key", "n") == value


@pytest.mark.parametrize("serializer", ALL, ids=name_of)
@given(data=st.binary(max_size=60))
def test_garbage_is_a_serialization_error(serializer: Any, data: bytes) -> None:
    """Bytes from elsewhere are a value or a SerializationError, never another error."""
    try:
        Codec(serializer).decode(data, "key", None)
    except SerializationError as error:
        assert error.__cause__ is not None
        assert "left where it is" in str(error)


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: "a"}, {None: 1}, {True: 1}, {1, 2}, b"x", math.nan, math.inf, Size.SMALL,
     [1, (2,)], {"a": {"b": (1,)}}, object(), collections.OrderedDict(a=1), "\ud800"],
)  # fmt: skip
def test_strict_json_refuses_what_would_change(value: Any) -> None:
    """What JSON would give back as something else is refused when it is written."""
    with pytest.raises(SerializationError, match="Nothing was stored"):
        Codec(JSONSerializer()).encode(value, "key", None)


def test_lenient_json_takes_what_json_takes() -> None:
    """strict=False takes a tuple and gives back what JSON made of it."""
    codec = Codec(JSONSerializer(strict=False))
    assert codec.decode(codec.encode((1, {2: "é"}), "k", None), "k", None) == [1, {"2": "é"}]
    assert json.loads(codec.encode("é", "k", None)) == "é"


@pytest.mark.usefixtures("deep_stack")
def test_a_value_too_deep_is_refused() -> None:
    """A value that nests too deeply for its serializer is a SerializationError."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for serializer in (JSONSerializer(), PickleSerializer()):
        with pytest.raises(SerializationError):
            Codec(serializer).encode(deep, "key", None)
    while deep:  # taken apart by hand: freeing it would recurse as deeply
        deep = deep.pop()


def test_restricted_pickle_runs_nothing_that_was_planted() -> None:
    """Only plain data and the classes it was told of are read; the rest is refused unread."""
    with pytest.raises(pickle.UnpicklingError, match=r"system is not on the list"):
        RestrictedPickleSerializer().loads(pickle.dumps(Planted()))
    harmless = [{1}, dt.timedelta(1), decimal.Decimal("1.1"), collections.deque([1]), 2j]
    serializer = RestrictedPickleSerializer()
    assert serializer.loads(serializer.dumps(harmless)) == harmless
    with pytest.raises(pickle.UnpicklingError, match=r"Size is not on the list"):
        serializer.loads(pickle.dumps(Size.SMALL))
    assert RestrictedPickleSerializer(allow=[Size]).loads(pickle.dumps(Size.SMALL)) is Size.SMALL
    for name in ("builtins.eval", "builtins.getattr", "os.system"):
        module, _, attribute = name.rpartition(".")
        data = b"c" + module.encode() + b"\n" + attribute.encode() + b"\n."
        with pytest.raises(pickle.UnpicklingError):
            serializer.loads(data)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_restricted_pickle_writes_nothing_that_it_can_t_read(protocol: int) -> None:
    """A class that is not on the list is refused when it is stored: what was there stays."""
    with MemoryKVStore(serializer=RestrictedPickleSerializer([Size], protocol)) as store:
        for value in (Size.SMALL, [b"\x93 \x82 c", "c\x93"], {1, 2}, collections.deque([2])):
            store.set("key", value)
            for refused in (Planted(), [1, {"a": Planted()}], collections.Counter("a"), len):
                with pytest.raises(SerializationError, match="is not on the list"):
                    store.set("key", refused)
            assert store.get("key") == value


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PickleSerializer(99), ValueError, "protocols up to"),
        (lambda: PickleSerializer("4"), TypeError, "protocol is an int, not str"),
        (lambda: RestrictedPickleSerializer(protocol=99), ValueError, "protocols up to"),
        (lambda: CompressedSerializer(level=99), ValueError, "from 1 .* to 9 .* not 99"),
        (lambda: CompressedSerializer(level=0), ValueError, "from 1 .* to 9 .* not 0"),
        (lambda: CompressedSerializer(threshold="x"), TypeError, "threshold= is an int, not str"),
        (lambda: CompressedSerializer(threshold=-1), ValueError, "numbers of bytes: -1"),
        (lambda: CompressedSerializer(limit=-1), ValueError, "numbers of bytes: 512, -1"),
        (lambda: CompressedSerializer(limit=True), TypeError, "limit= is an int, not bool"),
    ],
)
def test_what_no_serializer_can_do_is_refused_when_it_is_made(
    make: Any, error: Any, message: str
) -> None:
    """An option that could only fail at the first write, or later, is told at once."""
    with pytest.raises(error, match=message):
        make()


def test_compressed_is_smaller_and_bounded() -> None:
    """Large values shrink, small ones stay as they are, and a bomb stops at the limit."""
    serializer = CompressedSerializer(limit=100_000)
    assert len(serializer.dumps("x" * 90_000)) < 1000
    assert serializer.dumps("x") == b"\0" + PickleSerializer().dumps("x")
    with pytest.raises(ValueError, match="limit"):
        serializer.dumps("x" * 100_001)
    bomb = b"\1" + zlib.compress(b"\0" * 10_000_000)
    with pytest.raises(ValueError, match="limit"):
        serializer.loads(bomb)
    whole = CompressedSerializer().dumps("x" * 10_000)
    for torn in (whole[:-1], whole[:20], b"", b"\2" + whole[1:], whole + b"more"):
        with pytest.raises(Exception, match=r"\w"):
            CompressedSerializer().loads(torn)


@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_every_changed_bit_is_noticed(position: int, bit: int) -> None:
    """A signed value with any bit changed is refused, before it is unpickled."""
    codec = Codec(SignedSerializer(SECRET))
    data = bytearray(codec.encode(["value"], "key", "n"))
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(SerializationError, match="signature|not signed"):
        codec.decode(bytes(data), "key", "n")


@pytest.mark.parametrize(
    ("key", "namespace"),
    [("other", "n"), ("key", None), ("ke", "yn"), ("keyn", None), ("", "nkey")],
)
def test_a_signed_value_stays_in_its_place(key: str, namespace: Any) -> None:
    """A signed value moved to another key or namespace is refused."""
    codec = Codec(SignedSerializer(SECRET))
    data = codec.encode("value", "key", "n")
    assert codec.decode(data, "key", "n") == "value"
    with pytest.raises(SerializationError, match="signature does not fit"):
        codec.decode(data, key, namespace)


def test_a_signature_hangs_on_secret_and_inner_serializer() -> None:
    """Another secret is refused unless accepted; bytes of another inner serializer are refused."""
    old, new = SignedSerializer(SECRET), SignedSerializer(b"another secret 16", accept=[SECRET])
    data = old.dumps_at(1, "key", None)
    assert new.loads_at(data, "key", None) == 1
    with pytest.raises(ValueError, match="signature"):
        old.loads_at(new.dumps_at(1, "key", None), "key", None)
    with pytest.raises(ValueError, match="signature"):
        SignedSerializer(SECRET, JSONSerializer()).loads_at(data, "key", None)


def test_a_secret_stays_secret() -> None:
    """A secret is long enough, in no repr, and does not travel in a pickle."""
    for bad, error in (("text" * 5, TypeError), (b"short", ValueError)):
        with pytest.raises(error):
            SignedSerializer(bad)  # type: ignore[arg-type]  # the promise
    serializer = SignedSerializer(SECRET)
    assert SECRET.decode() not in repr(serializer)
    with pytest.raises(TypeError, match="does not pickle"):
        pickle.dumps(serializer)
    for call in (lambda: serializer.dumps(1), lambda: serializer.loads(b"")):
        with pytest.raises(TypeError, match="_at"):
            call()


def test_a_tampered_entry_is_left_where_it_is(tmp_path: Path) -> None:
    """A store with a signing serializer refuses a planted value from get, and lists it still."""
    with DiskKVStore(tmp_path / "store", serializer=SignedSerializer(SECRET)) as store:
        store.set("key", "value", "n")
        store._database.write("UPDATE entries SET value = ?, size = 3", (b"abc",))
        for call in (store.get, store.pop, store.reader("n")):
            with pytest.raises(SerializationError):
                call(*(("key",) if call not in (store.get, store.pop) else ("key", "n")))
        with pytest.raises(SerializationError):
            store.get_many(["key"], "n")
        assert store.exists("key", "n")
        assert store.keys("n") == ["key"]
        assert store.delete("key", "n")


@pytest.mark.parametrize("bad", [object(), "pickle", 5, zlib])
def test_what_is_no_serializer_is_refused(bad: Any) -> None:
    """A serializer has dumps and loads; anything else is a TypeError when the store is made."""
    with pytest.raises(TypeError, match="dumps"):
        MemoryKVStore(serializer=bad)


def test_a_serializer_must_give_bytes() -> None:
    """A serializer whose dumps gives text is told so, and nothing is stored."""
    store = MemoryKVStore(serializer=json)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(SerializationError, match="not bytes"):
        store.set("key", 1)
    assert not store.exists("key")


def test_names_tell_serializers_apart() -> None:
    """What a folder remembers: one name for those that read the same bytes, else another."""
    names = [name_of(serializer) for serializer in ALL]
    assert names[0] == names[1] == names[-1] == "pickle"
    assert names[2] == names[3] == "json"
    assert len(set(names)) == 7


def test_a_serializer_without_a_dict_of_its_own(tmp_path: Path) -> None:
    """An object with __slots__ is as good a serializer as any."""

    class Slim:
        __slots__ = ()

        def dumps(self, value: Any) -> bytes:
            return bytes(str(value), "utf-8")

        def loads(self, data: bytes) -> Any:
            return data.decode("utf-8")

    with DiskKVStore(tmp_path / "store", serializer=Slim()) as store:
        store.set_many({"a": 1, "b": 2})
        assert store.get_many(["a", "b"]) == {"a": "1", "b": "2"}


def test_a_class_is_no_serializer() -> None:
    """Forgotten parentheses are told when the store is made."""
    with pytest.raises(TypeError, match=r"JSONSerializer\(\)"):
        MemoryKVStore(serializer=JSONSerializer)  # type: ignore[arg-type]
