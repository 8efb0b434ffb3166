"""The renewal of leases whose holders are alive, on one thread for each backend."""

from __future__ import annotations

import heapq
import logging
import time
import weakref
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

from . import forking
from .guard import start

if TYPE_CHECKING:
    from .leases import Held, Lease

__all__ = ["Keeper"]

_log = logging.getLogger("kv_store_adapter")

# Seconds without any lease after which the thread that renews them ends.
_IDLE = 5.0


class _Watched(weakref.ref):  # type: ignore[type-arg]  # no parameters before Python 3.9
    """A lock whose lease is to be renewed, held weakly.

    It may be forgotten, by a signal's handler that raises as its block ends.
    """

    __slots__ = ("lease",)

    lease: Lease

    def holder(self) -> Optional[Held]:
        """Whose lease is to be renewed."""
        one: Optional[Held] = self()
        return one if one is not None and one.watched else None


class Keeper:
    """Renews the leases of one backend, from a thread that starts when it is first needed.

    What is to be renewed comes through a queue written in C: a signal's handler that raises in the
    middle of a lock can't leave it locked.
    """

    def __init__(self, group: int) -> None:
        self._group = group
        self._new: SimpleQueue[_Watched] = SimpleQueue()
        self._due: List[Tuple[float, int, _Watched]] = []
        self._count = 0
        self._ended = False

    @staticmethod
    def watch(one: Held) -> None:
        """Renew the lease of a lock from now on, until it is not watched any more."""
        group = one.lease.group
        while True:
            keeper = _keepers.get(group)
            if keeper is None:
                keeper = Keeper(group)
                start(keeper._run, "kv-store-adapter-leases")
                # Of two that are made at once, one finds nothing to do and ends.
                keeper = _keepers.setdefault(group, keeper)
            # Once it is forgotten it comes through the queue again.
            watched = _Watched(one, keeper._new.put)
            watched.lease = one.lease
            keeper._new.put(watched)
            if not keeper._ended:
                return
            _keepers.pop(group, None)

    def _take(self, watched: _Watched) -> None:
        """One that is new, was renewed, or was forgotten."""
        if watched.holder() is not None:
            # A third: two renewals may fail before the lease runs out.
            when = time.monotonic() + watched.lease.ttl_ms / 3000
            self._count += 1
            heapq.heappush(self._due, (when, self._count, watched))
        elif watched() is None and not watched.lease.over:
            try:
                watched.lease.release()
            except Exception as error:  # whatever it is: the others still want renewing
                _log.warning("A forgotten lock ends with its lease: %s", error)

    def _next(self) -> Optional[float]:
        """Seconds until the next renewal; ``None``: there is none to come."""
        while self._due:
            when, _, watched = self._due[0]
            if watched.holder() is not None:
                return max(0.0, when - time.monotonic())
            heapq.heappop(self._due)
        return None

    def _run(self) -> None:
        while True:
            for _ in range(self._new.qsize()):
                self._take(self._new.get())
            nap = self._next()
            if nap == 0.0:
                self._renew(heapq.heappop(self._due)[2])
                continue
            try:
                self._take(self._new.get(timeout=_IDLE if nap is None else nap))
            except Empty:
                if nap is not None:
                    continue
                # Idle threads are litter: the next lease starts another one.
                self._ended = True
                if self._new.empty():
                    if _keepers.get(self._group) is self:
                        _keepers.pop(self._group, None)
                    return
                self._ended = (
                    False  # one came meanwhile, perhaps with a keeper of its own: both renew
                )

    def _renew(self, watched: _Watched) -> None:
        one = watched.holder()
        if one is not None:
            one.renew()
        self._take(watched)


# By group, which is few: the backends that this process locks on.
_keepers: Dict[int, Keeper] = {}
forking.after_in_child(_keepers.clear)
