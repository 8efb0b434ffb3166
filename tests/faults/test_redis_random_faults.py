"""A model of what may be in Redis, against random faults of the connection."""

from __future__ import annotations

import random
from typing import Any, Iterator, List, Optional, Set

import pytest
from breakable import BreakableServer, in_threads
from proxy import HALF_ANSWER, HOLD, LOSE_ANSWER, LOSE_REQUEST, Proxy

from kv_store_adapter import KeyNotFoundError, RedisKVStore, StoreUnavailableError

pytestmark = pytest.mark.server

PATIENCE = 0.5


@pytest.fixture
def server() -> Iterator[BreakableServer]:
    with BreakableServer() as server:
        yield server


@pytest.fixture
def proxy(server: BreakableServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def direct(server: BreakableServer) -> Iterator[RedisKVStore]:
    """A store that goes round the proxy."""
    with RedisKVStore(port=server.port, socket_timeout=20) as store:
        yield store


ABSENT = object()


class Believer:
    """Does random operations on a key of its own, and knows all that may be there after each."""

    def __init__(self, store: RedisKVStore, me: int, seed: int) -> None:
        self.store, self.key = store, f"key of {me}"
        self.chance = random.Random(seed * 1000 + me)
        self.may_be: Set[Any] = {ABSENT}
        self.number = 0
        self.errors = 0
        self.operations = 0

    def step(self) -> None:
        self.number += 1
        self.operations += 1
        new = f"{self.key}: {self.number}"
        what = self.chance.choice(["get", "get", "get_many", "exists", "set", "add", "pop", "del"])
        try:
            came = self._do(what, new)
        except StoreUnavailableError as error:
            self.errors += 1
            if what in ("get", "get_many", "exists"):
                return
            assert "may have been applied" in str(error), (what, error)
            self.may_be |= {ABSENT if what in ("pop", "del") else new}
            return
        self._check(what, new, came)

    def _do(self, what: str, new: str) -> Any:
        store, key = self.store, self.key
        if what == "get":
            return store.get(key, default=ABSENT)
        if what == "get_many":
            return store.get_many([key, "x"]).get(key, ABSENT)
        if what == "set":
            return store.set(key, new)
        if what == "add":
            return store.add(key, new)
        if what == "pop":
            return store.pop(key, default=ABSENT)
        return store.exists(key) if what == "exists" else store.delete(key)

    def _check(self, what: str, new: str, came: Any) -> None:
        if what in ("exists", "del", "add"):
            was_there = not came if what == "add" else came
            found = {each for each in self.may_be if (each is not ABSENT) == was_there}
            assert found, (what, came, self.may_be)
            self.may_be = found
        elif what != "set":
            assert came in self.may_be, (what, came, self.may_be)
            self.may_be = {came}
        if what in ("pop", "del"):
            self.may_be = {ABSENT}
        if what == "set" or (what == "add" and came):
            self.may_be = {new}


def test_random_faults_make_no_lie(
    proxy: Proxy, direct: RedisKVStore, seed: int, rounds: Any, count: Any
) -> None:
    """Among random cuts, delays and silences every answer is one that can be, and every doubt is told."""
    chance = random.Random(seed)
    faults = [LOSE_REQUEST, LOSE_ANSWER, HALF_ANSWER, HOLD]

    def fault() -> Optional[str]:
        # Silence is rare: each costs a wait.
        weights = (3, 3, 3, 1)
        return chance.choices(faults, weights)[0] if chance.random() < 0.1 else None

    proxy.chance = fault
    proxy.torn = True
    with RedisKVStore(port=proxy.port, socket_timeout=PATIENCE) as store:
        believers = [Believer(store, me, seed) for me in range(8)]

        def work(me: int) -> None:
            for _ in range(rounds(100, 2000)):
                believers[me].step()

        failed: List[Any] = [each for each in in_threads(8, work) if each is not None]
        assert failed == []
        proxy.chance = None
        # What was sent before its answer was cut has arrived; what is there must be believable.
        for each in believers:
            try:
                there = direct.get(each.key)
            except KeyNotFoundError:
                there = ABSENT
            assert there in each.may_be
    count("operations among faults", sum(each.operations for each in believers))
    count("faults of the connection", proxy.faults)
    count("errors that were told", sum(each.errors for each in believers))
    count("lies", 0)
