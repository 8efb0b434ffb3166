"""`KVMapping`: one namespace of any store, used like a dict."""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from itertools import islice
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Optional,
    Tuple,
    Union,
    ValuesView,
)

from .exceptions import KeyNotFoundError, shown
from .namespace import NamespaceView
from .protocol import KVStoreProtocol
from .rules import MISSING, TTL, NoExpiry, check_key, check_namespace, check_ttl

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["KVMapping"]

# How many values iteration reads in one round trip.
_BATCH = 500


class KVMapping(MutableMapping[str, Any]):
    """One namespace of a store as a mutable mapping from ``str`` to values.

    Made by ``store.as_mapping(namespace, ttl)``. It keeps nothing itself: what others store is
    there at once, and what has expired is not. ``setdefault``, ``pop`` and ``popitem`` are as
    atomic as the store's own operations; ``update`` is one batch; iterating goes on while entries
    come and go, and reads values in batches. ``len()`` counts the keys, so it costs a listing.

    Keys that are not ``str`` can't be there: ``in`` is ``False`` and reading raises ``KeyError``;
    writing them is a ``TypeError``.

    Args:
        store: Any store or view; it stays the caller's.
        namespace: ``None`` is the default namespace.
        ttl: Seconds to live for what is stored through the mapping; ``None``: the view's default,
            else no expiry; `NO_EXPIRY`: none, whatever the view says.

    Example:
        >>> from kv_store_adapter import MemoryKVStore
        >>> users = MemoryKVStore().as_mapping("users")
        >>> users["1"] = "Alice"
        >>> users.setdefault("1", "Bob"), dict(users)
        ('Alice', {'1': 'Alice'})
    """

    def __init__(
        self,
        store: KVStoreProtocol,
        namespace: Optional[str] = None,
        ttl: Union[TTL, NoExpiry, None] = None,
    ) -> None:
        check_ttl(ttl)
        self._store = store
        self._namespace = check_namespace(namespace)
        # NO_EXPIRY means something to a view alone; to a third party's store it would be a riddle.
        plain = isinstance(ttl, NoExpiry) and not isinstance(store, NamespaceView)
        self._ttl: Any = None if plain else ttl

    def __repr__(self) -> str:
        # Not the contents, as a dict would: they may be many, far away, or secret.
        name = "the default namespace" if self._namespace is None else shown(self._namespace)
        return f"<KVMapping of {name} in {self._store!r}>"

    def __getitem__(self, key: str) -> Any:
        if not isinstance(key, str):
            raise KeyNotFoundError(key, self._namespace)
        return self._store.get(key, self._namespace)

    def __setitem__(self, key: str, value: Any) -> None:
        self._store.set(key, value, self._namespace, self._ttl)

    def __delitem__(self, key: str) -> None:
        if not isinstance(key, str) or not self._store.delete(key, self._namespace):
            raise KeyNotFoundError(key, self._namespace)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._store.exists(key, self._namespace)

    def __iter__(self) -> Iterator[str]:
        return self._store.iter_keys(self._namespace)

    def __len__(self) -> int:
        return len(self._store.keys(self._namespace))

    def __bool__(self) -> bool:
        # Not by len(): one key is enough.
        return next(iter(self), MISSING) is not MISSING

    def items(self) -> ItemsView[str, Any]:
        """A view of the items, which reads values in batches and skips what is gone meanwhile."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """A view of the values, read in batches."""
        return _Values(self)

    def _batches(self) -> Iterator[Dict[str, Any]]:
        keys = iter(self)
        batch = list(islice(keys, _BATCH))
        while batch:
            yield self._store.get_many(batch, self._namespace)
            batch = list(islice(keys, _BATCH))

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, after storing `default` if it was absent. Atomic."""
        key = check_key(key)
        while True:
            try:
                return self._store.get(key, self._namespace)
            except KeyNotFoundError:
                if self._store.add(key, default, self._namespace, self._ttl):
                    return default
                # Somebody stored it in between: theirs is the value.

    def pop(self, key: str, default: Any = MISSING) -> Any:
        """Delete `key` and return its value; atomic. Absent: `default`, else ``KeyError``."""
        if not isinstance(key, str):
            if default is MISSING:
                raise KeyNotFoundError(key, self._namespace)
            return default
        return self._store.pop(key, self._namespace, default=default)

    def popitem(self) -> Tuple[str, Any]:
        """Delete some item and return it; of many callers each gets another one."""
        for key in self:
            value = self._store.pop(key, self._namespace, default=MISSING_ITEM)
            if value is not MISSING_ITEM:
                return key, value
        raise KeyError("popitem(): the mapping is empty")

    def update(self, other: Any = (), /, **items: Any) -> None:
        """Store the items of a mapping or of pairs, in one batch. Nothing if one key is wrong."""
        self._store.set_many({**_as_dict(other), **items}, self._namespace, self._ttl)

    def clear(self) -> None:
        """Delete everything in the namespace."""
        self._store.clear_namespace(self._namespace)

    def __or__(self, other: Any) -> Any:
        if not isinstance(other, MappingABC):
            return NotImplemented
        return {**dict(self.items()), **dict(other.items())}

    def __ror__(self, other: Any) -> Any:
        if not isinstance(other, MappingABC):
            return NotImplemented
        return {**dict(other.items()), **dict(self.items())}

    def __ior__(  # type: ignore[misc]  # takes pairs, too, as that of dict does
        self, other: Union[Mapping[str, Any], Iterable[Tuple[str, Any]]]
    ) -> Self:
        self.update(other)
        return self


# MISSING as a default would mean "raise".
MISSING_ITEM: Any = object()


class _Items(ItemsView[str, Any]):
    _mapping: KVMapping

    def __iter__(self) -> Iterator[Tuple[str, Any]]:
        for batch in self._mapping._batches():
            yield from batch.items()


class _Values(ValuesView[Any]):
    _mapping: KVMapping

    def __iter__(self) -> Iterator[Any]:
        for batch in self._mapping._batches():
            yield from batch.values()

    def __contains__(self, value: object) -> bool:
        return any(value is mine or value == mine for mine in self)


def _as_dict(other: Any) -> Dict[Any, Any]:
    """What `dict` makes of it: a mapping, an object with keys(), or pairs."""
    if isinstance(other, MappingABC):
        return dict(other.items())
    return dict(other)
