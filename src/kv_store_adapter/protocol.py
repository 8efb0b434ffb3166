"""The promise: eight methods that a backend writes, and all that follows from them.

A backend implements the abstract methods of `KVStoreProtocol`. Everything else is derived here,
once, so that it is correct everywhere; a backend overrides what it can do natively, atomically and
in one round trip. `kv_store_adapter.testing` holds a backend to the promise.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Collection,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Union,
)

from . import forking
from .exceptions import InvalidTTLError, KeyNotFoundError, shown
from .rules import (
    LONGEST_KEY,
    MISSING,
    TTL,
    NoExpiry,
    check_key,
    check_namespace,
    check_timeout,
    check_ttl,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from .aio import AsyncKVStore
    from .leases import Lease
    from .mapping import KVMapping
    from .namespace import NamespaceView

__all__ = ["TAGS_NAMESPACE", "KVStoreProtocol"]

#: Where `KVStoreProtocol.invalidate_tag` keeps one small entry for each tag in use. An ordinary
#: namespace, so that tags work on every backend and a view's tags live inside the view.
TAGS_NAMESPACE = "kv-store-adapter.tags"


class KVStoreProtocol(ABC):
    """A key-value store with namespaces and expiry.

    Keys and namespaces are text and come back exactly as they went in. ``namespace=None`` is the
    default namespace, apart from every named one. An expired entry is absent for every operation.

    Notes:
        *Errors.* Any operation may raise `StoreUnavailableError` (the backend is in trouble) or
        `StoreClosedError`; bad keys and namespaces raise ``TypeError`` or `InvalidKeyError`.

        *Derived methods.* Those that read and then write (``add``, ``pop``, ``touch``) are atomic
        among the threads that share one store object, unless a backend does better; ours do.
    """

    #: Whether operations may wait for a disk or a network. ``False`` only for a store that always
    #: answers at once, so that coroutines may call it on the event loop's thread.
    waits: bool = True

    # ------------------------------------------------------------------ what a backend writes

    @abstractmethod
    def get(self, key: str, namespace: Optional[str] = None) -> Any:
        """Return the value stored under `key`.

        Raises:
            KeyNotFoundError: There is none.
            SerializationError: There is one that can't be read. It is left where it is.
        """

    @abstractmethod
    def set(
        self, key: str, value: Any, namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> None:
        """Store `value` under `key`, atomically, in place of what was there and of its ttl.

        Args:
            key: Any text up to 64 KiB of UTF-8.
            value: ``None`` is a value like any other.
            namespace: ``None`` is the default namespace.
            ttl: Seconds (or a ``timedelta``) to live, above zero; ``None``: no expiry.

        Raises:
            InvalidTTLError: The ttl is zero, negative, not finite or over 100 years.
            SerializationError: The value can't be serialised. What was stored is still there.
        """

    @abstractmethod
    def delete(self, key: str, namespace: Optional[str] = None) -> bool:
        """Delete `key`, atomically, and return whether it was there."""

    @abstractmethod
    def ttl(self, key: str, namespace: Optional[str] = None) -> Optional[float]:
        """Return the seconds that `key` has left to live; ``None``: it does not expire.

        Raises:
            KeyNotFoundError: There is no such key.
        """

    @abstractmethod
    def exists(self, key: str, namespace: Optional[str] = None) -> bool:
        """Return whether `key` is there. Its value is not read."""

    @abstractmethod
    def keys(self, namespace: Optional[str] = None, pattern: str = "*") -> List[str]:
        """Return the keys of a namespace that match `pattern`, in no promised order.

        Args:
            namespace: ``None`` is the default namespace.
            pattern: As `fnmatch.fnmatchcase` takes it: ``*``, ``?``, ``[seq]``, ``[!seq]``.
        """

    @abstractmethod
    def clear_namespace(self, namespace: Optional[str]) -> int:
        """Delete everything in `namespace` and return how many live keys went.

        After it returns, nothing written before the call is readable. ``None`` clears the default
        namespace only.
        """

    @abstractmethod
    def list_namespaces(self) -> List[str]:
        """Return the named namespaces that hold a live key, in no promised order."""

    # ------------------------------------------------------------------ what follows from it

    def add(
        self, key: str, value: Any, namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> bool:
        """Store `value` only if `key` is absent; return whether it was stored.

        Of many callers at the same time exactly one gets ``True``.
        """
        check_ttl(ttl)
        with _exclusive(self):
            if self.exists(key, namespace):
                return False
            self.set(key, value, namespace, ttl)
            return True

    def pop(self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING) -> Any:
        """Delete `key` and return its value; of many callers exactly one gets it.

        Args:
            key: The key.
            namespace: ``None`` is the default namespace.
            default: What to return when the key is absent.

        Raises:
            KeyNotFoundError: The key is absent and no `default` was given.
            SerializationError: The value can't be read. The entry is left where it is.
        """
        with _exclusive(self):
            try:
                value = self.get(key, namespace)
            except KeyNotFoundError:
                if default is MISSING:
                    raise
                return default
            self.delete(key, namespace)
            return value

    def touch(self, key: str, namespace: Optional[str] = None, ttl: Optional[TTL] = None) -> bool:
        """Give `key` a new ttl (``None``: no expiry) and keep its value; was it there?"""
        check_ttl(ttl)
        with _exclusive(self):
            try:
                value = self.get(key, namespace)
            except KeyNotFoundError:
                return False
            self.set(key, value, namespace, ttl)
            return True

    def get_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> Dict[str, Any]:
        """Return the values of those `keys` that are there.

        Each key is read atomically, the batch as a whole is not.

        Raises:
            SerializationError: One of the values can't be read.
        """
        found = {}
        for key in check_keys(keys):
            try:
                found[key] = self.get(key, namespace)
            except KeyNotFoundError:
                continue
        return found

    def set_many(
        self, mapping: Mapping[str, Any], namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> None:
        """Store every item of `mapping` with the same ttl; atomic for each key.

        Every key, the namespace and the ttl are checked before anything is stored.
        """
        items = check_items(mapping)
        check_ttl(ttl)
        for key, value in items.items():
            self.set(key, value, namespace, ttl)

    def delete_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> int:
        """Delete `keys` and return how many of them were there."""
        return sum(self.delete(key, namespace) for key in check_keys(keys))

    def iter_keys(self, namespace: Optional[str] = None, pattern: str = "*") -> Iterator[str]:
        """Like `keys`, a key at a time, for namespaces too large to list.

        Every key that is there throughout comes exactly once; keys that come or go meanwhile may
        or may not. Nothing is locked or held open between two keys.
        """
        return iter(self.keys(namespace, pattern))

    def reader(self, namespace: Optional[str] = None) -> Callable[[str], Any]:
        """Return a function that looks up a key of one namespace: its value, or `MISSING`.

        For callers that read one namespace over and over: what never changes is looked up once.
        The function raises what `get` raises, but for `KeyNotFoundError`.
        """
        namespace = check_namespace(namespace)
        get = self.get

        def read(key: str) -> Any:
            try:
                return get(key, namespace)
            except KeyNotFoundError:
                return MISSING

        return read

    def finder(self, namespace: Optional[str] = None) -> Callable[[str], Optional[Sequence[Any]]]:
        """Return a function that looks up a key: ``(value, deadline)``, or ``None``.

        Like `reader`, for callers that compare the deadline with ``time.time()`` themselves; it is
        ``None`` where there is no expiry, or where it was compared already. A store that keeps
        entries in this very shape answers with its dictionary's own look-up, in C; so the key is
        a plain ``str``, and of no class that says it equals other text.
        """
        read = self.reader(namespace)

        def find(key: str) -> Optional[Sequence[Any]]:
            value = read(key)
            return None if value is MISSING else (value, None)

        return find

    def invalidate_tag(self, tag: str) -> None:
        """Make every cached result that carries `tag` a miss, for all processes at once.

        Costs one delete, however many results carry the tag. See ``tags=`` of `cached`. On a view
        it reaches what was cached through that view.
        """
        self.delete(tag, TAGS_NAMESPACE)

    # ------------------------------------------------------------------ other ways in

    def namespace(
        self,
        name: str,
        *,
        ttl: Union[TTL, NoExpiry, None] = None,
        clear_on_exit: bool = False,
    ) -> NamespaceView:
        """Return this store scoped to the namespace `name`: a store itself.

        Args:
            name: The namespace. Inside of another view's namespace ``a`` it is ``a:name``.
            ttl: Seconds to live for what is stored through the view without a ttl of its own.
            clear_on_exit: As a context manager, clear this namespace on the way out, errors
                included. Views nested in it clear themselves, if they were told to.

        Example:
            >>> from kv_store_adapter import MemoryKVStore
            >>> store = MemoryKVStore()
            >>> with store.namespace("session", clear_on_exit=True) as session:
            ...     session.set("user", "alice")
            ...     store.get("user", "session")
            'alice'
            >>> store.list_namespaces()
            []
        """
        from .namespace import NamespaceView

        return NamespaceView(self, name, ttl=ttl, clear_on_exit=clear_on_exit)

    def as_mapping(
        self, namespace: Optional[str] = None, ttl: Union[TTL, NoExpiry, None] = None
    ) -> KVMapping:
        """Return one namespace as a `MutableMapping`: ``mapping["key"] = value``.

        Args:
            namespace: ``None`` is the default namespace.
            ttl: Seconds to live for what is stored through the mapping; ``None``: no expiry.
        """
        from .mapping import KVMapping

        return KVMapping(self, namespace, ttl)

    def lock(
        self,
        key: str,
        namespace: Optional[str] = None,
        *,
        ttl: TTL = 10.0,
        timeout: Optional[float] = 30.0,
    ) -> AbstractContextManager[None]:
        """Return a context manager that only one caller at a time is inside of.

        As wide as the backend reaches: the threads of this process for memory (and for backends
        that bring nothing of their own), all processes on the folder for disk, everybody on the
        server for Redis. Not reentrant. Locks are apart from entries of the same key. A lock whose
        object is forgotten is given back: who enters by hand keeps the object.

        Args:
            key: What to lock; any key, stored or not.
            namespace: ``None`` is the default namespace.
            ttl: The lease in seconds. It is renewed while the holder lives; a holder that was
                killed keeps others out for at most this long.
            timeout: Seconds to wait for the lock; ``None``: as long as it takes.

        Raises:
            LockTimeoutError: On entering, when the wait took longer than `timeout`.
            InvalidTTLError: The ttl can't be one.
            ValueError: The timeout is negative or NaN.
        """
        from .leases import held

        key, namespace = check_key(key), check_namespace(namespace)
        milliseconds, timeout = check_lease(ttl), check_timeout(timeout)
        return held(self._lease(key, namespace, milliseconds), key, namespace, timeout)

    def _lease(self, key: str, namespace: Optional[str], ttl_ms: int) -> Lease:
        """One attempt-at-a-time lock on a checked key: what `lock` is made of."""
        from .thread_lease import ThreadLease

        return ThreadLease(self, key, namespace)

    @property
    def aio(self) -> AsyncKVStore:
        """The same operations, awaitable: ``await store.aio.get("key")``.

        Memory answers inline; a backend that waits for a disk or a network does so in threads or
        on an asyncio driver of its own, never on the event loop's thread.
        """
        from .aio import AsyncKVStore

        return AsyncKVStore(self)

    # ------------------------------------------------------------------ end of life

    def close(self) -> None:
        """Give back what the store holds open. Twice is fine.

        What the caller passed in (a Redis client, say) is the caller's to close. On our stores
        every operation after this raises `StoreClosedError`.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def check_keys(keys: Iterable[str]) -> List[str]:
    """Check a batch of keys before any of them is used, and drop repeated ones.

    Raises:
        TypeError: `keys` is a ``str`` (one key where many are wanted), or one of them is not one.
        InvalidKeyError: One of them can't be a key.
    """
    if isinstance(keys, (str, bytes)):
        raise TypeError("A batch takes an iterable of keys, not one key. Write [key].")
    keys = list(keys)
    return list(dict.fromkeys(keys if _are_usual(keys) else map(check_key, keys)))


