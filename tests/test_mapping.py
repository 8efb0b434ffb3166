"""`KVMapping`: one namespace of a store as a dict."""

from __future__ import annotations

import pickle
import unittest
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, List

import pytest

from kv_store_adapter import NO_EXPIRY, DiskKVStore, InvalidTTLError, KVMapping, MemoryKVStore
from kv_store_adapter.testing.samples import at_once

try:
    # The module, not the class: pytest would run an imported TestCase by itself.
    from test import mapping_tests
except ImportError:  # some distributions leave the standard library's tests out
    mapping_tests = None


@pytest.fixture(params=["memory", "disk", "view"])
def mapping(request: Any, tmp_path: Path) -> Any:
    """An empty mapping on each kind of store."""
    if request.param == "disk":
        with DiskKVStore(tmp_path / "store") as store:
            yield store.as_mapping("n")
    elif request.param == "view":
        yield MemoryKVStore().namespace("a").as_mapping()
    else:
        yield MemoryKVStore().as_mapping("n")


if mapping_tests is not None:

    class TestStandardLibrary(mapping_tests.BasicTestMappingProtocol):
        """The standard library's own tests of a mapping, on memory."""

        type2test = KVMapping

        def _reference(self) -> Any:
            return {"1": "2", "key1": "value1", "key2": (1, 2, 3)}

        def _empty_mapping(self) -> Any:
            return MemoryKVStore().as_mapping("n")

        def _full_mapping(self, data: Any) -> Any:
            mapping = self._empty_mapping()
            mapping.update(data)
            return mapping

    class TestStandardLibraryOnAView(TestStandardLibrary):
        """The same, on a view in a view."""

        def _empty_mapping(self) -> Any:
            return MemoryKVStore().namespace("a").namespace("b").as_mapping()

else:

    @unittest.skip("this Python comes without test.mapping_tests")
    class TestStandardLibrary(unittest.TestCase):
        """The standard library's own tests of a mapping."""

        def test_nothing(self) -> None:
            """Nothing to run."""


def test_it_is_a_mutable_mapping(mapping: Any) -> None:
    """isinstance() says MutableMapping; it has no hash; equality is by content."""
    assert isinstance(mapping, MutableMapping)
    mapping.update(a=1, b=None)
    assert mapping == {"a": 1, "b": None}
    assert mapping != {"a": 1}
    with pytest.raises(TypeError):
        hash(mapping)


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), 1.5, True])
def test_keys_that_are_no_text(mapping: Any, key: Any) -> None:
    """What is not a str can't be in it: in is False, reading is KeyError, writing TypeError."""
    mapping["a"] = 1
    assert key not in mapping
    assert mapping.get(key, "default") == "default"
    assert mapping.pop(key, "default") == "default"
    for read in (lambda: mapping[key], lambda: mapping.pop(key), lambda: mapping.__delitem__(key)):
        with pytest.raises(KeyError):
            read()
    for write in (
        lambda: mapping.__setitem__(key, 1),
        lambda: mapping.setdefault(key, 1),
        lambda: mapping.update({"b": 1, key: 2}),
        lambda: mapping.update([("b", 1), (key, 2)]),
    ):
        with pytest.raises(TypeError):
            write()
    assert dict(mapping) == {"a": 1}


def test_it_has_what_others_store(mapping: Any) -> None:
    """The mapping keeps nothing itself: a change in the store is a change in it."""
    store, namespace = mapping._store, mapping._namespace
    store.set("a", 1, namespace)
    assert mapping["a"] == 1
    mapping["b"] = 2
    assert store.get("b", namespace) == 2
    store.clear_namespace(namespace)
    assert (len(mapping), bool(mapping), list(mapping)) == (0, False, [])


