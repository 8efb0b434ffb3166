"""Keys: equal if and only if the calls are equal, in every process and every Python."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import itertools
import os
import pathlib
import pickle
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import types
import typing
import uuid
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kv_store_adapter import (
    MemoryKVStore,
    UnkeyableArgumentError,
    cached,
    cached_many,
    register_key_encoder,
)
from kv_store_adapter.keys import LONGEST_READABLE, Template, qualified_name, text_of
from kv_store_adapter.rules import LONGEST_KEY

SRC = Path(__file__).resolve().parent.parent / "src"


def key_of(*args: Any, **kwargs: Any) -> str:
    """The key of a call of a function that takes anything."""

    @cached(MemoryKVStore(), key=None)
    def anything(*args: Any, **kwargs: Any) -> None: ...

    return anything.cache_key(*args, **kwargs)


def keyed(function: Any, **options: Any) -> Any:
    """How this function makes keys, in a store of its own."""
    return cached(MemoryKVStore(), **options)(function).cache_key


# ---------------------------------------------------------------------- the law, by hypothesis


def form(value: Any) -> Any:
    """What a plain value is, to the type and the bit: our own idea of equality, to compare with."""
    kind = type(value)
    if kind is float:
        return kind, "nan" if value != value else struct.pack(">d", value)  # noqa: PLR0124
    if kind is complex:
        return kind, form(value.real), form(value.imag)
    if kind in (list, tuple):
        return (kind, *map(form, value))
    if kind in (set, frozenset):
        # Counted, because there may be two NaN in it.
        return kind, frozenset(collections.Counter(map(form, value)).items())
    if kind is dict:
        pairs = ((form(k), form(v)) for k, v in value.items())
        return kind, frozenset(collections.Counter(pairs).items())
    return kind, bytes(value) if kind is bytearray else value


# Texts that try to look like another value's text, or like two.
_TRICKY = st.sampled_from(
    [
        *("", "1", "True", "None", "nan", "a", "b", "a,b", "a b", "a:b", '"', '","', '"a","b"', "'"),
        *("\\", '\\"', "\\ud800", "\ud800", "\udc00", "\ud800\udc00", "\U00010000", "()", "[]"),
        *("\u00e9", "e\u0301", "\u212b", "\u00c5", "\ufb01", "fi", "K", "\u212a", "\0", "\x7f", "\n"),
    ]
)
_TEXT = st.text(alphabet=st.characters(), max_size=4) | _TRICKY
_SCALARS = (
    st.sampled_from([None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, 1j, 0j, b"", b"1", ..., 10**40])
    | st.integers()
    | st.integers(-(10**60), 10**60)
    | st.floats()
    | st.complex_numbers()
    | _TEXT
    | st.binary(max_size=4)
    | _TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
)
_HASHABLE = st.recursive(
    _SCALARS,
    lambda inner: (
        st.tuples(inner) | st.tuples(inner, inner) | st.frozensets(inner, max_size=3) | st.just(())
    ),
    max_leaves=4,
)
_VALUES = st.recursive(
    _HASHABLE | st.binary(max_size=2).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(_HASHABLE, max_size=3)
        | st.dictionaries(_HASHABLE, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(_VALUES, min_size=2, max_size=12))
def test_two_values_have_one_text_if_and_only_if_they_are_the_same(values: List[Any]) -> None:
    """Type-exact and injective: numbers, text with lone surrogates, bytes, nested containers."""
    for one, other in itertools.combinations(values, 2):
        assert (text_of(one) == text_of(other)) == (form(one) == form(other))


@given(st.lists(st.lists(_SCALARS, max_size=3), min_size=2, max_size=8))
def test_two_calls_have_one_key_if_and_only_if_their_arguments_are_the_same(
    calls: List[List[Any]],
) -> None:
    """Arguments never run into each other: ("a b", "c") is not ("a", "b c")."""
    for one, other in itertools.combinations(calls, 2):
        assert (key_of(*one) == key_of(*other)) == (form(one) == form(other))


@given(st.lists(st.tuples(_HASHABLE, _VALUES), max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_sets_and_dictionaries_does_not_count(
    pairs: List[Tuple[Any, Any]], random: Any
) -> None:
    """Neither the order of insertion nor that of hashes is part of who a set or dict is."""
    pairs = list(dict(pairs).items())
    shuffled = random.sample(pairs, len(pairs))
    assert text_of(dict(pairs)) == text_of(dict(shuffled))
    keys, other = [key for key, _ in pairs], [key for key, _ in shuffled]
    assert text_of(set(keys)) == text_of(set(other))
    assert text_of(frozenset(keys)) == text_of(frozenset(other))


@given(_VALUES)
def test_every_key_can_be_stored_and_is_short(value: Any) -> None:
    """A key is text without lone surrogates, within the limit, whatever the arguments hold."""
    key = key_of(value)
    assert len(key) <= LONGEST_READABLE
    key.encode("utf-8")


# ---------------------------------------------------------------------- every process, every Python


def pythons() -> Dict[str, str]:
    """The CPythons from 3.8 on that are on this machine, by version."""
    root = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv")))
    candidates = [str(path) for path in root.glob("versions/3.*/bin/python")]
    candidates += filter(None, (shutil.which(f"python3.{minor}") for minor in range(8, 20)))
    ask = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
    found = {}
    for candidate in candidates:
        answer = subprocess.run([candidate, "-c", ask], capture_output=True, text=True, check=False)
        name, major, minor = (answer.stdout.split() or ["", 0, 0])[:3]
        if name == "cpython" and int(minor) >= 8:
            found[f"{major}.{minor}"] = candidate
    return found


# Run by other interpreters: prints the text of each of SHAPES, and of what was pickled.
SHAPES = r'''
import collections, dataclasses, datetime, decimal, enum, fractions, functools, ipaddress, json
import pathlib, pickle, re, sys, types, uuid
from kv_store_adapter.keys import text_of
class Color(enum.Enum): RED = 1
class Name(str, enum.Enum): RED = "red"
class Level(enum.IntEnum): LOW = 1
class Can(enum.Flag): READ = 1; WRITE = 2; RUN = 4
class May(enum.IntFlag): READ = 1; WRITE = 2
@dataclasses.dataclass(frozen=True)
class Point: x: int; y: object = None
Pair = collections.namedtuple("Pair", "a b")
class UserId(int): pass
class Email(str): pass
class Own:
    def __cache_key__(self): return ("own", {"b", "a", 1})
    def method(self): pass
def function(): pass
utc = datetime.timezone.utc
day = datetime.datetime(2024, 2, 29, 12, 30, 15, 250)
SHAPES = [
    Color.RED, Name.RED, Level.LOW, Can.READ, Can.READ | Can.WRITE, May.READ | May.WRITE, ~Can.RUN,
    Point(1), Point(1, Point(2)), Pair(1, "2"), UserId(7), Email("a@b"), Own(), Own().method,
    day, day.replace(fold=1), day.replace(tzinfo=utc), day.date(), day.time(),
    day.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=-3.5), "here")),
    datetime.timedelta(1, 2, 3), utc, decimal.Decimal("1.50"), decimal.Decimal("-Infinity"),
    decimal.Decimal("1E+5"), decimal.Decimal("sNaN12"), fractions.Fraction(1, 3),
    fractions.Fraction(10**5000), uuid.UUID(int=5), pathlib.PurePosixPath("/a/b"),
    pathlib.Path("a"), pathlib.PureWindowsPath("c:/a"), re.compile("a+", re.I), re.compile(b"a"),
    ipaddress.ip_address("::1"), ipaddress.ip_network("10.0.0.0/8"),
    collections.deque([1, 2], 3), collections.OrderedDict(b=1, a=2), collections.Counter("aab"),
    collections.defaultdict(int, b=1, a=2), types.MappingProxyType({"b": 1, "a": 2}),
    function, len, Point, int, str.upper, Own.method, functools.partial(function, 1, b={"b", "a"}),
    json, range(1, 9, 2), range(10**5000), slice(1, None), ..., NotImplemented, -10**5000, 1e300,
    0.1, -0.0, float("nan"), 1e-7j, "\ud800\u00e9\U0001fae8", {"b": {"x", "y", "z"}, "a": {1, "1"}},
]
with open(sys.argv[1], "rb") as stream: SHAPES += pickle.load(stream)
print(json.dumps([text_of(value) for value in SHAPES]))
'''


def texts_from(commands: List[Tuple[str, str]], values: List[Any], folder: Path) -> List[str]:
    """What each (interpreter, hash seed) says, run side by side."""
    script, pickled = folder / "shapes.py", folder / "values.pickle"
    script.write_text(SHAPES, encoding="utf-8")
    pickled.write_bytes(pickle.dumps(values, protocol=4))
    running = []
    for python, seed in commands:
        env = {**os.environ, "PYTHONPATH": str(SRC), "PYTHONHASHSEED": seed}
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        running.append(
            subprocess.Popen(
                [python, str(script), str(pickled)],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    answers = []
    for one, command in zip(running, commands):
        out, err = one.communicate(timeout=100)
        assert one.returncode == 0, f"{command}: {err}"
        answers.append(out)
    return answers


_FEW = settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@_FEW
@given(values=st.lists(_VALUES, min_size=30, max_size=60))
def test_keys_are_the_same_in_every_process_and_hash_seed(
    tmp_path_factory: Any, values: List[Any]
) -> None:
    """What one process stored, another one finds, however its hashes fall."""
    commands = [(sys.executable, seed) for seed in ("0", "1", "4242", "random")]
    answers = texts_from(commands, values, tmp_path_factory.mktemp("seeds"))
    assert len(set(answers)) == 1


@_FEW
@given(values=st.lists(_VALUES, min_size=30, max_size=60))
def test_keys_are_the_same_in_every_version_of_python(
    tmp_path_factory: Any, values: List[Any]
) -> None:
    """A cache outlives an upgrade: each Python on this machine makes the same keys."""
    ours = "{}.{}".format(*sys.version_info[:2])
    others = {version: path for version, path in pythons().items() if version != ours}
    if not others:
        pytest.skip("there is no other Python (pyenv's or python3.X on PATH) on this machine")
    commands = [(sys.executable, "0"), *((path, "1") for path in others.values())]
    mine, *answers = texts_from(commands, values, tmp_path_factory.mktemp("versions"))
    for version, answer in zip(others, answers):
        assert answer == mine, version


# ---------------------------------------------------------------------- every type


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1
    BLUE = 2


class Paint(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Name(str, enum.Enum):
    RED = "red"


class Can(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


Odd = enum.Enum("Odd", {"a": 1, "a,1": 2})  # type: ignore[misc]


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0
    note: str = dataclasses.field(default="", compare=False)
    every: typing.ClassVar[List[int]] = []


@dataclasses.dataclass
class Point3(Point):
    z: Any = 0


@dataclasses.dataclass(eq=False)
class Anyone:
    x: int


class Pair(NamedTuple):
    a: Any
    b: Any


Couple = collections.namedtuple("Couple", "a b")  # noqa: PYI024


class UserId(int):
    def __int__(self) -> int:
        return 0

    def __str__(self) -> str:
        return "somebody"

    __repr__ = __str__


class OrderId(int): ...


class Ratio(float): ...


class Email(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "hidden"


class Blob(bytes): ...


class Own:
    def __init__(self, who: Any) -> None:
        self.who = who

    def __cache_key__(self) -> Any:
        return self.who

    def method(self) -> None: ...

    def other(self) -> None: ...

    @classmethod
    def made(cls) -> None: ...


class Heir(Own):
    def method(self) -> None: ...

    def inherited(self) -> Any:
        return super().method


class Plain: ...


def function() -> None: ...


def wrapping(inner: Any) -> Any:
    @functools.wraps(inner)
    def outer() -> None: ...

    return outer


@wrapping
def wrapped() -> None: ...


def make_local() -> Any:
    def local() -> None: ...

    return local


@cached(MemoryKVStore())
def found_by_name() -> None: ...


UTC = datetime.timezone.utc
_H = datetime.timedelta(hours=1)
NOON = datetime.datetime(2024, 3, 31, 12)

# Each stands apart from all others, and from its own text and number.
APART: List[Any] = [
    *(None, True, False, 0, 1, 1.0, 0.0, -0.0, 1j, -1j, complex(-0.0, 1), "1", b"1", "True", ""),
    *(b"", bytearray(b"1"), (), [], {}, set(), frozenset(), (1,), [1], {1}, frozenset({1}), {1: 1}),
    *((1, 2), [1, 2], ((1,), 2), (1, (2,)), [[1], 2], ("a b", "c"), ("a", "b c"), ('a","b',)),
    *("nan", float("nan"), float("inf"), -float("inf"), "inf", 10**40, 10**5000, -(10**5000)),
    *(Color.RED, Color.BLUE, Paint.RED, Level.LOW, Name.RED, "red", Color, Paint),
    *(Can.READ, Can.READ | Can.WRITE, Can.WRITE, Can(0), Odd["a"], Odd["a,1"], [Odd["a"], 1]),
    *(Point(1), Point(1, 1), Point(1.0), Point("1"), Point3(1), Point(Point(1)), Point),
    *(Pair(1, 2), Pair(1, "2"), Couple(1, 2), UserId(1), OrderId(1), UserId(0), Ratio(1.0)),
    *(Ratio(-0.0), Ratio(0.0), Email("a"), "a", Email("hidden"), Blob(b"a"), b"a"),
    *(NOON, NOON.replace(fold=1), NOON.replace(tzinfo=UTC), NOON.date(), NOON.time(), "2024-03-31"),
    *(NOON.replace(tzinfo=datetime.timezone(_H)), NOON.replace(tzinfo=datetime.timezone(_H, "X"))),
    *(NOON.time().replace(tzinfo=UTC), NOON.time().replace(fold=1), NOON.isoformat()),
    *(datetime.timezone(_H, "X"), datetime.timezone(2 * _H, "X"), UTC, _H, 3600, 3600.0),
    *(decimal.Decimal(1), decimal.Decimal("1.0"), decimal.Decimal("NaN"), decimal.Decimal("-0")),
    *(fractions.Fraction(1), fractions.Fraction(1, 3), uuid.UUID(int=1), str(uuid.UUID(int=1))),
    *(pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a"), pathlib.Path("a"), Path("A")),
    *(re.compile("a"), re.compile("a", re.I), re.compile(b"a"), range(3), range(0, 3, 2)),
    *(slice(3), slice(0, 3), ..., NotImplemented, ipaddress.ip_address("::1"), "::1"),
    *(ipaddress.ip_network("::1"), collections.deque([1]), collections.deque([1], 5)),
    *(collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), dict(a=1, b=2)),
    *(collections.Counter("a"), {"a": 1}, types.MappingProxyType({"a": 1})),
    *(collections.defaultdict(int, a=1), collections.defaultdict(list, a=1)),
    *(function, make_local, wrapped, wrapped.__wrapped__, len, max, int, float, str.upper),
    *(str.lower, bytes.upper, Own, Own.method, Own("a").method, Own("b").method, Own("a").other),
    *(Own.made, Heir.made, Heir("a").method, Heir("a").inherited(), re, os, "os"),
    *(functools.partial(function), functools.partial(function, 1), functools.partial(len)),
    *(functools.partial(function, a=1), functools.partial(function, a="1")),
    *(Own("a"), Own("b"), Own(1), Own((1, 2)), Heir("a")),
    *(keyed, found_by_name, found_by_name.__wrapped__),
]


def test_values_of_every_type_stand_apart() -> None:
    """No two of them meet, whatever Python's == says: enums, dates, numbers, paths, functions."""
    texts: Dict[str, Any] = {}
    for value in APART:
        text = text_of(value)
        assert text not in texts, f"{value!r} and {texts[text]!r} are both {text}"
        texts[text] = value


