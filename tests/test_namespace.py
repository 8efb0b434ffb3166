"""`NamespaceView`: a store inside a store."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from kv_store_adapter import (
    NO_EXPIRY,
    DiskKVStore,
    InvalidKeyError,
    InvalidTTLError,
    KeyNotFoundError,
    LockTimeoutError,
    MemoryKVStore,
    NamespaceView,
    StoreClosedError,
)


@pytest.fixture
def store() -> MemoryKVStore:
    """A store to look into."""
    return MemoryKVStore()


def test_as_a_context_manager_it_returns_itself(store: MemoryKVStore) -> None:
    """with store.namespace(...) gives the view; leaving closes neither view nor store."""
    view = store.namespace("a")
    with view as same:
        assert same is view
        same.set("key", 1)
    assert view.get("key") == 1 == store.get("key", "a")


def test_names_nest_with_a_colon(store: MemoryKVStore) -> None:
    """a then b is a:b, by views or by the namespace argument; views do not pile up."""
    view = store.namespace("a").namespace("b").namespace("c")
    assert (view.name, view.store) == ("a:b:c", store)
    view.set("key", 1)
    assert store.namespace("a").get("key", "b:c") == 1
    assert store.namespace("a:b").get("key", "c") == 1


def test_list_namespaces_are_relative(store: MemoryKVStore) -> None:
    """list_namespaces() are the names nested in the view, as the view would ask for them."""
    for name in ("a", "a:b", "a:b:c", "ab", "a:", "b:a", "A:x", "a::"):
        store.set("key", name, name)
    view = store.namespace("a")
    assert sorted(view.list_namespaces()) == [":", "b", "b:c"]
    for name in view.list_namespaces():
        assert view.get("key", name) == f"a:{name}"


def test_errors_carry_the_full_namespace(store: MemoryKVStore) -> None:
    """KeyNotFoundError names the namespace of the store below."""
    view = store.namespace("a").namespace("b")
    for namespace, full in ((None, "a:b"), ("c", "a:b:c")):
        with pytest.raises(KeyNotFoundError) as caught:
            view.get("absent", namespace)
        assert caught.value.namespace == full


def test_the_inner_ttl_wins(store: MemoryKVStore) -> None:
    """A nested view has its parent's ttl unless given its own; NO_EXPIRY takes it off."""
    outer = store.namespace("a", ttl=100)
    cases: Any = {"inherited": (None, 100), "own": (5, 5), "none": (NO_EXPIRY, None)}
    for name, (given, expected) in cases.items():
        view = outer.namespace(name, ttl=given)
        view.set("key", 1)
        assert view.ttl("key") == (expected and pytest.approx(expected, abs=2))


def test_touch_gives_the_default_ttl(store: MemoryKVStore) -> None:
    """touch() without a ttl gives the view's; with NO_EXPIRY it takes the ttl off."""
    view = store.namespace("a", ttl=100)
    view.set("key", 1, ttl=5)
    view.touch("key")
    assert view.ttl("key") == pytest.approx(100, abs=2)
    view.touch("key", ttl=NO_EXPIRY)
    assert view.ttl("key") is None


def test_clear_on_exit_takes_its_own_namespace_alone(store: MemoryKVStore) -> None:
    """On the way out, errors included, the view's own namespace is cleared, nothing else."""
    for name in (None, "a", "a:b", "ab"):
        store.set("key", 1, name)
    with pytest.raises(KeyError, match="boom"), store.namespace("a", clear_on_exit=True):
        raise KeyError("boom")
    assert [store.exists("key", name) for name in (None, "a", "a:b", "ab")] == [1, 0, 1, 1]


def test_closing_a_view_leaves_the_store(store: MemoryKVStore) -> None:
    """A closed view refuses everything, clears nothing any more, and the store goes on."""
    view = store.namespace("a", clear_on_exit=True)
    with view:
        view.set("key", 1)
        view.close()
        with pytest.raises(StoreClosedError):
            view.get("key")
        with pytest.raises(StoreClosedError):
            view.list_namespaces()
    assert store.get("key", "a") == 1
    with pytest.raises(StoreClosedError):
        view.__enter__()


@pytest.mark.parametrize(
    ("name", "error"), [("", InvalidKeyError), (1, TypeError), (None, TypeError)]
)
def test_a_view_has_a_name(store: MemoryKVStore, name: Any, error: Any) -> None:
    """A view without a proper name is refused when it is made."""
    with pytest.raises(error):
        store.namespace(name)
    with pytest.raises(error):
        store.namespace("a").namespace(name)


def test_a_joined_name_can_be_too_long(store: MemoryKVStore) -> None:
    """The length of the joined name counts."""
    view = store.namespace("a" * 40_000)
    with pytest.raises(InvalidKeyError):
        view.namespace("b" * 30_000)
    with pytest.raises(InvalidKeyError):
        view.set("key", 1, "b" * 30_000)


def test_a_bad_default_ttl_is_refused_at_once(store: MemoryKVStore) -> None:
    """A view with a ttl that can't be one is refused when it is made."""
    with pytest.raises(InvalidTTLError):
        store.namespace("a", ttl=0)


