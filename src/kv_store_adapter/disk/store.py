"""`DiskKVStore`: what each operation says to the index and to the folder."""

from __future__ import annotations

import math
import os
import sqlite3
import time
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
    Tuple,
    Union,
)

from ..exceptions import (
    KeyNotFoundError,
    StoreFormatError,
    StoreUnavailableError,
    where,
)
from ..protocol import KVStoreProtocol, check_items, check_keys
from ..rules import (
    MISSING,
    TTL,
    check_key,
    check_namespace,
    check_timeout,
    check_ttl,
    literal_prefix,
    matcher,
)
from ..serializers import Codec
from . import schema
from .cleaning import Cleaner
from .clock import deadline, time_ms
from .database import Database
from .folder import Folder, checksum, damaged
from .lease import DiskLease
from .statements import (
    ALIVE,
    DELETE,
    EXPIRES,
    GET,
    GET_QUICKLY,
    GET_TO_KEEP,
    IN_DUE,
    LIVE,
    NS,
    between,
)
from .writer import Writer

if TYPE_CHECKING:
    from ..leases import Lease
    from ..serializers import SerializerLike
    from .repair import Damage

__all__ = ["DiskKVStore"]

#: How many bytes of values that were read a store remembers.
REMEMBERED = 8 << 20

#: From this size, in bytes, a value has a file of its own. Measured: see docs/design.md.
SPILL_THRESHOLD = 128 * 1024

# How many rows one transaction touches, so that nobody waits long for it.
_BATCH = 500
_PAGE = 1000

# How often a file may vanish between index and disk before that is taken for damage.
_PATIENCE = 50