SAME: List[Tuple[Any, Any]] = [
    (Color.RED, Color.CRIMSON),
    (Can.READ | Can.WRITE, Can.WRITE | Can.READ),
    (~Can.RUN, Can.READ | Can.WRITE),
    (Point(1, note="a"), Point(1, note="b")),
    (float("nan"), -float("nan")),
    (NOON, datetime.datetime.fromisoformat("2024-03-31T12:00:00")),
    (decimal.Decimal("1E+5"), decimal.Decimal("1e5")),
    (fractions.Fraction(2, 4), fractions.Fraction(1, 2)),
    (uuid.UUID(int=1), uuid.UUID(str(uuid.UUID(int=1)))),
    (Path("a//b/."), Path("a/b")),
    (collections.Counter("aab"), collections.Counter("baa")),
    (types.MappingProxyType({"a": 1, "b": 2}), types.MappingProxyType({"b": 2, "a": 1})),
    (functools.partial(function, a=1, b=2), functools.partial(function, b=2, a=1)),
    (Own("a").method, Own("a").method),
    (Own({"x", "y"}), Own({"y", "x"})),
    (Email("a"), Email("a")),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=repr)
def test_equal_values_have_one_text(one: Any, other: Any) -> None:
    """How a value was made does not count."""
    assert text_of(one) == text_of(other)


