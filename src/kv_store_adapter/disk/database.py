"""One SQLite database: reading, writing, and waiting for others who do, within bounds."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import threading
import time
from functools import lru_cache
from typing import Any, Callable, List, Optional, Sequence, Tuple, TypeVar

from ..exceptions import StoreUnavailableError
from ..guard import let_go
from .pool import LONGEST_NAP, Pool, garbled, is_busy
from .recent import Place
from .writeback import Writeback

__all__ = ["Database"]

T = TypeVar("T")
Row = Tuple[Any, ...]

# How long to sleep at first while another process writes, in seconds. SQLite's own busy handler
# starts at 1 ms and goes to 100: too coarse for writes of 15 microseconds.
_FIRST_NAP = 0.0002


@lru_cache(maxsize=None)
def _speaks_json() -> bool:
    """Whether this SQLite can answer in JSON: before 3.38 it may have been built without."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute("SELECT json_group_array(1)")
        except sqlite3.OperationalError:
            return False
    return True


class Database(Pool):
    """A SQLite database, used from many threads and processes. Its connections are a `Pool`.

    Writers of one process queue at a lock, which is fairer and faster than SQLite's polling.

    Attributes:
        writeback: To be told of what was written.
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
        super().__init__(path, prepare, timeout=timeout, remember=remember, connections=connections)
        self.writeback = Writeback(path)

    def _new_state(self) -> None:
        super()._new_state()
        self._turn = _Turn(self.path, self.timeout)

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
            damage = garbled(error)
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

    def write(
        self, sql: str, parameters: Sequence[Any] = (), place: Optional[Place] = None
    ) -> Tuple[int, int]:
        """Run one writing statement: how many rows it changed, and how many with its triggers.

        `place` tells that it changes this entry and no other one, so that others stay remembered;
        it may count no row that is as it was, because that commits nothing.
        """
        turn, recent = self._turn, self.recent
        told: Optional[Place] = None
        try:
            try:
                if not turn.lock.acquire(blocking=False):
                    turn.wait()
                # The whole of a set, as `fetch_one` is of a get.
                cursor = self._take()
                # One at a time: a signal's handler may write in the middle of another write.
                if recent and recent.writing is None:
                    told = place
                try:
                    connection = cursor.connection
                    before = connection.total_changes
                    if told is not None:
                        recent.writing = told
                    rows = cursor.execute(sql, parameters).rowcount
                    if rows > 0 and told is not None:
                        recent.wrote(told)
                    return rows, connection.total_changes - before
                except (sqlite3.Error, UnicodeDecodeError, OverflowError):
                    pass  # nothing was done, so it is done again where there is patience
                finally:
                    if told is not None:
                        recent.writing = None
                    # As `_give` does; one statement by itself leaves no transaction open.
                    self._idle.append(cursor)
                    if self._waiting or self._closed:
                        self._wanted()

                def work(connection: sqlite3.Connection) -> Tuple[int, int]:
                    before = connection.total_changes
                    rows = connection.execute(sql, parameters).rowcount
                    return rows, connection.total_changes - before

                return self._run(work, "written")
            finally:
                try:
                    turn.lock.release()
                except RuntimeError:
                    pass  # it was not taken
        except BaseException:
            if told is not None:
                recent.writing = None
            turn.is_over()
            raise

    def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` as one transaction that writes; all of it happens, or nothing."""

        def whole(connection: sqlite3.Connection) -> T:
            # IMMEDIATE: the only wait is here, before anything was done.
            try:
                connection.execute("BEGIN IMMEDIATE")
                result = work(connection)
                connection.execute("COMMIT")
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

    def empty_log(self) -> None:
        """Move all of the log into the database and cut it short, if there is room for that."""

        def truncate(connection: sqlite3.Connection) -> None:
            # Where it does not fit, what was freed serves the operation itself. Another process
            # may be moving it just now.
            with contextlib.suppress(sqlite3.Error):
                for _ in range(20):
                    row = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    if not row[0]:
                        return
                    time.sleep(LONGEST_NAP)

        self.read(truncate)

    def rest(self) -> None:
        """Close what is idle; the next operation opens anew."""
        self._close_idle()

    def close(self) -> None:
        """Close what is idle now and the rest when it comes back. Twice is fine."""
        with self._mutex:
            self._closed = True
            self._changed.notify_all()
        self._close_idle()

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
                    damage = garbled(error)
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
                nap = min(nap * 1.5, LONGEST_NAP)
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
        if not self.lock.acquire(timeout=min(self._timeout, threading.TIMEOUT_MAX)):
            raise StoreUnavailableError(
                f"Other threads wrote to {self._path} for the whole {self._timeout:g} s that were "
                "allowed. Nothing was changed by this call."
            )

    def is_over(self) -> None:
        """Give the lock back, if this thread has it."""
        let_go(self.lock)
