"""`KVStoreContract`: what every store promises, one test a promise."""

from __future__ import annotations

import pickle
from contextlib import AbstractContextManager
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, Callable, ClassVar, List, Optional, Tuple

import pytest

from ..exceptions import (
    InvalidKeyError,
    InvalidTTLError,
    KeyNotFoundError,
    KVStoreError,
    SerializationError,
)
from ..protocol import KVStoreProtocol
from ..rules import LONGEST_KEY, MISSING
from . import samples
from .derived import DerivedContract

__all__ = ["KVStoreContract"]


class KVStoreContract(DerivedContract):
    """Inherit this, name the class ``Test...``, and give it a `store` fixture.

    Everything is asked of the protocol alone, so it fits any backend and any view.

    Attributes:
        values: Values that the store must give back equal. Shorten the list for a store that takes
            only some kinds.
        life: The ttl, in seconds, that the one test about expiry lets pass. Make it short where
            `travel` can only wait, as for a real server.
        longest_namespace: The longest name the store takes; less than 64 KiB for a view.
    """

    values: ClassVar[List[Any]] = samples.VALUES
    life: ClassVar[float] = 60.0
    longest_namespace: ClassVar[int] = LONGEST_KEY

    @pytest.fixture
    def store(self) -> Any:
        """A store that is fresh and empty."""
        raise NotImplementedError("Give your class a fixture named store: a fresh, empty store.")

    def travel(self, seconds: float) -> AbstractContextManager[Any]:
        """Let `seconds` pass for the store, until the block ends."""
        pytest.importorskip("time_machine")
        return samples.travel(seconds)

    def full_namespace(self, namespace: Optional[str]) -> Optional[str]:
        """The namespace that errors name; a view's hold the names it is nested in."""
        return namespace

    # ------------------------------------------------------------------ the eight

    def test_it_is_a_store(self, store: KVStoreProtocol) -> None:
        """A store is a KVStoreProtocol, and a fresh one is empty."""
        assert isinstance(store, KVStoreProtocol)
        assert store.keys() == []
        assert store.list_namespaces() == []

    def test_what_was_set_is_there(self, store: KVStoreProtocol) -> None:
        """Every value comes back equal and of its type."""
        for number, value in enumerate(self.values):
            store.set(f"k{number}", value)
        for number, value in enumerate(self.values):
            assert store.get(f"k{number}") == value
            assert type(store.get(f"k{number}")) is type(value)

    def test_none_is_a_value(self, store: KVStoreProtocol) -> None:
        """None is stored, is there, and is not taken for absent."""
        store.set("nothing", None, "n")
        assert store.exists("nothing", "n") is True
        assert store.get("nothing", "n") is None
        assert store.get_many(["nothing", "absent"], "n") == {"nothing": None}
        assert store.add("nothing", 1, "n") is False
        assert store.pop("nothing", "n", default="absent") is None

    def test_set_replaces(self, store: KVStoreProtocol) -> None:
        """The last value set is the value, and the key is listed once."""
        for value in ("first", None, ["last"]):
            store.set("key", value)
            assert store.get("key") == value
        assert store.keys() == ["key"]

    def test_set_returns_nothing(self, store: KVStoreProtocol) -> None:
        """set() and set_many() return None."""
        calls: List[Callable[[], Any]] = [
            lambda: store.set("key", 1),
            lambda: store.set_many({"key": 1}),
        ]
        assert [call() for call in calls] == [None, None]

    def test_delete_tells_whether_it_was_there(self, store: KVStoreProtocol) -> None:
        """delete() is True once, then False, and the key is gone."""
        store.set("key", 1, "n")
        assert store.delete("key") is False
        assert store.delete("key", "n") is True
        assert store.delete("key", "n") is False
        assert store.exists("key", "n") is False

    def test_keys_lists_what_is_there(self, store: KVStoreProtocol) -> None:
        """keys() has each live key of one namespace, once, in a list."""
        for number in range(1200):
            store.set(f"k{number}", number, "many")
        store.set("elsewhere", 1)
        store.delete("k7", "many")
        keys = store.keys("many")
        assert isinstance(keys, list)
        assert sorted(keys) == sorted(f"k{number}" for number in range(1200) if number != 7)
        assert store.keys() == ["elsewhere"]
        assert store.keys("absent") == []

    def test_namespaces_are_apart(self, store: KVStoreProtocol) -> None:
        """The same key in different namespaces is different entries; None is none of the named."""
        names = [None, "a", "b", "a:b", "None", "default"]
        for name in names:
            store.set("key", name, name)
        for name in names:
            assert store.get("key", name) == name
        store.delete("key", "a")
        assert [store.exists("key", name) for name in names] == [True, False, *[True] * 4]

    def test_clear_namespace_takes_one(self, store: KVStoreProtocol) -> None:
        """clear_namespace() empties one namespace, tells how many keys went, and no other goes."""
        for name in (None, "a", "a:b", "ab", "A", "a*"):
            store.set_many({"x": 1, "y": 2, "z": 3}, name)
        store.delete("z", "a")
        assert store.clear_namespace("a") == 2
        assert store.clear_namespace("a") == 0
        assert sorted(store.list_namespaces()) == ["A", "a*", "a:b", "ab"]
        assert store.clear_namespace("a*") == 3
        assert store.clear_namespace(None) == 3
        assert sorted(store.list_namespaces()) == ["A", "a:b", "ab"]
        assert store.get_many(["x", "y", "z"], "a") == {}
        assert store.get_many(["x", "y", "z"], "a:b") == {"x": 1, "y": 2, "z": 3}
        store.set("x", "again", "a")
        assert store.keys("a") == ["x"]

    def test_clear_namespace_of_many(self, store: KVStoreProtocol) -> None:
        """A namespace larger than any batch is cleared to the last key, and counted."""
        store.set_many({f"k{number}": number for number in range(2345)}, "large")
        assert store.clear_namespace("large") == 2345
        assert store.keys("large") == []

    def test_list_namespaces(self, store: KVStoreProtocol) -> None:
        """list_namespaces() has each named namespace with a live key, once; never None."""
        store.set("key", 1)
        assert store.list_namespaces() == []
        store.set_many({"x": 1, "y": 2}, "a")
        store.set("x", 1, "b")
        assert sorted(store.list_namespaces()) == ["a", "b"]
        store.delete("x", "b")
        assert store.list_namespaces() == ["a"]

    # ------------------------------------------------------------------ rule 1: keys

    def test_hostile_keys(self, store: KVStoreProtocol) -> None:
        """Any text is a key, comes back exactly, and meets no other."""
        for name in (None, "n"):
            for number, key in enumerate(samples.KEYS):
                store.set(key, number, name)
            for number, key in enumerate(samples.KEYS):
                assert store.get(key, name) == number
                assert store.exists(key, name)
            assert sorted(store.keys(name)) == sorted(samples.KEYS)
            assert sorted(store.iter_keys(name)) == sorted(samples.KEYS)
            assert store.get_many(samples.KEYS, name) == {
                key: number for number, key in enumerate(samples.KEYS)
            }
        for key in samples.KEYS:
            assert store.delete(key, "n") is True
        assert store.keys("n") == []
        assert len(store.keys()) == len(samples.KEYS)

    def test_hostile_namespaces(self, store: KVStoreProtocol) -> None:
        """Any text but the empty one is a namespace, comes back exactly, and meets no other."""
        for number, name in enumerate(samples.NAMESPACES):
            store.set("key", number, name)
        assert sorted(store.list_namespaces()) == sorted(samples.NAMESPACES)
        for number, name in enumerate(samples.NAMESPACES):
            assert store.get("key", name) == number
            assert store.keys(name) == ["key"]
        for name in samples.NAMESPACES[::2]:
            assert store.clear_namespace(name) == 1
        assert sorted(store.list_namespaces()) == sorted(samples.NAMESPACES[1::2])

    @pytest.mark.parametrize("letter", ["x", "é", "漢", "🙂"])
    def test_longest(self, store: KVStoreProtocol, letter: str) -> None:
        """A key and a namespace of 64 KiB of UTF-8 come back exactly, apart from their twins."""
        width = len(letter.encode("utf-8"))
        key = letter * (LONGEST_KEY // width)
        name = letter * (self.longest_namespace // width)
        for number, (k, n) in enumerate([(key, name), (key[:-1], name), (key, name[:-1])]):
            store.set(k, number, n)
        assert store.get(key, name) == 0
        assert sorted(store.keys(name)) == [key[:-1], key]
        assert sorted(store.list_namespaces()) == [name[:-1], name]
        assert store.keys(name, key) == [key]

    def test_no_two_places_meet(self, store: KVStoreProtocol) -> None:
        """All pairs of short namespaces and keys made of separators and escapes are apart."""
        names: List[Optional[str]] = [None, *samples.SHORT[1:]]
        for name in names:
            store.set_many({key: [name, key] for key in samples.SHORT}, name)
        for name in names:
            assert store.get_many(samples.SHORT, name) == {k: [name, k] for k in samples.SHORT}
            assert sorted(store.keys(name)) == sorted(samples.SHORT)
        assert sorted(store.list_namespaces()) == sorted(samples.SHORT[1:])
        assert store.clear_namespace(":") == len(samples.SHORT)
        assert len(store.list_namespaces()) == len(names) - 2
        assert all(len(store.keys(name)) == len(samples.SHORT) for name in names if name != ":")

    def test_subclasses_of_str_count_by_their_text(self, store: KVStoreProtocol) -> None:
        """A subclass of str is a key and a namespace by its text, and plain text comes back."""
        store.set(samples.OddText("key"), 1, samples.OddText("n"))
        assert store.get("key", "n") == 1
        assert store.get(samples.OddText("key"), samples.OddText("n")) == 1
        assert store.pop(samples.OddText("key"), samples.OddText("n")) == 1
        store.set_many({samples.OddText("key"): 2}, samples.OddText("n"))
        assert [type(key) for key in store.keys("n")] == [str]
        assert [type(name) for name in store.list_namespaces()] == [str]
        assert store.get_many([samples.OddText("key"), "key"], "n") == {"key": 2}

    def test_text_that_is_equal_to_other_text_is_not_taken_for_it(
        self, store: KVStoreProtocol
    ) -> None:
        """A key or namespace that compares equal to another text's stays apart from it."""
        loose = samples.LooseText
        store.set("key", 1)
        store.set("key", 1, "n")
        for key, name in ((loose("KEY"), None), ("key", loose("N")), (loose("KEY"), loose("N"))):
            with pytest.raises(KeyNotFoundError):
                store.get(key, name)
            assert store.reader(name)(key) is MISSING
            assert not store.exists(key, name)
            assert store.get_many([key], name) == {}
            assert not store.delete(key, name)
            store.set(key, 2, name)
            assert store.get(str(key), None if name is None else str(name)) == 2
            assert store.delete(key, name)
        assert samples.contents(store, (None, "n")) == {None: {"key": 1}, "n": {"key": 1}}

    # ------------------------------------------------------------------ bad input

    def _refused(self, error: Any, call: Callable[..., Any], *arguments: Any) -> None:
        with pytest.raises(error) as caught:
            call(*arguments)
        # By name: a SerializationError, say, would be one of ours, but not the one promised.
        assert type(caught.value) is error

    @pytest.mark.parametrize("error", [TypeError, InvalidKeyError])
    def test_bad_keys_change_nothing(self, store: KVStoreProtocol, error: Any) -> None:
        """What can't be a key is refused by every operation, before anything is changed."""
        bad_keys = samples.WRONG_TYPES if error is TypeError else samples.WRONG_TEXTS
        store.set("fine", "old")
        for name, call in samples.calls_with_key(store).items():
            for bad in bad_keys:
                self._refused(error, call, bad, None)
            assert samples.contents(store, [None]) == {None: {"fine": "old"}}, name

    @pytest.mark.parametrize("error", [TypeError, InvalidKeyError])
    def test_bad_namespaces_change_nothing(self, store: KVStoreProtocol, error: Any) -> None:
        """What can't be a namespace is refused by every operation, before anything is changed."""
        bad_names: List[Any] = ["", *samples.WRONG_TEXTS]
        if error is TypeError:
            bad_names = [bad for bad in samples.WRONG_TYPES if bad is not None]
        store.set("fine", "old")
        for name, call in samples.calls_with_namespace(store).items():
            for bad in bad_names:
                self._refused(error, call, bad)
            assert samples.contents(store, [None]) == {None: {"fine": "old"}}, name
        assert store.list_namespaces() == []

    @pytest.mark.parametrize("error", [TypeError, InvalidTTLError])
    def test_bad_ttls_change_nothing(self, store: KVStoreProtocol, error: Any) -> None:
        """What can't be a ttl is refused by every operation, before anything is changed."""
        bad_ttls = samples.WRONG_TTL_TYPES if error is TypeError else samples.WRONG_TTLS
        store.set("fine", "old", None, 1000)
        for name, call in samples.calls_with_ttl(store).items():
            for bad in bad_ttls:
                self._refused(error, call, bad)
            assert samples.contents(store, [None]) == {None: {"fine": "old"}}, name
            left = store.ttl("fine")
            assert left is not None and 900 < left <= 1000.001, name

    @pytest.mark.parametrize("bad", [None, 1, b"*", ["*"]])
    def test_bad_patterns(self, store: KVStoreProtocol, bad: Any) -> None:
        """A pattern that is not a str is a TypeError."""
        for call in (store.keys, store.iter_keys):
            with pytest.raises(TypeError):
                list(call(None, bad))

    def test_bad_batches(self, store: KVStoreProtocol) -> None:
        """One key where many are wanted is a TypeError, as is a list where a mapping is."""
        store.set_many({"k": 1, "e": 2, "y": 3})
        for call in (store.get_many, store.delete_many):
            with pytest.raises(TypeError):
                call("key")
            with pytest.raises(TypeError):
                call(b"key")  # type: ignore[arg-type]  # the promise
        for bad in ([("k", 9)], ["ke"], "key", 1, None):
            with pytest.raises(TypeError):
                store.set_many(bad)  # type: ignore[arg-type]  # the promise
        assert store.get_many(["k", "e", "y"]) == {"k": 1, "e": 2, "y": 3}
        assert sorted(store.keys()) == ["e", "k", "y"]

    # ------------------------------------------------------------------ rule 2: values

    @pytest.mark.parametrize(
        "unlikely",
        [[1, lambda: None], samples.Endless("written")],
        ids=["a lambda", "StopIteration"],
    )
    def test_a_value_is_taken_whole_or_not_at_all(
        self, store: KVStoreProtocol, unlikely: Any
    ) -> None:
        """A value that can't be serialised is a SerializationError, and the old one stays."""
        calls: List[Callable[[], Any]] = [
            lambda: store.set("key", unlikely, "n", 5),
            lambda: store.set_many({"key": unlikely, "more": 1}, "n"),
            lambda: store.set_many({"less": 1, "key": unlikely, "more": 1}, "n"),
        ]
        for store_it in calls:
            store.set("key", "old", "n")
            try:
                store_it()
            except SerializationError:
                assert store.get("key", "n") == "old"
                assert store.ttl("key", "n") is None
            else:
                # A store that keeps the object itself.
                assert store.get("key", "n") is unlikely

    def test_a_value_that_can_t_be_read_hides_no_other(self, store: KVStoreProtocol) -> None:
        """A batch with a value that can't be read is an error, never a shorter answer."""
        values = {"a": 1, "b": samples.Endless("read"), "c": 3}
        try:
            store.set_many(values, "n")
        except SerializationError:
            assert store.keys("n") == []  # it takes no such objects
            return
        assert sorted(store.keys("n")) == ["a", "b", "c"]
        try:
            found = store.get_many(list(values), "n")
        except SerializationError:
            assert store.get_many(["a", "c"], "n") == {"a": 1, "c": 3}
        else:
            assert found == values  # a store that keeps the objects themselves

    # ------------------------------------------------------------------ rules 3 and 4: ttl

    @pytest.mark.parametrize("ttl", [1000, 1000.5, timedelta(minutes=20), 0.5, 3_155_760_000])
    def test_ttl_is_what_was_set(self, store: KVStoreProtocol, ttl: Any) -> None:
        """ttl() tells the seconds left, as a float that has not grown."""
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        store.set("key", 1, "n", ttl)
        left = store.ttl("key", "n")
        assert type(left) is float
        assert max(0.0, seconds - 60) < left <= seconds + 0.001

    def test_no_ttl_is_no_expiry(self, store: KVStoreProtocol) -> None:
        """Without a ttl there is none; of what is absent there is no ttl to tell."""
        store.set("key", 1)
        assert store.ttl("key") is None
        with pytest.raises(KeyNotFoundError):
            store.ttl("absent")

    def test_set_replaces_the_ttl(self, store: KVStoreProtocol) -> None:
        """set() puts its own ttl in place of the old one, None included."""
        store.set("key", 1, ttl=50)
        store.set("key", 2)
        assert store.ttl("key") is None
        store.set("key", 3, ttl=5000)
        left = store.ttl("key")
        assert left is not None and 4900 < left <= 5000.001
        store.set_many({"key": 4})
        assert store.ttl("key") is None

    def test_expired_is_absent(self, store: KVStoreProtocol) -> None:
        """What has expired is absent for every operation and every count; the rest is there."""
        life, names = self.life, ["gone", "set", "add", "pop", "touch", "delete", "many"]
        store.set_many(dict.fromkeys(names, "old"), "n", life)
        store.set("kept", "old", "n", life)
        store.touch("kept", "n")
        store.set("only", "old", "mortal", life)
        store.set("only", "old", "cleared", life)
        store.set("lasting", "old", "cleared")
        with self.travel(life * 1.05 + 0.005):
            for name in names:
                assert store.exists(name, "n") is False
            with pytest.raises(KeyNotFoundError):
                store.get("gone", "n")
            with pytest.raises(KeyNotFoundError):
                store.ttl("gone", "n")
            with pytest.raises(KeyNotFoundError):
                store.pop("pop", "n")
            assert store.delete("delete", "n") is False
            assert store.touch("touch", "n", 1000) is False
            assert store.get_many(names, "n") == {}
            assert store.delete_many(names, "n") == 0
            assert store.keys("n") == ["kept"]
            assert list(store.iter_keys("n")) == ["kept"]
            assert sorted(store.list_namespaces()) == ["cleared", "n"]
            assert store.clear_namespace("cleared") == 1
            assert store.clear_namespace("mortal") == 0
            assert store.add("add", "new", "n") is True
            store.set("set", "new", "n")
            assert sorted(store.keys("n")) == ["add", "kept", "set"]
            assert (store.ttl("set", "n"), store.ttl("kept", "n")) == (None, None)

    # ------------------------------------------------------------------ rule 5: patterns

    def test_patterns_are_fnmatchcase(self, store: KVStoreProtocol) -> None:
        """A pattern selects exactly the keys that fnmatch.fnmatchcase says."""
        letters = "aAb*?[]!-^\\.\n"
        keys = ["", *letters, *(a + b for a in letters for b in letters)]
        keys += ["é", "aé", "🙂", "🙂a", "a:b", ":", "%41", "a\0b", "aab", "abb", "{a,b}"]
        store.set_many(dict.fromkeys(keys, 1), "n")
        store.set_many({"a": 1, "other": 1})
        for pattern in samples.PATTERNS:
            expected = sorted(key for key in keys if fnmatchcase(key, pattern))
            assert sorted(store.keys("n", pattern)) == expected, pattern
            assert sorted(store.iter_keys("n", pattern)) == expected, pattern

    # ------------------------------------------------------------------ rule 7: errors

    @pytest.mark.parametrize("namespace", [None, "n"])
    def test_absent_is_a_key_error(self, store: KVStoreProtocol, namespace: Optional[str]) -> None:
        """KeyNotFoundError is a KeyError, says where, reads as a sentence, and pickles."""
        for call in (store.get, store.ttl, store.pop):
            with pytest.raises(KeyNotFoundError) as caught:
                call("absent", namespace)
            error = caught.value
            assert isinstance(error, KeyError) and isinstance(error, KVStoreError)
            full = self.full_namespace(namespace)
            assert (error.key, error.namespace) == ("absent", full)
            assert str(error).startswith("There is no key 'absent' in ")
            assert str(error).endswith(".")
            again = pickle.loads(pickle.dumps(error))
            assert type(again) is KeyNotFoundError
            assert (again.key, again.namespace, str(again)) == ("absent", full, str(error))

    def test_a_refused_key_says_what_to_do(self, store: KVStoreProtocol) -> None:
        """Refusals are one of ours and a ValueError, are short, and pickle."""
        cases: List[Tuple[Callable[[], Any], Any]] = [
            (lambda: store.set("x" * 100_000, 1), InvalidKeyError),
            (lambda: store.set("k", 1, ""), InvalidKeyError),
            (lambda: store.set("k", 1, None, -1), InvalidTTLError),
        ]
        for call, kind in cases:
            with pytest.raises(kind) as caught:
                call()
            assert isinstance(caught.value, ValueError) and isinstance(caught.value, KVStoreError)
            assert 20 < len(str(caught.value)) < 500
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_closing_twice_is_fine(self, store: KVStoreProtocol) -> None:
        """A store is a context manager that returns itself, and close() may be called again."""
        with store as same:
            assert same is store
        store.close()
        store.close()
