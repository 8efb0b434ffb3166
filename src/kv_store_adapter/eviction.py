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
from typing import TYPE_CHECKING, Any, Deque, Dict, List, Optional, Tuple

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

    Only hashes: when two keys share one, a newcomer is promoted early. Who came back is still in
    the order; when such a one leaves again soon, it is forgotten a little early.
    """

    __slots__ = ("count", "order")

    def __init__(self) -> None:
        self.count = 0
        self.order: Deque[int] = deque()


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

        *Signals.* A handler may raise between any two steps. An entry's slot is in a queue before
        the entry is in its table, and until it is out of it. So what is left behind is a slot
        without an entry, which leaves in its turn, counts that are wrong by one for a while, or, at
        the one step from queue to queue, an entry that stays until it is deleted or expires.
    """

    __slots__ = (
        *(
            "_deleted",
            "_free",
            "_held",
            "_in_main",
            "_known",
            "_keys",
            "_left_main",
            "_left_small",
            "_limit",
        ),
        *("_main", "_remembered", "_share", "_small", "_smalls", "_tables"),
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
        # How many entries there are, how many of them in the small queue, and how many slots of
        # deleted ones.
        self._held = self._smalls = self._deleted = 0
        self._left_small, self._left_main = Left(), Left()
        self._known: Dict[int, Left] = {}
        self._remembered = max(1, maxsize // 2)  # by each of the two
        # How many entries the small queue may have: a tenth of all to begin with.
        self._set_share(max(1.0, maxsize / 10))

    def __len__(self) -> int:
        return self._held

    def _set_share(self, share: float) -> None:
        self._share = share
        self._limit = math.ceil(share)  # compared with every eviction, and faster as an int

    def admit(self, key: str, table: Table) -> Tuple[int, Optional[Table], Any]:
        """Take in a new entry, and take another one out of its table if there is no room.

        Returns:
            Its slot; the table of who left, and who that was, ``None`` while there is room.
        """
        left, gone = (None, None) if self._held < self.maxsize else self._evict()
        self._held += 1
        if self._free:
            slot = self._free.pop()
            self.used[slot] = False
            self._keys[slot] = key
            self._tables[slot] = table
        else:
            slot = len(self.used)
            self._tables.append(table)
            self._keys.append(key)
            self._in_main.append(False)
            self.used.append(False)
        fingerprint = hash(key) + table.salt
        if fingerprint in self._known:
            self._back(self._known.pop(fingerprint))
            self._in_main[slot] = True
            self._main.append(slot)
        else:
            self._in_main[slot] = False
            self._small.append(slot)
            self._smalls += 1
        return slot, left, gone

    def _evict(self) -> Tuple[Optional[Table], Any]:
        """Choose who leaves, take it out of its table, and free its slot."""
        keys, used, small, main = self._keys, self.used, self._small, self._main
        while small or main:
            queue = small if small and (self._smalls >= self._limit or not main) else main
            slot = queue[0]
            key = keys[slot]
            if key is not None and not used[slot]:
                break
            used[slot] = False
            if key is None:
                queue.popleft()
                self._deleted -= 1
                self._free.append(slot)
            elif queue is main:
                main.rotate(-1)
            else:
                self._in_main[slot] = True
                small.popleft()
                main.append(slot)
                self._smalls -= 1
        else:
            self._held = 0
            return None, None
        table: Any = self._tables[slot]  # it has an owner
        gone = table.pop(key, None)
        queue.popleft()
        if queue is small:
            self._smalls -= 1
        self._free.append(slot)
        self._held = len(small) + len(main) - self._deleted
        left = self._left_small if queue is small else self._left_main
        known, order, count = self._known, left.order, left.count + 1
        fingerprint = hash(key) + table.salt
        known[fingerprint] = left
        order.append(fingerprint)
        while count > self._remembered and order:
            oldest = order.popleft()
            if known.get(oldest) is left:
                del known[oldest]
                count -= 1
        left.count = count
        return table, gone

    def _back(self, queue: Left) -> None:
        """One that left a queue is back: that queue was too short. The rarer, the more it says."""
        other = self._left_main if queue is self._left_small else self._left_small
        queue.count = max(0, queue.count - 1)
        if len(queue.order) > 4 * self._remembered:  # nearly all came back, but not the oldest
            remembered = (left for left in queue.order if self._known.get(left) is queue)
            queue.order = deque(dict.fromkeys(remembered))
            queue.count = len(queue.order)
        step = max(1.0, other.count / (queue.count + 1))
        share = self._share + (step if queue is self._left_small else -step)
        self._set_share(min(max(1.0, self.maxsize * 0.01, share), max(1.0, self.maxsize * 0.9)))

    def forget(self, slot: int) -> None:
        """Drop an entry that was deleted or has expired."""
        keys, queue = self._keys, self._main if self._in_main[slot] else self._small
        if queue is self._small:
            self._smalls -= 1
        keys[slot] = self._tables[slot] = None
        self._held -= 1
        self._deleted += 1
        # What expires is at the head of its queue more often than not.
        while queue and keys[queue[0]] is None:
            self._free.append(queue.popleft())
            self._deleted -= 1
        if self._deleted > _TOLERATED + self._held // 2:
            self._tidy()

    def _tidy(self) -> None:
        """Take the slots of deleted entries out of the queues."""
        keys = self._keys
        for queue in (self._small, self._main):
            slots = list(queue)
            queue.clear()
            queue.extend(slot for slot in slots if keys[slot] is not None)
            self._free.extend(slot for slot in slots if keys[slot] is None)
        self._smalls, self._deleted = len(self._small), 0
        self._held = len(self._small) + len(self._main)
