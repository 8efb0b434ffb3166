"""Whether an exception is a signal's handler's, and not that of the code it came into.

Workers limit the time of a job so: a handler raises an exception of theirs, often a plain
``Exception``, wherever the program happens to be. Whoever catches "whatever a serializer raises"
there must not take it for a serializer's.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Optional, Set

__all__ = ["interruption", "let_through"]

# How far back an exception's causes are followed.
_CAUSES = 20


def interruption(error: Optional[BaseException]) -> Optional[BaseException]:
    """What a signal's handler raised, if `error` is that or came of it; else ``None``.

    An exception is a handler's if it was raised from the code of one that is in place now.
    """
    if threading.current_thread() is not threading.main_thread():
        return None  # handlers run there only
    codes = _handlers()
    for _ in range(_CAUSES if codes else 0):
        if error is None:
            break
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in codes:
                return error
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return None


def let_through(error: BaseException) -> None:
    """Raise what a signal's handler raised, if `error` is that or came of it."""
    came = interruption(error)
    if came is not None:
        raise came


def _handlers() -> Set[Any]:
    """The code of the handlers that are in place; those written in C have none."""
    import signal

    codes = set()
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        if callable(handler):  # not one of signal's own constants
            while isinstance(handler, functools.partial):
                handler = handler.func
            for each in (handler, getattr(type(handler), "__call__", None)):  # noqa: B004
                code = getattr(getattr(each, "__func__", each), "__code__", None)
                if code is not None:
                    codes.add(code)
    return codes
