"""What each operation says to the server, written once.

Each method is a generator: it yields an `Ask` and is sent the replies. Two short drivers run it,
one plainly (`store`), one with await (`aio`). Errors of the server come in by ``throw()``,
translated already.
"""

from __future__ import annotations

from typing import Any, Dict, Generator, Iterable, List, Mapping, Optional, Sequence, Tuple

from ..exceptions import (
    KeyNotFoundError,
    KVStoreError,
    SerializationError,
    StoreUnavailableError,
    where,
)
from ..protocol import check_items, check_keys
from ..rules import MISSING, TTL, check_key, check_namespace, check_ttl, literal_prefix, matcher
from ..serializers import Codec
from .layout import Layout

__all__ = ["Ask", "Conversation", "WrongTypeError"]

Talk = Generator["Ask", List[Any], Any]

# How many keys SCAN looks at in one step: fast, and the server stalls for 2 ms at most.
_SCAN_COUNT = 1000

# How many commands or keys go into one request.
_BATCH = 500

#: Redis takes no longer string.
LONGEST_VALUE = 512 * 1024 * 1024


class WrongTypeError(KVStoreError):
    """The name holds something that is no string. Never leaves this package."""


class Ask:
    """One round trip: one command, or several in a pipeline.

    Attributes:
        commands: The commands, each a tuple of words.
        harmless: Whether saying it twice is the same as saying it once.
        writes: Whether it changes anything: then a lost answer leaves a doubt.
        node: The node of a cluster to ask, where it matters.
        said: Whether a write of this operation may have arrived before: then any failure of the
            connection leaves a doubt.
    """

    __slots__ = ("commands", "harmless", "node", "said", "writes")

    def __init__(
        self,
        *commands: Tuple[Any, ...],
        harmless: bool = True,
        writes: bool = False,
        node: Any = None,
    ) -> None:
        self.commands: Tuple[Tuple[Any, ...], ...] = commands
        self.harmless: bool = harmless
        self.writes: bool = writes
        self.node: Any = node
        self.said: bool = False


