"""`NamespaceView`: any store, scoped to one of its namespaces."""

from __future__ import annotations

from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Union,
)

from .exceptions import KeyNotFoundError, StoreClosedError, shown
from .protocol import KVStoreProtocol
from .rules import MISSING, TTL, NoExpiry, check_namespace, check_ttl, join_namespaces

if TYPE_CHECKING:
    from typing_extensions import Self

    from .aio import AsyncKVStore
    from .leases import Lease

__all__ = ["NamespaceView"]


class NamespaceView(KVStoreProtocol):
    """A store inside a store: its default namespace is the namespace `name` of `store`.

    Made by ``store.namespace(name)``. Namespaces nest by joining names with a colon: the namespace
    ``b`` of a view on ``a`` is the store's namespace ``a:b``, and that is also where
    ``store.set(..., namespace="a:b")`` stores.

    As a context manager it returns itself, and leaving it does not close the store; with
    `clear_on_exit` it clears its own namespace then, whatever was raised inside.

    Args:
        store: The store to look into; it stays the caller's.
        name: The namespace.
        ttl: Seconds to live for what is stored without a ttl of its own; ``None``: that of the
            view it is nested in, if any; `NO_EXPIRY`: none. A single entry is kept for ever with
            ``set(..., ttl=NO_EXPIRY)``.
        clear_on_exit: Clear this namespace on leaving the ``with`` block.

    Notes:
        As safe for threads and processes as the store below. Pickles when that does. Errors name
        the full namespace.
    """

    def __init__(
        self,
        store: KVStoreProtocol,
        name: str,
        *,
        ttl: Union[TTL, NoExpiry, None] = None,
        clear_on_exit: bool = False,
    ) -> None:
        if name is None:
            raise TypeError("A view has a name. The store itself is its default namespace.")
        check_ttl(ttl)
        if isinstance(store, NamespaceView):
            # Views do not pile up: one look at the store from however deep a nesting.
            # _full() raises where that view is closed.
            name = join_namespaces(store._full(None), name)  # type: ignore[assignment]  # no None
            ttl = store._ttl if ttl is None else ttl
            store = store._store
        self._store: KVStoreProtocol = store
        self._name: str = check_namespace(name)  # type: ignore[assignment]  # as above
        self._ttl: Union[TTL, NoExpiry, None] = ttl
        self._clear_on_exit = clear_on_exit
        self._closed = False

    @property
    def waits(self) -> bool:  # type: ignore[override]  # a plain attribute of stores
        """Whether operations may wait, as those of the store below do."""
        return self._store.waits

    @property
    def name(self) -> str:
        """The full name of the namespace, as the store below knows it."""
        return self._name

    @property
    def store(self) -> KVStoreProtocol:
        """The store below, never a view itself."""
        return self._store

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __repr__(self) -> str:
        return f"<NamespaceView {shown(self._name)} of {self._store!r}>"

    def _full(self, namespace: Optional[str]) -> Optional[str]:
        """The name that `namespace` of this view has in the store below."""
        if self._closed:
            raise StoreClosedError(f"This view of namespace {shown(self._name)} is closed.")
        return self._name if namespace is None else join_namespaces(self._name, namespace)

    def _lifetime(self, ttl: Union[TTL, NoExpiry, None]) -> Optional[TTL]:
        """The ttl that the store below gets: the given one, or the default, or none."""
        chosen = self._ttl if ttl is None else ttl
        # By type, not by identity, so that a type checker follows.
        return None if isinstance(chosen, NoExpiry) else chosen

    # ------------------------------------------------------------------ the eight

    def get(self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING) -> Any:
        """Return the value of `key`, or `default` where one is given and the key is absent."""
        full = self._full(namespace)
        if default is MISSING:
            return self._store.get(key, full)
        # The store below may be a third party's, which takes no default.
        try:
            return self._store.get(key, full)
        except KeyNotFoundError:
            return default

    def set(
        self,
        key: str,
        value: Any,
        namespace: Optional[str] = None,
        ttl: Union[TTL, NoExpiry, None] = None,
    ) -> None:
        """Store `value` under `key`; `ttl` is the view's where it is ``None``."""
        self._store.set(key, value, self._full(namespace), self._lifetime(ttl))

    def delete(self, key: str, namespace: Optional[str] = None) -> bool:
        """Delete `key` and return whether it was there."""
        return self._store.delete(key, self._full(namespace))

    def ttl(self, key: str, namespace: Optional[str] = None) -> Optional[float]:
        """Return the seconds that `key` has left to live; ``None``: no expiry."""
        return self._store.ttl(key, self._full(namespace))

    def exists(self, key: str, namespace: Optional[str] = None) -> bool:
        """Return whether `key` is there."""
        return self._store.exists(key, self._full(namespace))

    def keys(self, namespace: Optional[str] = None, pattern: str = "*") -> List[str]:
        """Return the keys that match `pattern`."""
        return self._store.keys(self._full(namespace), pattern)

    def clear_namespace(self, namespace: Optional[str]) -> int:
        """Clear a namespace of this view; ``None``: the view's own, without those nested in it."""
        return self._store.clear_namespace(self._full(namespace))

    def list_namespaces(self) -> List[str]:
        """Return the namespaces nested in this one that hold a live key, by their names in here."""
        return self._relative(self._store.list_namespaces())

    def _relative(self, names: List[str]) -> List[str]:
        """Those of the store's `names` that are nested in this view, without its own name."""
        self._full(None)
        start = self._name + ":"
        # "a:" is no name that a view could ask for again.
        return [n[len(start) :] for n in names if n.startswith(start) and len(n) > len(start)]

    # ------------------------------------------------------------------ what the store has natively

    def add(
        self,
        key: str,
        value: Any,
        namespace: Optional[str] = None,
        ttl: Union[TTL, NoExpiry, None] = None,
    ) -> bool:
        """Store `value` only if `key` is absent; return whether it was stored."""
        return self._store.add(key, value, self._full(namespace), self._lifetime(ttl))

    def pop(self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING) -> Any:
        """Delete `key` and return its value."""
        return self._store.pop(key, self._full(namespace), default=default)

    def touch(
        self,
        key: str,
        namespace: Optional[str] = None,
        ttl: Union[TTL, NoExpiry, None] = None,
    ) -> bool:
        """Give `key` a new ttl, the view's where it is ``None``; return whether it was there."""
        return self._store.touch(key, self._full(namespace), self._lifetime(ttl))

    def get_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> Dict[str, Any]:
        """Return the values of those `keys` that are there."""
        return self._store.get_many(keys, self._full(namespace))

    def set_many(
        self,
        mapping: Mapping[str, Any],
        namespace: Optional[str] = None,
        ttl: Union[TTL, NoExpiry, None] = None,
    ) -> None:
        """Store every item of `mapping`; `ttl` is the view's where it is ``None``."""
        self._store.set_many(mapping, self._full(namespace), self._lifetime(ttl))

    def delete_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> int:
        """Delete `keys` and return how many of them were there."""
        return self._store.delete_many(keys, self._full(namespace))

    def iter_keys(self, namespace: Optional[str] = None, pattern: str = "*") -> Iterator[str]:
        """Like `keys`, a key at a time."""
        return self._store.iter_keys(self._full(namespace), pattern)

    def reader(self, namespace: Optional[str] = None) -> Callable[[str], Any]:
        """Return a function that looks up a key of one namespace: its value, or `MISSING`."""
        read = self._store.reader(self._full(namespace))

        def checked(key: str) -> Any:
            if self._closed:
                self._full(None)  # raises
            return read(key)

        return checked

    def finder(self, namespace: Optional[str] = None) -> Callable[[str], Optional[Sequence[Any]]]:
        """Return a function that looks up a key of one namespace, with its deadline.

        It does not notice that the view was closed: see `when_closed`.
        """
        return self._store.finder(self._full(namespace))

    def _lease(self, key: str, namespace: Optional[str], ttl_ms: int) -> Lease:
        return self._store._lease(key, self._full(namespace), ttl_ms)

    @property
    def aio(self) -> AsyncKVStore:
        """The same operations, awaitable, as the store below does them."""
        from .aio import AsyncView

        return AsyncView(self)

    # ------------------------------------------------------------------ end of life

    def close(self) -> None:
        """End this view. The store below stays open: it is not the view's."""
        self._closed = True
        for function in _when_closed:
            function(self)

    def __enter__(self) -> Self:
        self._full(None)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._clear_on_exit and not self._closed:
            self._store.clear_namespace(self._name)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aio.__aexit__(*exc_info)


# Who holds on to what a view found, and must not any more.
_when_closed: List[Callable[[NamespaceView], None]] = []


def when_closed(function: Callable[[NamespaceView], None]) -> None:
    """Call `function` with every view that is closed. For module state; it is never forgotten."""
    _when_closed.append(function)


def root_of(store: KVStoreProtocol) -> KVStoreProtocol:
    """The store at the bottom of a view; a store that is no view is its own."""
    return store.store if isinstance(store, NamespaceView) else store