def test_it_pickles_when_the_store_does(tmp_path: Path) -> None:
    """A view on disk travels with its name, ttl and clear_on_exit; one on memory does not."""
    with DiskKVStore(tmp_path / "store") as disk:
        view = disk.namespace("a", ttl=100, clear_on_exit=True)
        again = pickle.loads(pickle.dumps(view))
        assert isinstance(again, NamespaceView)
        with again:
            again.set("key", 1)
            assert view.get("key") == 1
            assert view.ttl("key") == pytest.approx(100, abs=5)
        assert not view.exists("key")
        again.store.close()
    with pytest.raises(TypeError, match="does not pickle"):
        pickle.dumps(MemoryKVStore().namespace("a"))


def test_repr_says_where(store: MemoryKVStore) -> None:
    """repr() names the namespace and the store, and is short for long names."""
    assert repr(store.namespace("a")) == "<NamespaceView 'a' of MemoryKVStore()>"
    assert len(repr(store.namespace("a" * 60_000))) < 300


def test_a_closed_view_gives_no_more_views() -> None:
    """After close() a view is no way into the store any more, nested views included."""
    view = MemoryKVStore().namespace("a")
    view.close()
    with pytest.raises(StoreClosedError):
        view.namespace("b")


def test_every_operation_gives_the_view_its_ttl_or_none(store: MemoryKVStore) -> None:
    """set, add, set_many and touch have the view's ttl, their own, or with NO_EXPIRY none."""
    view = store.namespace("a", ttl=100)
    for namespace, full in ((None, "a"), ("b", "a:b")):
        for given, expected in ((None, 100), (5, 5), (NO_EXPIRY, None)):
            view.set("set", 1, namespace, ttl=given)
            view.delete("added", namespace)
            assert view.add("added", 1, namespace, ttl=given)
            view.set_many({"many": 1}, namespace, ttl=given)
            store.set("touched", 1, full)
            assert view.touch("touched", namespace, ttl=given)
            for key in ("set", "added", "many", "touched"):
                for left in (view.ttl(key, namespace), store.ttl(key, full)):
                    assert left == (expected and pytest.approx(expected, abs=2))


def test_every_operation_takes_a_namespace_inside_the_view(store: MemoryKVStore) -> None:
    """With namespace= each operation means the one inside the view, and that alone."""
    view = store.namespace("a")
    for name in ("a", "b", None):
        store.set_many({"key": 0, "other": 0}, name)
    view.set_many({"key": 1, "other": 2, "third": 3}, "b")
    assert store.get_many(["key", "other"], "a:b") == {"key": 1, "other": 2}
    assert view.get_many(["key", "absent"], "b") == {"key": 1}
    assert view.get("key", "b", default=5) == 1
    assert view.get("absent", "b", default=5) == 5
    assert sorted(view.iter_keys("b", "*r*")) == sorted(view.keys("b", "*r*")) == ["other", "third"]
    assert sorted(view.iter_keys()) == ["key", "other"]
    assert (view.reader("b")("key"), view.reader()("key")) == (1, 0)
    found, own = view.finder("b")("key"), view.finder()("key")
    assert found is not None
    assert own is not None
    assert (found[0], own[0]) == (1, 0)
    assert view.pop("third", "b") == 3
    assert view.pop("third", "b", default=4) == 4
    with pytest.raises(KeyNotFoundError):
        view.pop("third", "b")
    assert view.add("key", 9, "b") is False
    assert view.exists("key", "b")
    assert view.delete("key", "b")
    assert view.delete_many(["key", "other"], "b") == 1
    assert view.touch("key", "b") is False
    view.set("key", 1, "b")
    assert view.clear_namespace("b") == 1
    assert store.get_many(["key", "other"], "a") == {"key": 0, "other": 0}


def test_a_lock_is_that_of_the_store_below(store: MemoryKVStore) -> None:
    """A view's lock keeps out who locks the same key of the full namespace, and nobody else."""
    view = store.namespace("a")
    for namespace, full in ((None, "a"), ("b", "a:b")):
        with view.lock("key", namespace):
            with pytest.raises(LockTimeoutError, match=full):
                store.lock("key", full, timeout=0).__enter__()
            for free in (("other", full), ("key", "b"), ("key", None)):
                with store.lock(*free, timeout=0):
                    pass


def test_a_view_waits_as_its_store_does(store: MemoryKVStore) -> None:
    """waits is that of the store below, so that coroutines know where to run."""

    class Slow(MemoryKVStore):
        waits = True

    assert store.namespace("a").waits is False
    assert Slow().namespace("a").namespace("b").waits is True


def test_a_nested_view_clears_itself_alone(store: MemoryKVStore) -> None:
    """clear_on_exit is not handed down: a view inside of one clears only if it was told to."""
    outer = store.namespace("a", clear_on_exit=True)
    with outer.namespace("b") as inner:
        inner.set("key", 1)
    assert store.exists("key", "a:b")
    with outer.namespace("b", clear_on_exit=True):
        store.set("key", 1, "a")
    assert not store.exists("key", "a:b")
    assert store.exists("key", "a")
