"""What a signal's handler that raises does not break: a lock for a few steps, a thread's start."""

from __future__ import annotations

import _thread
import contextlib
import functools
import threading
import weakref
from typing import Any, Callable, TypeVar

from . import forking

__all__ = ["Guard", "let_go", "locked", "start"]

F = TypeVar("F", bound=Callable[..., Any])


def let_go(lock: Any) -> None:
    """Release a lock that an exception may have met just before it was taken, or just after."""
    with contextlib.suppress(RuntimeError):
        lock.release()


def start(function: Callable[[], None], name: str) -> None:
    """Run `function` in a daemon thread.

    `threading.Thread.start` waits until the thread runs. A signal's handler that raises meanwhile
    may leave it with an error of Python's own ("release unlocked lock"), in place of what the
    handler raised. So another thread starts it, where no handler runs.

    Raises:
        RuntimeError: The system has no more threads, or the interpreter ends.
    """

    def begin() -> None:
        try:
            threading.Thread(target=function, name=name, daemon=True).start()
        except RuntimeError:  # this was the last thread to be had, so it will do
            function()

    _thread.start_new_thread(begin, ())


def locked(method: F) -> F:
    """A method that holds its object's ``_mutex``, an RLock, and gives it back whatever is raised.

    For locks of an object's own; see `Guard` for why a ``with`` would not do.
    """

    @functools.wraps(method)
    def holding(self: Any, *args: Any) -> Any:
        lock = self._mutex
        try:
            lock.acquire()
            result = method(self, *args)
            lock.release()
        except BaseException:
            let_go(lock)
            raise
        return result

    return holding  # type: ignore[return-value]  # the signature is that of the method


class Guard:
    """Makes functions that run one at a time.

    A ``with`` would do, were it not for signals: before CPython 3.11 a handler may raise between
    the end of a block and the release of its lock. And a handler, or a ``__del__``, may come in the
    middle and need the same guard: so it is reentrant.

    Example:
        >>> guard = Guard()
        >>> @guard
        ... def add(item, to):
        ...     to.append(item)
    """

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()
        _guards.add(self)

    def __call__(self, function: F) -> F:
        """The same function, under this guard."""

        @functools.wraps(function)
        def guarded(*args: Any) -> Any:
            lock = self.lock
            try:
                lock.acquire()
                result = function(*args)
                lock.release()
            except BaseException:
                let_go(lock)
                raise
            return result

        return guarded  # type: ignore[return-value]  # the signature is that of the function


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _after_fork() -> None:
    # The thread that was inside at the fork is not in the child, to give the lock back.
    for guard in list(_guards):
        guard.lock = threading.RLock()


forking.after_in_child(_after_fork)
