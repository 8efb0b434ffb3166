"""Locks with a lease: mutual exclusion that outlives neither its holder nor its patience.

A backend gives one-attempt `Lease` objects; waiting, renewing and giving back are here, once.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import random
import threading
import time
from typing import Any, Awaitable, Callable, Dict, List, Optional, Set, Tuple

from . import forking
from .exceptions import KVStoreError, LockTimeoutError, where

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

    def acquire(self, wait: float) -> bool:
        """Try to get the lock. May wait up to `wait` seconds where the backend can tell when."""
        raise NotImplementedError(f"{type(self).__name__} does not lock.")

    def renew(self) -> bool:
        """Hold on for another `ttl_ms`; ``False``: the lock was lost."""
        return True

    def release(self) -> bool:
        """Give the lock back; ``False``: it was lost before."""
        raise NotImplementedError(f"{type(self).__name__} does not unlock.")


_thread_locks: Dict[Tuple[int, Optional[str], str], List[Any]] = {}
_thread_guard = threading.Lock()


def _forget_thread_locks() -> None:
    global _thread_guard
    _thread_guard = threading.Lock()
    _thread_locks.clear()


forking.after_in_child(_forget_thread_locks)


class ThreadLease(Lease):
    """A lock among the threads of this process, for stores that reach no further."""

    def __init__(self, store: object, key: str, namespace: Optional[str]) -> None:
        self._store = store  # held on to, so that its id stays its own
        self._place = (id(store), namespace, key)

    def acquire(self, wait: float) -> bool:
        """Wait for the lock for up to `wait` seconds."""
        with _thread_guard:
            # The lock, and how many want it: the last one out takes it down.
            slot = _thread_locks.setdefault(self._place, [threading.Lock(), 0])
            slot[1] += 1
        got = slot[0].acquire(timeout=max(0.0, min(wait, threading.TIMEOUT_MAX)))
        if not got:
            self._leave()
        return bool(got)

    def release(self) -> bool:
        """Let the next one in."""
        with _thread_guard:
            slot = _thread_locks.get(self._place)
        if slot is None:  # the child of a fork: it never held it
            return False
        slot[0].release()
        self._leave()
        return True

    def _leave(self) -> None:
        with _thread_guard:
            slot = _thread_locks.get(self._place)
            if slot is not None:
                slot[1] -= 1
                if slot[1] == 0:
                    del _thread_locks[self._place]


# Seconds without any lease after which the thread that renews them ends.
_IDLE = 5.0


class _Keeper:
    """Renews the leases of one backend, from a thread that starts when it is first needed."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._changed = threading.Condition()
        self._due: List[Tuple[float, int, Held]] = []
        self._count = 0
        self._running = False

    def watch(self, one: Held) -> None:
        with self._changed:
            self._push(one, time.monotonic())
            if not self._running:
                threading.Thread(
                    target=self._run, name="kv-store-adapter-leases", daemon=True
                ).start()
                self._running = True
            self._changed.notify()

    def _push(self, one: Held, now: float) -> None:
        # A third: two renewals may fail before the lease runs out.
        self._count += 1
        heapq.heappush(self._due, (now + one.lease.ttl_ms / 3000, self._count, one))

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._due and not self._due[0][2].watched:
                    heapq.heappop(self._due)
                if not self._due:
                    # Idle threads are litter: the next lease starts another one.
                    if not self._changed.wait(_IDLE) and not self._due:
                        self._running = False
                        # A store that comes back meanwhile makes another one: both do.
                        if _keepers.get(self._group) is self:
                            del _keepers[self._group]
                        return
                    continue
                nap = self._due[0][0] - time.monotonic()
                if nap > 0:
                    self._changed.wait(nap)
                    continue
                one = heapq.heappop(self._due)[2]
            one.renew()
            with self._changed:
                if one.watched:
                    self._push(one, time.monotonic())


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
        for nap in _naps():
            left = float("inf") if deadline is None else deadline - time.monotonic()
            if self.lease.acquire(max(0.0, left)):
                self._entered()
                return
            left = float("inf") if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise self._too_long()
            time.sleep(min(nap, left))  # this backend can't tell when the lock is free

    def __exit__(self, *exc_info: object) -> None:
        self._leave()

    def _entered(self) -> None:
        self._pid = os.getpid()
        if self.lease.ttl_ms:
            self.watched = True
            # By group, which is few: the backends that this process locks on.
            group = self.lease.group
            _keepers.setdefault(group, _Keeper(group)).watch(self)

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
            return
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
