"""Keys: equal if and only if the calls are equal, in every process and every Python."""

from __future__ import annotations

import collections
import itertools
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kv_store_adapter import (
    MemoryKVStore,
    cached,
)
from kv_store_adapter.identity import text_of
from kv_store_adapter.keys import LONGEST_READABLE
from kv_store_adapter.rules import LONGEST_KEY
from shapes import function_of, key_of, keyed

SRC = Path(__file__).resolve().parent.parent / "src"


# ---------------------------------------------------------------------- the law, by hypothesis


def form(value: Any) -> Any:
    """What a plain value is, to the type and the bit: our own idea of equality, to compare with."""
    kind = type(value)
    if kind is float:
        return kind, "nan" if value != value else struct.pack(">d", value)
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
        *(
            "",
            "1",
            "True",
            "None",
            "nan",
            "a",
            "b",
            "a,b",
            "a b",
            "a:b",
            '"',
            '","',
            '"a","b"',
            "'",
        ),
        *("\\", '\\"', "\\ud800", "\ud800", "\udc00", "\ud800\udc00", "\U00010000", "()", "[]"),
        *(
            "\u00e9",
            "e\u0301",
            "\u212b",
            "\u00c5",
            "\ufb01",
            "fi",
            "K",
            "\u212a",
            "\0",
            "\x7f",
            "\n",
        ),
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
SHAPES = r"""
import collections, dataclasses, datetime, decimal, enum, fractions, functools, ipaddress, json
import pathlib, pickle, re, sys, types, uuid
from kv_store_adapter.identity import text_of
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
"""


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


# ---------------------------------------------------------------------- long keys


def test_long_keys_become_digests() -> None:
    """Beyond what is readable a key is its SHA-256: short, and as different as it was."""
    texts = ["x" * LONGEST_READABLE, "x" * LONGEST_READABLE + "y", "\ud800" * 10**4, "x" * 10**6]
    keys = [key_of(text) for text in texts]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("#[0-9a-f]{64}", key) for key in keys)
    assert key_of("x" * 10**6) == keys[-1]
    assert not key_of("x" * 50).startswith("#")
    versioned = keyed(function_of("def f(a): pass"), version="v" * 10**5)
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
