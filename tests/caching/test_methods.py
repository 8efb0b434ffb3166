"""`self` and `cls`: never left out silently, never kept alive."""

from __future__ import annotations

import enum
import gc
import weakref
from dataclasses import dataclass
from typing import Any, List, Tuple

import pytest

from kv_store_adapter import KVStoreProtocol, MemoryKVStore, UnkeyableArgumentError, cached


def make_classes(store: KVStoreProtocol) -> Tuple[Any, Any]:
    class Base:
        @cached(store)
        @classmethod
        def outside(cls, x: int) -> List[Any]:
            return [cls.__name__, x]

        @classmethod
        @cached(store)
        def inside(cls, x: int) -> List[Any]:
            return [cls.__name__, x]

        @cached(store)
        @staticmethod
        def static_outside(x: int) -> int:
            return x

        @staticmethod
        @cached(store)
        def static_inside(x: int) -> int:
            return x

    class Derived(Base):
        pass

    return Base, Derived


def test_class_and_static_methods_in_either_order(store: KVStoreProtocol) -> None:
    """Class methods get their class, static methods none, in either decorator order."""
    base, derived = make_classes(store)
    for _ in range(2):
        for name in ("outside", "inside"):
            assert getattr(base, name)(1) == ["Base", 1]
            assert getattr(base(), name)(1) == ["Base", 1]
            assert getattr(derived, name)(1) == ["Derived", 1]
        assert base.static_outside(1) == base().static_inside(1) == derived.static_outside(1) == 1
    assert base.outside.cache_info()[:2] == (4, 2)


def test_handles_on_class_methods(store: KVStoreProtocol) -> None:
    """Handles of a class method know the class; where Python hides it, they ask for it."""
    base, derived = make_classes(store)
    base.outside(1)
    assert base.outside.peek(1) == ["Base", 1]
    assert base.outside.invalidate(1) is True
    with pytest.raises(KeyError):
        derived.outside.peek(1)
    base.inside(1)
    try:
        assert base.inside.peek(1) == ["Base", 1]
    except TypeError as error:  # Python 3.8 and from 3.13 on
        assert "Which class?" in str(error)
        assert base.inside.peek(base, 1) == ["Base", 1]


def test_instances_by_what_they_declare(store: KVStoreProtocol) -> None:
    """Instances are apart by __cache_key__, dataclass fields or enum members."""

    class Named:
        __slots__ = ("name",)

        def __init__(self, name: str) -> None:
            self.name = name

        def __cache_key__(self) -> str:
            return self.name

        @cached(store)
        def hello(self) -> str:
            return "hello " + self.name

    @dataclass
    class Point:
        x: int

        @cached(store)
        def doubled(self) -> int:
            return self.x * 2

    class Color(enum.Enum):
        RED = 1
        BLUE = 2

        @cached(store)
        def text(self) -> str:
            return self.name

    assert [Named("a").hello(), Named("b").hello(), Named("a").hello()] == [
        "hello a",
        "hello b",
        "hello a",
    ]
    assert Named.hello.cache_info().hits == 1
    assert [Point(1).doubled(), Point(2).doubled(), Point(1).doubled()] == [2, 4, 2]
    assert [Color.RED.text(), Color.BLUE.text()] == ["RED", "BLUE"]


def test_an_instance_without_identity_is_refused(store: KVStoreProtocol) -> None:
    """A self that does not say who it is is a TypeError that says what to do."""

    class Plain:
        @cached(store)
        def f(self) -> int:
            return 1

        @cached(store, ignore=("self",))
        def g(self) -> int:
            return 2

    with pytest.raises(UnkeyableArgumentError, match=r"'self'.*ignore=\('self',\)"):
        Plain().f()
    assert Plain().g() == Plain().g() == 2
    assert Plain.g.cache_info().hits == 1


def test_instances_are_not_kept_alive() -> None:
    """Nothing of ours holds an instance after its cached method returned or raised."""
    store = MemoryKVStore()

    class Heavy:
        def __cache_key__(self) -> str:
            return "heavy"

        @cached(store)
        def f(self, x: int) -> int:
            if x < 0:
                raise ValueError(x)
            return x

    heavy = Heavy()
    heavy.f(1)
    heavy.f(1)
    heavy.f.cache_info()
    with pytest.raises(ValueError, match="-1"):
        heavy.f(-1)
    gone = weakref.ref(heavy)
    del heavy
    gc.collect()
    assert gone() is None


def test_handles_on_bound_methods(store: KVStoreProtocol) -> None:
    """cache_key, peek, invalidate, refresh and bypass of a bound method mean that instance."""

    @dataclass
    class Account:
        owner: str

        @cached(store)
        def balance(self, year: int = 2020) -> List[Any]:
            return [self.owner, year]

    ann, bob = Account("ann"), Account("bob")
    assert ann.balance() == ["ann", 2020]
    assert ann.balance.peek(2020) == ["ann", 2020]
    with pytest.raises(KeyError):
        bob.balance.peek()
    assert bob.balance.refresh() == ["bob", 2020]
    assert ann.balance.invalidate(year=2020) is True
    assert ann.balance.invalidate() is False
    assert bob.balance.peek() == ["bob", 2020]
    assert ann.balance.bypass(1) == ["ann", 1]
    assert ann.balance.cache_key() == Account.balance.cache_key(ann, 2020)
    assert ann.balance.__self__ is ann
    Account.balance.cache_clear()
    with pytest.raises(KeyError):
        bob.balance.peek()


def test_handles_of_what_becomes_a_method(store: KVStoreProtocol) -> None:
    """However a method came to be one, by whatever first name, its handles know the instance."""

    def without_wraps(function: Any) -> Any:
        return lambda *args, **kwargs: function(*args, **kwargs)

    class Account:
        def __init__(self, owner: str) -> None:
            self.owner = owner

        def __cache_key__(self) -> str:
            return self.owner

        @cached(store)
        @without_wraps
        def inside(self, year: int) -> List[Any]:
            return [self.owner, year]

    def later(this: Any, year: int = 2020) -> List[Any]:
        return [this.owner, year]

    Account.later = cached(store)(later)  # type: ignore[attr-defined]
    ann: Any = Account("ann")
    bob: Any = Account("bob")
    for name in ("inside", "later"):
        assert getattr(ann, name)(1) == getattr(ann, name).peek(1) == ["ann", 1]
        assert getattr(bob, name).invalidate(1) is False
        assert getattr(bob, name).bypass(1) == ["bob", 1]
        assert getattr(ann, name).invalidate(1) is True