def test_the_decimal_context_does_not_count() -> None:
    """A program that writes 1e+5 finds what one that writes 1E+5 stored."""
    number = decimal.Decimal("1E+5")
    with decimal.localcontext() as context:
        context.capitals = 0
        assert text_of(number) == "Decimal(1E+5)"


def test_keys_are_readable() -> None:
    """Whoever looks into a store sees the call; and what was stored before stays found."""

    def load(user_id: Any, *rest: Any, full: bool = False, **more: Any) -> None: ...

    key = keyed(load)
    assert key(7) == "(user_id=7,*rest=(),full=False,**more={})"
    assert key("a\n", 2.5, full=True, b=None, a=Color.RED) == (
        '(user_id="a\\n",*rest=(2.5),full=True,**more={"a":test_keys.Color.RED,"b":None})'
    )
    assert text_of(Point({2, 1}, b"x")) == "test_keys.Point(x=set{1,2},y=b'x')"
    assert text_of(Own(("a", 1))) == 'test_keys.Own<("a",1)>'
    assert text_of([function, Own.made]) == (
        "[<function test_keys.function>,<method test_keys.Own.made of <class test_keys.Own>>]"
    )


def test_zones_count_by_name() -> None:
    """The same wall clock in two zones is two calls, also where both have one offset."""
    zoneinfo = pytest.importorskip("zoneinfo", reason="zoneinfo came with Python 3.9")
    try:
        paris, rome = zoneinfo.ZoneInfo("Europe/Paris"), zoneinfo.ZoneInfo("Europe/Rome")
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip("this machine has no time zones")
    texts = {text_of(NOON.replace(tzinfo=zone)) for zone in (paris, rome, datetime.timezone(_H))}
    assert len(texts) == 3
    assert text_of(paris) != text_of(rome)
    late = NOON.replace(month=10, day=27, hour=2, minute=30, tzinfo=paris)
    assert text_of(late) != text_of(late.replace(fold=1))
    assert text_of(NOON.time().replace(tzinfo=paris)) != text_of(NOON.time().replace(tzinfo=rome))


