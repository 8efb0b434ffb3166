"""The connections of one process to one SQLite database: bounded, and never through a fork."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
import weakref
from collections import deque
from typing import Any, Callable, Deque, List, Optional, Set, Tuple

from .. import forking
from ..exceptions import StoreClosedError, StoreUnavailableError
from .folder import RESERVE, SPARE
from .recent import Recent
from .watch import Watch, sweep

__all__ = ["LONGEST_NAP", "Pool", "garbled", "is_busy", "is_full"]

# How long to sleep at most while another process is in the way, in seconds.
LONGEST_NAP = 0.005

# The pages that a connection remembers, in KiB: the pool's first, which is used most, because the
# last given back is the first taken; and those beside it. SQLite's 2,000 are less than a few
# thousand entries of 1 KiB, and then every get reads from the file again.
_FIRST_PAGES, _MORE_PAGES = 32_000, 8_000

# How long a thread that waits for a connection sleeps before it counts again, in seconds.
_LOOK_AGAIN = 0.1

# What came through a fork. It is never closed: that would act on the parent's files. Kept here, so
# that the garbage collector does not close it either.
_inherited: List[Any] = []

# The files, by device and inode, that SQLite had open when this process was forked. It takes them
# for locked by itself, which they are not: another process may take the log away in the middle.
_unusable: Set[Optional[Tuple[int, int]]] = set()

# Seconds that a fork waits for connections that are in use.
_PATIENCE = 2.0


class _Place:
    """The place in the pool of a connection that is being opened."""


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection was in the way, so that trying again makes sense."""
    text = str(error)
    return isinstance(error, sqlite3.OperationalError) and ("locked" in text or "busy" in text)


def is_full(error: Optional[BaseException]) -> bool:
    """Whether the disk was full, or the file as large as this process may make it."""
    # "disk I/O error" is what SQLite says of the latter.
    text = str(error)
    return isinstance(error, sqlite3.OperationalError) and ("full" in text or "I/O" in text)