def test_iteration_tolerates_change(mapping: Any) -> None:
    """Keys, items and values go on while entries come and go; what stays comes exactly once."""
    mapping.update({f"k{number}": number for number in range(1300)})
    for view in (mapping.keys, mapping.items, mapping.values):
        met: List[Any] = []
        for count, item in enumerate(view()):
            met.append(item)
            if count < 20:
                mapping.pop(f"k{1000 + count}", None)
                mapping[f"new{count}"] = count
        assert len(met) >= 1280 - 20
        mapping.update({f"k{number}": number for number in range(1300)})
        for count in range(20):
            del mapping[f"new{count}"]


def test_items_skip_what_is_gone(mapping: Any) -> None:
    """An item that is deleted after iteration began, before its batch was read, does not come."""
    mapping.update({f"k{number}": number for number in range(1300)})
    items = iter(mapping.items())
    first = next(items)
    mapping.clear()
    assert len([first, *items]) <= 1000


def test_ttl_is_that_of_what_is_stored() -> None:
    """ttl= is the ttl of everything stored through it; NO_EXPIRY overrules the view's."""
    view = MemoryKVStore().namespace("a", ttl=100)
    for given, expected in ((None, 100), (5, 5), (NO_EXPIRY, None)):
        mapping = view.as_mapping(ttl=given)
        mapping.clear()
        mapping["item"] = 1
        mapping.update(updated=1)
        mapping.setdefault("default", 1)
        mapping |= {"merged": 1}
        for key in ("item", "updated", "default", "merged"):
            assert view.ttl(key) == (expected and pytest.approx(expected, abs=2)), key
    with pytest.raises(InvalidTTLError):
        view.as_mapping(ttl=0)
    plain = MemoryKVStore()
    plain.as_mapping(ttl=NO_EXPIRY)["key"] = 1
    assert plain.ttl("key") is None


def test_union_operators(mapping: Any) -> None:
    """| gives a new dict, |= stores; what is no mapping is a TypeError."""
    mapping.update(a=1, b=2)
    assert mapping | {"b": 3} == {"a": 1, "b": 3}
    assert mapping.__ror__({"b": 3, "c": 4}) == {"a": 1, "b": 2, "c": 4}
    mapping |= [("d", 5)]
    assert mapping["d"] == 5
    with pytest.raises(TypeError):
        mapping | [("d", 5)]


def test_setdefault_has_one_winner(mapping: Any) -> None:
    """Of many threads that set a default all get the value of the one that stored it."""
    for number in range(10):
        got = at_once(8, lambda me, key=f"k{number}": mapping.setdefault(key, me))
        assert len(set(got)) == 1
        assert mapping[f"k{number}"] == got[0]


def test_popitem_gives_each_to_one(mapping: Any) -> None:
    """Threads that popitem() until it is empty get every item, each exactly once."""
    mapping.update({f"k{number}": number for number in range(60)})

    def work(_: int) -> List[Any]:
        got = []
        while True:
            try:
                got.append(mapping.popitem())
            except KeyError:
                return got

    got = [item for items in at_once(4, work) for item in items]
    assert sorted(got) == sorted((f"k{number}", number) for number in range(60))


def test_popitem_of_nothing_is_a_key_error(mapping: Any) -> None:
    """An empty mapping has no item to pop."""
    with pytest.raises(KeyError, match="empty"):
        mapping.popitem()


def test_it_pickles_when_the_store_does(tmp_path: Path) -> None:
    """A mapping on disk travels with its namespace and ttl."""
    with DiskKVStore(tmp_path / "store") as store:
        mapping = store.as_mapping("n", ttl=100)
        again = pickle.loads(pickle.dumps(mapping))
        again["key"] = 1
        assert mapping["key"] == 1
        assert store.ttl("key", "n") == pytest.approx(100, abs=5)
        again._store.close()


def test_repr_says_where_and_shows_nothing() -> None:
    """repr() names namespace and store; values may be many, far away or secret."""
    mapping = MemoryKVStore().as_mapping("n")
    mapping["key"] = "secret"
    assert repr(mapping) == "<KVMapping of 'n' in MemoryKVStore()>"
    assert "default namespace" in repr(MemoryKVStore().as_mapping())
