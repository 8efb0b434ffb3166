"""What keys, namespaces, ttls and patterns are: pure functions, tried by hand and by hypothesis."""

from __future__ import annotations

import copy
import enum
import math
import pickle
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_store_adapter.disk.statements import between
from kv_store_adapter.exceptions import InvalidKeyError, InvalidTTLError
from kv_store_adapter.protocol import check_items, check_keys
from kv_store_adapter.redis.layout import Layout
from kv_store_adapter.rules import (
    LONGEST_TTL_MS,
    MISSING,
    NO_EXPIRY,
    check_key,
    check_namespace,
    check_ttl,
    join_namespaces,
    literal_prefix,
    matcher,
)

# Text without lone surrogates, which can't be a key.
texts = st.text(st.characters(exclude_categories=["Cs"]))
patterns = st.text("ab*?[]!\\.é\n", max_size=8)
keys = st.text("ab*?[]!\\.é\n", max_size=6)


class Colour(str, enum.Enum):
    RED = "red"


@given(texts)
def test_any_text_is_a_key(text: str) -> None:
    """A key comes back as it went in."""
    assert check_key(text) == text
    assert check_namespace(text or None) == (text or None)


def test_an_enum_is_its_text() -> None:
    """A member of a str enum is its value, a plain str."""
    assert type(check_key(Colour.RED)) is str
    assert check_key(Colour.RED) == "red" == check_namespace(Colour.RED)


@pytest.mark.parametrize("letter", ["x", "é", "漢", "🙂"])
def test_the_limit_is_in_bytes(letter: str) -> None:
    """64 KiB of UTF-8 are allowed, one character more is not."""
    most = 65536 // len(letter.encode("utf-8"))
    for check in (check_key, check_namespace):
        assert check(letter * most) == letter * most
        with pytest.raises(InvalidKeyError, match="65536 are allowed"):
            check(letter * (most + 1))