class Pool(forking.Forkable):
    """A pool of connections, for many threads.

    Args:
        path: The database file.
        prepare: Called once with each new connection.
        timeout: Seconds to wait for a free connection, or to open one, before giving up.
        remember: How many bytes of values `recent` may hold.
        connections: How many connections this process opens at most.

    Attributes:
        recent: What was read lately. It is forgotten when connections are closed.

    Notes:
        *Threads.* A connection serves one thread at a time; the last one used is used next. It is
        passed around as its one cursor: making one anew costs an eighth of a get.

        *Signals.* A handler may raise anywhere, also between taking something and the `try` that
        gives it back. The pool holds what is out weakly: a connection that is lost so is closed
        by the garbage collector, and its place is free.

        *Forks.* Before a fork idle connections are closed and those in use awaited: SQLite's
        bookkeeping of file locks must not be inherited. Where something comes through all the same,
        because it was in use for too long or Python was not told of the fork, the child can't use
        this file.
    """

    def __init__(
        self,
        path: str,
        prepare: Callable[[sqlite3.Connection], None],
        *,
        timeout: float,
        remember: int = 0,
        connections: int = 8,
    ) -> None:
        self.path = path
        self.timeout = timeout
        self._prepare = prepare
        self._most = connections
        self._closed = False
        self._forking = False
        # The file that is open; `None` where it is not always the same.
        self._inode: Optional[Tuple[int, int]] = None
        # Weakly: a store that nobody uses any more is closed at once, not by the garbage collector.
        pool = weakref.ref(self)
        self.recent = Recent(remember, lambda: _watch_for(pool()))
        self._new_state()
        forking.register(self)

    def _new_state(self) -> None:
        self._pid = os.getpid()
        self._idle: Deque[sqlite3.Cursor] = deque()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._in_use: List[Any] = []
        self._waiting = 0
        # Its own lock is entered in C, at once with the `with` that leaves it.
        self._mutex = threading.RLock()
        self._changed = threading.Condition(self._mutex)

    # ------------------------------------------------------------------ taking and giving

    def _take(self) -> sqlite3.Cursor:
        if self._pid != os.getpid():
            # A fork that went past the hooks (os.fork called from C).
            self._after_fork_in_child()
        try:
            return self._idle.pop()
        except IndexError:
            return self._take_slowly()

    def refuse_if_closed(self) -> None:
        """Raise `StoreClosedError` where the store is closed: for what asks SQLite nothing."""
        if self._closed:
            raise StoreClosedError(f"The store on {self.path} is closed. Make a new one.")

    def _take_slowly(self) -> sqlite3.Cursor:
        if _unusable and _inode_of(self.path) in _unusable:
            raise StoreUnavailableError(
                f"This process was forked while {self.path} was open in SQLite, whose locks don't "
                "come through a fork: what is written here could be lost, so it is refused. Open "
                "the store after the fork only, fork before threads use it, or start processes "
                "with 'spawn'."
            )
        deadline = time.monotonic() + self.timeout
        place = _Place()
        with self._mutex:
            self._waiting += 1
            try:
                while True:
                    self.refuse_if_closed()
                    if not self._forking:
                        try:
                            return self._idle.pop()
                        except IndexError:
                            pass
                        if len(self._open) < self._most:
                            pages = _MORE_PAGES if self._open else _FIRST_PAGES
                            self._open.add(place)
                            break
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise StoreUnavailableError(
                            f"All {self._most} connections to {self.path} were in use for the "
                            f"whole {self.timeout:g} s that were allowed."
                        )
                    # In steps: nobody tells of a place that the garbage collector made free.
                    self._changed.wait(min(left, _LOOK_AGAIN))
            finally:
                self._waiting -= 1
        try:
            cursor = self._connect(pages).cursor()
            self._open.add(cursor)
        finally:
            self._leave(place)
        return cursor

    def _connect(self, pages: int) -> sqlite3.Connection:
        connection = None
        made_room = False
        inode = _inode_of(self.path)
        try:
            # timeout=0: the waiting is done here, in finer steps. One thread at a time uses a
            # connection, but not always the same one.
            connection = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False
            )
            deadline = time.monotonic() + self.timeout
            while True:
                try:
                    self._prepare(connection)
                except sqlite3.OperationalError as error:
                    # "unable to open" is what SQLite says where inodes are used up.
                    if not made_room and (is_full(error) or "unable to open" in str(error)):
                        made_room = True
                        self._make_room()
                        continue
                    if not is_busy(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(LONGEST_NAP * random.random())  # others look at other times
                else:
                    connection.execute(f"PRAGMA cache_size=-{pages}")
                    self._opened(inode)
                    return connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, UnicodeDecodeError):
                error = garbled(error)
            if isinstance(error, sqlite3.Error):
                raise self._unavailable(error) from error
            raise

    def _opened(self, inode: Optional[Tuple[int, int]]) -> None:
        """A connection was opened while `inode` was what the path named."""
        if _inode_of(self.path) != inode:
            inode = None  # the folder was replaced just now: not all connections see the same
        elif self._inode is None:
            # Those that are only being opened will come by here as well.
            if not all(isinstance(place, _Place) for place in list(self._open)):
                inode = None
        elif self._inode != inode and len(self._open) > 1:
            inode = None
        if self._inode != inode:
            self._inode = inode
            self.recent.forget()

    def _make_room(self) -> None:
        # The files that SQLite needs besides the database find no room: the reserve's is theirs.
        for name in (RESERVE, SPARE):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(os.path.dirname(self.path), name))

    def _give(self, cursor: sqlite3.Cursor) -> None:
        connection = cursor.connection
        if connection.in_transaction:
            # An exception from outside (a signal's) came between BEGIN and its handler.
            connection.rollback()
        self._idle.append(cursor)
        if self._waiting or self._closed:
            self._wanted()

    def _wanted(self) -> None:
        """A connection came back that somebody waits for, or that is to be closed."""
        with self._mutex:
            self._changed.notify()
        if self._closed:
            self._close_idle()

    def _close_idle(self) -> None:
        self.recent.forget()
        while True:
            try:
                cursor = self._idle.pop()
            except IndexError:
                break
            self._drop(cursor)
        sweep()

    def _drop(self, cursor: sqlite3.Cursor) -> None:
        """Close a connection that was taken."""
        try:
            cursor.connection.close()
        finally:
            self._leave(cursor)

    def _leave(self, place: Any) -> None:
        with self._mutex:
            self._open.discard(place)
            self._changed.notify_all()

    def _broken(self, cursor: sqlite3.Cursor, error: sqlite3.Error) -> Exception:
        """After an error that waiting does not heal: a new connection for the next one."""
        self._drop(cursor)
        return self._unavailable(error)

    def damaged(self, what: str) -> StoreUnavailableError:
        """What to raise for damage that SQLite did not notice."""
        return self._unavailable(sqlite3.DatabaseError(f"the database is malformed: {what}"))

    def _unavailable(self, error: sqlite3.Error) -> StoreUnavailableError:
        text = str(error)
        if "full" in text:
            advice = "The disk is full; nothing was changed. Free some space."
        elif "readonly" in text:
            advice = "It is not writable. Look at the owner and the mode of the folder."
        elif "malformed" in text or "not a database" in text:
            advice = "The database is damaged: DiskKVStore.repair(path) keeps what can be read."
        elif "unable to open" in text:
            advice = "It can't be opened. Is the folder still there, and yours?"
        else:
            advice = "Look at the disk it is on."
        return StoreUnavailableError(f"{self.path} failed: {text}. {advice}")

    # ------------------------------------------------------------------ fork

    def _before_fork(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        self._changed.acquire()
        self._forking = True
        while True:
            while True:
                try:
                    # A reader may take the last one at this very moment.
                    idle = self._idle.pop()
                except IndexError:
                    break
                self._drop(idle)
            left = deadline - time.monotonic()
            # A thread that forks while it uses a connection itself would wait for ever.
            if not self._open or left <= 0:
                # Held, because a child of CPython 3.8 drops the other threads' frames.
                self._in_use = list(self._open)
                # Not before: who writes wants to tell it so while he has a connection.
                self.recent.rest()
                return
            self._waiting += 1
            self._changed.wait(min(left, 0.05))
            self._waiting -= 1

    def _after_fork_in_parent(self) -> None:
        self._forking = False
        self.recent.wake()
        self._in_use = []
        self._changed.notify_all()
        self._changed.release()

    def _after_fork_in_child(self) -> None:
        self._inode = None
        watch = self.recent.orphan()
        inherited = (*self._idle, *self._open, *self._in_use, *([] if watch is None else [watch]))
        if inherited:
            _inherited.extend(inherited)
            _unusable.add(_inode_of(self.path))
            _unusable.discard(None)
        self._forking = False
        self._new_state()


def _watch_for(pool: Optional[Pool]) -> Watch:
    if pool is None or pool._closed or pool._inode is None or not hasattr(os, "pread"):
        raise OSError("there is nothing to watch")
    return Watch(pool.path, pool._inode)


def _inode_of(path: str) -> Optional[Tuple[int, int]]:
    try:
        about = os.stat(path)
    except OSError:  # not there: what will be is another one
        return None
    return about.st_dev, about.st_ino


def garbled(error: UnicodeDecodeError) -> sqlite3.DatabaseError:
    """What sqlite3 should have raised where its message quotes damaged text."""
    return sqlite3.DatabaseError(f"the schema is malformed: {error}")