class Conversation:
    """The operations of a store.

    Args:
        layout: The names of the entries.
        codec: The serializer.
        nodes: The primary nodes of a cluster, or ``[None]`` for a single server.
    """

    def __init__(self, layout: Layout, codec: Codec, nodes: Any) -> None:
        self._layout = layout
        self._codec = codec
        self._nodes = nodes

    def _check(self, key: str, namespace: Optional[str]) -> Tuple[str, Optional[str], bytes]:
        key, namespace = check_key(key), check_namespace(namespace)
        return key, namespace, self._layout.name(key, namespace)

    def _encode(self, value: Any, key: str, namespace: Optional[str]) -> bytes:
        data = self._codec.encode(value, key, namespace)
        if len(data) > LONGEST_VALUE:
            raise _too_long(data, key, namespace)
        return data

    @property
    def _one_server(self) -> bool:
        return bool(self._nodes() == [None])

    # ------------------------------------------------------------------ the eight

    def read(self, key: str, namespace: Optional[str]) -> Talk:
        """The value, or `MISSING`."""
        key, namespace, name = self._check(key, namespace)
        try:
            (data,) = yield Ask(("GET", name))
        except WrongTypeError as error:
            raise foreign(key, namespace, name) from error
        return MISSING if data is None else self._codec.decode(data, key, namespace)

    def get(self, key: str, namespace: Optional[str] = None) -> Talk:
        value = yield from self.read(key, namespace)
        if value is MISSING:
            raise KeyNotFoundError(key, namespace)
        return value

    def set(
        self, key: str, value: Any, namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> Talk:
        key, namespace, name = self._check(key, namespace)
        milliseconds = check_ttl(ttl)
        data = self._encode(value, key, namespace)
        yield Ask(_set(name, data, milliseconds), writes=True)

    def delete(self, key: str, namespace: Optional[str] = None) -> Talk:
        _, _, name = self._check(key, namespace)
        (gone,) = yield Ask(("UNLINK", name), harmless=False, writes=True)
        return gone > 0

    def ttl(self, key: str, namespace: Optional[str] = None) -> Talk:
        key, namespace, name = self._check(key, namespace)
        (left,) = yield Ask(("PTTL", name))
        if left == -2:
            raise KeyNotFoundError(key, namespace)
        # 0: it lives, but less than a millisecond.
        return None if left == -1 else max(left, 1) / 1000

    def exists(self, key: str, namespace: Optional[str] = None) -> Talk:
        _, _, name = self._check(key, namespace)
        (count,) = yield Ask(("EXISTS", name))
        return count > 0

    def keys(self, namespace: Optional[str] = None, pattern: str = "*") -> Talk:
        matches = matcher(pattern)
        namespace = check_namespace(namespace)
        found: List[str] = []
        for node in self._nodes():
            cursor: Any = 0
            while True:
                cursor, page = yield from self.page(cursor, namespace, pattern, node)
                found += page
                if not cursor:
                    break
        # SCAN may return a key more than once.
        keys = dict.fromkeys(found)
        return list(keys) if matches is None else [key for key in keys if matches(key)]

    def page(self, cursor: Any, namespace: Optional[str], pattern: str, node: Any) -> Talk:
        """One step of SCAN: the next cursor (0 at the end), and keys that may match."""
        glob = self._layout.pattern(namespace, literal_prefix(pattern))
        (reply,) = yield Ask(_scan(cursor, glob), node=node)
        cursor, names = _step(reply, cursor)
        return cursor, self._layout.keys(names, namespace)

    def clear_namespace(self, namespace: Optional[str]) -> Talk:
        glob = self._layout.pattern(check_namespace(namespace), "")
        gone = 0
        for node in self._nodes():
            cursor: Any = 0
            names: Sequence[bytes] = ()
            while True:
                # What the last step found goes together with the question for more.
                commands = [("UNLINK", *names)] if names and node is None else []
                if names and node is not None:
                    gone += yield from self._unlink(names)
                replies = yield Ask(
                    *commands, _scan(cursor, glob), harmless=False, writes=bool(commands), node=node
                )
                gone += sum(replies[:-1])
                cursor, found = _step(replies[-1], cursor)
                names = found
                if len(self._layout.keys(found, namespace)) < len(found):
                    names = [n for n in found if self._layout.key(n, namespace) is not None]
                if not cursor:
                    break
            if names:
                gone += yield from self._unlink(names)
        return gone

    def list_namespaces(self) -> Talk:
        found: Dict[str, None] = {}
        glob = self._layout.pattern_of_all()
        for node in self._nodes():
            cursor: Any = 0
            while True:
                (reply,) = yield Ask(_scan(cursor, glob), node=node)
                cursor, names = _step(reply, cursor)
                for name in names:
                    namespace = self._layout.namespace(name)
                    if namespace is not None:
                        found[namespace] = None
                if not cursor:
                    break
        return list(found)

    # ------------------------------------------------------------------ native and atomic

    def add(
        self, key: str, value: Any, namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> Talk:
        key, namespace, name = self._check(key, namespace)
        milliseconds = check_ttl(ttl)
        data = self._encode(value, key, namespace)
        # Not harmless: said again after a lost answer, it would be refused by its own value.
        (stored,) = yield Ask((*_set(name, data, milliseconds), "NX"), harmless=False, writes=True)
        return stored is not None and stored is not False

    def pop(self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING) -> Talk:
        key, namespace, name = self._check(key, namespace)
        try:
            left, data = yield Ask(("PTTL", name), ("GETDEL", name), harmless=False, writes=True)
        except WrongTypeError as error:
            raise foreign(key, namespace, name) from error
        if data is None:
            if default is MISSING:
                raise KeyNotFoundError(key, namespace)
            return default
        try:
            return self._codec.decode(data, key, namespace)
        except BaseException as error:
            # It may be another version's, or a job's time was over just now: put back, unless
            # somebody has stored anew meanwhile.
            milliseconds = max(left, 1) if left >= 0 else None
            try:
                yield Ask((*_set(name, data, milliseconds), "NX"), writes=True)
            except KVStoreError:
                if isinstance(error, SerializationError):
                    raise  # it says that the entry is where it was
            raise

    def touch(self, key: str, namespace: Optional[str] = None, ttl: Optional[TTL] = None) -> Talk:
        _, _, name = self._check(key, namespace)
        milliseconds = check_ttl(ttl)
        if milliseconds is None:
            # PERSIST says 0 also for a key that had no expiry.
            persisted, there = yield Ask(("PERSIST", name), ("EXISTS", name), writes=True)
            return persisted > 0 or there > 0
        (touched,) = yield Ask(("PEXPIRE", name, b"%d" % milliseconds), writes=True)
        return bool(touched)

    def get_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> Talk:
        wanted, namespace = check_keys(keys), check_namespace(namespace)
        names = self._layout.names(wanted, namespace)
        values: List[Any] = []
        all_there = self._one_server
        if all_there:
            for start in range(0, len(names), _BATCH):
                batch = names[start : start + _BATCH]
                (found,) = yield Ask(("MGET", *batch))
                if None in found:
                    all_there = False
                    # MGET says nil for what is no string, too: is any of them there after all?
                    gone = [name for name, data in zip(batch, found) if data is None]
                    (there,) = yield Ask(("EXISTS", *gone))
                    if there:
                        found = yield from self._get_each(wanted[start : start + _BATCH], namespace)
                values += found
        else:
            values = yield from self._get_each(wanted, namespace)
        if not all_there:
            wanted = [key for key, data in zip(wanted, values) if data is not None]
            values = [data for data in values if data is not None]
        return self._codec.decode_each(wanted, values, namespace)

    def _get_each(self, keys: List[str], namespace: Optional[str]) -> Talk:
        values: List[Any] = []
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            names = self._layout.names(batch, namespace)
            try:
                values += yield Ask(*(("GET", name) for name in names))
            except WrongTypeError as error:
                raise SerializationError(
                    f"At least one of {len(batch)} keys, {where(batch[0], namespace)} the first, "
                    "holds something that is no string: another program's. get() tells which."
                ) from error
        return values

    def set_many(
        self, mapping: Mapping[str, Any], namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> Talk:
        items = check_items(mapping)
        namespace, milliseconds = check_namespace(namespace), check_ttl(ttl)
        # All are serialised before the first is sent.
        encoded = self._codec.encode_each(items, namespace)
        for key, data in zip(items, encoded):
            if len(data) > LONGEST_VALUE:
                raise _too_long(data, key, namespace)
        pairs = list(zip(self._layout.names(items, namespace), encoded))
        for start in range(0, len(pairs), _BATCH):
            batch = pairs[start : start + _BATCH]
            if milliseconds is None and self._one_server:
                yield Ask(("MSET", *(part for pair in batch for part in pair)), writes=True)
            else:
                yield Ask(*(_set(name, data, milliseconds) for name, data in batch), writes=True)

    def delete_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> Talk:
        namespace = check_namespace(namespace)
        return (yield from self._unlink(self._layout.names(check_keys(keys), namespace)))

    def _unlink(self, names: Sequence[bytes]) -> Talk:
        gone = 0
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            if self._one_server:
                commands: List[Tuple[Any, ...]] = [("UNLINK", *batch)]
            else:
                commands = [("UNLINK", name) for name in batch]
            gone += sum((yield Ask(*commands, harmless=False, writes=True)))
        return gone


def _set(name: bytes, data: bytes, milliseconds: Optional[int]) -> Tuple[Any, ...]:
    if milliseconds is None:
        return ("SET", name, data)
    # As bytes, not as a number: see _without_numbers() of the store.
    return ("SET", name, data, "PX", b"%d" % milliseconds)


def _too_long(data: bytes, key: str, namespace: Optional[str]) -> SerializationError:
    return SerializationError(
        f"The value for {where(key, namespace)} has {len(data)} bytes; Redis takes up to "
        f"{LONGEST_VALUE}. Nothing was stored."
    )


def _scan(cursor: Any, glob: bytes) -> Tuple[Any, ...]:
    return ("SCAN", b"%d" % int(cursor), "MATCH", glob, "COUNT", b"%d" % _SCAN_COUNT)


def _step(reply: Any, asked: Any) -> Tuple[Any, List[bytes]]:
    """The next cursor and the names of a SCAN's reply."""
    cursor, names = reply
    if isinstance(cursor, dict):
        # A cluster's client tells the cursor of each node that it asked, which is one.
        cursor = next(iter(cursor.values()), 0)
    if cursor and cursor == asked:
        raise StoreUnavailableError(
            f"The server answers SCAN {cursor!r:.50} with the same cursor again and would never "
            "come to an end. Is it a Redis or Valkey server?"
        )
    return cursor, names


def foreign(key: str, namespace: Optional[str], name: bytes) -> SerializationError:
    """What is there is no string, so it is another program's."""
    return SerializationError(
        f"What Redis holds under {name!r:.200} for {where(key, namespace)} is no string: another "
        "program's. It is left where it is; set() replaces it, delete() drops it."
    )
