"""Caching off, for tests: for everything, or for one store."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

from ..guard import Guard
from ..namespace import NamespaceView, root_of, when_closed
from ..protocol import KVStoreProtocol

__all__ = ["RememberedKeys", "caching_disabled", "is_disabled", "off"]

#: The stores that are switched off; ``None`` stands for all. Empty almost always.
off: List[Optional[KVStoreProtocol]] = []


class RememberedKeys(Dict[Any, str]):
    """The keys of a function's recent calls, by their arguments; empty while caching is off.

    And empty once its store is a view that was closed. So a hit, which begins with a key that is
    found here, need ask for neither: that would be a thirtieth of it.
    """

    __slots__ = ("__weakref__", "store")

    def __init__(self, store: KVStoreProtocol) -> None:
        super().__init__()
        self.store: KVStoreProtocol = store
        _all_remembered[id(self)] = self

    def keep(self, arguments: Any, key: str) -> None:
        """Remember a key, unless it must not be found."""
        _keep(self, arguments, key)


# By id, because dictionaries don't hash.
_all_remembered: weakref.WeakValueDictionary[int, RememberedKeys] = weakref.WeakValueDictionary()


# Who switches off, or closes, does that first and empties then; so whoever has the guard before
# that is emptied, and whoever has it after that knows.
_guard = Guard()


@_guard
def _keep(keys: RememberedKeys, arguments: Any, key: str) -> None:
    if not (off or (isinstance(keys.store, NamespaceView) and keys.store.closed)):
        keys[arguments] = key


@_guard
def _forget(view: Optional[KVStoreProtocol]) -> None:
    """Empty what functions remember, those of one view or (``None``) all."""
    for ref in _all_remembered.valuerefs():  # a copy: functions come and go meanwhile
        keys = ref()
        if keys is not None and (view is None or keys.store is view):
            keys.clear()


when_closed(_forget)


@contextmanager
def caching_disabled(store: Optional[KVStoreProtocol] = None) -> Iterator[None]:
    """Make every decorated function call its body, for the length of a ``with`` block.

    Nothing is read from the store and nothing is stored. Counts for all threads and tasks of this
    process; blocks may be nested.

    Args:
        store: Only functions cached in this store or one of its views; ``None``: all.

    Example:
        >>> from kv_store_adapter import MemoryKVStore, cached, caching_disabled
        >>> @cached(MemoryKVStore())
        ... def now(): return object()
        >>> with caching_disabled():
        ...     now() is now()
        False
    """
    if store is not None and not isinstance(store, KVStoreProtocol):
        raise TypeError(f"caching_disabled() takes a store, not {type(store).__name__}.")
    root = None if store is None else root_of(store)
    try:
        off.append(root)
        _forget(None)
        yield
    finally:
        # By identity: a store may compare equal to another.
        for index in range(len(off) - 1, -1, -1):
            if off[index] is root:
                del off[index]
                break


def is_disabled(root: KVStoreProtocol) -> bool:
    """Whether functions cached in this store shall call their bodies."""
    return any(one is None or one is root for one in off)
