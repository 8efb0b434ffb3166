"""`MemoryKVStore`: dictionaries, expiry, and an eviction policy."""

from __future__ import annotations

import threading
import time
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)
from weakref import WeakValueDictionary

from . import forking
from .eviction import CHUNK, DEADLINE, S3FIFO, SLOT, VALUE
from .exceptions import KeyNotFoundError, StoreClosedError
from .expiry import NEVER, Expiry, Table
from .guard import let_go
from .protocol import KVStoreProtocol, check_items, check_keys
from .rules import MISSING, TTL, check_key, check_namespace, check_ttl, matcher
from .serializers import Codec

if TYPE_CHECKING:
    from .aio import AsyncKVStore
    from .leases import Lease
    from .serializers import SerializerLike

__all__ = ["MemoryKVStore"]


def _seconds(ttl: Any) -> Optional[float]:
    """A checked ttl in seconds, rounded up to whole milliseconds; ``None`` for no expiry."""
    milliseconds = check_ttl(ttl)
    return None if milliseconds is None else milliseconds / 1000


class _Closed(Dict[Optional[str], Table]):
    """Stands in for the tables of a closed store, so that an open one need not ask."""

    __slots__ = ()

    def _refuse(self, *args: object) -> Any:
        raise StoreClosedError("This MemoryKVStore is closed. Make a new one.")

    __getitem__ = get = values = items = _refuse


