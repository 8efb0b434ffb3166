"""Locks with a lease: mutual exclusion that outlives neither its holder nor its patience.

A backend gives one-attempt `Lease` objects; waiting, renewing and giving back are here, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from queue import Empty, SimpleQueue
from typing import Any, Awaitable, Callable, Deque, Dict, List, Optional, Set, Tuple

from . import forking
from .exceptions import KVStoreError, LockTimeoutError, where
from .guard import start

__all__ = ["AsyncHeld", "Held", "Lease", "ThreadLease", "held"]

_log = logging.getLogger("kv_store_adapter")

# How long a waiter sleeps between two attempts, in seconds: from, to.
_FIRST_NAP, _LONGEST_NAP = 0.001, 0.05


class Lease:
    """One holder's claim to one lock: made for each ``with``, never shared."""

    #: Leases of one backend are renewed by one thread; a slow backend delays no other.
    group: int = 0

    #: How long the claim holds without being renewed, in milliseconds; 0: as long as the process.
    ttl_ms: int = 0

    #: Whether it was given back by its holder.
    over: bool = False

    def acquire(self, wait: float) -> bool:
        """Try to get the lock. May wait up to `wait` seconds where the backend can tell when."""
        raise NotImplementedError(f"{type(self).__name__} does not lock.")

    def renew(self) -> bool:
        """Hold on for another `ttl_ms`; ``False``: the lock was lost."""
        return True

    def release(self) -> bool:
        """Give the lock back; ``False``: it was lost before."""
        raise NotImplementedError(f"{type(self).__name__} does not unlock.")


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
        self.release()


def _is_first(gate: Any, line: Deque[Any]) -> bool:
    try:
        return line[0] is gate
    except IndexError:
        return True


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


class _Keeper:
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
                keeper = _Keeper(group)
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
_keepers: Dict[int, _Keeper] = {}
forking.after_in_child(_keepers.clear)


class Held:
    """A lock as a context manager. Entering waits; leaving gives it back."""

    def __init__(
        self, lease: Lease, key: str, namespace: Optional[str], timeout: Optional[float]
    ) -> None:
        self.lease = lease
        self.watched: bool = False
        self.lost: bool = False
        self._key, self._namespace = key, namespace
        self._timeout = timeout
        self._pid = 0

    def __enter__(self) -> None:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        asked = False
        try:
            for nap in _naps():
                left = float("inf") if deadline is None else deadline - time.monotonic()
                asked = True
                if self.lease.acquire(max(0.0, left)):
                    self._entered()
                    return
                asked = False
                left = float("inf") if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise self._too_long()
                time.sleep(min(nap, left))  # this backend can't tell when the lock is free
        except KVStoreError:
            raise
        except BaseException:
            # A signal's handler raised, and the lock may be ours already.
            if asked:
                self._abandon()
            raise

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._leave()
        except BaseException:
            if self._pid == os.getpid():
                self._abandon()
            raise

    def _abandon(self) -> None:
        """Give back what was interrupted, in whatever state it is. If that fails its lease ends."""
        self.watched = False
        # Whatever a backend raises: what interrupted is on its way to the caller.
        with contextlib.suppress(Exception):
            self.lease.release()
            self.lease.over = True

    def _entered(self) -> None:
        self._pid = os.getpid()
        self.lost = self.lease.over = False  # it may be its second time
        if self.lease.ttl_ms:
            self.watched = True
            _Keeper.watch(self)

    def _leave(self) -> None:
        self.watched = False
        if self._pid != os.getpid():
            return  # a fork inside the block: the lock is the parent's
        try:
            kept = self.lease.release()
        except KVStoreError as error:
            # Raising here would hide the answer of the block; the lease ends by itself.
            _log.warning(
                "The lock on %s could not be given back and ends with its lease: %s",
                where(self._key, self._namespace),
                error,
            )
            self.lease.over = True
            return
        self.lease.over = True
        if not kept and not self.lost:
            self._warn_lost()

    def renew(self) -> None:
        """Renew the lease; called by the keeper's thread."""
        try:
            kept = self.lease.renew()
        except Exception as error:  # whatever it is: the others still want renewing
            _log.warning(
                "The lock on %s could not be renewed: %s", where(self._key, self._namespace), error
            )
            return
        if not kept and self.watched:
            self.watched = False
            self.lost = True
            self._warn_lost()

    def _warn_lost(self) -> None:
        _log.warning(
            "The lock on %s was lost: its lease of %.3g s ran out before it was renewed. "
            "Somebody else may have worked at the same time.",
            where(self._key, self._namespace),
            self.lease.ttl_ms / 1000,
        )

    def _too_long(self) -> LockTimeoutError:
        return LockTimeoutError(
            f"The lock on {where(self._key, self._namespace)} was held by somebody else for the "
            f"whole {self._timeout:g} s that were allowed. Wait longer (timeout=), or find out who "
            "holds it."
        )


_giving_back: Set[Any] = set()


class AsyncHeld(Held):
    """The same as an async context manager. The event loop is never blocked.

    `run` awaits a plain call: in a thread, or inline where nothing waits.
    """

    def __init__(
        self,
        lease: Callable[[], Lease],
        key: str,
        namespace: Optional[str],
        timeout: Optional[float],
        run: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        super().__init__(lease(), key, namespace, timeout)
        self._run = run

    async def __aenter__(self) -> None:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        for nap in _naps():
            attempt = asyncio.ensure_future(self._run(lambda: self.lease.acquire(0.0)))
            try:
                got = await asyncio.shield(attempt)
            except asyncio.CancelledError:
                # The thread may be getting the lock this very moment: then it is given back.
                attempt.add_done_callback(self._give_back)
                raise
            if got:
                self._entered()
                return
            left = float("inf") if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise self._too_long()
            await asyncio.sleep(min(nap, left))

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.shield(asyncio.ensure_future(self._run(self._leave)))

    def _give_back(self, attempt: asyncio.Future[Any]) -> None:
        if not attempt.cancelled() and attempt.exception() is None and attempt.result():
            giving = asyncio.ensure_future(self._run(self.lease.release))
            # asyncio keeps only weak references to tasks.
            _giving_back.add(giving)
            giving.add_done_callback(_giving_back.discard)


def held(lease: Lease, key: str, namespace: Optional[str], timeout: Optional[float]) -> Held:
    """A lock as a context manager that waits up to `timeout` seconds, ``None``: for ever."""
    return Held(lease, key, namespace, timeout)


def _naps() -> Any:
    """Seconds to sleep between attempts: doubling, and uneven, so that waiters don't meet."""
    nap = _FIRST_NAP
    while True:
        yield nap * (0.5 + random.random())
        nap = min(nap * 2, _LONGEST_NAP)
