"""Namespaces: one store, many rooms. Checks itself and needs nothing but the package."""

from kv_store_adapter import NO_EXPIRY, MemoryKVStore, NamespaceView


def count_visit(visits: NamespaceView, page: str) -> int:
    """Count a visit. This function can't see, or spoil, any other room of the store."""
    with visits.lock(page):
        count: int = visits.get(page, default=0) + 1
        visits.set(page, count)
    return count


def main() -> None:
    """Rooms are apart, nest, have a ttl of their own, and can be swept on the way out."""
    store = MemoryKVStore()

    # The same key in two rooms, and outside of any, is three entries.
    alice, bob = store.namespace("alice"), store.namespace("bob")
    for page in ("home", "home", "prices"):
        count_visit(alice, page)
    count_visit(bob, "home")
    store.set("home", "outside")
    assert (alice.get("home"), bob.get("home"), store.get("home")) == (2, 1, "outside")
    assert sorted(store.list_namespaces()) == ["alice", "bob"]

    # A room in a room. From outside, its name is both names with a colon.
    basket = alice.namespace("basket", ttl=1800)
    basket.set("apples", 3)
    basket.set("gift card", 1, ttl=NO_EXPIRY)
    assert store.get("apples", namespace="alice:basket") == 3
    assert basket.ttl("gift card") is None
    assert (basket.ttl("apples") or 0) > 1790

    # A scratch room that is empty again when the block ends, whatever happened in it.
    try:
        with store.namespace("scratch", clear_on_exit=True) as scratch:
            scratch.set("half", "done")
            raise RuntimeError("something went wrong")
    except RuntimeError:
        assert "scratch" not in store.list_namespaces()

    # Clearing one room leaves the others, and the rooms inside of it, as they were.
    assert store.clear_namespace("alice") == 2
    left = sorted(store.list_namespaces())
    assert left == ["alice:basket", "bob"]
    print("alice is gone; her basket and bob are still here:", left)


if __name__ == "__main__":
    main()