class Zone(datetime.tzinfo):
    def __init__(self, hours: int) -> None:
        self.hours = hours

    def utcoffset(self, _: Any) -> datetime.timedelta:
        return self.hours * _H

    def dst(self, _: Any) -> None: ...

    def tzname(self, _: Any) -> str:
        return "),x=1"


def test_zones_of_ones_own_count_by_class_and_offset() -> None:
    """A home-made tzinfo tells times apart as far as it can be asked."""
    one, other = (text_of(NOON.replace(tzinfo=Zone(hours))) for hours in (1, 2))
    assert one != other
    assert one == text_of(NOON.replace(tzinfo=Zone(1)))


def test_numpy_values_count_by_content() -> None:
    """Arrays by dtype, shape and content, wherever they lie in memory; scalars are not numbers."""
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    base = np.arange(12, dtype="i4").reshape(3, 4)
    assert text_of(base) == text_of(np.asfortranarray(base)) == text_of(base.copy())
    assert text_of(base[::2, ::2]) == text_of(base[::2, ::2].copy())
    apart = [
        *(base, base.astype("i8"), base.reshape(4, 3), base.reshape(12), base + 1, base.tolist()),
        *(np.array(1), np.array([1]), np.int64(1), np.int32(1), np.float64(1), np.bool_(1), 1, 1.0),
        *(np.str_("1"), "1", np.bytes_(b"1"), b"1", np.array("1"), np.array(["1", 1], dtype=object)),
        *(np.array(["1", "1"], dtype=object), np.datetime64("2024"), np.datetime64("2024-01")),
        *(np.timedelta64(1, "s"), np.timedelta64(1, "m"), np.dtype("i4"), np.dtype("i8")),
        *(np.dtype("V8"), np.dtype(("i4", (2,))), np.dtype([("a", "i4")]), np.dtype([("b", "i4")])),
        *(np.array([(1, 2)], "i4,i4"), np.array([(1, 3)], "i4,i4"), np.array([(1, 2)], "i4,i4")[0]),
        *(np.int64, np.array([]), np.zeros((0, 2)), np.zeros((2, 0))),
    ]
    assert len({text_of(value) for value in apart}) == len(apart)
    assert text_of(np.bool_(True)) == "numpy.scalar(numpy.dtype(\"|b1\"),b'\\x01')"


def test_padding_of_numpy_records_does_not_count() -> None:
    """What lies between the fields of a record is nobody's value."""
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    kind = np.dtype([("a", "i1"), ("b", "i4")], align=True)
    clean = np.zeros(2, kind)
    dirty = np.frombuffer(b"\0\xff\xff\xff\0\0\0\0" * 2, kind)
    assert (clean == dirty).all()
    assert text_of(clean) == text_of(dirty)
    assert text_of(clean[0]) == text_of(dirty[0])


def test_attrs_classes_count_by_their_fields() -> None:
    """As dataclasses do: fields that are compared count, others don't."""
    attr = pytest.importorskip("attr", reason="attrs is not installed")
    kind = attr.make_class("kind", {"x": attr.ib(), "y": attr.ib(default=0, eq=False)})
    assert text_of(kind(1, 2)) == text_of(kind(1, 3)) != text_of(kind(2, 2))
    identity = attr.make_class("identity", ["x"], eq=False)
    with pytest.raises(TypeError, match="eq=False"):
        text_of(identity(1))


def test_functions_of_the_main_module_are_the_same_in_spawned_workers() -> None:
    """What a program calls __main__, multiprocessing calls __mp_main__ in its workers."""
    kind = type("Job", (), {"__module__": "__mp_main__"})
    assert qualified_name(kind) == "__main__.Job"


