"""Locks among the threads of one process, for stores that reach no further."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import Any, Deque, Dict, Optional, Set, Tuple

from . import forking
from .leases import Lease

__all__ = ["ThreadLease"]

# Who holds a lock among threads, and who waits for it. A dictionary's steps can't be divided, and
# say whose the lock is: so no signal's handler that raises leaves one locked that nobody holds.
_thread_locks: Dict[Tuple[int, Optional[str], str], object] = {}
_waiting: Dict[Tuple[int, Optional[str], str], Deque[Any]] = {}

# How long a waiting thread sleeps before it looks for itself, in seconds, from and to: who was told
# that the lock is free may have been interrupted, and not have taken it.
_FIRST_LOOK, _LAST_LOOK = 0.1, 1.0


def _forget_thread_locks() -> None:
    _thread_locks.clear()
    _waiting.clear()


forking.after_in_child(_forget_thread_locks)


class ThreadLease(Lease):
    """A lock among the threads of this process, for stores that reach no further.

    It is given back when it is forgotten: a signal's handler may raise between getting the lock and
    the block under it.
    """

    def __init__(self, store: object, key: str, namespace: Optional[str]) -> None:
        self._store = store  # held on to, so that its id stays its own
        self._place = (id(store), namespace, key)
        # What tried to get the lock for this lease, one for each attempt: it is not reentrant.
        self._mine: Set[Any] = set()
        self._held, self._waiting = _thread_locks, _waiting

    def acquire(self, wait: float) -> bool:
        """Wait for the lock for up to `wait` seconds, in line with other threads."""
        gate = threading.Lock()
        self._mine.add(gate)  # first: so that it is known whose the lock is that it gets
        at_once = wait <= 0 or not self._waiting.get(self._place)
        if at_once and self._held.setdefault(self._place, gate) is gate:
            return True
        if wait > 0 and self._wait_in_line(gate, time.monotonic() + wait):
            return True
        self._mine.discard(gate)
        return False

    def _wait_in_line(self, gate: Any, deadline: float) -> bool:
        gate.acquire()
        line = self._waiting.setdefault(self._place, deque())
        told, nap = True, _FIRST_LOOK
        try:
            line.append(gate)
            while True:
                # In turn; who was told nothing for long does not rely on those before it.
                my_turn = not told or _is_first(gate, line)
                if my_turn and self._held.setdefault(self._place, gate) is gate:
                    while gate in line and not _is_first(gate, line):
                        line.popleft()  # interrupted and gone, or slow: then it looks for itself
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                told = gate.acquire(timeout=min(left, nap))
                nap = min(nap * 2, _LAST_LOOK)
        finally:
            with contextlib.suppress(ValueError):
                line.remove(gate)
            if not line and self._waiting.get(self._place) is line:
                self._waiting.pop(self._place, None)
                if line:  # somebody joined at this very moment
                    self._waiting.setdefault(self._place, line)
            if self._place not in self._held:
                self._call_the_next()

    def release(self) -> bool:
        """Let the next one in."""
        gate = self._held.get(self._place)
        if gate not in self._mine:
            return False  # the child of a fork, or given back before
        del self._held[self._place]
        self._mine.discard(gate)
        self._call_the_next()
        return True

    def _call_the_next(self) -> None:
        line = self._waiting.get(self._place)
        if line:
            # Gone meanwhile, or called already.
            with contextlib.suppress(IndexError, RuntimeError):
                line[0].release()

    def __del__(self) -> None:
        # Last to be set: without it a signal's handler raised before the lease was whole.
        if hasattr(self, "_waiting"):
            self.release()


def _is_first(gate: Any, line: Deque[Any]) -> bool:
    try:
        return line[0] is gate
    except IndexError:
        return True
