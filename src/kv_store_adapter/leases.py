"""Locks with a lease: mutual exclusion that outlives neither its holder nor its patience.

A backend gives one-attempt `Lease` objects; waiting and giving back are here, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from typing import Any, Awaitable, Callable, Optional, Set

from .exceptions import KVStoreError, LockTimeoutError, where
from .renewal import Keeper

__all__ = ["AsyncHeld", "Held", "Lease", "held"]

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
            Keeper.watch(self)

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