class DiskKVStore(KVStoreProtocol):
    """A store in a folder, shared by any number of threads and processes on one machine.

    Values are pickled, unless told otherwise; reading a pickle trusts whoever can write to the
    folder, so it is private (0700) and refused when others could write to it.

    Args:
        path: The folder. Made where it is not there; it must be empty or a store's.
        serializer: An object with ``dumps`` and ``loads``; pickle by default. A folder remembers
            what it was written with and refuses another.
        durable: Wait for the disk at every change, so that a power cut loses nothing either.
            Without it a power cut may lose the last moments; ``kill -9`` never loses anything.
        size_limit: The most bytes to use on disk, roughly; ``None``: no limit. Above it the
            entries stored first go first.
        spill_threshold: From how many bytes a value gets a file of its own.
        verify: Keep a checksum with each value and compare it when reading.
        remember: How many bytes of values that were read this process remembers, for as long as
            nobody else has written to the folder since; 0: none.
        trust_root: Use the folder although it is a link, another user's, or writable for others.
        timeout: Seconds to wait for other processes at most, before `StoreUnavailableError`.

    Raises:
        StoreUnavailableError: The folder can't be used (the message says why).
        StoreFormatError: It holds something else, or was written with another serializer.

    Notes:
        *Atomic*: every single-key operation, for threads and processes; batches for each key.
        *Crash*: what `set` returned from is there after ``kill -9``; a large value is either whole
        or was never stored.
        *Forks*: a child may go on using the store. Pickles, for worker processes.
        *Expiry*: writers delete what has expired, a little at a time; `purge` does it all.

    Example:
        >>> import tempfile
        >>> with DiskKVStore(tempfile.mkdtemp()) as store:
        ...     store.set("greeting", {"en": "hello"}, ttl=3600)
        ...     store.get("greeting")
        {'en': 'hello'}
    """

    def __init__(
        self,
        path: Union[str, os.PathLike[str]],
        *,
        serializer: Optional[SerializerLike] = None,
        durable: bool = False,
        size_limit: Optional[int] = None,
        spill_threshold: int = SPILL_THRESHOLD,
        verify: bool = False,
        remember: int = REMEMBERED,
        trust_root: bool = False,
        timeout: float = 10.0,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"A path is a str or a pathlib.Path, not {type(path).__name__}.")
        if size_limit is not None and not isinstance(size_limit, int):
            raise TypeError(f"size_limit is a number of bytes, not {type(size_limit).__name__}.")
        if size_limit is not None and (isinstance(size_limit, bool) or size_limit < 1):
            raise ValueError(
                f"size_limit is a number of bytes above zero, or None: {size_limit!r}."
            )
        if isinstance(spill_threshold, bool) or not isinstance(spill_threshold, int):
            raise TypeError(
                f"spill_threshold is a number of bytes, not {type(spill_threshold).__name__}."
            )
        seconds = check_timeout(timeout)
        if seconds is None:
            raise TypeError("timeout= is a number of seconds, not None. math.inf is for ever.")
        if isinstance(remember, bool) or not isinstance(remember, int):
            raise TypeError(f"remember is a number of bytes, not {type(remember).__name__}.")
        if remember < 0:
            raise ValueError(f"remember is a number of bytes, or 0 for none: {remember!r}.")
        self._options = {
            "serializer": serializer,
            "durable": durable,
            "size_limit": size_limit,
            "spill_threshold": spill_threshold,
            "verify": verify,
            "remember": remember,
            "trust_root": trust_root,
            "timeout": timeout,
        }
        codec = Codec(serializer)
        self._encode, self._decode = codec.encode, codec.decode
        self._encode_each = codec.encode_each
        # A checksum is taken of bytes.
        self._from_file = None if verify else codec.load
        self._serializer_name = codec.name
        self._verify = verify
        self._spill_threshold = spill_threshold
        if not os.fspath(path):
            raise ValueError("A path can't be empty. The current folder is '.'.")
        self._path = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if "\0" in self._path:
            raise ValueError("A path can't hold NUL.")
        self._folder = Folder(self._path, trust_root=trust_root, durable=durable)
        self._database = Database(
            self._folder.database,
            schema.preparer(durable, self._path),
            timeout=seconds,
            remember=remember,
        )
        self._recent = self._database.recent
        schema.set_up(self._database, codec.name)
        self._cleaner = Cleaner(self._database, self._folder, size_limit)
        self._writer = Writer(
            self._database,
            self._folder,
            self._cleaner,
            serializer=codec.name,
            size_limit=size_limit,
            verify=verify,
        )
        self._cleaner.reclaim()

    @property
    def path(self) -> str:
        """The folder, as an absolute path."""
        return self._path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path!r})"

    def __reduce__(self) -> Tuple[Any, ...]:
        return _open_again, (type(self), self._path, self._options)

    # ------------------------------------------------------------------ reading

    def get(self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING) -> Any:
        """Return a fresh copy of the value of `key`.

        Args:
            key: The key.
            namespace: ``None`` is the default namespace.
            default: What to return when the key is absent.

        Raises:
            KeyNotFoundError: The key is absent and no `default` was given.
            SerializationError: The entry can't be read. It is left where it is.
        """
        # What is usual needs no call.
        if key.__class__ is not str or len(key) > 1000 or not key.isascii():
            key = check_key(key)
        if namespace is not None:
            namespace = check_namespace(namespace)
        value = self._read(key, namespace)
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyNotFoundError(key, namespace)
        return default

    def reader(self, namespace: Optional[str] = None) -> Callable[[str], Any]:
        """Return a function that looks up a key of `namespace`: its value, or `MISSING`."""
        namespace = check_namespace(namespace)
        read = self._read
        return lambda key: read(check_key(key), namespace)

    def _read(self, key: str, namespace: Optional[str]) -> Any:
        recent, seen = self._recent, None
        if recent.asleep > 0:
            recent.asleep -= 1
        else:
            place = (namespace, key)
            value = recent.recall(place)
            if value is not None:
                return self._decode(value, key, namespace)  # nobody has written since
            # Before the value: what is written in between makes it useless, not wrong.
            seen = recent.look()
        if not self._verify:  # a checksum would be another column
            sql = GET_QUICKLY if seen is None else GET_TO_KEEP
            row = self._database.fetch_one(sql, (time.time() * 1000, namespace or "", key))
            if row is None:
                return MISSING
            if row[0].__class__ is bytes:  # the usual hit
                if seen is not None:
                    recent.keep(place, row, seen)
                return self._decode(row[0], key, namespace)
        row = self._database.fetch_one(GET, (namespace or "", key))
        if row is None:
            return MISSING
        value = self._load(row, key, namespace)
        if self._verify and seen is not None and value is not MISSING and row[3] is None:
            recent.keep(place, row, seen)
        return value

    def _load(self, row: Tuple[Any, ...], key: str, namespace: Optional[str]) -> Any:
        """The value of a row of `GET`, or `MISSING` where it has expired."""
        for _ in range(_PATIENCE):
            value, expires, size, file, digest = row
            try:
                if expires is not None and expires <= time.time() * 1000:
                    return MISSING
            except TypeError:
                raise damaged(key, namespace, "the index", "its expiry is no number") from None
            if file is None:
                if type(value) is not bytes or len(value) != size:
                    raise damaged(key, namespace, "the index", "its size is not what was written")
                break
            try:
                value, loaded = self._folder.read_file(file, size, key, namespace, self._from_file)
                if loaded:
                    return value
                break
            except FileNotFoundError:
                # Replaced or deleted since the index was read: the index knows what holds now.
                again = self._database.fetch_one(GET, (namespace or "", key))
                if again is None:
                    return MISSING
                if again[3] == file:
                    raise damaged(key, namespace, file, "the file is missing") from None
                row = again
        else:
            raise StoreUnavailableError(
                f"{where(key, namespace)} was replaced {_PATIENCE} times while it was read. "
                "Try again."
            )
        if self._verify and digest is not None and digest != checksum(key, namespace, value):
            raise damaged(key, namespace, file or "the index", "its checksum does not fit")
        return self._decode(value, key, namespace)

    def exists(self, key: str, namespace: Optional[str] = None) -> bool:
        """Return whether `key` is there. Its value is not read."""
        return self._expiry(key, namespace) is not None

    def ttl(self, key: str, namespace: Optional[str] = None) -> Optional[float]:
        """Return the seconds that `key` has left, to the millisecond; ``None``: no expiry."""
        row = self._expiry(key, namespace)
        if row is None:
            raise KeyNotFoundError(key, namespace)
        if row[0] is None:
            return None
        if not isinstance(row[0], (int, float)):
            raise damaged(key, namespace, "the index", "its expiry is no number")
        # Rounded like the deadline, so that it is never more than was given.
        left = row[0] - math.ceil(time.time() * 1000)
        return max(1, left) / 1000

    def _expiry(self, key: str, namespace: Optional[str]) -> Optional[Tuple[Any, ...]]:
        key, namespace = check_key(key), check_namespace(namespace)
        return self._database.fetch_one(EXPIRES, (namespace or "", key, time_ms()))

    def keys(self, namespace: Optional[str] = None, pattern: str = "*") -> List[str]:
        """Return the keys that match `pattern`, from one consistent look."""
        matches = matcher(pattern)
        namespace = check_namespace(namespace)
        condition, limits = between(literal_prefix(pattern))
        # Answered from the index alone, without reading values: hence the subquery instead of a
        # look at each entry's expiry.
        keys = self._database.fetch_texts(
            "key",
            f"FROM entries WHERE ns = {NS}{condition} AND {ALIVE}",
            (namespace or "", *limits, *_alive_in(namespace)),
        )
        return keys if matches is None else list(filter(matches, keys))

    def iter_keys(self, namespace: Optional[str] = None, pattern: str = "*") -> Iterator[str]:
        """Like `keys`, a page at a time; nothing is held open between two keys."""
        matches = matcher(pattern)
        namespace = check_namespace(namespace)
        condition, limits = between(literal_prefix(pattern))

        def pages() -> Iterator[str]:
            # Sorted, so that the next page starts where this one ended, whatever changed.
            after, sign = "", ">="
            while True:
                rows = self._database.fetch(
                    f"SELECT key FROM entries WHERE ns = {NS}{condition} AND key {sign} ? "
                    f"AND {ALIVE} ORDER BY key LIMIT {_PAGE}",
                    (namespace or "", *limits, after, *_alive_in(namespace)),
                )
                for (key,) in rows:
                    if matches is None or matches(key):
                        yield key
                if len(rows) < _PAGE:
                    return
                last = rows[-1][0]
                if last <= after:
                    raise self._database.damaged("the keys go round in a circle")
                after, sign = last, ">"

        return pages()

    def list_namespaces(self) -> List[str]:
        """Return the named namespaces that hold a live key."""
        return self._database.fetch_texts(
            "name",
            "FROM namespaces WHERE +name > '' AND name < x'' AND EXISTS "
            f"(SELECT 1 FROM entries WHERE ns = namespaces.id AND {LIVE})",
            (time_ms(),),
        )

    def get_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> Dict[str, Any]:
        """Return the values of those `keys` that are there; one statement for 500 of them."""
        wanted, namespace = check_keys(keys), check_namespace(namespace)
        self._database.refuse_if_closed()
        rows: Dict[str, Tuple[Any, ...]] = {}
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            marks = ",".join("?" * len(batch))
            for row in self._database.fetch(
                "SELECT key, value, expires, size, file, digest FROM entries "
                f"WHERE ns = {NS} AND key IN ({marks})",
                (namespace or "", *batch),
            ):
                rows[row[0]] = row[1:]
        loaded = ((k, self._load(rows[k], k, namespace)) for k in wanted if k in rows)
        return {key: value for key, value in loaded if value is not MISSING}

    # ------------------------------------------------------------------ writing

    def set(
        self, key: str, value: Any, namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> None:
        """Store `value` under `key`, in place of what was there and of its ttl.

        When it returns, the value is safe from ``kill -9``; with ``durable=True`` from a power cut.
        """
        key, namespace, milliseconds = check_key(key), check_namespace(namespace), check_ttl(ttl)
        data = self._encode(value, key, namespace)
        expires = deadline(milliseconds)
        if len(data) < self._spill_threshold:
            self._writer.put(key, data, namespace, expires)
        else:
            self._writer.put_file(key, data, namespace, expires)

    def add(
        self, key: str, value: Any, namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> bool:
        """Store `value` only if `key` is absent; return whether it was stored. Atomic."""
        key, namespace, milliseconds = check_key(key), check_namespace(namespace), check_ttl(ttl)
        data = self._encode(value, key, namespace)
        expires = deadline(milliseconds)
        if len(data) < self._spill_threshold:
            return self._writer.put(key, data, namespace, expires, only_new=True)
        self._writer.check_sizes([(key, data)], namespace)
        # The file is written in vain when the key is there: look first.
        if self._expiry(key, namespace) is not None:
            return False
        return self._writer.put_file(key, data, namespace, expires, only_new=True)

    def set_many(
        self, mapping: Mapping[str, Any], namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> None:
        """Store every item of `mapping` with the same ttl; 500 to a transaction."""
        items = check_items(mapping)
        namespace, milliseconds = check_namespace(namespace), check_ttl(ttl)
        self._database.refuse_if_closed()
        encoded = list(zip(items, self._encode_each(items, namespace)))
        self._writer.check_sizes(encoded, namespace)
        expires = deadline(milliseconds)
        small = [item for item in encoded if len(item[1]) < self._spill_threshold]
        for start in range(0, len(small), _BATCH):
            self._writer.put_batch(small[start : start + _BATCH], namespace, expires)
        if len(small) < len(encoded):
            for key, data in encoded:
                if len(data) >= self._spill_threshold:
                    self._writer.put_file(key, data, namespace, expires)

    def touch(self, key: str, namespace: Optional[str] = None, ttl: Optional[TTL] = None) -> bool:
        """Give `key` a new ttl and keep its value; return whether it was there. Atomic."""
        key, namespace, milliseconds = check_key(key), check_namespace(namespace), check_ttl(ttl)
        expires = deadline(milliseconds)
        touched, _ = self._database.write(
            f"UPDATE entries SET expires = ? WHERE ns = {NS} AND key = ? AND {LIVE}",
            (expires, namespace or "", key, time_ms()),
        )
        return touched > 0

    def delete(self, key: str, namespace: Optional[str] = None) -> bool:
        """Delete `key` and return whether it was there. Atomic."""
        key, namespace = check_key(key), check_namespace(namespace)
        deleted, changes = self._cleaner.write(
            DELETE, (namespace or "", key, time_ms()), (namespace, key)
        )
        if not deleted:
            self._delete_expired([key], namespace)
        if changes > 1:
            self._cleaner.collect()
        return deleted > 0

    def delete_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> int:
        """Delete `keys` and return how many of them were there; one statement for 500 of them."""
        wanted, namespace = check_keys(keys), check_namespace(namespace)
        self._database.refuse_if_closed()
        deleted = 0
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            marks = ",".join("?" * len(batch))
            rows, changes = self._cleaner.write(
                f"DELETE FROM entries WHERE ns = {NS} AND key IN ({marks}) AND {LIVE}",
                (namespace or "", *batch, time_ms()),
            )
            deleted += rows
            if changes > rows:
                self._cleaner.collect()
            if rows < len(batch):
                self._delete_expired(batch, namespace)
        return deleted

    def _delete_expired(self, keys: List[str], namespace: Optional[str]) -> None:
        """Delete what has expired, too: should the clock go back, what was deleted stays so."""
        marks = ",".join("?" * len(keys))
        those = f"ns = {NS} AND key IN ({marks}) AND expires <= ?"
        parameters = (namespace or "", *keys, time_ms())
        # Looked for first: most keys that are not there are not there at all.
        if self._database.fetch_one(f"SELECT 1 FROM entries WHERE {those} LIMIT 1", parameters):
            rows, changes = self._cleaner.write(f"DELETE FROM entries WHERE {those}", parameters)
            if changes > rows:
                self._cleaner.collect()

    def pop(self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING) -> Any:
        """Delete `key` and return its value. Atomic: of many callers exactly one gets it."""
        key, namespace = check_key(key), check_namespace(namespace)
        for _ in range(_PATIENCE):
            row = self._database.fetch_one(GET, (namespace or "", key))
            # Read before it is deleted: what can't be read stays where it is.
            value = MISSING if row is None else self._load(row, key, namespace)
            if row is None or value is MISSING:
                if default is MISSING:
                    raise KeyNotFoundError(key, namespace)
                return default
            deleted, changes = self._cleaner.write(
                f"{DELETE} AND value IS ? AND file IS ?",
                (namespace or "", key, time_ms(), row[0], row[3]),
            )
            if changes > 1:
                self._cleaner.collect()
            if deleted:
                return value
            # Somebody was faster: look again.
        raise StoreUnavailableError(
            f"{where(key, namespace)} was replaced {_PATIENCE} times while it was read. Try again."
        )

    def clear_namespace(self, namespace: Optional[str]) -> int:
        """Delete everything in `namespace` and return how many live keys went.

        Atomic: the name is taken off its entries in one step. The entries themselves go in small
        transactions after that, so that nobody else waits for a large namespace.
        """
        namespace = check_namespace(namespace)
        now = time_ms()

        def drop(connection: sqlite3.Connection) -> Optional[int]:
            row = connection.execute(
                "SELECT id, folder FROM namespaces WHERE name = ?", (namespace or "",)
            ).fetchone()
            if row is None:
                return None
            connection.execute("INSERT INTO dropped VALUES(?, ?, ?)", (*row, now))
            connection.execute("DELETE FROM namespaces WHERE id = ?", row[:1])
            return int(row[0])

        number = self._cleaner.transaction(drop)
        if number is None:
            return 0
        row = self._database.fetch_one(
            f"SELECT count(*) - (SELECT count(*) {IN_DUE} AND +ns = ? AND expires <= ?) "
            "FROM entries WHERE ns = ?",
            (now, number, now, number),
        )
        self._cleaner.empty(number)
        return 0 if row is None else int(row[0])

    # ------------------------------------------------------------------ upkeep

    def purge(self) -> int:
        """Delete everything that has expired, and what killed writers left; return how many went.

        Writers do this little by little; call it to have it done now, for example from cron.
        """
        return self._cleaner.purge()

    def check(self, *, repair: bool = False) -> List[Damage]:
        """Read everything and return what is damaged.

        Args:
            repair: Set the damage aside: damaged entries are deleted, and a damaged database is
                moved to ``damaged-...`` inside the folder after all that can still be read was
                copied into a new one. No other process may use the store meanwhile.

        Returns:
            A `Damage` for each thing that is not as it was written. Large values that were
            truncated or swapped are always found, silent bit rot with ``verify=True``.
        """
        from .repair import check

        return check(self._database, self._folder, self._serializer_name, repair=repair)

    @classmethod
    def repair(cls, path: Union[str, os.PathLike[str]], **options: Any) -> List[Damage]:
        """Open a store that is too damaged to be opened, and ``check(repair=True)`` it.

        Args:
            path: The folder.
            options: As for the constructor. The serializer is taken at its word.

        Returns:
            What was damaged; for a database that could not be opened one `Damage` that says so.
        """
        from .repair import Damage, rebuild

        root = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if not os.path.isdir(root) or not os.listdir(root):
            raise StoreUnavailableError(f"There is no store at {root}: nothing to repair.")
        found = []
        try:
            store = cls(path, **options)
        except StoreFormatError:
            raise  # not damaged, but somebody else's
        except StoreUnavailableError as error:
            if not isinstance(error.__cause__, sqlite3.DatabaseError):
                raise
            found.append(Damage("database", None, None, str(error.__cause__)))
            folder = Folder(root, trust_root=bool(options.get("trust_root")), durable=False)
            rebuild(folder, Codec(options.get("serializer")).name)
            store = cls(path, **options)
        with store:
            return found + store.check(repair=True)

    def close(self) -> None:
        """Close the connections. Every operation after this raises `StoreClosedError`."""
        self._database.close()

    def _lease(self, key: str, namespace: Optional[str], ttl_ms: int) -> Lease:
        return DiskLease(self._database, key, namespace, ttl_ms)


def _open_again(kind: type, path: str, options: Dict[str, Any]) -> Any:
    return kind(path, **options)


def _alive_in(namespace: Optional[str]) -> Tuple[Any, ...]:
    now = time_ms()
    return now, now, namespace or "", now
