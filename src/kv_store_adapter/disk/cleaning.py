"""What a disk store does besides answering: expired entries, dead files, and a size limit."""

from __future__ import annotations

import sqlite3
import time
from typing import Any, Callable, Optional, Sequence, Tuple, TypeVar

from ..exceptions import StoreClosedError, StoreUnavailableError
from .clock import time_ms
from .database import Database
from .folder import Folder
from .pool import is_full
from .recent import Place
from .space import Reserve
from .statements import DUE

__all__ = ["Cleaner"]

T = TypeVar("T")

# Every so many writes of this process it deletes some of what has expired: several for each write,
# so that cleaning outruns writing, and few enough that no write is held up.
_EVERY, _AT_ONCE = 16, 100

# The blocks whose times came first: together they are likely to have a hundred such entries.
_BLOCKS = "SELECT id FROM blocks WHERE earliest <= ? ORDER BY earliest LIMIT 16"
_IN_BLOCK = "entries.id BETWEEN blocks.id << 6 AND (blocks.id << 6) + 63"
_DELETE_EXPIRED = (
    f"DELETE FROM entries WHERE id IN (SELECT entries.id FROM ({_BLOCKS}) AS blocks "
    f"CROSS JOIN entries ON {_IN_BLOCK} WHERE expires <= ? LIMIT {_AT_ONCE})"
)
_EARLIEST = f"SELECT min(expires) FROM entries WHERE {_IN_BLOCK}"
_DROP_BLOCKS = f"DELETE FROM blocks WHERE id IN ({_BLOCKS}) AND ({_EARLIEST}) IS NULL"
# In place of those that were dropped others count among the first now, which may be empty, too.
_RENEW_BLOCKS = (
    f"UPDATE blocks SET earliest = ({_EARLIEST}) "
    f"WHERE id IN ({_BLOCKS}) AND ({_EARLIEST}) IS NOT NULL"
)

# How many rows of a cleared namespace one transaction deletes: a few milliseconds' worth.
_CLEARED_AT_ONCE = 500

# How many files one statement takes off the list. SQLite before 3.32 takes 999 parameters.
_MOST_FILES = 900

# After so many milliseconds a value file that no entry names belongs to a writer that died, and a
# cleared namespace that is still there to a process that died while clearing.
_GRACE = 10 * 60 * 1000