class MemoryKVStore(KVStoreProtocol, forking.Forkable):
    """A store in this process's memory. Gone when the process ends.

    Values are kept as the very objects that were stored: who changes a list after storing it
    changes what is stored. With `serializer=` every reader gets a copy of its own.

    Args:
        maxsize: The most entries to hold, over all namespaces; ``None``: no limit. When it is
            reached, S3-FIFO (see `kv_store_adapter.eviction`) chooses what leaves.
        serializer: An object with ``dumps`` and ``loads`` to keep values as bytes, for isolation;
            ``None``: keep the objects.

    Notes:
        *Threads.* Reads take no lock; changes take one ``threading.RLock`` for a few microseconds.
        *Processes.* Each has its own: a fork starts with a copy. Does not pickle.
        *Expiry.* Every write takes a few expired entries along, so memory is freed without a
        background thread, and without a pause.

    Example:
        >>> store = MemoryKVStore()
        >>> store.set("greeting", "hello", ttl=60)
        >>> store.get("greeting")
        'hello'
    """

    waits = False

    def __init__(
        self, *, maxsize: Optional[int] = None, serializer: Optional[SerializerLike] = None
    ) -> None:
        if maxsize is not None:
            if isinstance(maxsize, bool) or not isinstance(maxsize, int):
                raise TypeError(f"maxsize is an int or None, not {type(maxsize).__name__}.")
            if maxsize < 1:
                raise ValueError(f"maxsize is at least 1, or None for no limit, not {maxsize}.")
        self._lock = threading.RLock()
        self._tables: Dict[Optional[str], Table] = {}
        # Empty ones that a reader holds on to: it has to see what will be stored.
        self._awaited: WeakValueDictionary[Optional[str], Table] = WeakValueDictionary()
        self._policy = None if maxsize is None else S3FIFO(maxsize)
        self._codec = None if serializer is None else Codec(serializer)
        self._used: Optional[List[bool]] = None if self._policy is None else self._policy.used
        self._plain = self._policy is None and self._codec is None
        self._expiry = Expiry()
        self._usual_ttl: Optional[TTL] = None
        # Most look-ups are in the default namespace, so its table is held on to, like a reader's.
        self._find: Callable[[str], Any] = self._bind(None).get
        forking.register(self)

    def __repr__(self) -> str:
        bound = "" if self._policy is None else f"maxsize={self._policy.maxsize}"
        return f"{type(self).__name__}({bound})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "A MemoryKVStore lives in one process and does not pickle. Make one in each process, "
            "or use DiskKVStore or RedisKVStore to share entries."
        )

    # ------------------------------------------------------------------ reading, without a lock

    def get(self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING) -> Any:
        """Return the value of `key`: the object itself, or a copy if there is a serializer.

        Args:
            key: The key.
            namespace: ``None`` is the default namespace.
            default: What to return when the key is absent.

        Raises:
            KeyNotFoundError: The key is absent and no `default` was given.
        """
        if key.__class__ is str and (namespace is None or namespace.__class__ is str):
            try:
                find = self._find if namespace is None else self._tables[namespace].get
                entry = find(key)
            except (KeyError, TypeError):
                pass  # an empty namespace, or none that could be one
            else:
                # A key that is found is one that could be stored: it needs no check.
                if entry is not None:
                    deadline = entry[1]
                    if deadline is None or deadline > time.time():
                        if self._plain:
                            return entry[0]
                        used = self._used
                        if used is not None:
                            used[entry[3]] = True
                        if self._codec is None:
                            return entry[0]
                        return self._codec.decode(entry[0], key, namespace)
                elif default is not MISSING:
                    # The usual miss of a cache. Other keys than could be stored are refused.
                    if len(key) > 1000 or not key.isascii():
                        check_key(key)
                    return default
        if self._live(key, namespace) is not None:  # another class of str, or stored just now
            plain = check_key(key), check_namespace(namespace)
            return self.get(*plain, default=default)
        if default is MISSING:
            raise KeyNotFoundError(key, namespace)
        return default

    def _entry(self, key: Any, namespace: Any) -> Any:
        """The entry of an unchecked key, expired or not; ``None`` where there is none."""
        key, namespace = check_key(key), check_namespace(namespace)
        table = self._tables.get(namespace)
        return None if table is None else table.get(key)

    def _live(self, key: Any, namespace: Any) -> Any:
        entry = self._entry(key, namespace)
        if entry is None or (entry[DEADLINE] is not None and entry[DEADLINE] <= time.time()):
            return None
        return entry

    def exists(self, key: str, namespace: Optional[str] = None) -> bool:
        """Return whether `key` is there. Does not count as a use for eviction."""
        return self._live(key, namespace) is not None

    def ttl(self, key: str, namespace: Optional[str] = None) -> Optional[float]:
        """Return the seconds that `key` has left, to the millisecond; ``None``: no expiry."""
        entry = self._live(key, namespace)
        if entry is None:
            raise KeyNotFoundError(key, namespace)
        deadline = entry[DEADLINE]
        # Rounded, because (now + 30) - now may come out a hair above 30.
        return None if deadline is None else max(0.001, round(deadline - time.time(), 3))

    def keys(self, namespace: Optional[str] = None, pattern: str = "*") -> List[str]:
        """Return the keys that match `pattern`, in the order they were first stored."""
        matches = matcher(pattern)
        table = self._tables.get(check_namespace(namespace))
        if not table:
            return []
        now = time.time()
        # To copy a dictionary is one step of the interpreter: no thread comes between. A list of
        # its items would be as many tuples, and take twice as long.
        return [
            key
            for key, entry in table.copy().items()
            if (entry[1] is None or entry[1] > now) and (matches is None or matches(key))
        ]

    def list_namespaces(self) -> List[str]:
        """Return the named namespaces that hold a live key."""
        now = time.time()
        return [
            name
            for name, table in list(self._tables.items())
            if name is not None and any(e[1] is None or e[1] > now for e in list(table.values()))
        ]

    def get_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> Dict[str, Any]:
        """Return the values of those `keys` that are there."""
        read = self.reader(namespace)
        found = ((key, read(key)) for key in check_keys(keys))
        return {key: value for key, value in found if value is not MISSING}

    def reader(self, namespace: Optional[str] = None) -> Callable[[str], Any]:
        """Return a function that looks up a key of `namespace`: its value, or `MISSING`.

        The function reads the namespace's own dictionary: about three dictionary look-ups' time.
        """
        namespace = check_namespace(namespace)
        table = self._bind(namespace)
        find = table.get
        used, codec = self._used, self._codec

        def read(key: str) -> Any:
            if key.__class__ is not str:
                key = check_key(key)
            entry = find(key)
            if entry is None:
                if self._tables.__class__ is _Closed:
                    self._tables.get(namespace)  # raises
                # Only what could be stored is absent; the rest is refused.
                check_key(key)
                return MISSING
            deadline = entry[1]
            if deadline is not None and deadline <= time.time():
                return MISSING
            if used is not None:
                used[entry[3]] = True
            return entry[0] if codec is None else codec.decode(entry[0], key, namespace)

        return read

    def finder(self, namespace: Optional[str] = None) -> Callable[[str], Optional[Sequence[Any]]]:
        """Return a function that looks up a key: ``(value, deadline)``, or ``None``."""
        if self._policy is not None or self._codec is not None:
            # Hits are counted there, or values decoded.
            return super().finder(namespace)
        return self._bind(check_namespace(namespace)).get

    def _bind(self, namespace: Optional[str]) -> Table:
        """The table of a namespace: for as long as somebody holds it, it is that of all writes."""
        with self._lock:
            table = self._tables.get(namespace)
            if table is None:
                table = self._awaited[namespace] = self._empty(namespace)
            return table

    def _empty(self, namespace: Optional[str]) -> Table:
        """A table without an entry: the one that readers hold on to, if there is one."""
        table = self._awaited.get(namespace)
        return Table(namespace) if table is None else table

    # ------------------------------------------------------------------ changing, under the lock

    def set(  # noqa: PLR0912  # each call that it makes is a tenth of it
        self, key: str, value: Any, namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> None:
        """Store `value` under `key`, in place of what was there and of its ttl."""
        seconds: Any = ttl
        if ttl is not None and ttl is not self._usual_ttl:
            # A ttl of the usual kind needs no call, and the very object of the last one no check.
            if ttl.__class__ is int and 0 < ttl < 10**9:
                self._usual_ttl = ttl
            else:
                seconds = _seconds(ttl)
        if (
            self._codec is not None
            or key.__class__ is not str
            or (namespace is not None and namespace.__class__ is not str)
        ):
            key, value, namespace = self._encoded(key, value, namespace)
        lock = self._lock
        try:
            lock.acquire()
            table = self._tables.get(namespace)
            if table is None:
                self._put(key, value, check_namespace(namespace), seconds)
            elif self._policy is None:
                # As in _put(), without the calls: this is the path of most writes.
                old = table.get(key)
                if old is None and (len(key) > 1000 or not key.isascii()):
                    check_key(key)
                now = time.time()
                if seconds is None:
                    table[key] = (value, None)
                else:
                    deadline = now + seconds
                    if old is not None and old[1] is not None and old[1] <= deadline:
                        table[key] = (value, deadline, old[2])
                    elif (
                        seconds == table.pace
                        and table.since <= deadline < table.until
                        and len(table.fresh) < table.room
                    ):
                        table.fresh.append(key)
                        table.noted += 1
                        table[key] = (value, deadline, table.fresh_number)
                    else:
                        self._put(key, value, namespace, seconds)
                if now >= self._expiry.next:
                    self._sweep(now)
            else:
                # Likewise: a newcomer takes longer anyway.
                old = table.get(key)
                now = time.time()
                later = None if seconds is None else now + seconds
                if old is None or (later is not None and (old[1] is None or old[1] > later)):
                    self._put(key, value, namespace, seconds)
                else:
                    slot = old[3]
                    self._policy.used[slot] = True
                    table[key] = (value, later, None if later is None else old[2], slot)
                    if now >= self._expiry.next:
                        self._sweep(now)
            lock.release()
        except BaseException:
            let_go(lock)
            raise

    def add(
        self, key: str, value: Any, namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> bool:
        """Store `value` only if `key` is absent; return whether it was stored. Atomic."""
        seconds = _seconds(ttl)
        key, value, namespace = self._encoded(key, value, namespace)
        with self._lock:
            if self._live(key, namespace) is not None:
                return False
            self._put(key, value, namespace, seconds)
            return True

    def set_many(
        self, mapping: Mapping[str, Any], namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> None:
        """Store every item of `mapping` with the same ttl. Atomic for each key."""
        items = check_items(mapping)
        namespace, seconds = check_namespace(namespace), _seconds(ttl)
        if self._codec is not None:
            items = dict(zip(items, self._codec.encode_each(items, namespace)))
        self._tables.get(namespace)  # raises where the store is closed, also for no items
        for key, value in items.items():
            # The lock is taken anew for each key: a large batch holds nobody up.
            with self._lock:
                self._put(key, value, namespace, seconds)

    def touch(self, key: str, namespace: Optional[str] = None, ttl: Optional[TTL] = None) -> bool:
        """Give `key` a new ttl and keep its value; return whether it was there. Atomic."""
        key, namespace, seconds = check_key(key), check_namespace(namespace), _seconds(ttl)
        with self._lock:
            entry = self._live(key, namespace)
            if entry is None:
                return False
            self._put(key, entry[VALUE], namespace, seconds)
            return True

    def delete(self, key: str, namespace: Optional[str] = None) -> bool:
        """Delete `key` and return whether it was there. Atomic."""
        if key.__class__ is not str or (namespace is not None and namespace.__class__ is not str):
            key, namespace = check_key(key), check_namespace(namespace)
        lock = self._lock
        try:
            lock.acquire()
            table = self._tables.get(namespace)
            entry: Any = None if table is None else table.pop(key, None)
            if table is None or entry is None:
                check_key(key)
                check_namespace(namespace)
                lock.release()
                return False
            deadline = entry[1]
            if self._policy is not None:
                self._policy.forget(entry[SLOT])
            if not table:
                self._emptied(table)
            lock.release()
        except BaseException:
            let_go(lock)
            raise
        return deadline is None or deadline > time.time()

    def delete_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> int:
        """Delete `keys` and return how many of them were there. Atomic for each key."""
        keys, namespace = check_keys(keys), check_namespace(namespace)
        self._tables.get(namespace)  # as in set_many()
        return sum(self.delete(key, namespace) for key in keys)

    def pop(self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING) -> Any:
        """Delete `key` and return its value. Atomic: of many callers exactly one gets it."""
        key, namespace = check_key(key), check_namespace(namespace)
        while True:
            entry: Any = self._live(key, namespace)
            if entry is None:
                if default is MISSING:
                    raise KeyNotFoundError(key, namespace)
                return default
            value = entry[VALUE]
            # Read first, outside the lock: what can't be read stays where it is.
            loaded = value if self._codec is None else self._codec.decode(value, key, namespace)
            with self._lock:
                table = self._tables.get(namespace)
                # Still the same entry? Otherwise somebody was faster.
                if table is not None and table.get(key) is entry:
                    self._drop(table, key, entry)
                    return loaded

    def clear_namespace(self, namespace: Optional[str]) -> int:
        """Delete everything in `namespace` and return how many live keys went. Atomic."""
        namespace = check_namespace(namespace)
        with self._lock:
            table = self._tables.get(namespace)
            if table is None:
                return 0
            now = time.time()
            gone = list(table.values())
            table.clear()
            if self._policy is not None:
                for entry in gone:
                    self._policy.forget(entry[SLOT])
            self._emptied(table)
        # The values die here, outside the lock: their __del__ may do anything.
        return sum(entry[DEADLINE] is None or entry[DEADLINE] > now for entry in gone)

    def _lease(self, key: str, namespace: Optional[str], ttl_ms: int) -> Lease:
        self._tables.get(namespace)  # raises when the store is closed
        return super()._lease(key, namespace, ttl_ms)

    def close(self) -> None:
        """Let go of all entries. Everything after this raises `StoreClosedError`."""
        with self._lock:
            closed = _Closed()
            self._find = closed.get  # raises
            tables, self._tables = self._tables, closed
            self._expiry = Expiry()
            if self._policy is not None:
                self._policy = S3FIFO(self._policy.maxsize)
                self._used = self._policy.used
            for table in dict.values(tables):
                table.clear()

    @property
    def aio(self) -> AsyncKVStore:
        """The same operations, awaitable. They answer at once, on the event loop's own thread."""
        from .aio import InlineAsyncStore

        return InlineAsyncStore(self)

    def _encoded(self, key: Any, value: Any, namespace: Any) -> Tuple[str, Any, Optional[str]]:
        """Check a key and a namespace, and encode the value if there is a serializer."""
        key, namespace = check_key(key), check_namespace(namespace)
        if self._codec is not None:
            value = self._codec.encode(value, key, namespace)
        return key, value, namespace

    # ------------------------------------------------------------------ under the lock

    def _put(
        self, key: str, value: Any, namespace: Optional[str], seconds: Optional[float]
    ) -> None:
        """Store under a checked namespace; a new key is checked here."""
        table = self._tables.get(namespace)
        if table is None:
            check_key(key)
            table = self._tables[namespace] = self._empty(namespace)
        old: Any = table.get(key)
        if old is None and (len(key) > 1000 or not key.isascii()):
            check_key(key)  # what is there was checked when it came
        expiry = self._expiry
        deadline = number = None
        if seconds is not None:
            deadline = time.time() + seconds
            if old is not None and old[DEADLINE] is not None and old[DEADLINE] <= deadline:
                # The chunk that has the old deadline is swept then, finds the key alive, and
                # passes it on: storing the same key over and over notes it once.
                number = old[CHUNK]
            else:
                number = expiry.note(table, key, deadline, seconds)
        if self._policy is None:
            table[key] = (value, None) if deadline is None else (value, deadline, number)
        elif old is not None:
            slot = old[SLOT]
            self._policy.used[slot] = True
            table[key] = (value, deadline, number, slot)
        else:
            # Who left dies at the end: its __del__ may use this store.
            slot, left, old = self._policy.admit(key, table)
            table[key] = (value, deadline, number, slot)
            if left is not None and not left:
                self._emptied(left)
        if expiry.next != NEVER:
            now = time.time()
            if now >= expiry.next:
                self._sweep(now)

    def _drop(self, table: Table, key: str, entry: Any) -> None:
        del table[key]
        if self._policy is not None:
            self._policy.forget(entry[SLOT])
        if not table:
            self._emptied(table)

    def _emptied(self, table: Table) -> None:
        """The last entry went: the table goes, too, unless a reader holds on to it."""
        if table.chunks:
            self._expiry.forget(table)
        if self._tables.get(table.name) is table:
            del self._tables[table.name]
            self._awaited[table.name] = table

    def _sweep(self, now: float) -> None:
        """Drop a few entries that have expired, and note anew those that were given more time."""
        gone = []  # so that no value dies before all is in order: its __del__ may use this store
        for table, key, entry in self._expiry.due(now):
            if entry[DEADLINE] <= now:
                gone.append(entry)
                self._drop(table, key, entry)
                continue
            again = self._expiry.note_anew(table, key, entry[DEADLINE], now)
            table[key] = (entry[VALUE], entry[DEADLINE], again, *entry[SLOT:])

    # ------------------------------------------------------------------ fork

    def _before_fork(self) -> None:
        self._lock.acquire()

    def _after_fork_in_parent(self) -> None:
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