@pytest.mark.parametrize("letter", ["x", "é"])
def test_the_limit_holds_in_batches(letter: str) -> None:
    """Each key of a batch may be as long as any other, and none longer, whatever the others are."""
    longest = letter * (65536 // len(letter.encode("utf-8")))
    for others in ([], ["y"], ["y" * 65536]):
        assert check_keys([*others, longest]) == [*others, longest]
        items = dict.fromkeys([*others, longest])
        assert check_items(items) == items
        with pytest.raises(InvalidKeyError, match="65536 are allowed"):
            check_keys([*others, longest + "x"])
        with pytest.raises(InvalidKeyError, match="65536 are allowed"):
            check_items({**dict.fromkeys(others), longest + "x": 1})


@given(st.one_of(st.integers(), st.floats(), st.binary(), st.lists(st.text()), st.booleans()))
def test_no_key_but_text(value: Any) -> None:
    """What is not a str is a TypeError that names its type."""
    for check in (check_key, check_namespace):
        with pytest.raises(TypeError, match=type(value).__name__):
            check(value)


@pytest.mark.parametrize(
    ("ttl", "milliseconds"),
    [
        *((None, None), (NO_EXPIRY, None), (1, 1000), (1.0, 1000), (1.1, 1100), (0.001, 1)),
        *(
            (0.0001, 1),
            (1e-300, 1),
            (0.0014, 2),
            (2.0000001, 2001),
            (3_155_760_000, LONGEST_TTL_MS),
        ),
        *((timedelta(microseconds=1), 1), (timedelta(milliseconds=1500), 1500)),
        (timedelta(days=1, microseconds=1), 86_400_001),
    ],
)
def test_ttl_is_milliseconds_rounded_up(ttl: Any, milliseconds: Any) -> None:
    """A ttl is whole milliseconds, never fewer than asked for and never zero."""
    assert check_ttl(ttl) == milliseconds


@given(st.floats(min_value=1e-9, max_value=3e9))
def test_ttl_rounds_up_by_less_than_a_millisecond(ttl: float) -> None:
    """Rounding gives at least what was asked for, and less than a millisecond more."""
    milliseconds = check_ttl(ttl)
    assert milliseconds is not None
    # A float of so many seconds is itself only so exact.
    slack = 1e-6 + math.ulp(ttl) * 1000 if hasattr(math, "ulp") else 1e-2
    assert ttl * 1000 - slack <= milliseconds < ttl * 1000 + 1 + slack


@pytest.mark.parametrize(
    "ttl", [0, -1, 0.0, -0.0, -1e-9, -0.5, True, False, math.nan, math.inf, timedelta(0), 10**400]
)
def test_a_bad_ttl_says_what_to_do(ttl: Any) -> None:
    """No ttl is truthiness: zero is an error, not 'for ever', and neither is True."""
    with pytest.raises(InvalidTTLError, match=r"ttl is "):
        check_ttl(ttl)


def test_a_ttl_ends_with_a_hundred_years() -> None:
    """A hundred years to the millisecond are allowed in every type, one more is not."""
    years = 3_155_760_000
    for most in (years, float(years), timedelta(seconds=years)):
        assert check_ttl(most) == LONGEST_TTL_MS == years * 1000
    for more in (years + 1, years + 0.001, timedelta(seconds=years, milliseconds=1), 1e300):
        with pytest.raises(InvalidTTLError, match="at most 100 years"):
            check_ttl(more)


def test_a_ttl_of_a_subclass_of_int_is_its_number() -> None:
    """An int enum's member counts by its value, however large."""

    class Lives(enum.IntEnum):
        SHORT = 5
        ENDLESS = 10**400

    assert check_ttl(Lives.SHORT) == 5000
    with pytest.raises(InvalidTTLError):
        check_ttl(Lives.ENDLESS)


@pytest.mark.parametrize("ttl", ["1", b"1", [1], {}, 1j, object()])
def test_no_ttl_but_a_number_or_a_timedelta(ttl: Any) -> None:
    """Anything else is a TypeError that names its type."""
    with pytest.raises(TypeError, match=f"None for no expiry, not {type(ttl).__name__}"):
        check_ttl(ttl)


def test_a_lone_surrogate_is_found() -> None:
    """The error says where it is, for keys and for namespaces."""
    with pytest.raises(InvalidKeyError, match="key .*ab.* lone surrogate at position 2"):
        check_key("ab\ud800c")
    with pytest.raises(InvalidKeyError, match="namespace .* lone surrogate at position 0"):
        check_namespace("\udfff")


def test_a_namespace_is_not_empty() -> None:
    """The empty name is refused, also inside of another; the empty key is fine."""
    assert check_key("") == ""
    for name in ("", type("Text", (str,), {})("")):
        with pytest.raises(InvalidKeyError, match="empty"):
            check_namespace(name)
        with pytest.raises(InvalidKeyError, match="empty"):
            join_namespaces("a", name)


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [
        *(("", ""), ("*", ""), ("abc", "abc"), ("a*b", "a"), ("ab?", "ab"), ("a[b]", "a")),
        *(
            ("a]b!", "a]b!"),
            ("é*", "é"),
            ("a\ud800b", "a"),
            ("a\udfff*", "a"),
            ("a\ue000b", "a\ue000b"),
        ),
    ],
)
def test_a_prefix_ends_where_the_pattern_begins(pattern: str, prefix: str) -> None:
    """The literal prefix is all the text before the first special character."""
    assert literal_prefix(pattern) == prefix
    assert literal_prefix(type("Text", (str,), {"__str__": lambda _: "no"})(pattern)) == prefix


def test_only_stars_need_no_matching() -> None:
    """A pattern of stars alone matches everything; the empty one matches the empty key alone."""
    assert matcher("*") is None
    assert matcher("***") is None
    empty = matcher("")
    assert empty is not None
    assert empty("")
    assert not empty("a")
    red = matcher(Colour.RED)
    assert red is not None
    assert red("red")
    assert not red("Colour.RED")


@pytest.mark.parametrize("pattern", [None, 1, b"*", ["*"]])
def test_no_pattern_but_text(pattern: Any) -> None:
    """What is not a str is a TypeError that names its type."""
    with pytest.raises(TypeError, match=f"not {type(pattern).__name__}"):
        matcher(pattern)


@pytest.mark.parametrize("ttl", [0, -7, 0.0, -0.25, math.inf, 1e300, timedelta(seconds=-5)])
def test_a_bad_ttl_is_shown(ttl: Any) -> None:
    """The error shows the ttl that was refused."""
    with pytest.raises(InvalidTTLError) as caught:
        check_ttl(ttl)
    assert f"not {ttl!r}. " in str(caught.value)


@given(texts.filter(bool), texts.filter(bool))
def test_joined_names_are_one_string(outer: str, inner: str) -> None:
    """A namespace in a namespace is joined by a colon; the default one adds nothing."""
    assert join_namespaces(outer, inner) == f"{outer}:{inner}"
    assert join_namespaces(None, inner) == inner
    assert join_namespaces(outer, None) == outer