class Cleaner:
    """The upkeep of one store. What fails here is tried again later, and fails nobody's write."""

    def __init__(self, database: Database, folder: Folder, size_limit: Optional[int]) -> None:
        self._database = database
        self._folder = folder
        self._size_limit = size_limit
        self._reserve = Reserve(folder.path, database)
        self._writes = 0
        self._written = 0

    # ------------------------------------------------------------------ with every write

    def after_write(self, size: int, garbage: bool, count: int = 1) -> None:
        """Called when entries were written: `size` bytes, and whether they may have left files."""
        if garbage:
            self.collect()
        self._writes += count
        if self._writes >= _EVERY:
            self._writes = 0
            self._quietly(lambda: self._delete_some(1 + count * 2 // _AT_ONCE))
        if self._size_limit is not None:
            self._written += size
            # Looked at when a hundredth of the limit was written, not at every write.
            if self._written * 100 >= self._size_limit:
                self._written = 0
                self._quietly(self._shrink)

    def write(
        self, sql: str, parameters: Sequence[Any] = (), place: Optional[Place] = None
    ) -> Tuple[int, int]:
        """A write that frees space: works on a full disk, too."""
        done = self._in_any_case(lambda: self._database.write(sql, parameters, place))
        self._database.writeback.wrote(0)
        return done

    def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """A transaction that frees space: works on a full disk, too."""
        return self._in_any_case(lambda: self._database.transaction(work))

    def _in_any_case(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except StoreUnavailableError as error:
            if not is_full(error.__cause__):
                raise
        self._reserve.release()
        try:
            return work()
        finally:
            # All of it again: with less, the next one would find no room when others took the rest.
            self._reserve.keep(1)

    def _delete_some(self, times: int) -> None:
        # For a batch that was written twice as many are looked for, in transactions of a hundred.
        for _ in range(times):
            if not self._delete_expired()[1]:
                return

    def _delete_expired(self) -> Tuple[int, bool]:
        """Delete some of what has expired: how many, and whether there may be more."""
        now = time_ms()

        def work(connection: sqlite3.Connection) -> Tuple[int, int]:
            before = connection.total_changes
            expired = connection.execute(_DELETE_EXPIRED, (now, now)).rowcount
            garbage = connection.total_changes - before - expired
            # What is left of them may live on: or they would be looked at for ever.
            connection.execute(_DROP_BLOCKS, (now,))
            connection.execute(_RENEW_BLOCKS, (now,))
            return expired, garbage

        # Most of the time there is nothing, and looking takes nobody's turn.
        if not self._is_due(now):
            return 0, False
        expired, garbage = self.transaction(work)
        if garbage:
            # As many files as went: left over, they would wait for the next garbage.
            self.collect(2 * _AT_ONCE)
        return expired, self._is_due(now)

    def _blocks(self) -> int:
        row = self._database.fetch_one("SELECT count(*) FROM blocks")
        return 0 if row is None else int(row[0])

    def _is_due(self, now: int) -> bool:
        return self._database.fetch_one(f"{DUE} LIMIT 1", (now,)) is not None

    # ------------------------------------------------------------------ files

    def discard(self, file: str) -> None:
        """Remove a file that no entry came to name."""

        def forget() -> None:
            if self._folder.remove_file(file):
                self.write("DELETE FROM garbage WHERE file = ?", (file,))

        self._quietly(forget)

    def collect(self, limit: int = 100) -> None:
        """Remove the files of replaced and deleted entries, and those of writers that died."""
        self._quietly(lambda: self._collect(limit))

    def _collect(self, limit: int) -> bool:
        """Remove some files; did any leave the list?"""
        rows = self._database.fetch(
            "SELECT file FROM garbage WHERE since <= ? AND file IS NOT NULL LIMIT ?",
            (time_ms() - _GRACE, min(limit, _MOST_FILES)),
        )
        # The file first: should this process die in between, the list still has it.
        gone = [file for (file,) in rows if self._folder.remove_file(file)]
        if not gone:
            return False
        marks = ",".join("?" * len(gone))
        deleted, _ = self.write(f"DELETE FROM garbage WHERE file IN ({marks})", gone)
        return deleted > 0

    # ------------------------------------------------------------------ namespaces

    def empty(self, number: int) -> None:
        """Delete the entries of a cleared namespace, in small transactions, then its folder."""

        def some() -> bool:
            rows, changes = self.write(
                "DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE ns = ? "
                f"LIMIT {_CLEARED_AT_ONCE})",
                (number,),
            )
            if changes > rows:
                self._collect(2 * _CLEARED_AT_ONCE)
            return rows == _CLEARED_AT_ONCE

        def finish() -> None:
            while some():
                # A breath for the others: SQLite has no queue of writers, who waits must find
                # the database free when it looks.
                time.sleep(0.001)
            row = self._database.fetch_one("SELECT folder FROM dropped WHERE ns = ?", (number,))
            if row is not None and self._folder.remove_namespace(row[0]):
                self.write("DELETE FROM dropped WHERE ns = ?", (number,))

        # Its keys can't be read any more: what is left over is purge()'s.
        self._quietly(finish)

    def reclaim(self) -> None:
        """On opening: finish what processes left that died, as far as it is quick."""
        self._reserve.keep()
        self.collect()

        def unfinished() -> None:
            for (number,) in self._database.fetch(
                "SELECT ns FROM dropped WHERE since <= ? LIMIT 10", (time_ms() - _GRACE,)
            ):
                self.empty(number)

        self._quietly(unfinished)

    def purge(self) -> int:
        """Do all of it now: expired entries, files without entry, namespaces without any."""
        # A damaged index may name the same blocks for ever.
        patience = self._blocks() // 16 + 1
        deleted = in_vain = 0
        more = True
        while more and in_vain <= patience:
            expired, more = self._delete_expired()
            deleted += expired
            in_vain = 0 if expired else in_vain + 1
            time.sleep(0.001 if more else 0)  # as in empty(): a breath for the others
        # What can't be removed stays on the list for another time.
        while self._collect(1000):
            pass
        for (number,) in self._database.fetch(
            "SELECT ns FROM dropped WHERE since <= ?", (time_ms() - _GRACE,)
        ):
            self.empty(number)
        self._drop_empty_namespaces()
        self._remove_orphans()
        return deleted

    def _drop_empty_namespaces(self) -> None:
        def drop(connection: sqlite3.Connection) -> list[Tuple[int]]:
            empty: list[Tuple[int]] = connection.execute(
                "SELECT id FROM namespaces WHERE NOT EXISTS "
                "(SELECT 1 FROM entries WHERE ns = namespaces.id) LIMIT 1000"
            ).fetchall()
            connection.executemany(
                "INSERT INTO dropped SELECT id, folder, ? FROM namespaces WHERE id = ?",
                [(time_ms(), *row) for row in empty],
            )
            connection.executemany("DELETE FROM namespaces WHERE id = ?", empty)
            return empty

        while True:
            empty = self.transaction(drop)
            for (number,) in empty:
                self.empty(number)
            if len(empty) < 1000:
                return

    def _remove_orphans(self) -> None:
        """Remove folders and files that the index knows nothing of, once they are old."""
        old = time.time() - _GRACE / 1000
        for folder, changed in list(self._folder.folders()):
            known = self._database.fetch_one(
                "SELECT 1 FROM namespaces WHERE folder = ? "
                "UNION ALL SELECT 1 FROM dropped WHERE folder = ?",
                (folder, folder),
            )
            if known is None and changed < old:
                self._folder.remove_namespace(folder)
                continue
            for file, written in self._folder.files(folder):
                if written < old and not self._database.fetch_one(
                    "SELECT 1 FROM entries WHERE ns = (SELECT id FROM namespaces WHERE folder = ?) "
                    "AND file = ? UNION ALL SELECT 1 FROM garbage WHERE file = ?",
                    (folder, file, file),
                ):
                    self._folder.remove_file(file)

    # ------------------------------------------------------------------ a size limit

    def _shrink(self) -> None:
        """Delete what was stored first, until the store is within its limit."""
        limit = self._size_limit
        if limit is None:
            return
        while True:
            # What the entries hold, and some bytes of the index for each.
            row = self._database.fetch_one("SELECT total(size + 100), count(*) FROM entries")
            if row is None or row[0] <= limit or not row[1]:
                return
            over = row[0] - limit * 0.95
            count = min(_AT_ONCE, max(1, int(row[1] * over / row[0])))
            rows, changes = self.write(
                "DELETE FROM entries WHERE id IN (SELECT id FROM entries ORDER BY id LIMIT ?)",
                (count,),
            )
            if changes > rows:
                self._collect(1000)

    @staticmethod
    def _quietly(work: Callable[[], object]) -> None:
        try:
            work()
        except (StoreUnavailableError, StoreClosedError):
            # The caller's own operation has succeeded; this is tried again at the next occasion.
            pass
