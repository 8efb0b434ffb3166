"""The part of the contract that follows from the eight methods: derived operations, and threads."""

from __future__ import annotations

from functools import partial
from typing import Any, List

import pytest

from ..exceptions import KeyNotFoundError, LockTimeoutError
from ..mapping import KVMapping
from ..namespace import NamespaceView
from ..protocol import KVStoreProtocol
from ..rules import MISSING, NO_EXPIRY
from .samples import at_once

__all__ = ["DerivedContract"]

_THREADS = 8
_ROUNDS = 15


class DerivedContract:
    """Tests of what `KVStoreProtocol` derives, whether a backend leaves it so or overrides it."""

    # ------------------------------------------------------------------ one key

    def test_add_stores_once(self, store: KVStoreProtocol) -> None:
        """add() stores what is absent, with its ttl, and leaves alone what is there."""
        assert store.add("key", "first", "n", 1000) is True
        assert store.add("key", "second", "n") is False
        assert store.get("key", "n") == "first"
        left = store.ttl("key", "n")
        assert left is not None and 900 < left <= 1000.001
        assert store.add("key", "elsewhere") is True
        store.delete("key", "n")
        assert store.add("key", "again", "n") is True
        assert store.ttl("key", "n") is None

    def test_pop_takes_it_away(self, store: KVStoreProtocol) -> None:
        """pop() returns the value and deletes it; absent: the default, even None, else an error."""
        store.set("key", [1], "n")
        assert store.pop("key", "n", default="unused") == [1]
        assert store.exists("key", "n") is False
        assert store.pop("key", "n", default=None) is None
        assert store.pop("key", "n", default="given") == "given"
        with pytest.raises(KeyNotFoundError):
            store.pop("key", "n")

    def test_touch_changes_the_ttl_alone(self, store: KVStoreProtocol) -> None:
        """touch() gives a new ttl, or none, keeps the value, and tells whether it was there."""
        store.set("key", "value", "n", 50)
        assert store.touch("key", "n", 5000) is True
        left = store.ttl("key", "n")
        assert left is not None and 4900 < left <= 5000.001
        assert store.touch("key", "n") is True
        assert store.ttl("key", "n") is None
        assert store.touch("key", "n", None) is True
        assert store.touch("key", "n", 0.75) is True
        left = store.ttl("key", "n")
        assert left is not None and 0 < left <= 0.751
        assert store.touch("key", "n") is True
        assert store.get("key", "n") == "value"
        assert store.touch("absent", "n", 50) is False
        assert store.touch("absent", "n") is False
        assert store.exists("absent", "n") is False

    # ------------------------------------------------------------------ many keys

    def test_get_many_has_what_is_there(self, store: KVStoreProtocol) -> None:
        """get_many() returns those that are there, from any iterable, repeated keys once."""
        store.set_many({"a": 1, "b": None, "": 3}, "n")
        assert store.get_many(iter(["a", "x", "b", "a", ""]), "n") == {"a": 1, "b": None, "": 3}
        assert store.get_many([], "n") == {}
        assert store.get_many(["a"]) == {}

    def test_set_many_sets_all(self, store: KVStoreProtocol) -> None:
        """set_many() stores every item with the one ttl, in place of what was there."""
        store.set("k1", "old", "n")
        store.set_many({f"k{number}": number for number in range(1100)}, "n", 1000)
        assert len(store.keys("n")) == 1100
        assert store.get("k1", "n") == 1
        for key in ("k0", "k1", "k1099"):
            left = store.ttl(key, "n")
            assert left is not None and 900 < left <= 1000.001
        store.set_many({}, "n")
        assert len(store.keys("n")) == 1100

    def test_delete_many_counts(self, store: KVStoreProtocol) -> None:
        """delete_many() deletes from any iterable and counts what was there, each key once."""
        store.set_many({f"k{number}": number for number in range(1100)}, "n")
        store.set("k0", "elsewhere")
        wanted = (f"k{number}" for number in range(1, 1200))
        assert store.delete_many(wanted, "n") == 1099
        assert store.keys("n") == ["k0"]
        assert store.delete_many(["k0", "k0", "x"], "n") == 1
        assert store.delete_many([], "n") == 0
        assert store.keys() == ["k0"]

    def test_iter_keys_meets_change(self, store: KVStoreProtocol) -> None:
        """iter_keys() has every key that stays exactly once, whatever comes and goes meanwhile."""
        staying = [f"stay{number}" for number in range(1500)]
        store.set_many(dict.fromkeys(staying, 1), "n")
        store.set_many({f"go{number}": 1 for number in range(500)}, "n")
        met: List[str] = []
        for count, key in enumerate(store.iter_keys("n")):
            met.append(key)
            if count < 200:
                store.delete(f"go{count}", "n")
                store.set(f"come{count}", 1, "n")
        assert sorted(key for key in met if key.startswith("stay")) == sorted(staying)
        assert len(met) == len(set(met))

    def test_reader_reads(self, store: KVStoreProtocol) -> None:
        """reader() sees what is stored after it was made, and says MISSING for what is absent."""
        read, read_default = store.reader("n"), store.reader()
        assert read("key") is MISSING
        store.set("key", None, "n")
        assert read("key") is None
        assert read_default("key") is MISSING
        store.set("key", [2], "n")
        assert read("key") == [2]
        store.clear_namespace("n")
        assert read("key") is MISSING
        store.set("key", 3, "n")
        assert read("key") == 3
        store.delete("key", "n")
        assert read("key") is MISSING

    # ------------------------------------------------------------------ other ways in

    def test_a_namespace_is_a_store(self, store: KVStoreProtocol) -> None:
        """namespace() is a store inside the store: what goes in there is there for both."""
        view = store.namespace("a")
        assert isinstance(view, NamespaceView)
        view.set("key", 1)
        view.namespace("b").set("key", 2)
        view.set("key", 3, "c")
        assert (store.get("key", "a"), store.get("key", "a:b"), store.get("key", "a:c")) == (
            1,
            2,
            3,
        )
        assert store.keys() == []
        assert view.keys() == ["key"]
        assert sorted(view.list_namespaces()) == ["b", "c"]
        assert view.clear_namespace(None) == 1
        assert sorted(store.list_namespaces()) == ["a:b", "a:c"]

    def test_a_namespace_has_a_default_ttl(self, store: KVStoreProtocol) -> None:
        """A view's ttl is that of what is stored without one; NO_EXPIRY stores for ever."""
        view = store.namespace("a", ttl=1000)
        view.set("set", 1)
        view.add("add", 1)
        view.set_many({"many": 1})
        view.set("own", 1, ttl=10)
        view.set("ever", 1, ttl=NO_EXPIRY)
        for key in ("set", "add", "many"):
            left = store.ttl(key, "a")
            assert left is not None and 900 < left <= 1000.001, key
        left = view.ttl("own")
        assert left is not None and left <= 10.001
        assert view.ttl("ever") is None

    def test_a_namespace_clears_on_exit(self, store: KVStoreProtocol) -> None:
        """With clear_on_exit a view clears its own namespace on the way out, errors included."""
        store.set("key", 1)
        store.set("key", 1, "a:b")
        with pytest.raises(ZeroDivisionError), store.namespace("a", clear_on_exit=True) as view:
            view.set("key", 1)
            raise ZeroDivisionError
        assert store.keys("a") == []
        assert (store.exists("key"), store.exists("key", "a:b")) == (True, True)
        with store.namespace("a:b"):
            pass
        assert store.exists("key", "a:b")

    def test_as_mapping_is_a_dict(self, store: KVStoreProtocol) -> None:
        """as_mapping() reads and writes one namespace like a dict."""
        mapping = store.as_mapping("n", ttl=1000)
        assert isinstance(mapping, KVMapping)
        assert (len(mapping), bool(mapping), "a" in mapping) == (0, False, False)
        mapping["a"] = 1
        mapping.update({"b": 2}, c=3)
        assert dict(mapping) == {"a": 1, "b": 2, "c": 3} == dict(mapping.items())
        assert sorted(mapping.values()) == [1, 2, 3]
        assert mapping.setdefault("a", 5) == 1
        assert mapping.setdefault("d") is None
        left = store.ttl("d", "n")
        assert left is not None and 900 < left <= 1000.001
        del mapping["a"]
        with pytest.raises(KeyError):
            mapping["a"]
        with pytest.raises(KeyError):
            del mapping["a"]
        assert mapping.pop("b") == 2
        assert mapping.pop("b", None) is None
        rest = {mapping.popitem(), mapping.popitem()}
        assert rest == {("c", 3), ("d", None)}
        with pytest.raises(KeyError):
            mapping.popitem()
        assert store.keys("n") == []

    # ------------------------------------------------------------------ threads

    def test_add_has_one_winner(self, store: KVStoreProtocol) -> None:
        """Of many threads that add the same key exactly one is told that it did."""
        for number in range(_ROUNDS):
            won = at_once(_THREADS, partial(store.add, f"k{number}", namespace="n"))
            assert won.count(True) == 1
            assert store.get(f"k{number}", "n") == won.index(True)

    def test_pop_has_one_winner(self, store: KVStoreProtocol) -> None:
        """Of many threads that pop the same key exactly one gets the value."""
        for number in range(_ROUNDS):
            store.set("key", number, "n")
            got = at_once(_THREADS, lambda _: store.pop("key", "n", default="nothing"))
            assert sorted(map(str, got)) == sorted([str(number), *["nothing"] * (_THREADS - 1)])
            assert store.exists("key", "n") is False

    def test_delete_has_one_winner(self, store: KVStoreProtocol) -> None:
        """Of many threads that delete the same key exactly one is told that it was there."""
        for number in range(_ROUNDS):
            store.set("key", number, "n")
            assert at_once(_THREADS, lambda _: store.delete("key", "n")).count(True) == 1

    def test_no_reader_sees_half_a_write(self, store: KVStoreProtocol) -> None:
        """A key that is only ever replaced is there for every reader, whole, in every moment."""
        store.set("key", [0] * 100, "n")

        def work(me: int) -> List[Any]:
            if me % 2:
                for number in range(60):
                    store.set("key", [number] * 100, "n", 1000 if number % 3 else None)
                return []
            return [store.get("key", "n") for _ in range(60)]

        for seen in at_once(_THREADS, work):
            assert all(len(value) == 100 and len(set(value)) == 1 for value in seen)

    def test_no_write_is_lost(self, store: KVStoreProtocol) -> None:
        """Threads that write keys of their own, in one namespace and in many, lose none."""

        def work(me: int) -> None:
            for number in range(25):
                store.set(f"{me}-{number}", number, "shared")
                store.set("key", me, f"own{me}-{number}")

        at_once(_THREADS, work)
        assert len(store.keys("shared")) == 25 * _THREADS
        assert len(store.list_namespaces()) == 25 * _THREADS + 1

    def test_cleared_is_cleared(self, store: KVStoreProtocol) -> None:
        """What was stored before clear_namespace() is never there after it, for any thread."""

        def work(me: int) -> None:
            if me == 0:
                for _ in range(20):
                    store.clear_namespace("n")
                return
            for number in range(20):
                store.set(f"{me}-{number}", number, "n")

        at_once(_THREADS // 2, work)
        store.clear_namespace("n")
        assert store.keys("n") == []
        assert "n" not in store.list_namespaces()

    def test_a_lock_lets_one_in(self, store: KVStoreProtocol) -> None:
        """Inside lock() is one thread at a time, so that a read and a write make one step."""
        store.set("count", 0, "n")

        def work(me: int) -> None:
            for _ in range(5):
                with store.lock("count", "n"):
                    store.set("count", store.get("count", "n") + 1, "n")

        at_once(4, work)
        assert store.get("count", "n") == 20

    def test_a_lock_that_is_held_keeps_others_out(self, store: KVStoreProtocol) -> None:
        """A lock is not reentrant, is of one key and namespace, and is given back on errors."""
        with pytest.raises(ZeroDivisionError), store.lock("key", "n"):
            with pytest.raises(LockTimeoutError) as caught, store.lock("key", "n", timeout=0):
                raise AssertionError("two were inside")
            assert isinstance(caught.value, TimeoutError)
            with store.lock("key", timeout=0), store.lock("other", "n", timeout=0):
                pass
            raise ZeroDivisionError
        with store.lock("key", "n", timeout=0):
            pass

    def test_a_lock_is_no_entry(self, store: KVStoreProtocol) -> None:
        """A lock shows in no listing, and the entry of its key is free to use."""
        with store.lock("key", "n"):
            assert store.exists("key", "n") is False
            assert (store.keys("n"), store.list_namespaces()) == ([], [])
            store.set("key", 1, "n")
            assert store.clear_namespace("n") == 1
            with pytest.raises(LockTimeoutError), store.lock("key", "n", timeout=0):
                raise AssertionError("clearing gave the lock away")
