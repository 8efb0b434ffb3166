"""What a hostile caller tried: two calls that must not meet, and code that calls back."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List

import pytest

from kv_store_adapter import (
    DiskKVStore,
    InvalidTTLError,
    KVStoreProtocol,
    MemoryKVStore,
    UnkeyableArgumentError,
    cached,
    cached_many,
)


def test_a_template_may_name_what_is_ignored(store: KVStoreProtocol) -> None:
    """What a template names counts, on the quick path as well, although ignore= names it, too."""

    @cached(store, key="u:{a}:{b}", ignore=("b",))
    def f(a: int, b: int) -> List[int]:
        return [a, b]

    assert [f(1, 2), f(1, 2), f(1, 3), f(1, 3)] == [[1, 2], [1, 2], [1, 3], [1, 3]]


def test_methods_that_were_bound_before_keep_their_owner(store: KVStoreProtocol) -> None:
    """A bound method is decorated with its owner in the key, or refused where it has no identity."""

    class Owner:
        def __init__(self, n: int) -> None:
            self.n = n

        def __cache_key__(self) -> int:
            return self.n

        def m(self, x: int) -> int:
            return self.n * x

    class Nobody:
        def m(self, x: int) -> int:
            return x

    one, two = cached(store)(Owner(1).m), cached(store)(Owner(2).m)
    assert [one(5), two(5), one(5), two(5)] == [5, 10, 5, 10]
    counts = [cached(store, namespace="n")(values.count)(1) for values in ([1, 1], [1, 2, 3])]
    assert counts == [2, 1]
    with pytest.raises(UnkeyableArgumentError, match="Decorate the method in its class"):
        cached(store)(Nobody().m)


def test_many_takes_ids_of_one_type(store: KVStoreProtocol) -> None:
    """Ids that are equal but of different types can't share a dictionary: refused, not mixed."""

    @cached_many(store)
    def load(ids: List[Any]) -> Dict[Any, str]:
        return {i: type(i).__name__ for i in ids}

    with pytest.raises(TypeError, match="ids of one type"):
        load([1, 1.0])
    assert [load([1]), load([1.0])] == [{1: "int"}, {1.0: "float"}]


def test_state_beside_the_fields_is_not_dropped() -> None:
    """A subclass that adds attributes to a dataclass or named tuple must say who it is."""

    @dataclass
    class A:
        x: int

    class B(A):
        pass

    class P(namedtuple("P", "x")):  # noqa: PYI024, SLOT002  # what users have
        pass

    f = cached(MemoryKVStore(), namespace="n")(lambda a: a.x)
    for make in (B, P):
        assert f(make(1)) == 1
        more = make(1)
        more.y = 2
        with pytest.raises(UnkeyableArgumentError, match="besides its fields"):
            f(more)


def test_partials_in_one_namespace_are_refused() -> None:
    """Two partials have no names to tell their keys apart."""
    store = MemoryKVStore()
    first, second = functools.partial(divmod, 9), functools.partial(divmod, 8)
    assert cached(store, namespace="n")(first)(3) == (3, 0)
    with pytest.raises(ValueError, match="namespace="):
        cached(store, namespace="n")(second)


def test_a_users_key_is_never_taken_for_an_envelope(store: KVStoreProtocol) -> None:
    """No key= can name the entry of a function with stale=, whatever it starts with."""

    @cached(store, namespace="n", key="x{a}", ttl=9, stale=9)
    def f(a: int) -> str:
        return "f"

    @cached(store, namespace="n", key="~x{a}")
    def g(a: int) -> str:
        return "g"

    @cached(store, namespace="n", key="=~x{a}")
    def h(a: int) -> str:
        return "h"

    assert [f(1), g(1), h(1), f(1), g(1), h(1)] == ["f", "g", "h"] * 2


