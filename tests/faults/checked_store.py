"""A store beside a model of what it must hold, by a clock that a test moves."""

from __future__ import annotations

import itertools
import math
import random
import time
from typing import Any, Dict, Optional, Set, Tuple

import pytest

from kv_store_adapter import KeyNotFoundError, KVStoreProtocol


class Checked:
    """A store beside a model of it: to each key its value and its end. Each step checks what it can."""

    def __init__(self, store: KVStoreProtocol, chance: random.Random) -> None:
        self.store, self.chance = store, chance
        self.entries: Dict[Tuple[Optional[str], str], Tuple[Any, float]] = {}
        #: Those that were over once: if the clock goes back they may be there again, or may not.
        self.over: Set[Tuple[Optional[str], str]] = set()
        self.values = itertools.count()
        self.steps = [self.set, self.add, self.touch, self.pop, self.delete, self.ttl]
        self.steps += [self.keys, self.list_namespaces, self.clear]

    def before_the_clock_moves(self) -> None:
        self.over |= {p for p in self.entries if self.entries[p][1] < time.time() + 0.0021}

    def _put(self, place: Any, value: Any, ttl: Optional[float]) -> None:
        ms = None if ttl is None else math.ceil(round(ttl * 1000, 6))
        self.entries[place] = (value, math.inf if ms is None else time.time() + ms / 1000)
        self.over.discard(place)

    def _drop(self, place: Any) -> None:
        self.entries.pop(place, None)
        self.over.discard(place)

    def state(self, place: Any) -> Optional[bool]:
        """Whether it must be there; None: it may, as it ends within a millisecond, or was over once."""
        if place not in self.entries:
            return False
        left = self.entries[place][1] - time.time()
        if left < -0.0011:
            return False
        return True if left > 1e-4 and place not in self.over else None

    def agrees(self, there: bool, place: Any) -> None:
        assert self.state(place) in (there, None)

    def step(self) -> None:
        place = (self.chance.choice([None, "a", "b"]), self.chance.choice("xyz"))
        self.chance.choice(self.steps)(place, place[1], place[0])
        got = self.store.get(place[1], place[0], default=None)
        self.agrees(got is not None, place)
        assert got is None or got == self.entries[place][0]

    def _new(self) -> Tuple[Any, Optional[float]]:
        value = [next(self.values), "v" * self.chance.choice([1, 500])]
        return value, self.chance.choice([None, 0.0004, 0.001, 0.5, 1.1, 5, 60, 3600, 7200])

    def set(self, place: Any, key: str, namespace: Optional[str]) -> None:
        value, ttl = self._new()
        self.store.set(key, value, namespace, ttl)
        self._put(place, value, ttl)

    def add(self, place: Any, key: str, namespace: Optional[str]) -> None:
        value, ttl = self._new()
        added = self.store.add(key, value, namespace, ttl)
        self.agrees(not added, place)
        if added:
            self._put(place, value, ttl)

    def touch(self, place: Any, key: str, namespace: Optional[str]) -> None:
        _, ttl = self._new()
        touched = self.store.touch(key, namespace, ttl)
        self.agrees(touched, place)
        if touched:
            self._put(place, self.entries[place][0], ttl)

    def pop(self, place: Any, key: str, namespace: Optional[str]) -> None:
        got = self.store.pop(key, namespace, default=None)
        self.agrees(got is not None, place)
        if got is not None:
            assert got == self.entries[place][0]
            self._drop(place)

    def delete(self, place: Any, key: str, namespace: Optional[str]) -> None:
        deleted = self.store.delete(key, namespace)
        self.agrees(deleted, place)
        if deleted:  # what was over: see test_what_was_deleted_stays_deleted
            self._drop(place)

    def ttl(self, place: Any, key: str, namespace: Optional[str]) -> None:
        try:
            left = self.store.ttl(key, namespace)
        except KeyNotFoundError:
            self.agrees(False, place)
            return
        self.agrees(True, place)
        until = self.entries[place][1]
        if until == math.inf:
            assert left is None
        else:
            assert left == pytest.approx(until - time.time(), abs=0.0021, rel=1e-9)

    def keys(self, place: Any, key: str, namespace: Optional[str]) -> None:
        listed = self.store.keys(namespace)
        for other in "xyz":
            self.agrees(other in listed, (namespace, other))

    def list_namespaces(self, place: Any, key: str, namespace: Optional[str]) -> None:
        named = self.store.list_namespaces()
        for name in "ab":
            states = [self.state((name, other)) for other in "xyz"]
            assert None in states or (name in named) is (True in states)

    def clear(self, place: Any, key: str, namespace: Optional[str]) -> None:
        states = [self.state((namespace, other)) for other in "xyz"]
        cleared = self.store.clear_namespace(namespace)
        assert states.count(True) <= cleared <= 3 - states.count(False)
        for other in "xyz":
            self._drop((namespace, other))
