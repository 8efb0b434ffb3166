"""Whether an exception is a signal's handler's, and not that of the code it came into.

Workers limit the time of a job so: a handler raises an exception of theirs, often a plain
``Exception``, wherever the program happens to be. Whoever catches "whatever a serializer raises"
there must not take it for a serializer's.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # see _handlers()
import functools
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, List, Optional, Set

__all__ = ["causes", "interruption", "let_through"]

# How far back an exception's causes are followed.
_CAUSES = 20


def causes(error: BaseException) -> List[BaseException]:
    """The exception, and those that led to it within this call.

    Python also links what a caller of ours is handling, having caught it before he called. That
    has nothing to do with us. It is told by where it was caught: in a frame that is still running.
    """
    found = [error]
    running: Set[FrameType] = set()
    one = trace = frame = caught_in = None
    try:
        caught_in = None if error.__traceback__ is None else error.__traceback__.tb_frame
        frame = sys._getframe().f_back
        while frame is not None:
            if frame is not caught_in:
                running.add(frame)
            frame = frame.f_back
        one = error.__cause__ or error.__context__
        while one is not None and len(found) < _CAUSES:
            trace = one.__traceback__
            if trace is None or trace.tb_frame in running:
                break
            found.append(one)
            one = one.__cause__ or one.__context__
        return found
    finally:
        # This frame must not hold frames that hold what holds it.
        running.clear()
        del error, one, trace, frame, caught_in


def interruption(error: BaseException) -> Optional[BaseException]:
    """What a signal's handler raised, if `error` is that or came of it; else ``None``.

    An exception is a handler's if it passed through the code of one that is in place now, called
    as handlers are, with a frame. The caller has just caught `error`.
    """
    if threading.current_thread() is not threading.main_thread():
        return None  # handlers run there only
    codes = _handlers()
    if codes:
        for one in causes(error):
            if _came_through(one.__traceback__, codes):
                return one
    return None


def _came_through(trace: Optional[TracebackType], codes: Set[Any]) -> bool:
    while trace is not None:
        if trace.tb_frame.f_code in codes and _was_given_a_frame(trace.tb_frame):
            return True
        trace = trace.tb_next
    return False


def let_through(error: BaseException) -> None:
    """Raise what a signal's handler raised, if `error` is that or came of it."""
    came = interruption(error)
    if came is not None:
        try:
            raise came
        finally:
            del came, error  # their traceback holds this frame


def _handlers() -> Set[Any]:
    """The code of the handlers that are in place; those written in C have none."""
    codes = set()
    # Not signal's own functions, which make an enum of every number: this is asked for every
    # exception that a cached function raises.
    for number in range(1, _signal.NSIG):
        try:
            handler: Any = _signal.getsignal(number)
        except ValueError:
            continue  # a number that this system does not have
        if callable(handler):  # not ignored, and not left to the system
            while isinstance(handler, functools.partial):
                handler = handler.func
            # Its code is wanted, not whether it is callable.
            for each in (handler, getattr(type(handler), "__call__", None)):  # noqa: B004
                code = getattr(getattr(each, "__func__", each), "__code__", None)
                if code is not None:
                    codes.add(code)
    return codes


def _was_given_a_frame(frame: FrameType) -> bool:
    """Whether a function was called as a handler is: one decorator may wrap handlers and others."""
    for value in list(frame.f_locals.values()):
        if isinstance(value, FrameType):
            return True
        if type(value) is tuple and any(isinstance(each, FrameType) for each in value):
            return True
    return False
