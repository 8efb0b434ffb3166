"""What redis-py's connections learn from us: to be of use after a fork, and after a signal."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Dict, Iterable, Sequence

from .. import forking

__all__ = ["steady"]


@lru_cache(maxsize=None)
def steady(kind: Any, counts: bool) -> Any:
    """A class of connections that neither a fork nor a signal's handler brings out of step.

    *Forks.* It looks up its server's address while nobody forks. A child that was forked while
    another thread did so could hang in its own look-up for ever: glibc's ``getaddrinfo`` leaves a
    lock behind (4 of 500 forks beside threads that did nothing else, glibc 2.36), and so does the
    end of a thread that called it.

    *Signals.* It counts what it was asked and has not answered, on the safe side. Where a handler
    raises between a command and its reply redis-py puts the connection back into the pool, and the
    next caller may get that reply: another key's value. The pool asks each connection before it
    hands it out whether there is something to be read, and opens one anew where that raises.
    """
    from redis.exceptions import ConnectionError as NotConnectedError
    from redis.exceptions import ResponseError

    def connect(self: Any) -> Any:
        with forking.undivided():
            return kind._connect(self)

    def send_command(self: Any, *args: Any, **options: Any) -> Any:
        self.owed += 1
        return kind.send_command(self, *_without_numbers(args), **options)

    def pack_commands(self: Any, commands: Iterable[Any]) -> Any:
        commands = list(commands)
        self.owed += len(commands)
        return kind.pack_commands(self, commands)

    def read_response(self: Any, *args: Any, **options: Any) -> Any:
        try:
            reply = kind.read_response(self, *args, **options)
        except ResponseError:  # a reply as well
            self.owed = max(0, self.owed - 1)
            raise
        # Where a command connects anew by itself its reply is one that was not counted.
        self.owed = max(0, self.owed - 1)
        return reply

    def can_read(self: Any, *args: Any, **options: Any) -> Any:
        if self.owed:
            raise NotConnectedError("A reply was not read: it is another command's.")
        return kind.can_read(self, *args, **options)

    def disconnect(self: Any, *args: Any, **options: Any) -> None:
        kind.disconnect(self, *args, **options)
        self.owed = 0

    ours = (send_command, pack_commands, read_response, can_read, disconnect) if counts else ()
    members: Dict[str, Any] = {each.__name__: each for each in ours}
    members.update(_connect=connect, owed=0, steady=True, __doc__=kind.__doc__)
    return type(kind.__name__, (kind,), members)


# Commands of many words, which are bytes already: see layout.py.
_IN_BYTES = {"MGET", "MSET", "UNLINK"}


def _without_numbers(args: Sequence[Any]) -> Sequence[Any]:
    """The words of a command, numbers as bytes.

    hiredis 3.5 ends the process where a signal's handler raises while it writes a number.
    """
    if args[0] in _IN_BYTES:
        return args
    return [b"%d" % word if word.__class__ is int else word for word in args]
