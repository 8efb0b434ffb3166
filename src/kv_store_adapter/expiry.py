"""What leaves a memory store because its time is over: found without a scan, a heap or a thread.

A heap with an item an entry would cost 72 bytes each. Instead keys that expire are noted in chunks
by deadline, each stretch of time an eighth of the ttl (rounded to a power of two) wide: 17 bytes a
key. A chunk is swept after its last deadline, a few keys with every write.
"""

from __future__ import annotations

import heapq
from typing import Any, Dict, Iterator, List, Optional, Tuple

from .eviction import CHUNK, DEADLINE

__all__ = ["NEVER", "Expiry", "Table"]

#: When nothing is due.
NEVER = float("inf")

# How many dead entries a write takes along. More than one, so that sweeping outruns writing.
_SWEPT_PER_WRITE = 4

# The most keys a chunk: few enough that tidying one is over in a fraction of a millisecond.
_CHUNK_SIZE = 1024

# So many notes of a table may be dead, besides three for each entry, before it is worth tidying.
_TOLERATED = 64


class Table(Dict[str, Any]):
    """The entries of one namespace: key to entry.

    An entry is ``(value, None)``, or ``(value, deadline, number of its chunk)``; in a bounded store
    always the latter, and its slot in the policy. The chunk goes by number, not by
    reference: the garbage collector need not follow a tuple of text and numbers, and with a million
    entries that is felt.

    `chunks` are stretches of time by number, each with keys whose deadlines lie in it, `noted` in
    all; `open` are the numbers of those that still take keys, by stretch. A note counts only while
    the key's entry names the chunk: who deletes an entry need not know. `fresh` is the chunk noted
    in last: it takes keys with a ttl of `pace` seconds and a deadline from `since` to before
    `until`, up to `room` keys in all, so that the usual case needs no arithmetic.

    `salt` tells equal keys of different namespaces apart.
    """

    __slots__ = (
        *("__weakref__", "chunks", "fresh", "fresh_number", "name", "noted"),
        *("open", "pace", "room", "salt", "since", "until"),
    )

    def __init__(self, name: Optional[str]) -> None:
        super().__init__()
        self.name: Optional[str] = name
        self.salt: int = hash(name)
        self.forget()

    def forget(self) -> None:
        """Drop all notes: the table is empty."""
        self.open: Dict[int, int] = {}
        self.chunks: Dict[int, Tuple[int, List[str]]] = {}
        self.noted: int = 0
        self.room: int = 0
        self.fresh: List[str] = []
        self.fresh_number: int = 0
        self.pace: float = 0.0
        self.since: float = 0.0
        self.until: float = 0.0

    def __reduce__(self) -> Any:
        raise TypeError("The tables of a MemoryKVStore do not pickle.")


class Expiry:
    """The chunks of all tables, by when they are due.

    Notes:
        *Threads.* Everything is called under the store's lock.
    """

    def __init__(self) -> None:
        # (end of its stretch of time, chunk's number, table), soonest first.
        self._due: List[Tuple[float, int, Table]] = []
        self._made = 0
        self._alive = 0
        #: When the next chunk is due: before that there is nothing to sweep.
        self.next: float = NEVER

    def note(self, table: Table, key: str, deadline: float, ttl: float) -> int:
        """Put `key` into a chunk that is swept soon after its deadline; return its number."""
        if (
            ttl != table.pace
            or not table.since <= deadline < table.until
            or len(table.fresh) >= table.room
        ):
            if table.noted > _TOLERATED + 4 * len(table):
                self._tidy(table)
            level = max(0, int(ttl * 1000).bit_length() - 4)
            start = int(deadline * 1000) >> level
            table.fresh_number, table.fresh = self._open(table, start, level)
            table.since, table.until = (start << level) / 1000, (start + 1 << level) / 1000
            table.pace = ttl
        table.fresh.append(key)
        table.noted += 1
        return table.fresh_number

    def note_anew(self, table: Table, key: str, deadline: float, now: float) -> int:
        """Put a key that was given more time into a chunk for the time it has left."""
        level = max(0, int((deadline - now) * 1000).bit_length() - 4)
        number, keys = self._open(table, int(deadline * 1000) >> level, level)
        keys.append(key)
        table.noted += 1
        return number

    def _open(self, table: Table, start: int, level: int) -> Tuple[int, List[str]]:
        """A chunk of `table` that has room, for the stretch of ``2**level`` ms after `start`."""
        stretch = start << 6 | level
        # Small for a small table: its chunks are looked through when they are full.
        table.room = min(_CHUNK_SIZE, _TOLERATED + len(table))
        number = table.open.get(stretch, 0)
        chunk = table.chunks.get(number)
        if chunk is not None and len(chunk[1]) < table.room:
            return number, chunk[1]
        self._made += 1
        self._alive += 1
        number = self._made
        keys: List[str] = []
        # In this order: a signal's handler may raise after each step, and what is open is a chunk
        # that will be due.
        table.chunks[number] = stretch, keys
        heapq.heappush(self._due, ((start + 1 << level) / 1000, number, table))
        self.next = self._due[0][0]
        table.open[stretch] = number
        return number, keys

    def _tidy(self, table: Table) -> None:
        """Drop dead notes: of one chunk after the other, each in its turn, and not of many at once.

        More notes are looked at than can have come since the last time, so that it keeps up.
        """
        get, left = table.get, 2 * _CHUNK_SIZE
        while left > 0 and table.chunks and table.noted > _TOLERATED + 4 * len(table):
            number = next(iter(table.chunks))
            stretch, keys = table.chunks.pop(number)
            table.chunks[number] = stretch, keys  # now the last in turn
            alive = [
                key
                for key in keys
                if (entry := get(key)) is not None and entry[1] is not None and entry[2] == number
            ]
            found = dict.fromkeys(alive)  # who was deleted and stored again may be here twice
            left -= len(keys) + 1
            table.noted -= len(keys) - len(found)
            keys[:] = found
            if not found:
                self._close(number, table)
        self._trim()

    def due(self, now: float) -> Iterator[Tuple[Table, str, Any]]:
        """A few entries that have expired, or were given more time since they were noted.

        Their notes are gone: who takes one drops its entry or notes it anew before the next.
        """
        left = _SWEPT_PER_WRITE
        while left and self._due and self._due[0][0] <= now:
            _end, number, table = self._due[0]
            chunk = table.chunks.get(number)
            if chunk is None or not chunk[1]:
                self._close(number, table)
                heapq.heappop(self._due)
                continue
            left -= 1
            key = chunk[1].pop()
            table.noted -= 1
            entry: Any = table.get(key)
            if entry is not None and entry[DEADLINE] is not None and entry[CHUNK] == number:
                yield table, key, entry
        self.next = self._due[0][0] if self._due else NEVER

    def _close(self, number: int, table: Table) -> None:
        """Take an empty chunk out of its table, if it is there."""
        chunk = table.chunks.get(number)
        if chunk is None:
            return
        if table.fresh_number == number:
            table.pace = 0  # the ttl of nobody: the next note looks for another chunk
        if table.open.get(chunk[0]) == number:
            del table.open[chunk[0]]
        del table.chunks[number]
        self._alive -= 1

    def forget(self, table: Table) -> None:
        """A table was emptied."""
        self._alive -= len(table.chunks)
        table.forget()
        self._trim()

    def _trim(self) -> None:
        """Let go of what is due for chunks that are gone: it would stay until its time."""
        if len(self._due) > 2 * self._alive + 64:
            self._due = [item for item in self._due if item[1] in item[2].chunks]
            heapq.heapify(self._due)
            self.next = self._due[0][0] if self._due else NEVER
