"""Connections to one SQLite database: a bounded pool, bounded waiting, one seam for errors."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import threading
import time
import weakref
from collections import deque
from functools import lru_cache
from typing import Any, Callable, Deque, List, Optional, Sequence, Tuple, TypeVar

from .. import forking
from ..exceptions import StoreClosedError, StoreUnavailableError
from ..guard import let_go, start
from .folder import RESERVE, SPARE

__all__ = ["Database", "is_busy", "is_full"]

T = TypeVar("T")
Row = Tuple[Any, ...]

# How long to sleep while another process writes, in seconds: from, to. SQLite's own busy handler
# starts at 1 ms and goes to 100: too coarse for writes of 15 microseconds.
_FIRST_NAP, _LONGEST_NAP = 0.0002, 0.005

# The pages that a connection remembers, in KiB: the pool's first, which is used most, because the
# last given back is the first taken; those beside it; and one that only moves them. SQLite's 2,000 are less than a few
# thousand entries of 1 KiB, and then every get reads from the file again.
_FIRST_PAGES, _MORE_PAGES, _NO_PAGES = 32_000, 8_000, 100

# After about so many pages that this process wrote to the log, a thread moves them into the database.
_MOVED_AT = 1000

# How long a thread that waits for a connection sleeps before it counts again, in seconds.
_LOOK_AGAIN = 0.1

# What came through a fork. It is never closed: that would act on the parent's files. Kept here, so
# that the garbage collector does not close it either.
_inherited: List[Any] = []


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


@lru_cache(maxsize=None)
def _speaks_json() -> bool:
    """Whether this SQLite can answer in JSON: before 3.38 it may have been built without."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute("SELECT json_group_array(1)")
        except sqlite3.OperationalError:
            return False
    return True