# ---------------------------------------------------------------------- saying who one is


def test_cache_key_speaks_for_an_object_and_its_subclasses_apart() -> None:
    """__cache_key__ says which, the class says what; the class itself stays a class."""
    assert text_of(Own("a")) != text_of(Heir("a"))
    assert text_of([Own("a")]) == '[test_keys.Own<"a">]'
    assert text_of(Own) == "<class test_keys.Own>"
    with pytest.raises(TypeError):
        text_of(Own(Plain()))


def test_cache_key_wins_over_what_else_an_object_is() -> None:
    """A dataclass or a number with __cache_key__ is who it says it is."""

    @dataclasses.dataclass
    class User:
        key: int
        session: Any

        def __cache_key__(self) -> int:
            return self.key

    assert text_of(User(1, object())) == text_of(User(1, object())) != text_of(User(2, None))


def test_a_registered_encoder_speaks_for_a_class_and_its_subclasses() -> None:
    """Objects of classes that one can't change are told apart by what the encoder returns."""

    class Connection:
        def __init__(self, dsn: str) -> None:
            self.dsn = dsn

    class Replica(Connection): ...

    with pytest.raises(UnkeyableArgumentError):
        key_of(Connection("a"))
    register_key_encoder(Connection, lambda connection: connection.dsn)
    assert key_of(Connection("a")) == key_of(Connection("a")) != key_of(Connection("b"))
    assert key_of(Replica("a")) == key_of(Replica("a")) != key_of(Connection("a"))


@pytest.mark.parametrize(
    ("kind", "encode"),
    [("Plain", str), (Plain(), str), (Plain, "str"), (int, str), (dict, str)],
    ids=repr,
)
def test_an_encoder_that_could_not_work_is_refused(kind: Any, encode: Any) -> None:
    """Not a class, not a function, or a type whose text is fixed: said at once."""
    with pytest.raises(TypeError):
        register_key_encoder(kind, encode)


# ---------------------------------------------------------------------- refusals


def _endless() -> List[Any]:
    endless: List[Any] = []
    endless.append(endless)
    return endless


def _with_attribute() -> Any:
    user = UserId(1)
    user.role = "admin"  # type: ignore[attr-defined]
    return user


class Slotted(str):
    __slots__ = ("tag",)


class Liar:
    """Says that it is an int, as proxies and mocks do."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return int


_REFUSED = {
    "a plain object": (Plain, "a test_keys.Plain"),
    "object()": (object, "a builtins.object"),
    "a lambda": (lambda: lambda: 1, "the local function test_keys.<lambda>"),
    "a local function": (make_local, "the local function test_keys.make_local.<locals>.local"),
    "a method made of a lambda": (
        lambda: types.MethodType(lambda _: 1, Own(1)),
        "the local function test_keys.<lambda>",
    ),
    "a method of a plain object": (
        lambda: types.MethodType(function, Plain()),
        "a builtins.method that holds a test_keys.Plain",
    ),
    "an open file": (lambda: open(os.devnull), "a _io.TextIOWrapper"),  # noqa: PTH123, SIM115
    "a generator": (lambda: (i for i in ()), "a builtins.generator"),
    "an iterator": (lambda: iter([]), "a builtins.list_iterator"),
    "a list that holds itself": (_endless, "something that contains itself"),
    "a dataclass without equality": (lambda: Anyone(1), "a dataclass with eq=False"),
    "a number with attributes": (_with_attribute, "a test_keys.UserId with attributes"),
    "a text with slots": (lambda: Slotted("a"), "a test_keys.Slotted with attributes"),
    "what lies about its class": (Liar, "a test_keys.Liar"),
    "List[int]": (lambda: List[int], "a typing._GenericAlias"),
    "a wrapper by another name": (lambda: wrapping(function), "a builtins.function"),
    "a cached function by another name": (
        lambda: cached(MemoryKVStore())(function),
        "a kv_store_adapter.caching.wrapper.CachedFunction",
    ),
    "a subclass of list": (lambda: type("Rows", (list,), {})(), "a test_keys.Rows"),
    "a subclass of datetime": (
        lambda: type("Stamp", (datetime.datetime,), {})(2024, 1, 1),
        "a test_keys.Stamp",
    ),
    "a partial of a lambda": (
        lambda: functools.partial(lambda: 1),
        "a functools.partial that holds the local function test_keys.<lambda>",
    ),
    "deep inside": (
        lambda: {"a": [Point((Plain(),))]},
        "a builtins.dict that holds a test_keys.Plain",
    ),
}


@pytest.mark.parametrize("which", _REFUSED)
def test_what_has_no_stable_identity_is_refused_with_three_ways_out(which: str) -> None:
    """Never its repr or address: a TypeError names function, parameter, culprit, ways out."""
    make, what = _REFUSED[which]

    def load(user_id: int, session: Any) -> None: ...

    value = make()
    with pytest.raises(UnkeyableArgumentError) as caught:
        keyed(load)(1, value)
    message = str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert message.startswith("The argument 'session' of ")
    assert "load() is" in message
    assert what in message
    for way in ("__cache_key__()", "register_key_encoder()", "ignore=('session',)", "key="):
        assert way in message
    if hasattr(value, "close"):
        value.close()


def test_generic_aliases_are_not_taken_for_their_origin() -> None:
    """list[int] says that it is called list: two of them must never share a key."""
    if sys.version_info < (3, 9):
        pytest.skip("list[int] came with Python 3.9")
    with pytest.raises(UnkeyableArgumentError):
        key_of(list[int])
    assert key_of(list) == key_of(list)


def test_numpy_values_without_identity_are_refused() -> None:
    """Subclasses hold more than their numbers, and a longdouble holds bytes that are not its own."""
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    for value in (np.ma.array([1]), np.longdouble(1), np.array([Plain()]), np.array([1], "g")):
        with pytest.raises(UnkeyableArgumentError):
            key_of(value)


def test_an_error_of_ones_own_cache_key_is_not_hidden() -> None:
    """A __cache_key__ with a bug shows its own error."""

    class Broken:
        def __cache_key__(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        key_of(Broken())


def test_refused_arguments_are_named_without_stars() -> None:
    """What lands in *args or **kwargs is named as it is written in ignore=."""
    for call in ((Plain(),), {}), ((), {"x": Plain()}):
        args, kwargs = call  # type: ignore[misc]
        with pytest.raises(UnkeyableArgumentError, match=r"'(kw)?args'.*ignore=\('(kw)?args',\)"):
            key_of(*args, **kwargs)


# ---------------------------------------------------------------------- binding


def test_one_call_has_one_key_however_it_is_written() -> None:
    """f(1, 2), f(1, b=2), f(b=2, a=1) and the default are one call."""

    def f(a: Any, b: Any = 2, *, c: Any = 3) -> None: ...

    key = keyed(f)
    same = [key(1), key(1, 2), key(1, b=2), key(a=1, b=2), key(b=2, a=1), key(1, c=3), key(c=3, a=1)]
    assert len(set(same)) == 1
    assert len({key(1), key(1, 3), key(2), key(1, c=4), key("1"), key(True), key(1.0)}) == 7


def _function(source: str) -> Any:
    """A function with parameters that older Pythons can read, too."""
    scope: Dict[str, Any] = {"__name__": __name__}
    exec(textwrap.dedent(source), scope)
    return scope["f"]


def test_positional_only_parameters_and_kwargs_of_one_name_are_apart() -> None:
    """f(1, a=2) with def f(a, /, **more) has two things called a."""
    key = keyed(_function("def f(a, /, **more): pass"))
    assert key(1, a=2) == key(1, **{"a": 2}) != key(2, a=1)
    with pytest.raises(TypeError):
        key(a=1)


def test_star_arguments_count_in_order_and_keywords_in_none() -> None:
    """*args are a sequence; the order of **kwargs does not count."""
    assert key_of(1, 2) != key_of(2, 1)
    assert key_of((1, 2)) != key_of(1, 2)
    assert key_of(a=1, b=2) == key_of(b=2, a=1) != key_of(a=2, b=1)
    assert key_of({"a": 1}) != key_of(a=1)
    assert key_of() != key_of(None) != key_of(*[None, None])


def test_parameters_may_have_any_name() -> None:
    """Names that our own code might use are the function's to use."""
    key = keyed(_function("def f(self, function, values, cls, _kv_a, off=1, *, key=2): pass"))
    assert key(1, 2, 3, 4, 5) == key(1, 2, 3, 4, _kv_a=5, off=1, key=2)