def test_a_joined_name_can_be_too_long() -> None:
    """The length of a view's joined name counts."""
    with pytest.raises(InvalidKeyError):
        join_namespaces("x" * 40_000, "y" * 40_000)


@given(patterns, st.lists(keys, max_size=20))
def test_matcher_is_fnmatchcase(pattern: str, tried: Any) -> None:
    """A compiled pattern matches exactly what fnmatchcase does."""
    matches = matcher(pattern)
    for key in tried:
        assert (matches is None or bool(matches(key))) == fnmatchcase(key, pattern)


@given(patterns, keys)
def test_prefilters_lose_nothing(pattern: str, key: str) -> None:
    """What matches starts with the literal prefix, and disk's range has everything that does."""
    prefix = literal_prefix(pattern)
    if fnmatchcase(key, pattern):
        assert key.startswith(prefix)


@given(texts, texts)
def test_disk_looks_between_the_right_bounds(prefix: str, rest: str) -> None:
    """Every text that starts with the prefix lies within the range, by UTF-8."""
    _, bounds = between(prefix)
    key = (prefix + rest).encode("utf-8")
    if bounds:
        assert bounds[0].encode("utf-8") <= key
    if len(bounds) == 2:
        assert key < bounds[1].encode("utf-8")
        assert not bounds[1].startswith(prefix)


@pytest.mark.parametrize("prefix", ["\U0010ffff", "a\U0010ffff", "\ud7ff", "a", "", "\uffff"])
def test_disk_looks_between_the_right_bounds_at_the_edges(prefix: str) -> None:
    """The range is right where the last character is the last of all, or is before surrogates."""
    _, bounds = between(prefix)
    for bound in bounds:
        bound.encode("utf-8")
    if len(bounds) == 2:
        assert bounds[0] <= prefix + "\U0010ffff" * 3 < bounds[1]


@given(
    st.tuples(st.none() | texts.filter(bool), texts),
    st.tuples(st.none() | texts.filter(bool), texts),
)
def test_redis_names_are_injective(one: Any, other: Any) -> None:
    """Two entries share a Redis key only if they are the same; a lock never is an entry."""
    layout = Layout("kv")
    (name_1, key_1), (name_2, key_2) = one, other
    same = layout.name(key_1, name_1) == layout.name(key_2, name_2)
    assert same == (one == other)
    assert (layout.lock(key_1, name_1) == layout.lock(key_2, name_2)) == (one == other)
    assert layout.namespace(layout.lock(key_1, name_1)) is None
    assert layout.namespace(layout.name(key_1, name_1)) == name_1
    assert layout.key(layout.name(key_1, name_1), name_1) == key_1


@given(st.lists(texts | st.text("a\0:", max_size=3)), st.none() | texts.filter(bool), st.data())
def test_redis_names_of_many_are_those_of_each(keys: Any, name: Any, data: Any) -> None:
    """A batch has the names that its keys have, and of names that come only ours give keys."""
    layout = Layout("kv")
    names = layout.names(iter(keys), name)
    assert names == [layout.name(key, name) for key in keys]
    assert layout.keys(names, name) == keys
    foreign = st.binary(max_size=9) | st.sampled_from([b"kv::a\0kv::b", b"bad", b"kv::\xff", b""])
    mixed = data.draw(st.permutations(names + data.draw(st.lists(foreign, max_size=3))))
    found = [layout.key(each, name) for each in mixed]
    assert layout.keys(mixed, name) == [key for key in found if key is not None]


@given(texts.filter(bool), texts.filter(bool), st.none() | texts.filter(bool), texts)
def test_redis_prefixes_are_apart(mine: str, theirs: str, name: Any, key: str) -> None:
    """An entry of one prefix is nothing to a store of another, whatever the prefixes hold."""
    if mine != theirs:
        foreign = Layout(theirs).name(key, name)
        assert Layout(mine).namespace(foreign) is None
        assert Layout(mine).key(foreign, name) is None


def test_sentinels_stay_themselves() -> None:
    """MISSING and NO_EXPIRY survive copy and pickle as the same object, and say their name."""
    for sentinel, text in ((MISSING, "<MISSING>"), (NO_EXPIRY, "<NO_EXPIRY>")):
        assert copy.deepcopy(sentinel) is sentinel
        assert pickle.loads(pickle.dumps(sentinel)) is sentinel
        assert repr(sentinel) == text