class Database(forking.Forkable):
    """A SQLite database, used from many threads and processes.

    Args:
        path: The database file.
        prepare: Called once with each new connection.
        timeout: Seconds to wait for another process, or for a free connection, before giving up.
        connections: How many connections this process opens at most.

    Notes:
        *Threads.* A connection serves one thread at a time; the last one used is used next.
        Writers of one process queue at a lock, which is fairer and faster than SQLite's polling.
        A connection is passed around as its one cursor: making one anew costs an eighth of a get.

        *The log.* What is written comes into SQLite's log first. A thread moves it into the database
        (a checkpoint) while others go on writing; it starts when there is something to move, and
        ends when that is done. Where it falls behind, SQLite does it within a write.

        *Signals.* A handler may raise anywhere, also between taking something and the `try` that
        gives it back. The pool holds what is out weakly: a connection that is lost so is closed
        by the garbage collector, and its place is free.

        *Forks.* Before a fork idle connections are closed and those in use awaited: SQLite's
        bookkeeping of file locks must not be inherited. Whatever comes through is set aside.
    """

    def __init__(
        self,
        path: str,
        prepare: Callable[[sqlite3.Connection], None],
        *,
        timeout: float,
        connections: int = 8,
    ) -> None:
        self.path = path
        self.timeout = timeout
        self._prepare = prepare
        self._most = connections
        self._closed = False
        self._forking = False
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
        self._turn = _Turn(self.path, self.timeout)
        self._unmoved = 0
        # Held by the thread that moves the log.
        self._moving = threading.Lock()

    # ------------------------------------------------------------------ what the store calls

    def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> List[Row]:
        """Run a reading statement and return its rows."""
        return self.read(lambda connection: connection.execute(sql, parameters).fetchall())

    def fetch_texts(self, column: str, rest: str, parameters: Sequence[Any] = ()) -> List[str]:
        """Run ``SELECT column rest``, where that column is text, and return all of it.

        Asked for as one text in JSON: row by row, Python goes back and forth between itself and
        SQLite, and 100,000 keys take two to three times as long.
        """
        if _speaks_json():
            try:
                row = self.fetch_one(f"SELECT json_group_array({column}) {rest}", parameters)
            except StoreUnavailableError as error:
                # More than the gigabyte that SQLite takes for one text; or damage, and the message
                # would quote all of it.
                cause = error.__cause__
                if not isinstance(cause, sqlite3.DataError) and "decode" not in str(cause):
                    raise
            else:
                texts: List[str] = json.loads(row[0]) if row else []
                return texts
        return [text for (text,) in self.fetch(f"SELECT {column} {rest}", parameters)]

    def fetch_one(self, sql: str, parameters: Sequence[Any] = ()) -> Optional[Row]:
        """Run a reading statement and return its first row."""
        cursor = self._take()
        try:
            # The whole of a hit on disk: no closure, no loop unless there is trouble. All rows, so
            # that nothing of the statement stays open.
            rows: List[Row] = cursor.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            if not is_busy(error):
                raise self._broken(cursor, error) from error
        except UnicodeDecodeError as error:
            damage = _garbled(error)
            raise self._broken(cursor, damage) from damage
        except BaseException:
            # A signal's, and the statement may stand between two rows.
            self._drop(cursor)
            raise
        else:
            self._idle.append(cursor)
            if self._waiting or self._closed:
                self._wanted()
            return rows[0] if rows else None
        self._give(cursor)
        rows = self.fetch(sql, parameters)
        return rows[0] if rows else None

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a connection, again while another process is in the way."""
        return self._run(work, "read")

    def write(self, sql: str, parameters: Sequence[Any] = (), size: int = 0) -> Tuple[int, int]:
        """Run one writing statement: how many rows it changed, and how many with its triggers.

        `size` is how many bytes of values it writes, about.
        """
        turn = self._turn
        try:
            try:
                if not turn.lock.acquire(blocking=False):
                    turn.wait()
                # The whole of a set, as `fetch_one` is of a get.
                cursor = self._take()
                try:
                    connection = cursor.connection
                    before = connection.total_changes
                    rows = cursor.execute(sql, parameters).rowcount
                    self._wrote(rows, size)
                    return rows, connection.total_changes - before
                except (sqlite3.Error, UnicodeDecodeError, OverflowError):
                    pass  # nothing was done, so it is done again where there is patience
                finally:
                    # As `_give` does; one statement by itself leaves no transaction open.
                    self._idle.append(cursor)
                    if self._waiting or self._closed:
                        self._wanted()

                def work(connection: sqlite3.Connection) -> Tuple[int, int]:
                    before = connection.total_changes
                    rows = connection.execute(sql, parameters).rowcount
                    self._wrote(rows, size)
                    return rows, connection.total_changes - before

                return self._run(work, "written")
            finally:
                try:
                    turn.lock.release()
                except RuntimeError:
                    pass  # it was not taken
        except BaseException:
            turn.is_over()
            raise

    def transaction(self, work: Callable[[sqlite3.Connection], T], size: int = 0) -> T:
        """Run `work` as one transaction that writes; all of it happens, or nothing.

        `size` is how many bytes of values it writes, about.
        """

        def whole(connection: sqlite3.Connection) -> T:
            before = connection.total_changes
            # IMMEDIATE: the only wait is here, before anything was done.
            try:
                connection.execute("BEGIN IMMEDIATE")
                result = work(connection)
                connection.execute("COMMIT")
                self._wrote(connection.total_changes - before, size)
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        turn = self._turn
        try:
            try:
                if not turn.lock.acquire(blocking=False):
                    turn.wait()
                return self._run(whole, "written")
            finally:
                turn.is_over()
        except BaseException:
            turn.is_over()
            raise

    def rest(self) -> None:
        """Close what is idle; the next operation opens anew."""
        self._await_move()
        self._close_idle()

    def close(self) -> None:
        """Close what is idle now and the rest when it comes back. Twice is fine."""
        with self._mutex:
            self._closed = True
            self._changed.notify_all()
        self._close_idle()
        self._await_move()

    # ------------------------------------------------------------------ the log

    def _wrote(self, rows: int, size: int) -> None:
        """Count about how many pages went into the log; enough of them are moved on."""
        # An entry is on two pages, its own and its key's, and the trees above them change.
        self._unmoved += 3 + rows + size // 4096
        if self._unmoved >= _MOVED_AT:
            self._unmoved = 0
            if not self._moving.locked():
                # Where no thread is to be had SQLite does it itself, when the log has grown.
                with contextlib.suppress(RuntimeError):
                    start(self._move)

    def _move(self) -> None:
        """What the thread does."""
        moving = self._moving
        if moving.acquire(blocking=False):
            try:
                # Whatever it is: nobody waits for it, and those who write will see it, too.
                with contextlib.suppress(Exception):
                    self._checkpoint()
            finally:
                let_go(moving)

    def _checkpoint(self) -> None:
        place = _Place()
        with self._mutex:
            if self._closed or self._forking:
                return
            self._open.add(place)
        # One of its own: those of the pool are in use, or remember pages for those who read.
        cursor = self._opened(place, _NO_PAGES)
        try:
            cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            self._drop(cursor)

    def _await_move(self) -> None:
        moving = self._moving
        try:
            if moving.acquire(timeout=self.timeout):
                moving.release()
        except BaseException:
            let_go(moving)
            raise

    # ------------------------------------------------------------------ waiting, bounded

    def _run(self, work: Callable[[sqlite3.Connection], T], verb: str) -> T:
        deadline = 0.0
        nap = _FIRST_NAP
        cursor: Optional[sqlite3.Cursor] = self._take()
        try:
            while cursor is not None:
                try:
                    return work(cursor.connection)
                except sqlite3.IntegrityError as error:
                    # The statement was refused, the connection is as good as before.
                    raise self._unavailable(error) from error
                except OverflowError as error:  # a value of 2 GiB or more
                    raise StoreUnavailableError(
                        f"{self.path} takes no value of that size ({error}). Nothing was changed."
                    ) from error
                except UnicodeDecodeError as error:
                    damage = _garbled(error)
                    lost, cursor = cursor, None
                    raise self._broken(lost, damage) from damage
                except sqlite3.Error as error:
                    if not is_busy(error):
                        lost, cursor = cursor, None
                        raise self._broken(lost, error) from error
                    now = time.monotonic()
                    deadline = deadline or now + self.timeout
                    if now >= deadline:
                        raise self._kept_busy(verb) from error
                # At random, so that those who wait do not meet again at each look.
                time.sleep(nap * (0.5 + random.random()))
                nap = min(nap * 1.5, _LONGEST_NAP)
            raise AssertionError("unreachable: without a connection an error was raised")
        finally:
            # Also when a signal's handler raised while this thread slept.
            if cursor is not None:
                self._give(cursor)

    def _kept_busy(self, verb: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self.path} could not be {verb}: other processes kept it busy for the whole "
            f"{self.timeout:g} s that were allowed. Nothing was changed by this call. Look for a "
            "process that hangs while it writes, or raise timeout=."
        )

    # ------------------------------------------------------------------ the pool

    def _take(self) -> sqlite3.Cursor:
        if self._pid != os.getpid():
            # A fork that went past the hooks (os.fork called from C).
            self._after_fork_in_child()
        try:
            return self._idle.pop()
        except IndexError:
            return self._take_slowly()

    def _take_slowly(self) -> sqlite3.Cursor:
        deadline = time.monotonic() + self.timeout
        place = _Place()
        with self._mutex:
            self._waiting += 1
            try:
                while True:
                    if self._closed:
                        raise StoreClosedError(
                            f"The store on {self.path} is closed. Make a new one."
                        )
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
        return self._opened(place, pages)

    def _opened(self, place: _Place, pages: int) -> sqlite3.Cursor:
        """A new connection, in the place that is kept for it."""
        try:
            cursor = self._connect(pages).cursor()
            self._open.add(cursor)
        finally:
            self._leave(place)
        return cursor

    def _connect(self, pages: int) -> sqlite3.Connection:
        connection = None
        made_room = False
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
                    time.sleep(_LONGEST_NAP * random.random())  # others look at other times
                else:
                    connection.execute(f"PRAGMA cache_size=-{pages}")
                    return connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, UnicodeDecodeError):
                error = _garbled(error)
            if isinstance(error, sqlite3.Error):
                raise self._unavailable(error) from error
            raise

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
        while True:
            try:
                cursor = self._idle.pop()
            except IndexError:
                return
            self._drop(cursor)

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
        deadline = time.monotonic() + 2.0
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
            # A thread that forks while it uses a connection itself would wait for ever: what is
            # still out then is set aside in the child.
            if not self._open or left <= 0:
                # Held, because a child of CPython 3.8 drops the other threads' frames.
                self._in_use = list(self._open)
                return
            self._waiting += 1
            self._changed.wait(min(left, 0.05))
            self._waiting -= 1

    def _after_fork_in_parent(self) -> None:
        self._forking = False
        self._in_use = []
        self._changed.notify_all()
        self._changed.release()

    def _after_fork_in_child(self) -> None:
        _inherited.extend((*self._idle, *self._open, *self._in_use))
        self._forking = False
        self._new_state()


def _garbled(error: UnicodeDecodeError) -> sqlite3.DatabaseError:
    """What sqlite3 should have raised where its message quotes damaged text."""
    return sqlite3.DatabaseError(f"the schema is malformed: {error}")


class _Turn:
    """The writers' lock of one process, with a bounded wait.

    A signal's handler may raise right after `lock` was taken, so it is taken inside of the `try`
    whose `finally` gives it back. Before CPython 3.11 it may also raise in that `finally`, so what
    is around it gives it back again. An RLock knows whether it is this thread's.
    """

    __slots__ = ("_path", "_timeout", "lock")

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self.lock = threading.RLock()

    def wait(self) -> None:
        if not self.lock.acquire(timeout=self._timeout):
            raise StoreUnavailableError(
                f"Other threads wrote to {self._path} for the whole {self._timeout:g} s that were "
                "allowed. Nothing was changed by this call."
            )

    def is_over(self) -> None:
        """Give the lock back, if this thread has it."""
        with contextlib.suppress(RuntimeError):
            self.lock.release()