@pytest.mark.parametrize("call", [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"a": 1})])
def test_a_wrong_call_is_the_functions_own_type_error(call: Tuple[Any, Any]) -> None:
    """Missing, surplus and doubled arguments are refused as Python does, by the function's name."""

    def load(a: Any, b: Any = 2) -> None: ...

    args, kwargs = call
    # Python 3.8 and 3.9 don't say the qualified name, but that of the code.
    name = "load" if sys.version_info >= (3, 10) else r"\(\)"
    with pytest.raises(TypeError, match=name):
        keyed(load)(*args, **kwargs)


def test_self_and_cls_count() -> None:
    """Instances are apart by who they say they are, classes by name."""
    store = MemoryKVStore()

    class Repo(Own):
        @cached(store)
        def load(self, n: int) -> None: ...

        @cached(store)
        @classmethod
        def make(cls, n: int) -> None: ...

    class Sub(Repo): ...

    assert Repo("a").load.cache_key(1) == Repo("a").load.cache_key(1)
    assert Repo("a").load.cache_key(1) != Repo("b").load.cache_key(1)
    assert Repo("a").load.cache_key(1) != Sub("a").load.cache_key(1)
    assert Repo.make.cache_key(1) == Repo("a").make.cache_key(1) != Sub.make.cache_key(1)


def test_a_self_without_identity_is_refused() -> None:
    """An instance that doesn't say who it is is neither shared nor told by its address."""

    class Repo:
        @cached(MemoryKVStore())
        def load(self, n: int) -> int:
            return n

        @cached(MemoryKVStore(), ignore=("self",))
        def shared(self, n: int) -> int:
            return n

    with pytest.raises(UnkeyableArgumentError, match=r"'self'.*ignore=\('self',\)"):
        Repo().load(1)
    assert Repo().shared.cache_key(1) == Repo().shared.cache_key(1)


# ---------------------------------------------------------------------- ignore=, version=, key=


def test_ignored_parameters_do_not_count() -> None:
    """They may be anything; *args and **kwargs are named without stars."""

    def f(a: Any, session: Any = None, *args: Any, **more: Any) -> None: ...

    assert keyed(f, ignore=("session",))(1, Plain()) == keyed(f, ignore="session")(1, object())
    assert keyed(f, ignore=("session",))(1) != keyed(f, ignore=("session",))(2)
    loose = keyed(f, ignore=("args", "more"))
    assert loose(1, 2, 3, x=4) == loose(1, 2)
    with pytest.raises(ValueError, match="sesion"):
        keyed(f, ignore=("sesion",))


def test_versions_abandon_what_was_stored_before() -> None:
    """No version, 1 and "1" are three; other versions are refused."""

    def f(a: Any) -> None: ...

    versions = [None, 1, "1", 2, "", "1:(a=1)"]
    assert len({keyed(f, version=version)(1) for version in versions}) == len(versions)
    templates = {keyed(f, version=version, key="{a}")(1) for version in versions}
    assert len(templates) == len(versions)
    for wrong in (True, 1.0, b"1", (1,)):
        with pytest.raises(TypeError):
            keyed(f, version=wrong)


