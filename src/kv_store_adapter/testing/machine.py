"""`state_machine`: hypothesis looks for calls in which a store and a dictionary disagree."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Callable, Dict, Optional, Tuple

import pytest

from ..exceptions import KeyNotFoundError
from ..protocol import KVStoreProtocol

__all__ = ["state_machine"]

_KEYS = ("", "a", "A", "a:b", "*", "é", "e\u0301", "b")
_NAMESPACES = (None, "a", "A", "a:b", ":")

# Deadlines lie a quarter of a second off the steps in which time passes, so that no call falls into
# the millisecond in which a store may still hold an expired entry.
_TTLS = (None, 0.25, 1.25, 10.25, 1000.25)
_STEPS = (0.5, 1, 5, 20, 2000)
_START = 1_800_000_000.0


def _large() -> str:
    return "large" * 8000


def state_machine(make_store: Callable[[], KVStoreProtocol]) -> Any:
    """Return a hypothesis state machine class that compares a store with a dictionary.

    Time passes in it, without waiting (time-machine), so it is for stores that go by this
    process's clock.

    Args:
        make_store: Returns a fresh, empty store; called once for each example, and the store is
            closed at its end.

    Example::

        TestMyStoreAgainstADict = state_machine(MyStore).TestCase
    """
    pytest.importorskip("hypothesis")
    time_machine = pytest.importorskip("time_machine")
    from hypothesis import HealthCheck, settings
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

    keys, names = st.sampled_from(_KEYS), st.sampled_from(_NAMESPACES)
    values = st.one_of(st.none(), st.integers(), st.text(max_size=5), st.builds(_large))
    ttls = st.sampled_from(_TTLS)
    patterns = st.sampled_from(("*", "a*", "?", "[aA]", "*:*", "", "é", "[!a]*", "[*]"))
    many = st.lists(keys, max_size=4)

    class StoreAgainstDict(RuleBasedStateMachine):
        """The model: (namespace, key) to (value, deadline)."""

        def __init__(self) -> None:
            super().__init__()
            self.journey = time_machine.travel(_START, tick=False)
            self.clock = self.journey.start()
            self.now = _START
            self.model: Dict[Tuple[Optional[str], str], Tuple[Any, Optional[float]]] = {}
            self.store = make_store()

        def teardown(self) -> None:
            try:
                self.store.close()
            finally:
                self.journey.stop()

        def deadline(self, ttl: Optional[float]) -> Optional[float]:
            return None if ttl is None else self.now + ttl

        def live(self, name: Optional[str]) -> Dict[str, Any]:
            return {key: value for (n, key), (value, _) in self.model.items() if n == name}

        @rule(step=st.sampled_from(_STEPS))
        def time_passes(self, step: float) -> None:
            self.clock.shift(step)
            self.now += step
            self.model = {
                place: entry
                for place, entry in self.model.items()
                if entry[1] is None or entry[1] > self.now
            }

        @rule(key=keys, name=names, value=values, ttl=ttls)
        def set(self, key: str, name: Optional[str], value: Any, ttl: Optional[float]) -> None:
            self.store.set(key, value, name, ttl)
            self.model[name, key] = value, self.deadline(ttl)

        @rule(key=keys, name=names, value=values, ttl=ttls)
        def add(self, key: str, name: Optional[str], value: Any, ttl: Optional[float]) -> None:
            absent = (name, key) not in self.model
            assert self.store.add(key, value, name, ttl) is absent
            if absent:
                self.model[name, key] = value, self.deadline(ttl)

        @rule(batch=st.dictionaries(keys, values, max_size=4), name=names, ttl=ttls)
        def set_many(
            self, batch: Dict[str, Any], name: Optional[str], ttl: Optional[float]
        ) -> None:
            self.store.set_many(batch, name, ttl)
            for key, value in batch.items():
                self.model[name, key] = value, self.deadline(ttl)

        @rule(key=keys, name=names)
        def delete(self, key: str, name: Optional[str]) -> None:
            assert self.store.delete(key, name) is ((name, key) in self.model)
            self.model.pop((name, key), None)

        @rule(key=keys, name=names)
        def pop(self, key: str, name: Optional[str]) -> None:
            expected = self.model.pop((name, key), ("absent", None))[0]
            assert self.store.pop(key, name, default="absent") == expected

        @rule(key=keys, name=names, ttl=ttls)
        def touch(self, key: str, name: Optional[str], ttl: Optional[float]) -> None:
            there = (name, key) in self.model
            assert self.store.touch(key, name, ttl) is there
            if there:
                self.model[name, key] = self.model[name, key][0], self.deadline(ttl)

        @rule(batch=many, name=names)
        def delete_many(self, batch: Any, name: Optional[str]) -> None:
            there = [key for key in dict.fromkeys(batch) if (name, key) in self.model]
            assert self.store.delete_many(batch, name) == len(there)
            for key in there:
                del self.model[name, key]

        @rule(name=names)
        def clear_namespace(self, name: Optional[str]) -> None:
            assert self.store.clear_namespace(name) == len(self.live(name))
            for key in self.live(name):
                del self.model[name, key]

        @rule(key=keys, name=names)
        def look_at_one(self, key: str, name: Optional[str]) -> None:
            entry = self.model.get((name, key))
            assert self.store.exists(key, name) is (entry is not None)
            if entry is None:
                for call in (self.store.get, self.store.ttl):
                    with pytest.raises(KeyNotFoundError):
                        call(key, name)
                return
            assert self.store.get(key, name) == entry[0]
            left = self.store.ttl(key, name)
            if entry[1] is None:
                assert left is None
            else:
                assert left is not None and abs(left - (entry[1] - self.now)) <= 0.002

        @rule(batch=many, name=names, pattern=patterns)
        def look_at_many(self, batch: Any, name: Optional[str], pattern: str) -> None:
            live = self.live(name)
            expected = {key: live[key] for key in batch if key in live}
            assert self.store.get_many(batch, name) == expected
            matching = sorted(key for key in live if fnmatchcase(key, pattern))
            assert sorted(self.store.keys(name, pattern)) == matching
            assert sorted(self.store.iter_keys(name, pattern)) == matching

        @invariant()
        def namespaces_agree(self) -> None:
            named = {name for name, _ in self.model if name is not None}
            assert sorted(self.store.list_namespaces()) == sorted(named)

    # An example may take long on a disk. How many there are is the profile's to say.
    StoreAgainstDict.TestCase.settings = settings(
        deadline=None, suppress_health_check=list(HealthCheck)
    )
    return StoreAgainstDict
