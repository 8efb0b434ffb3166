"""Which entry leaves a full memory store: S3-FIFO.

From Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. Newcomers pass
through a small queue; only those that were used again get into the main one, so a scan of keys that
are read once can't wash out what is in use. A hit does no more than count to three, without a lock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, List, Optional

__all__ = ["S3FIFO", "Evictable"]

#: The fields of an `Evictable`. The first three as in the plain tuple of an unbounded store.
VALUE, DEADLINE, CHUNK, HITS, KEY, TABLE, IN_MAIN = range(7)

#: An entry counts its hits up to here: enough to survive three rounds of the main queue.
MOST_HITS = 3


class Evictable(List[Any]):
    """An entry of a bounded store: ``[value, deadline, chunk, hits, key, table, in_main]``.

    A list, because a reader takes value and deadline by position from bounded and unbounded stores
    alike; hashed by identity, because the queues hold this very entry.
    """

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]  # list says None
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


class S3FIFO:
    """The order in which entries leave. Every step is O(1), amortised.

    Notes:
        *Threads.* All methods are called under the store's lock. Readers only add to
        ``entry[HITS]``; a count lost in a race costs a little accuracy, nothing else.
    """

    __slots__ = ("_ghost", "_ghosts", "_main", "_small", "_small_share", "maxsize")

    def __init__(self, maxsize: int) -> None:
        """Keep at most `maxsize` entries."""
        self.maxsize: int = maxsize
        self._small_share = max(1, maxsize // 10)
        # Ordered dictionaries, not deques: an entry that is deleted leaves its queue in O(1).
        self._small: OrderedDict[Evictable, None] = OrderedDict()
        self._main: OrderedDict[Evictable, None] = OrderedDict()
        # Only hashes of what left the small queue lately: a collision promotes a newcomer early.
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._ghosts = max(1, maxsize - self._small_share)

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def admit(self, entry: Evictable) -> None:
        """Take in a new entry: to the main queue if it left lately and is back, else the small."""
        fingerprint = hash((entry[TABLE].name, entry[KEY]))
        if fingerprint in self._ghost:
            del self._ghost[fingerprint]
            entry[IN_MAIN] = True
            self._main[entry] = None
        else:
            self._small[entry] = None

    def forget(self, entry: Evictable) -> None:
        """Drop an entry that was deleted or has expired."""
        (self._main if entry[IN_MAIN] else self._small).pop(entry, None)

    def evict(self) -> Optional[Evictable]:
        """Choose the entry that leaves, and drop it; ``None`` while there is room."""
        while len(self._small) + len(self._main) > self.maxsize:
            if len(self._small) > self._small_share or not self._main:
                entry, _ = self._small.popitem(last=False)
                if entry[HITS] > 1:
                    entry[HITS] = 0
                    entry[IN_MAIN] = True
                    self._main[entry] = None
                    continue
                self._ghost[hash((entry[TABLE].name, entry[KEY]))] = None
                if len(self._ghost) > self._ghosts:
                    self._ghost.popitem(last=False)
                return entry
            entry, _ = self._main.popitem(last=False)
            if entry[HITS]:
                entry[HITS] -= 1
                self._main[entry] = None
                continue
            return entry
        return None