def test_a_key_function_is_asked_with_the_bound_arguments() -> None:
    """Defaults are filled in, self is included, and what it returns is the key."""

    def f(a: Any, b: Any = 2, *rest: Any, **more: Any) -> None: ...

    key = keyed(f, key=lambda a, b, *rest, **more: f"{a}/{b}/{rest}/{sorted(more)}")
    assert key(1) == key(b=2, a=1) == "1/2/()/[]"
    assert key(1, 2, 3, x=4) == "1/2/(3,)/['x']"

    class Repo:
        name = "r"

        @cached(MemoryKVStore(), key=lambda self, n: f"{self.name}:{n}")
        def load(self, n: int) -> None: ...

    assert Repo().load.cache_key(7) == "r:7"


def test_a_key_function_must_give_a_str() -> None:
    """Anything else is the caller's mistake, and says so."""
    with pytest.raises(TypeError, match="a key is a str"):
        keyed(function, key=lambda: 7)()


# ---------------------------------------------------------------------- templates


def filled(template: str, *args: Any, **kwargs: Any) -> str:
    """What a template makes of a call of f(a, b="c")."""

    def f(a: Any = None, b: Any = "c", *, day: Any = None) -> None: ...

    return typing.cast(str, keyed(f, key=template)(*args, **kwargs))


def test_a_template_is_the_key() -> None:
    """Plain fields, attributes, items, conversions, formats and doubled braces, as str.format."""
    assert filled("user:{a}:{b}", 7) == "user:7:c"
    assert filled("{a.x}-{a.y.x}", Point("p", Point(3))) == "p-3"
    assert filled("{a[0]}:{a[1]}", [1, 2]) == "1:2"
    assert filled("{day:%Y-%m}", day=NOON) == "2024-03"
    assert filled("{day:%Y-%m}-{a}", 1, day=NOON) == "2024%2D03-1"
    assert filled("{a!r}", "x") == "'x'"
    assert filled("{{{a}}}", 1) == "{1}"
    assert filled("all") == "all"


def test_a_template_identifies_by_text() -> None:
    """1 and "1" meet, as whoever writes a template wants; enums by their value."""
    assert filled("u:{a}", 1) == filled("u:{a}", "1") == filled("u:{a}", Level.LOW) == "u:1"
    assert filled("u:{a}", Name.RED) == "u:red"
    assert filled("u:{a}", None) == "u:None"
    assert filled("u {a}", uuid.UUID(int=1)) == f"u {uuid.UUID(int=1)}"
    assert filled("u {a}", Path("x/y")) == "u x/y"
    assert filled("u:{a}", (1, "x")) == 'u:(1,"x")'


def test_separators_in_values_are_escaped() -> None:
    """("a:b", "c") and ("a", "b:c") are two calls."""
    assert filled("u:{a}:{b}", "a:b", "c") == "u:a%3Ab:c"
    assert filled("u:{a}:{b}", "a", "b:c") == "u:a:b%3Ac"
    assert filled("u:{a}", "100%") == "u:100%25"


# Marks, letters, digits, the escape's own sign, and characters whose number would look like it.
_SEPARATORS = ["::", ":", "%", "%%&", "x", "xy", "2", "25", "a:", ":a", "│", "●", "!", "→", "é", "{{"]


@given(
    st.lists(st.sampled_from(_SEPARATORS), min_size=1, max_size=2),
    st.lists(st.text("x:%2│5aé!&0A→y●{", max_size=4), min_size=6, max_size=6),
)
def test_values_of_a_template_never_run_into_each_other(
    separators: List[str], texts: List[str]
) -> None:
    """Different texts in the fields give different keys, whatever stands between the fields."""
    names = ["a", "b", "c"][: len(separators) + 1]
    template = Template(
        "".join(f"{{{n}}}{s}" for n, s in itertools.zip_longest(names, separators, fillvalue="")),
        names,
    )
    one, other = (dict(zip(names, part)) for part in (texts[:3], texts[3:]))
    assert (template.fill("f", one) == template.fill("f", other)) == (one == other)


def test_escapes_of_rare_marks_stay_apart() -> None:
    """A mark beyond ASCII, and the text its escape would have if it were not escaped itself."""
    assert filled("{a}│{b}", "│", "") != filled("{a}│{b}", "%02", "")
    assert filled("{a}%{b}", "p", "25q%r") != filled("{a}%{b}", "p%q", "25r")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{user}", "names 'user', and the function has a, b, day"),
        ("{}", "a field without name"),
        ("{0}", "names '0'"),
        ("{a}{b}", "touch"),
        ("x{a}{b}y", "touch"),
        ("{a:{b}}", "inside the format"),
        ("{a", "'}'"),
    ],
)
def test_a_template_that_could_not_work_is_refused_at_decoration(template: str, why: str) -> None:
    """Unknown and nameless fields, fields that touch, fields in fields, broken braces."""
    with pytest.raises(ValueError, match=why):
        filled(template, 1)


def test_a_template_refuses_what_has_no_identity() -> None:
    """Neither {a} nor {a!r} ever writes an address."""
    for template in ("{a}", "{a!r}", "{a!s}", "{a!a}"):
        with pytest.raises(UnkeyableArgumentError, match="The argument 'a' of"):
            filled(template, Plain())
    with pytest.raises(UnkeyableArgumentError):
        filled("{a}", _endless())


# ---------------------------------------------------------------------- long keys


