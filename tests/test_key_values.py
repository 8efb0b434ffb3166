"""What has a text that no other value has, type by type, and what has none."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import fractions
import functools
import hashlib
import ipaddress
import os
import pathlib
import re
import sys
import types
import uuid
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from kv_store_adapter import (
    MemoryKVStore,
    UnkeyableArgumentError,
    cached,
    register_key_encoder,
)
from kv_store_adapter.identity import qualified_name, text_of
from shapes import (
    HOUR,
    NOON,
    UTC,
    Anyone,
    Blob,
    Can,
    Color,
    Couple,
    Email,
    Heir,
    Level,
    Name,
    Odd,
    OrderId,
    Own,
    Paint,
    Pair,
    Plain,
    Point,
    Point3,
    Ratio,
    UserId,
    endless_list,
    found_by_name,
    function,
    key_of,
    keyed,
    make_local,
    wrapped,
    wrapping,
)

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
    *(NOON.replace(tzinfo=dt.timezone(HOUR)), NOON.replace(tzinfo=dt.timezone(HOUR, "X"))),
    *(NOON.time().replace(tzinfo=UTC), NOON.time().replace(fold=1), NOON.isoformat()),
    *(dt.timezone(HOUR, "X"), dt.timezone(2 * HOUR, "X"), UTC, HOUR, 3600, 3600.0),
    *(decimal.Decimal(1), decimal.Decimal("1.0"), decimal.Decimal("NaN"), decimal.Decimal("-0")),
    *(fractions.Fraction(1), fractions.Fraction(1, 3), uuid.UUID(int=1), str(uuid.UUID(int=1))),
    *(pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a"), pathlib.Path("a"), Path("A")),
    *(re.compile("a"), re.compile("a", re.IGNORECASE), re.compile(b"a"), range(3), range(0, 3, 2)),
    *(slice(3), slice(0, 3), ..., NotImplemented, ipaddress.ip_address("::1"), "::1"),
    *(ipaddress.ip_network("::1"), collections.deque([1]), collections.deque([1], 5)),
    *(collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), {"a": 1, "b": 2}),
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
    (NOON, dt.datetime.fromisoformat("2024-03-31T12:00:00")),
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


@pytest.mark.parametrize(("one", "other"), SAME)
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
        '(user_id="a\\n",*rest=(2.5),full=True,**more={"a":shapes.Color.RED,"b":None})'
    )
    assert text_of(Point({2, 1}, b"x")) == "shapes.Point(x=set{1,2},y=b'x')"
    assert text_of(Own(("a", 1))) == 'shapes.Own<("a",1)>'
    assert text_of([function, Own.made]) == (
        "[<function shapes.function>,<method shapes.Own.made of <class shapes.Own>>]"
    )


_KEPT: List[Tuple[Any, str]] = [
    *((None, "None"), (True, "True"), (-1, "-1"), (-0.0, "-0.0"), (1j, "1j"), (..., "Ellipsis")),
    *((10**40 - 1, str(10**40 - 1)), (1 - 10**40, str(1 - 10**40))),
    *((10**40, hex(10**40)), (-(10**40), hex(-(10**40))), (NotImplemented, "NotImplemented")),
    *(('a\n\u00e9"', '"a\\n\u00e9\\""'), ("\ud800", '"\\ud800"'), (b"a'", 'b"a\'"')),
    *((bytearray(b"1"), "bytearray(b'1')"), ((), "()"), ((1,), "(1)"), ([1, [2]], "[1,[2]]")),
    *(
        ({2, 1}, "set{1,2}"),
        (frozenset({2, 1}), "frozenset{1,2}"),
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
    ),
    *((range(3), "range(0,3,1)"), (slice(0, 3), "slice(0,3,None)"), (os, "<module os>")),
    *((Color.CRIMSON, "shapes.Color.RED"), (Can.READ | Can.WRITE, "shapes.Can.3")),
    *(
        (Odd["a"], "shapes.Odd.a"),
        (Odd["a,1"], 'shapes.Odd."a,1"'),
        (Level.LOW, "shapes.Level.LOW"),
    ),
    *((Point3(1, z=2), "shapes.Point3(x=1,y=0,z=2)"), (Couple(1, "2"), 'shapes.Couple(1,"2")')),
    *((UserId(7), "shapes.UserId(7)"), (Ratio(0.5), "shapes.Ratio(0.5)")),
    *((Email("a"), 'shapes.Email("a")'), (Blob(b"a"), "shapes.Blob(b'a')")),
    *((NOON, "datetime(2024-03-31T12:00:00,0,)"), (NOON.date(), "date(2024-03-31)")),
    (NOON.replace(fold=1), "datetime(2024-03-31T12:00:00,1,)"),
    (NOON.replace(tzinfo=UTC), 'datetime(2024-03-31T12:00:00+00:00,0,timezone(0:00:00,"UTC"))'),
    (NOON.time().replace(tzinfo=UTC), 'time(12:00:00+00:00,0,timezone(0:00:00,"UTC"))'),
    *((dt.timedelta(1, 2, 3), "timedelta(1,2,3)"), (fractions.Fraction(1, 3), "Fraction(1,3)")),
    *(
        (decimal.Decimal("-1.50"), "Decimal(-1.50)"),
        (uuid.UUID(int=1), f"UUID({uuid.UUID(int=1)})"),
    ),
    (pathlib.PurePosixPath("a/b"), 'PurePosixPath("a/b")'),
    (ipaddress.ip_network("10.0.0.0/8"), 'IPv4Network("10.0.0.0/8")'),
    *((re.compile("a"), 'Pattern("a",32)'), (collections.deque([1, 2], 5), "deque(5,1,2)")),
    (collections.OrderedDict(b=1, a=2), 'OrderedDict(("b",1),("a",2))'),
    (collections.Counter("aab"), 'Counter("a":2,"b":1)'),
    (collections.defaultdict(int, b=1, a=2), 'defaultdict(<class builtins.int>,"a":2,"b":1)'),
    (types.MappingProxyType({"b": 1, "a": 2}), 'mappingproxy("a":2,"b":1)'),
    *((wrapped, "<function shapes.wrapped>"), (len, "<function builtins.len>")),
    (wrapped.__wrapped__, "<function shapes.wrapped.__wrapped__>"),
    *((str.upper, "<method builtins.str.upper>"), (Own.method, "<function shapes.Own.method>")),
    (Heir("a").inherited(), '<method shapes.Own.method of shapes.Heir<"a">>'),
    (functools.partial(function, 1, b=2), 'partial(<function shapes.function>,(1),{"b":2})'),
]


@pytest.mark.parametrize(
    ("value", "text"),
    _KEPT,
    ids=[f"{type(value).__name__} {n}" for n, (value, _) in enumerate(_KEPT)],
)
def test_texts_stay_as_they_are(value: Any, text: str) -> None:
    """What was stored by an earlier version is found by this one: each type's text is fixed."""
    assert text_of(value) == text
    assert text_of([value, value]) == f"[{text},{text}]"


