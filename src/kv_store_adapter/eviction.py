"""Which entry leaves a full memory store: S3-FIFO, with a small queue that fits itself to the load.

The queues are those of Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
Newcomers pass through a small queue; only those that were used again get into the main one, so a
scan of keys that are read once can't wash out what is in use. A hit does no more than set a mark,
without a lock.

A small queue of fixed length loses to LRU where popularity moves on quickly: newcomers leave before
they are used again, and what was popular stays for rounds. So both queues remember what left them,
and who comes back says which of them is too short, as in ARC (Megiddo and Modha, "ARC: a
self-tuning, low overhead replacement cache", FAST 2003).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, List, Optional, Tuple

if TYPE_CHECKING:
    from .expiry import Table

__all__ = ["S3FIFO"]

#: The fields of an entry of a memory store: ``(value, None)``, ``(value, deadline, chunk)``, or in
#: a bounded store ``(value, deadline, chunk, slot)``.
VALUE, DEADLINE, CHUNK, SLOT = range(4)


class S3FIFO:
    """The order in which entries leave. Every step is O(1), amortised.

    An entry is known by its slot, a number: it costs the garbage collector nothing.

    Attributes:
        used: By slot, whether the entry was used since it was last looked at.

    Notes:
        *Threads.* All methods are called under the store's lock. Readers only set
        ``used[slot] = True``; a mark that meets a slot's next owner costs a little accuracy,
        nothing else.

        *Signals.* A handler may raise between any two steps. An entry's slot is in a queue before
        the entry is in its table, and until it is out of it: what is left behind is a slot without
        an entry, which leaves in its turn, or one that is not given out again.
    """

    __slots__ = (
        *("_free", "_left_main", "_left_small", "_main", "_remembered", "_share", "_small"),
        *("_tables", "maxsize", "used"),
    )

    def __init__(self, maxsize: int) -> None:
        """Keep at most `maxsize` entries."""
        self.maxsize: int = maxsize
        self.used: List[bool] = []
        self._tables: List[Optional[Table]] = []
        self._free: List[int] = []
        # How many entries the small queue may have: a tenth of all to begin with.
        self._share = max(1.0, maxsize / 10)
        # Slot to key. Ordered dictionaries, not deques: who is deleted leaves in O(1).
        self._small: OrderedDict[int, str] = OrderedDict()
        self._main: OrderedDict[int, str] = OrderedDict()
        # Only hashes: when two keys share one, a newcomer is promoted early.
        self._left_small: OrderedDict[int, None] = OrderedDict()
        self._left_main: OrderedDict[int, None] = OrderedDict()
        self._remembered = max(1, maxsize // 2)  # by each of the two

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def admit(self, key: str, table: Table) -> Tuple[int, Optional[Table], Any]:
        """Take in a new entry, and take another one out of its table if there is no room.

        Returns:
            Its slot; the table of who left, and who that was, ``None`` while there is room.
        """
        small, main, used, tables = self._small, self._main, self.used, self._tables
        left: Any = None
        gone: Any = None
        if len(small) + len(main) >= self.maxsize:
            while True:
                # The share is one at least: a small queue that has it is not empty.
                from_small = len(small) >= self._share or not main
                queue = small if from_small else main
                slot = next(iter(queue))
                if not used[slot]:
                    break
                used[slot] = False
                if from_small:
                    main[slot] = small[slot]
                    del small[slot]
                else:
                    main.move_to_end(slot)
            leaver, left = queue[slot], tables[slot]
            gone = left.pop(leaver, None)
            del queue[slot]
            ghosts = self._left_small if from_small else self._left_main
            ghosts[hash(leaver) ^ left.salt] = None
            if len(ghosts) > self._remembered:
                ghosts.popitem(False)  # noqa: FBT003  # by name it is slower
            used[slot] = False  # a reader of who left may have marked it
            tables[slot] = table
        elif self._free:
            slot = self._free.pop()
            used[slot] = False
            tables[slot] = table
        else:
            slot = len(used)
            tables[slot:] = [table]
            used.append(False)
        fingerprint = hash(key) ^ table.salt
        if fingerprint in self._left_small:
            self._back(fingerprint, self._left_small, self._left_main, 1)
            main[slot] = key
        elif fingerprint in self._left_main:
            self._back(fingerprint, self._left_main, self._left_small, -1)
            main[slot] = key
        else:
            small[slot] = key
        return slot, left, gone

    def _back(
        self,
        fingerprint: int,
        queue: OrderedDict[int, None],
        other: OrderedDict[int, None],
        sign: int,
    ) -> None:
        """One that left a queue is back: that queue was too short. The rarer, the more it says."""
        del queue[fingerprint]
        share = self._share + sign * max(1.0, len(other) / (len(queue) + 1))
        self._share = min(max(1.0, self.maxsize * 0.01, share), max(1.0, self.maxsize * 0.9))

    def forget(self, slot: int) -> None:
        """Drop an entry that was deleted or has expired."""
        self._small.pop(slot, None)
        self._main.pop(slot, None)
        self._tables[slot] = None
        self._free.append(slot)
