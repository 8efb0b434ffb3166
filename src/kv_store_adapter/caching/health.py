"""A store in trouble: a breaker, so that a dead one costs one wait; warnings that don't flood."""

from __future__ import annotations

import logging
import time
import weakref
from typing import Any, Dict, List, Optional, Tuple

from .. import forking
from ..guard import Guard
from ..protocol import KVStoreProtocol

__all__ = ["Breaker", "Health", "health_of", "warn"]

_log = logging.getLogger("kv_store_adapter")

#: Seconds that the breaker stays open after a first failure, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0

# Seconds between two warnings of one kind.
_QUIET = 60.0


# For a few steps of all breakers and warnings, in trouble only.
_guard = Guard()


class Breaker:
    """Opens on a failure; then one call after each pause may try, and closes it if that works."""

    def __init__(self) -> None:
        #: Not empty while open. A list, so that a compiled hit path asks it in one step.
        self.open: List[bool] = []
        self.start_afresh()

    def start_afresh(self) -> None:
        """Closed: also in the child of a fork."""
        self._pause = 0.0
        self._until = 0.0
        self._trying = False
        self.open.clear()

    def allows(self) -> bool:
        """Whether to try. While open: ``True`` for one caller after each pause."""
        return not self.open or self._may_try()

    @_guard
    def _may_try(self) -> bool:
        now = time.monotonic()
        if now < self._until:
            return False
        # This caller tries; the others wait for its result another pause at most.
        self._until = now + self._pause
        self._trying = True
        return True

    def worked(self) -> None:
        """A try succeeded."""
        if self.open:
            self._close()

    @_guard
    def _close(self) -> None:
        self._pause = 0.0
        self._trying = False
        self.open.clear()

    @_guard
    def failed(self) -> None:
        """A try failed."""
        if self.open and not self._trying:
            return  # one of many that failed together: they are one failure
        self._trying = False
        self._pause = min(self._pause * 2, LONGEST_PAUSE) or FIRST_PAUSE
        self._until = time.monotonic() + self._pause
        if not self.open:
            self.open.append(True)


class Health:
    """The breakers of one store. Reads and writes apart: a full disk can still be read."""

    def __init__(self) -> None:
        self.reading: Breaker = Breaker()
        self.writing: Breaker = Breaker()


_healths: weakref.WeakKeyDictionary[KVStoreProtocol, Health] = weakref.WeakKeyDictionary()


def health_of(root: KVStoreProtocol) -> Health:
    """The health of a store, shared by all functions cached in it and in its views."""
    try:
        return _known_health(root)
    except TypeError:  # a third party's store that does not hash: each function has its own
        return Health()


@_guard
def _known_health(root: KVStoreProtocol) -> Health:
    return _healths.setdefault(root, Health())


_last_warned: Dict[Tuple[str, str], Tuple[float, int]] = {}


def warn(function: str, kind: str, message: str, *details: Any) -> None:
    """Log a warning, at most one a minute for each function and kind; the rest are counted."""
    silent = _held_back(function, kind, time.monotonic())
    if silent is None:
        return
    suffix = f" ({silent} more like this since the last warning)" if silent else ""
    _log.warning("%s(): " + message + "%s", function, *details, suffix)


@_guard
def _held_back(function: str, kind: str, now: float) -> Optional[int]:
    """How many warnings of this kind were not logged; ``None``: this is one more of them."""
    last, silent = _last_warned.get((function, kind), (-_QUIET, 0))
    if now - last < _QUIET:
        _last_warned[function, kind] = last, silent + 1
        return None
    _last_warned[function, kind] = now, 0
    return silent


def _after_fork() -> None:
    for health in list(_healths.values()):
        for breaker in (health.reading, health.writing):
            breaker.start_afresh()


forking.after_in_child(_after_fork)
