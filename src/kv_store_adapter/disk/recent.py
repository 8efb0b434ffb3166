"""Values that were read lately, for as long as nobody else has written since."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
import time
from typing import Any, Callable, Dict, Optional, Tuple

from ..guard import locked
from ..interruption import let_through
from .watch import HEAD, Watch, only

__all__ = ["Place", "Recent"]

#: Namespace and key.
Place = Tuple[Optional[str], str]
#: An object for each stretch of time in which nobody else wrote, a state of the database in it, and
#: what tells it.
Now = Tuple[object, Optional[bytes], Optional[Watch]]

# What an entry takes besides key, namespace and value, in bytes.
_EACH = 200

# What is longer profits less, and would put out many others.
_LONGEST = 16 << 10

# How many reads make it worth a connection to watch with, and how many more after one that could
# not be had.
_WORTH, _PATIENCE = 100, 10_000

# What is read but never again costs a fifth of a get for nothing. So each value that is remembered
# costs one of so many, each hit earns some, and when all are gone nothing is done for a while.
_CREDIT, _EARNED, _SLEEP = 10_000, 2, 100_000

# Seconds that a fork waits for who looks or begins.
_LONGEST_REST = 2.0

_FOREVER = float("inf")


class Recent(Dict[Place, Tuple[bytes, float, object]]):
    """Serialised values by namespace and key, each with its deadline and its stretch of time.

    A stretch ends with the first look after somebody else has written: nothing is told, everything
    is looked at (see `Watch`). What this process writes under a single key changes that key only:
    it counts such writes, and where there were as many commits, nobody else wrote.

    Args:
        most: How many bytes to remember; 0: nothing.
        watch: Makes a `Watch`.

    Attributes:
        asleep: For how many reads it is not worth looking here.
        writing: The place that is being written to by a single statement, if one is: set before it
            begins, by who has the writers' turn.

    Notes:
        *Threads.* All may read and keep, and one of them write, at the same time. Who looks takes
        `_now` before anything else; who changes something does that first and `_now` last. What is
        only counted for thrift may be off by a little.
    """

    __slots__ = (
        *("_credit", "_make", "_most", "_mutex", "_now", "_own", "_pid", "_size", "_watch"),
        *("_resting", "_wished", "asleep", "writing"),
    )

    def __init__(self, most: int, watch: Callable[[], Watch]) -> None:
        super().__init__()
        self._most = most
        self._make = watch
        self._mutex = threading.RLock()
        self._watch: Optional[Watch] = None
        self._resting = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._now: Now = (object(), None, None)
        self.clear()
        # How many commits of ours there were since the state in `_now`.
        self._own = 0
        self.writing: Optional[Place] = None
        self.asleep: int = 0 if self._most else sys.maxsize
        self._credit = _CREDIT
        self._size = 0
        self._wished = 0

    def recall(self, place: Place) -> Optional[bytes]:
        """The value that is stored under `place`, if it is remembered."""
        era, state, watch = self._now
        entry = self.get(place)
        if entry is None or entry[2] is not era or watch is None or watch.pid != os.getpid():
            return None
        try:
            if os.pread(watch.file, HEAD, 0) != state:
                now = self._follow(watch)
                entry = self.get(place)
                if now is None or entry is None or entry[2] is not now[0]:
                    return None
        except OSError as error:  # it was closed just now
            let_through(error)
            return None
        # The descriptor's number may have become another one's: two empty logs look the same.
        if watch is not self._watch or entry[1] <= time.time() * 1000:
            return None
        self._credit += _EARNED
        return entry[0]

    @locked
    def _follow(self, watch: Watch) -> Optional[Now]:
        """The state has changed: was that us? What holds now; ``None``: it can't be told yet."""
        state = watch.state()
        # In this order: a commit that shows in the state is counted already, or `writing`.
        if state is None or self.writing is not None or watch is not self._watch:
            return None
        era, before, _ = self._now
        if before is None or not only(self._own, before, state):
            era = object()
        self._now = now = (era, state, watch)
        self._own = 0
        return now

    def look(self) -> Optional[Tuple[Now, int]]:
        """What holds now, to be asked for before reading what shall be kept; ``None``: don't."""
        watch = self._watch
        if watch is None:
            self._wished += 1
            if self._wished <= _WORTH:
                return None
            watch = self._begin()
        # What came through a fork that Python was not told of may be locked for ever.
        if watch is None or watch.pid != os.getpid():
            return None
        self._credit -= 1
        if self._credit < 0:
            self._credit, self.asleep = _CREDIT, _SLEEP
            self.clear()
            self._size = 0
            return None
        now: Optional[Now] = self._now
        own = self._own
        if now is not None and now[1] != watch.state():
            now = self._follow(watch)
            own = self._own
        return None if now is None else (now, own)

    @locked
    def keep(self, place: Place, row: Tuple[Any, ...], seen: Tuple[Now, int]) -> None:
        """Remember a row's value and expiry, which were read after `seen` was looked up."""
        value, expires = row[0], row[1]
        now, own = seen
        self._credit = min(self._credit, _CREDIT)
        # Else something was written meanwhile, and what was read may be older. What is being
        # written just now is taken out again by `wrote`.
        if len(value) > _LONGEST or self._now is not now or self._own != own:
            return
        size = _weight(place, value)
        self._size += size
        if self._size > self._most:
            # All of it: what is in use is soon back.
            self.clear()
            self._size = size
        self[place] = (value, _FOREVER if expires is None else expires, now[0])
        # A signal's handler, or a value that died just now, may have written in between.
        if self._now is not now or self._own != own:
            self.pop(place, None)

    @locked
    def wrote(self, place: Place) -> None:
        """One commit of this process has changed what is under `place`, which is `writing`."""
        gone = self.pop(place, None)
        if gone is not None:
            self._size -= _weight(place, gone[0])
        if self.writing is place:  # else all was forgotten meanwhile
            self._own += 1
            self.writing = None

    def _begin(self) -> Optional[Watch]:
        return None if self._pid != os.getpid() else self._begin_to_watch()

    @locked
    def _begin_to_watch(self) -> Optional[Watch]:
        if self._watch is None:
            self._wished = -_PATIENCE
            # Busy, another file system or format, no descriptors left: whatever it is, the read
            # itself goes on without.
            with contextlib.suppress(sqlite3.Error, OSError, UnicodeDecodeError):
                self._watch = self._make()
                self._wished = 0
        return self._watch

    def forget(self) -> None:
        """Close the watch and forget all; what is read later begins anew."""
        if self._pid == os.getpid():  # else another process's, whose lock may never be given back
            self._forget()

    @locked
    def _forget(self) -> None:
        # The same, unless a signal's handler came in the middle of this.
        watches = self._watch, self._now[2]
        self._watch = None
        self._begin_anew()
        for watch in watches:
            if watch is not None:
                with contextlib.suppress(sqlite3.Error):
                    watch.close()

    # ------------------------------------------------------------------ fork

    def rest(self) -> None:
        """Forget all, and begin nothing until `wake` is called on the same thread."""
        # Who has the lock may be in a signal's handler that waits for this fork. Then the watch
        # goes through the fork, and the child can't use the file.
        self._resting = self._mutex.acquire(timeout=_LONGEST_REST)
        if self._resting:
            self.forget()

    def wake(self) -> None:
        """Go on, after `rest`."""
        if self._resting:
            self._resting = False
            self._mutex.release()

    def orphan(self) -> Optional[Watch]:
        """In the child: start afresh. The watch that came through the fork, not closed."""
        self._mutex = threading.RLock()
        self._resting = False
        inherited, self._watch = self._watch or self._now[2], None
        self._begin_anew()
        return inherited


def _weight(place: Place, value: bytes) -> int:
    namespace, key = place
    size = _EACH + len(value) + sys.getsizeof(key)
    return size if namespace is None else size + sys.getsizeof(namespace)
