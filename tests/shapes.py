"""Values of every kind, and the keys of calls, for the tests of keys."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import functools
import textwrap
import typing
from typing import Any, Dict, List, NamedTuple

from kv_store_adapter import (
    MemoryKVStore,
    cached,
)


def key_of(*args: Any, **kwargs: Any) -> str:
    """The key of a call of a function that takes anything."""

    @cached(MemoryKVStore(), key=None)
    def anything(*args: Any, **kwargs: Any) -> None: ...

    return anything.cache_key(*args, **kwargs)


def keyed(function: Any, **options: Any) -> Any:
    """How this function makes keys, in a store of its own."""
    return cached(MemoryKVStore(), **options)(function).cache_key


def function_of(source: str) -> Any:
    """A function with parameters that older Pythons can read, too."""
    scope: Dict[str, Any] = {"__name__": "test_keys"}
    exec(textwrap.dedent(source), scope)
    return scope["f"]


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796  # an alias
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


def function() -> None:
    """What can be found by its name."""


def wrapping(inner: Any) -> Any:
    """A decorator like most."""

    @functools.wraps(inner)
    def outer() -> None: ...

    return outer


@wrapping
def wrapped() -> None:
    """What is decorated, and what is inside, have one name."""


def make_local() -> Any:
    """A function that has its name in common with each other one made here."""

    def local() -> None: ...

    return local


@cached(MemoryKVStore())
def found_by_name() -> None:
    """What is decorated by us is found by its name, too."""


UTC = dt.timezone.utc
HOUR = dt.timedelta(hours=1)
NOON = dt.datetime(2024, 3, 31, 12)  # noqa: DTZ001  # no zone: that is the point


def endless_list() -> List[Any]:
    """A list that holds itself."""
    endless: List[Any] = []
    endless.append(endless)
    return endless