def test_zones_count_by_name() -> None:
    """The same wall clock in two zones is two calls, also where both have one offset."""
    zoneinfo = pytest.importorskip("zoneinfo", reason="zoneinfo came with Python 3.9")
    try:
        paris, rome = zoneinfo.ZoneInfo("Europe/Paris"), zoneinfo.ZoneInfo("Europe/Rome")
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip("this machine has no time zones")
    texts = {text_of(NOON.replace(tzinfo=zone)) for zone in (paris, rome, dt.timezone(HOUR))}
    assert len(texts) == 3
    assert text_of(paris) != text_of(rome)
    late = NOON.replace(month=10, day=27, hour=2, minute=30, tzinfo=paris)
    assert text_of(late) != text_of(late.replace(fold=1))
    assert text_of(NOON.time().replace(tzinfo=paris)) != text_of(NOON.time().replace(tzinfo=rome))


class Zone(dt.tzinfo):
    def __init__(self, hours: int) -> None:
        self.hours = hours

    def utcoffset(self, _: Any) -> dt.timedelta:
        return self.hours * HOUR

    def dst(self, _: Any) -> None: ...

    def tzname(self, _: Any) -> str:
        return "),x=1"


def test_zones_of_ones_own_count_by_class_and_offset() -> None:
    """A home-made tzinfo tells times apart as far as it can be asked."""
    one, other = (text_of(NOON.replace(tzinfo=Zone(hours))) for hours in (1, 2))
    assert one != other
    assert one == text_of(NOON.replace(tzinfo=Zone(1)))


