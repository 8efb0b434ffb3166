"""What leaves a memory store because its time is over: found without a scan, a heap or a thread.

A heap with an item an entry would cost 72 bytes each. Instead keys that expire are noted in chunks
by deadline, each stretch of time an eighth of the ttl (rounded to a power of two) wide: 17 bytes a
key. A chunk is swept after its last deadline, a few keys with every write.
"""

from __future__ import annotations

import heapq
from typing import Any, Dict, Iterator, List, Optional, Tuple

from .eviction import CHUNK, DEADLINE

__all__ = ["Expiry", "Table"]

# How many dead entries a write takes along. More than one, so that sweeping outruns writing.
_SWEPT_PER_WRITE = 4

# Keys a chunk: few enough that tidying one is over in a fraction of a millisecond.
_CHUNK = 1024

# How many dead keys a chunk may hold before it is worth tidying.
_TOLERATED = 32


class _Chunk:
    """Up to `_CHUNK` keys of one table whose deadlines lie in one stretch of time.

    A key in it counts only while its entry names this chunk; `dead` of them no longer do.
    """

    __slots__ = ("dead", "keys", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.keys: List[str] = []
        self.dead = 0


class Table(Dict[str, Any]):
    """The entries of one namespace: key to entry.

    An entry is ``(value, None)``, or ``(value, deadline, number of its chunk)``, or in a bounded
    store an `Evictable`. The chunk goes by number, not by reference: the garbage collector need not
    follow a tuple of text and numbers, and with a million entries that is felt.

    `chunks` are all chunks by number, `open` those that still take keys, by stretch of time.
    `bound` says that a reader holds on to this very table.
    """

    __slots__ = ("bound", "chunks", "name", "open")

    def __init__(self, name: Optional[str]) -> None:
        super().__init__()
        self.name: Optional[str] = name
        self.bound: bool = False
        self.chunks: Dict[int, _Chunk] = {}
        self.open: Dict[int, _Chunk] = {}

    def __reduce__(self) -> Any:
        raise TypeError("The tables of a MemoryKVStore do not pickle.")

    def noted(self, key: str, number: int) -> bool:
        """Whether the entry of `key` names this chunk."""
        entry = self.get(key)
        return entry is not None and entry[DEADLINE] is not None and entry[CHUNK] == number


class Expiry:
    """The chunks of all tables, by when they are due.

    Notes:
        *Threads.* Everything is called under the store's lock.
    """

    def __init__(self) -> None:
        # (end of its stretch of time, chunk's number, name of the stretch, table), soonest first.
        self._due: List[Tuple[float, int, int, Table]] = []
        self._made = 0
        self._alive = 0
        #: When the next chunk is due: before that there is nothing to sweep.
        self.next: float = float("inf")

    def note(self, table: Table, key: str, deadline_ms: int, ttl_ms: int) -> int:
        """Put `key` into a chunk that is swept soon after its deadline; return its number."""
        level = max(0, ttl_ms.bit_length() - 4)
        stretch = deadline_ms >> level << 6 | level
        chunk = table.open.get(stretch)
        if chunk is None or len(chunk.keys) >= _CHUNK:
            self._made += 1
            self._alive += 1
            chunk = _Chunk(self._made)
            table.chunks[chunk.number] = table.open[stretch] = chunk
            end = ((deadline_ms >> level) + 1 << level) / 1000
            heapq.heappush(self._due, (end, chunk.number, stretch, table))
            self.next = self._due[0][0]
        chunk.keys.append(key)
        return chunk.number

    @staticmethod
    def abandon(table: Table, number: int) -> None:
        """An entry that named this chunk no longer does. Tidy the chunk when most of it is dead."""
        chunk = table.chunks.get(number)
        if chunk is None:
            return
        chunk.dead += 1
        if chunk.dead > _TOLERATED and chunk.dead * 2 > len(chunk.keys):
            chunk.keys = [key for key in dict.fromkeys(chunk.keys) if table.noted(key, number)]
            chunk.dead = 0

    def due(self, now: float) -> Iterator[Tuple[Table, str, Any]]:
        """A few entries that have expired, or were given more time since they were noted."""
        left = _SWEPT_PER_WRITE
        while left and self._due and self._due[0][0] <= now:
            _end, number, stretch, table = self._due[0]
            chunk = table.chunks.get(number)
            while left and chunk is not None and chunk.keys:
                left -= 1
                key = chunk.keys.pop()
                if table.noted(key, number):
                    yield table, key, table[key]
            if chunk is None or not chunk.keys:
                self._retire(number, stretch, table)
        self.next = self._due[0][0] if self._due else float("inf")

    def _retire(self, number: int, stretch: int, table: Table) -> None:
        if self._due and self._due[0][1] == number:
            heapq.heappop(self._due)
        chunk = table.chunks.pop(number, None)
        if chunk is not None:
            self._alive -= 1
            if table.open.get(stretch) is chunk:
                del table.open[stretch]

    def forget(self, table: Table) -> None:
        """A table was emptied."""
        self._alive -= len(table.chunks)
        table.chunks.clear()
        table.open.clear()
        if len(self._due) > 2 * self._alive + 64:
            # Mostly of tables that were cleared: they would stay until they are due.
            self._due = [item for item in self._due if item[1] in item[3].chunks]
            heapq.heapify(self._due)
            self.next = self._due[0][0] if self._due else float("inf")
