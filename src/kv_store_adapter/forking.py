"""What happens when the process forks: nothing inherited is used, nothing is left locked.

`os.fork` copies memory, not threads. A lock that another thread held stays locked for ever in the
child, and a connection to a database or a server would be used from both sides. Everything of ours
that owns either registers here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from typing import Any, Callable, Collection, Dict, Iterator, List

__all__ = ["Forkable", "after_in_child", "register", "undivided"]


class Forkable:
    """Three hooks, called in this order around every `os.fork` of the process."""

    # Without a slot for weak references a subclass with __slots__ could not register.
    __slots__ = ("__weakref__",)

    def _before_fork(self) -> None:
        """Come to rest: take the locks, close what must not be shared. Never raises."""

    def _after_fork_in_parent(self) -> None:
        """Go on as before."""

    def _after_fork_in_child(self) -> None:
        """Start afresh: new locks, nothing inherited in use."""


_log = logging.getLogger("kv_store_adapter")

_registered: weakref.WeakSet[Any] = weakref.WeakSet()
_resting: List[Forkable] = []
_in_child: List[Callable[[], None]] = []


def register(forkable: Forkable) -> None:
    """Call the hooks of `forkable` for as long as it is alive."""
    _registered.add(forkable)


def after_in_child(function: Callable[[], None]) -> None:
    """Call `function` in the child after every fork. For module state; it is never forgotten."""
    _in_child.append(function)


class _Gate:
    """Lets a fork through when nobody is inside, and nobody inside while a fork is near."""

    def __init__(self) -> None:
        # Reentrant: a signal's handler, or a value that is collected just now, may connect as well.
        self._changed = threading.Condition()
        self._inside = 0
        self._fork_is_near = False
        # The system's numbers of the threads that were inside, and what Python calls them.
        self._visitors: Dict[int, int] = {}
        self._room = 100

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._fork_is_near, _PATIENCE)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._visitors[threading.get_native_id()] = threading.get_ident()
                if len(self._visitors) > self._room:
                    self._forget_those_that_ended()
                    self._room = 100 + 2 * len(self._visitors)
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._fork_is_near = True
            until = time.monotonic() + _PATIENCE
            self._changed.wait_for(lambda: self._inside == 0, _PATIENCE)
            # A thread that Python has done with is still to be ended by the C library.
            while self._visitors:
                ending = self._ending()
                if not ending:
                    break
                if time.monotonic() > until:
                    for each in ending:  # they will not end
                        self._visitors.pop(each, None)
                    break
                time.sleep(0.0005)  # nobody tells of it

    def _ending(self) -> Collection[int]:
        """The visitors that the system still has and Python has not."""
        self._forget_those_that_ended()
        frames = sys._current_frames()
        gone = [each for each, name in self._visitors.items() if name not in frames]
        # Under gevent a thread calls itself by the name of its greenlet.
        known = {os.getpid(), *(thread.native_id for thread in threading.enumerate())}
        return [each for each in gone if each not in known]

    def _forget_those_that_ended(self) -> None:
        there = _threads_there()
        # A copy: the handler of a signal may connect just here.
        visitors = list(self._visitors.items())
        self._visitors = {each: name for each, name in visitors if each in there}

    def open(self) -> None:
        with self._changed:
            self._fork_is_near = False
            self._changed.notify_all()


# Seconds that a fork waits for what it should not divide. A fork that waits for ever would be worse
# than a child whose first connection may hang.
_PATIENCE = 0.5

_gate = _Gate()


def undivided() -> contextlib.AbstractContextManager[None]:
    """While another thread is in this block a fork waits, for half a second at most.

    For calls into C that leave a lock behind in the child: glibc's ``getaddrinfo`` is one. It takes
    that lock again when a thread that called it ends, which before Python 3.13 may be after the
    thread was joined: 16 of 8,000 forks right after a join left a child that could not look up an
    address (glibc 2.36, three busy processes on two cores). So a fork waits for those, too.
    """
    return _gate.inside()


def _threads_there() -> Collection[int]:
    """The system's numbers of this process's threads, where it says them."""
    try:
        return {int(each) for each in os.listdir("/proc/self/task")}  # noqa: PTH208  # names alone
    except OSError:  # not Linux, or no /proc in this container: nothing to wait for
        return ()


# Two threads may fork at once: the second one waits until the first is through.
_one_fork = threading.RLock()


def _before() -> None:
    _one_fork.acquire()
    # Kept in a list, so that the very same objects are woken again.
    for forkable in list(_registered):
        if _quietly(forkable._before_fork):
            _resting.append(forkable)  # noqa: PERF401  # one by one: what rests is woken, whatever comes
    _quietly(_gate.close)


def _after_in_parent() -> None:
    try:
        _quietly(_gate.open)
        while _resting:
            _quietly(_resting.pop()._after_fork_in_parent)
    finally:
        _one_fork.release()


def _after_in_child() -> None:
    global _gate, _one_fork
    _one_fork, _gate = threading.RLock(), _Gate()
    for function in _in_child:
        _quietly(function)
    while _resting:
        _quietly(_resting.pop()._after_fork_in_child)


def _quietly(hook: Callable[[], None]) -> bool:
    """Call a hook; one that fails must not keep the others from running."""
    try:
        hook()
    except Exception:  # whatever it is: a fork can't be refused here
        _log.exception("A store was not ready for a fork; its state in the child is unknown.")
        return False
    return True


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