@pytest.mark.parametrize("error", [GeneratorExit, KeyboardInterrupt, SystemExit])
def test_an_interrupted_body_gives_its_lock_back(store: KVStoreProtocol, error: Any) -> None:
    """Whatever ends the body, the lock is given back and the next call computes at once."""
    calls: List[int] = []

    @cached(store, lock="store", lock_timeout=20)
    def f(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            raise error
        return x

    with pytest.raises(error):
        f(1)
    started = time.monotonic()
    assert f(1) == 1
    assert time.monotonic() - started < 10


def test_a_closed_coroutine_ends_its_lease() -> None:
    """A coroutine that is closed while it computes can't give the lock back; its lease ends."""
    store = MemoryKVStore()

    @cached(store)
    async def f(x: int) -> int:
        await asyncio.sleep(0)
        return x

    closed = f(1)
    closed.send(None)
    closed.close()
    assert asyncio.run(asyncio.wait_for(f(1), 20)) == 1


def test_the_lock_of_a_closed_coroutine_ends_with_its_lease(tmp_path: Path) -> None:
    """What is closed while it computes can't give its lock back, and does not renew it either."""
    inside: List[int] = []

    with DiskKVStore(tmp_path / "store") as store:

        @cached(store, lock="store", lock_ttl=0.3, key="f{x}", namespace="n")
        async def f(x: int) -> None:
            inside.append(x)
            await asyncio.sleep(600)

        async def main() -> None:
            closed = f(1)
            waits_for = closed.send(None)
            while not inside:
                await asyncio.wait([waits_for])
                waits_for = closed.send(None)
            closed.close()

        asyncio.run(main())
        with store.lock("f1", "n", timeout=20):
            assert inside == [1]


def test_callbacks_may_call_the_function(store: KVStoreProtocol) -> None:
    """A call that reaches itself from cache_if= or ttl= computes instead of waiting for itself."""
    depth: List[int] = []

    def deeper(*args: Any) -> int:
        depth.append(1)
        if len(depth) < 4:
            f(1)
        return 60

    @cached(store, cache_if=deeper, ttl=deeper, lock_timeout=20)
    def f(a: int) -> int:
        return a

    started = time.monotonic()
    assert f(1) == 1
    assert time.monotonic() - started < 10


def test_a_tampered_envelope_is_a_miss(store: KVStoreProtocol) -> None:
    """What does not look like ours is computed anew and overwritten."""

    @cached(store, namespace="n", ttl=60, stale=5)
    def f(x: int) -> str:
        return "computed"

    for tampered in (["kvc1", "x", 0, {}, 1], ["kvc1", 1, "x", {}, 1], ["kvc1", 1, 1, [], 1], 7):
        store.set(f.cache_key(1), tampered, "n")
        with pytest.raises(KeyError):
            f.peek(1)
        assert f(1) == f.peek(1) == "computed"


def test_limits_are_checked_at_decoration() -> None:
    """A ttl that stale= pushes over the limit, and an endless lock_timeout, are told at once."""
    with pytest.raises(InvalidTTLError):
        cached(MemoryKVStore(), ttl=3155760000, stale=5)
    with pytest.raises(ValueError, match="lock_timeout="):
        cached(MemoryKVStore(), lock_timeout=float("inf"))


def test_handles_take_any_keyword(store: KVStoreProtocol) -> None:
    """A keyword named self, and a first parameter named cls of a plain function, are arguments."""

    @cached(store)
    def f(a: int, **kw: int) -> int:
        return a

    @cached(store)
    def g(cls: str, x: int = 1) -> str:
        return cls

    f(1, self=2)
    assert f.peek(1, self=2) == 1
    assert f.cache_key(1, self=2) != f.cache_key(1, self=3)
    assert g("a") == g.peek("a") == "a"


def test_tags_outlive_a_views_default_ttl() -> None:
    """A tag in a view is kept for ever, so that it does not drop results that live longer."""
    view = MemoryKVStore().namespace("v", ttl=60)
    f = cached(view, ttl=3600, tags=("t",), namespace="n")(lambda: 1)
    f()
    assert view.ttl("t", "kv-store-adapter.tags") is None
