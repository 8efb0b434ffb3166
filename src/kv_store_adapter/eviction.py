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

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Deque, List, Optional, Tuple

if TYPE_CHECKING:
    from .expiry import Table

__all__ = ["S3FIFO"]

#: The fields of an entry of a memory store: ``(value, None)``, ``(value, deadline, chunk)``, or in
#: a bounded store ``(value, deadline, chunk, slot)``.
VALUE, DEADLINE, CHUNK, SLOT = range(4)

# So many deleted entries may be in the queues, besides one for every two that are held, before the
# queues are made anew without them.
_TOLERATED = 16


class Left:
    """Those that left a queue not long ago: how many are remembered, and who, the oldest first.

    Who came back is still in the order. When such a one leaves again soon, it is forgotten a little
    early.
    """

    __slots__ = ("count", "order")

    def __init__(self) -> None:
        self.count = 0
        # A key, its table, the next key, its table...
        self.order: Deque[Any] = deque()

    def tidy(self) -> None:
        """Take those who came back out of the order: nearly all, but not the oldest."""
        pairs = iter(self.order)
        self.order = deque(
            either
            for key, table in zip(pairs, pairs)
            if table.left.get(key) is self
            for either in (key, table)
        )


class S3FIFO:
    """The order in which entries leave. Every step is O(1), amortised.

    An entry is known by its slot, a number: it costs the garbage collector nothing. Both queues are
    of slots. The slot of an entry that was deleted stays in its queue, as nobody's, until it comes
    to the head or there are too many like it: taking it out of the middle would make every step of
    the others longer.

    Attributes:
        used: By slot, whether the entry was used since it was last looked at.

    Notes:
        *Threads.* All methods are called under the store's lock. Readers only set
        ``used[slot] = True``; a mark that meets a slot's next owner costs a little accuracy,
        nothing else.
    """

    __slots__ = (
        *("_deleted", "_free", "_in_main", "_keys", "_left_main", "_left_small", "_limit"),
        *("_main", "_mains", "_remembered", "_share", "_small", "_smalls", "_tables"),
        *("maxsize", "used"),
    )

    def __init__(self, maxsize: int) -> None:
        """Keep at most `maxsize` entries."""
        self.maxsize: int = maxsize
        self.used: List[bool] = []
        # By slot: whose it is, `None` for nobody's, and in which queue it is.
        self._keys: List[Optional[str]] = []
        self._tables: List[Optional[Table]] = []
        self._in_main: List[bool] = []
        self._free: List[int] = []
        self._small: Deque[int] = deque()
        self._main: Deque[int] = deque()
        # How many entries the queues hold, and how many slots of deleted ones.
        self._smalls = self._mains = self._deleted = 0
        self._left_small, self._left_main = Left(), Left()
        self._remembered = max(1, maxsize // 2)  # by each of the two
        # How many entries the small queue may have: a tenth of all to begin with.
        self._set_share(max(1.0, maxsize / 10))

    def __len__(self) -> int:
        return self._smalls + self._mains

    def _set_share(self, share: float) -> None:
        self._share = share
        self._limit = math.ceil(share)  # compared with every eviction, and faster as an int

    def admit(self, key: str, table: Table) -> Tuple[int, Optional[Tuple[Table, str]]]:
        """Take in a new entry.

        Returns:
            Its slot, and the table and key of the entry that leaves for it; ``None`` while there is
            room.
        """
        leaver: Optional[Tuple[Table, str]] = None
        if self._smalls + self._mains >= self.maxsize:
            slot, leaver = self._evict()
            self._keys[slot] = key
            self._tables[slot] = table
        elif self._free:
            slot = self._free.pop()
            self.used[slot] = False
            self._keys[slot] = key
            self._tables[slot] = table
        else:
            slot = len(self.used)
            self.used.append(False)
            self._keys.append(key)
            self._tables.append(table)
            self._in_main.append(False)
        if key in table.left:
            self._back(table.left.pop(key))
            self._main.append(slot)
            self._mains += 1
            self._in_main[slot] = True
        else:
            self._small.append(slot)
            self._smalls += 1
            self._in_main[slot] = False
        return slot, leaver

    def _evict(self) -> Tuple[int, Tuple[Table, str]]:
        """Choose who leaves: the slot, which is free then, its table and key."""
        keys, used, main = self._keys, self.used, self._main
        while True:
            from_small = self._smalls >= self._limit or not self._mains
            slot = self._small.popleft() if from_small else main.popleft()
            key = keys[slot]
            if key is None:
                self._deleted -= 1
                self._free.append(slot)
            elif used[slot]:
                used[slot] = False
                main.append(slot)
                if from_small:
                    self._smalls -= 1
                    self._mains += 1
                    self._in_main[slot] = True
            else:
                break
        if from_small:
            self._smalls -= 1
            left = self._left_small
        else:
            self._mains -= 1
            left = self._left_main
        table: Any = self._tables[slot]  # it has an owner
        table.left[key] = left
        order = left.order
        order.append(key)
        order.append(table)
        count = left.count + 1
        while count > self._remembered:
            oldest, its_table = order.popleft(), order.popleft()
            if its_table.left.get(oldest) is left:
                del its_table.left[oldest]
                count -= 1
        left.count = count
        return slot, (table, key)

    def _back(self, queue: Left) -> None:
        """One that left a queue is back: that queue was too short. The rarer, the more it says."""
        other = self._left_main if queue is self._left_small else self._left_small
        queue.count -= 1
        if len(queue.order) > 8 * self._remembered:
            queue.tidy()
        step = max(1.0, other.count / (queue.count + 1))
        share = self._share + (step if queue is self._left_small else -step)
        self._set_share(min(max(1.0, self.maxsize * 0.01, share), max(1.0, self.maxsize * 0.9)))

    def forget(self, slot: int) -> None:
        """Drop an entry that was deleted or has expired."""
        keys, queue = self._keys, self._main if self._in_main[slot] else self._small
        if self._in_main[slot]:
            self._mains -= 1
        else:
            self._smalls -= 1
        keys[slot] = self._tables[slot] = None
        self._deleted += 1
        # What expires is at the head of its queue more often than not.
        while queue and keys[queue[0]] is None:
            self._free.append(queue.popleft())
            self._deleted -= 1
        if self._deleted > _TOLERATED + len(self) // 2:
            for queue in (self._small, self._main):
                held = [slot for slot in queue if keys[slot] is not None]
                self._free.extend(slot for slot in queue if keys[slot] is None)
                queue.clear()
                queue.extend(held)
            self._deleted = 0