def check_items(mapping: Mapping[str, Any]) -> Dict[str, Any]:
    """Check the keys of a batch before any of it is stored.

    Raises:
        TypeError: It is no mapping, or one of its keys is not a ``str``.
        InvalidKeyError: One of them can't be a key.
    """
    if not hasattr(mapping, "keys"):  # dict() would take a list of pairs, or of texts of two
        raise TypeError(f"A batch is a mapping of keys to values, not {type(mapping).__name__}.")
    items = dict(mapping)
    return items if _are_usual(items) else {check_key(key): item for key, item in items.items()}


def _are_usual(keys: Collection[Any]) -> bool:
    """Whether all are texts of ASCII and none is too long, told in a few steps of Python."""
    if set(map(type, keys)) != {str}:
        return False
    together = "".join(keys)
    if not together.isascii():
        return False
    return len(together) <= LONGEST_KEY or max(map(len, keys)) <= LONGEST_KEY


def check_lease(ttl: TTL) -> int:
    """Check the ttl of a lock: milliseconds. A lock without end is refused."""
    try:
        milliseconds = check_ttl(ttl)
    except InvalidTTLError:
        raise InvalidTTLError(
            f"A lock's ttl is above zero and at most 100 years, not {shown(ttl)}: its holder "
            "renews it, and if it dies others wait for as long."
        ) from None
    if milliseconds is None:
        raise TypeError(f"A lock's ttl is a number of seconds or a timedelta, not {ttl}.")
    return milliseconds


# Derived operations that read and then write take one of these. Stripes, because a third party's
# store owes us no attribute to keep a lock in; two stores on one stripe only wait for each other.
_stripes: List[threading.RLock] = []


def _new_stripes() -> None:
    # Also in the child of a fork: a stripe may have been held by a thread that is not there.
    _stripes[:] = [threading.RLock() for _ in range(64)]


_new_stripes()
forking.after_in_child(_new_stripes)


def _exclusive(store: KVStoreProtocol) -> AbstractContextManager[Any]:
    return _stripes[(id(store) >> 6) % len(_stripes)]