def test_long_keys_become_digests() -> None:
    """Beyond what is readable a key is its SHA-256: short, and as different as it was."""
    texts = ["x" * LONGEST_READABLE, "x" * LONGEST_READABLE + "y", "\ud800" * 10**4, "x" * 10**6]
    keys = [key_of(text) for text in texts]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("#[0-9a-f]{64}", key) for key in keys)
    assert key_of("x" * 10**6) == keys[-1]
    assert not key_of("x" * 50).startswith("#")
    versioned = keyed(_function("def f(a): pass"), version="v" * 10**5)
    assert len(versioned(1)) <= LONGEST_READABLE
    assert versioned(1) != versioned(2)


@given(st.text(alphabet="ab\u20ac\U0001fae8", min_size=LONGEST_READABLE - 60, max_size=300))
@settings(max_examples=30)
def test_keys_around_the_limit_are_stored_and_found(text: str) -> None:
    """No length is lost between readable and hashed; all are far within the store's limit."""
    store, calls = MemoryKVStore(), []

    @cached(store)
    def f(a: str) -> int:
        calls.append(a)
        return len(a)

    assert f(text) == f(text) == len(text)
    assert len(calls) == 1
    assert len(f.cache_key(text).encode()) < LONGEST_KEY
    assert store.exists(f.cache_key(text), f.cache_parameters()["namespace"])


# ---------------------------------------------------------------------- whose keys


def test_functions_keep_apart_by_module_and_name() -> None:
    """Each function has a namespace of its own; one that is shared has their names in its keys."""
    store = MemoryKVStore()

    def one(a: Any) -> str:
        return f"one {a}"

    def two(a: Any) -> str:
        return f"two {a}"

    assert (cached(store)(one)(1), cached(store)(two)(1)) == ("one 1", "two 1")
    place = cached(store)(one).cache_parameters()["namespace"]
    assert place == f"{__name__}.{one.__qualname__}"
    shared = [cached(store, namespace="n")(f) for f in (one, two)]
    assert [f(1) for f in shared] == ["one 1", "two 1"]
    assert len({f.cache_key(1) for f in shared}) == 2
    assert len(store.keys("n")) == 2


@pytest.mark.xfail(reason="what place_of refuses takes the place all the same: see decorator.py")
def test_two_lambdas_are_not_taken_for_one() -> None:
    """Lambdas have one name: the second one needs a namespace of its own."""
    store = MemoryKVStore()
    one, two = (lambda a: a + 1), (lambda a: a + 2)
    assert cached(store)(one)(1) == 2
    with pytest.raises(ValueError, match="namespace="):
        cached(store)(two)
    assert cached(store, namespace="two")(two)(1) == 3
    # Elsewhere, or by itself again, it does no harm.
    assert cached(MemoryKVStore())(two)(1) == 3
    assert cached(store)(one)(1) == 2


@pytest.mark.xfail(reason="place_of looks for lambdas in the namespace, not in the name")
def test_lambdas_in_a_shared_namespace_are_not_taken_for_one() -> None:
    """Their names would not tell them apart there, either."""
    store = MemoryKVStore()
    one, two = (lambda a: a + 1), (lambda a: a + 2)
    cached(store, namespace="n")(one)
    with pytest.raises(ValueError, match="namespace="):
        cached(store, namespace="n")(two)


def test_functions_of_one_name_from_two_modules_are_not_taken_for_one() -> None:
    """In a shared namespace keys start with the function's name: two of one name collide."""
    store = MemoryKVStore()
    one, two = (_function("def f(a): return 1") for _ in range(2))
    two.__module__ = "elsewhere"
    cached(store, namespace="n")(one)
    with pytest.raises(ValueError, match=r"elsewhere\.f\(\) would store its results where"):
        cached(store, namespace="n")(two)
    assert cached(store)(one)(1) == cached(store)(two)(1) == 1


def test_views_of_one_store_are_places_apart() -> None:
    """Two lambdas in two views don't meet; in one view they do."""
    store = MemoryKVStore()
    one, two = (lambda a: a + 1), (lambda a: a + 2)
    assert cached(store.namespace("x"))(one)(1) == 2
    assert cached(store.namespace("y"))(two)(1) == 3
    with pytest.raises(ValueError, match="namespace="):
        cached(store.namespace("x"))(two)


def test_a_function_that_is_defined_anew_keeps_its_place() -> None:
    """A cell of a notebook that runs again is the same function, and finds its results."""
    store = MemoryKVStore()
    one, two = (_function("def f(a): return a") for _ in range(2))
    first, second = cached(store)(one), cached(store)(two)
    assert first.cache_key(1) == second.cache_key(1)
    assert first.cache_parameters()["namespace"] == second.cache_parameters()["namespace"]


def test_functions_with_keys_of_their_own_may_share_a_namespace() -> None:
    """With key= the user says what the key is, and two functions may mean the same entry."""
    store = MemoryKVStore()
    one = cached(store, namespace="users", key="user:{a}")(lambda a: f"one {a}")
    two = cached(store, namespace="users", key="user:{b}")(lambda b: f"two {b}")
    assert one(1) == "one 1"
    assert two(1) == "one 1"


def test_a_callable_without_a_name_needs_a_namespace() -> None:
    """A partial has no name to store its results under."""
    partial = functools.partial(lambda a, b: a + b, 1)
    with pytest.raises(TypeError, match="namespace="):
        cached(MemoryKVStore())(partial)
    assert cached(MemoryKVStore(), namespace="n")(partial)(2) == 3


def test_the_ids_of_cached_many_are_keyed_one_by_one() -> None:
    """Each id has the key that a call with it alone would have; 1, "1" and True are three."""

    @cached_many(MemoryKVStore())
    def load(ids: Any, full: bool = False) -> Any:
        return {each: repr(each) for each in ids}

    assert len({load.cache_key([each]) for each in (1, "1", True, 1.0)}) == 4
    assert load.cache_key([1]) == load.cache_key((1,)) == load.cache_key(ids={1}, full=False)
    assert load.cache_key([1]) != load.cache_key([1], full=True)