def test_zones_of_other_makes_say_which_they_are() -> None:
    """A zone with a name, as pytz has them, counts by class and name; another by what it answers."""

    def text(zone: Any) -> str:
        return text_of(NOON.replace(tzinfo=zone))

    named, nameless = Zone(1), Zone(1)
    named.zone = "Europe/Paris"  # type: ignore[attr-defined]  # as pytz does
    nameless.zone = 5  # type: ignore[attr-defined]
    start = "datetime(2024-03-31T12:00:00+01:00,0,test_key_values.Zone"
    assert text(named) == f'{start}("Europe/Paris"))'
    assert text(nameless) == text(Zone(1)) == f'{start}(1:00:00,"),x=1"))'
    assert text(named) != text(nameless)


def test_numpy_values_count_by_content() -> None:
    """Arrays by dtype, shape and content, wherever they lie in memory; scalars are not numbers."""
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    base = np.arange(12, dtype="i4").reshape(3, 4)
    assert text_of(base) == text_of(np.asfortranarray(base)) == text_of(base.copy())
    assert text_of(base[::2, ::2]) == text_of(base[::2, ::2].copy())
    apart = [
        *(base, base.astype("i8"), base.reshape(4, 3), base.reshape(12), base + 1, base.tolist()),
        *(np.array(1), np.array([1]), np.int64(1), np.int32(1), np.float64(1), np.bool_(1), 1, 1.0),
        *(
            np.str_("1"),
            "1",
            np.bytes_(b"1"),
            b"1",
            np.array("1"),
            np.array(["1", 1], dtype=object),
        ),
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
    assert text_of([Own("a")]) == '[shapes.Own<"a">]'
    assert text_of(Own) == "<class shapes.Own>"
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
)
def test_an_encoder_that_could_not_work_is_refused(kind: Any, encode: Any) -> None:
    """Not a class, not a function, or a type whose text is fixed: said at once."""
    with pytest.raises(TypeError):
        register_key_encoder(kind, encode)


def test_a_refused_encoder_says_what_it_was() -> None:
    """The error names what was given in place of a class or of a function, or the fixed type."""
    for args, message in (
        (("Plain", str), "takes a class, not 'Plain'"),
        ((Plain, "str"), "takes a function, not str"),
        ((int, str), "int values have a text already"),
    ):
        with pytest.raises(TypeError, match=message):
            register_key_encoder(*args)  # type: ignore[arg-type]  # the mistakes


def test_attributes_beside_the_fields_are_refused() -> None:
    """A subclass that adds attributes and declares no fields is refused by the attribute's name."""

    class Tagged(Point):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.tag = "b"
            self.zeal = "z"

    class Named(Pair):
        pass

    named = Named(1, 2)
    assert text_of(named).endswith(".Named(1,2)")
    named.tag = "b"  # type: ignore[attr-defined]
    for value in (Tagged(1), named):
        with pytest.raises(TypeError, match=r"(Tagged|Named) with attributes .* \('tag'\)"):
            text_of(value)
    point = Point(1)
    point.tag = "b"  # type: ignore[attr-defined]  # declared fields speak for the instance
    assert text_of(point) == text_of(Point(1))


def test_attrs_classes_with_more_attributes_are_refused() -> None:
    """As dataclasses are: a subclass that adds attributes and declares none."""
    attr = pytest.importorskip("attr", reason="attrs is not installed")
    base = attr.make_class("base", {"x": attr.ib()})

    class Tagged(base):  # type: ignore[misc,valid-type]
        pass

    tagged = Tagged(1)
    assert text_of(tagged).endswith(".Tagged(x=1)")
    tagged.tag = "b"
    with pytest.raises(TypeError, match=r"Tagged with attributes .* \('tag'\)"):
        text_of(tagged)
    with pytest.raises(TypeError, match=r"identity \(a class of attrs with eq=False\)"):
        text_of(attr.make_class("identity", ["x"], eq=False)(1))


def test_numpy_texts_stay_as_they_are() -> None:
    """What was stored by an earlier version is found by this one, for arrays and scalars, too."""
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    array = np.array([[1, 2]], "<i4")
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    assert text_of(array) == f'numpy.array(numpy.dtype("<i4"),(1,2),{digest})'
    assert text_of(np.array(["a", 1], object)) == 'numpy.array(numpy.dtype("|O"),(2),"a",1)'
    assert text_of(np.float64(1)) == (
        "numpy.scalar(numpy.dtype(\"<f8\"),b'\\x00\\x00\\x00\\x00\\x00\\x00\\xf0?')"
    )
    record = np.array([(1, 2)], [("a", "u1"), ("b", "u1")])
    assert text_of(record) == (
        'numpy.array(numpy.dtype([("a","|u1"),("b","|u1")]),(1),'
        f'numpy.array(numpy.dtype("|u1"),(1),{hashlib.sha256(bytes([1])).hexdigest()}),'
        f'numpy.array(numpy.dtype("|u1"),(1),{hashlib.sha256(bytes([2])).hexdigest()}))'
    )
    for value in (np.longdouble(1), np.clongdouble(1)):
        with pytest.raises(UnkeyableArgumentError, match="is a numpy longdouble"):
            keyed(lambda a: a, namespace="n")(value)


# ---------------------------------------------------------------------- refusals


def _with_attribute() -> Any:
    user = UserId(1)
    user.role = "admin"  # type: ignore[attr-defined]
    return user


def _far_inside() -> Any:
    def inside() -> Any:
        return lambda _: 1

    return inside()


class Slotted(str):
    __slots__ = ("tag",)


class Rows(list):
    """What it holds besides its items, nobody knows."""


class Liar:
    """Says that it is an int, as proxies and mocks do."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return int


_REFUSED = {
    "a plain object": (Plain, "a shapes.Plain"),
    "object()": (object, "a builtins.object"),
    "a lambda": (lambda: lambda: 1, "the local function test_key_values.<lambda>"),
    "a local function": (make_local, "the local function shapes.make_local.<locals>.local"),
    "a method made of a lambda": (
        lambda: types.MethodType(lambda _: 1, Own(1)),
        "the local function test_key_values.<lambda>",
    ),
    "a method of a plain object": (
        lambda: types.MethodType(function, Plain()),
        "a builtins.method that holds a shapes.Plain",
    ),
    "a method made of a lambda far inside": (
        lambda: types.MethodType(_far_inside(), Own(1)),
        "the local function test_key_values._far_inside.<locals>.inside.<locals>.<lambda>",
    ),
    "an open file": (lambda: open(os.devnull), "a _io.TextIOWrapper"),
    "a generator": (lambda: (i for i in ()), "a builtins.generator"),
    "an iterator": (lambda: iter([1, 2]), "a builtins.list_iterator"),
    "a list that holds itself": (endless_list, "something that contains itself"),
    "a dataclass without equality": (
        lambda: Anyone(1),
        "a shapes.Anyone (a dataclass with eq=False)",
    ),
    "a number with attributes": (_with_attribute, "a shapes.UserId with attributes"),
    "a text with slots": (lambda: Slotted("a"), "a test_key_values.Slotted with attributes"),
    "what lies about its class": (Liar, "a test_key_values.Liar"),
    "List[int]": (lambda: List[int], "a typing._GenericAlias"),
    "a wrapper by another name": (lambda: wrapping(function), "a builtins.function"),
    "a cached function by another name": (
        lambda: cached(MemoryKVStore())(function),
        "a kv_store_adapter.caching.wrapper.CachedFunction",
    ),
    "a subclass of list": (lambda: Rows([1]), "a test_key_values.Rows"),
    "a subclass of datetime": (
        lambda: type("Stamp", (dt.datetime,), {})(2024, 1, 1),
        "a test_key_values.Stamp",
    ),
    "a partial of a lambda": (
        lambda: functools.partial(lambda: 1),
        "a functools.partial that holds the local function test_key_values.<lambda>",
    ),
    "deep inside": (
        lambda: {"a": [Point((Plain(),))]},
        "a builtins.dict that holds a shapes.Plain",
    ),
}


@pytest.mark.usefixtures("deep_stack")
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
    assert f"load() is {what}" in message or f" that holds {what}" in message
    assert f"{what} that holds {what}" not in message
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
    """Subclasses hold more than numbers, and a longdouble holds bytes that are not its own."""
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
