"""How an entry comes into the index, and a large one into the folder before that."""

from __future__ import annotations

import sqlite3
from itertools import chain
from typing import Iterable, List, Optional, Tuple

from ..exceptions import SerializationError, StoreUnavailableError, where
from .cleaning import Cleaner
from .clock import time_ms
from .database import Database
from .folder import Folder, checksum
from .statements import ADD, AT_ONCE, EXPIRES, ONLY_NEW, SET, SET_FIFTY, SET_FILE, SET_ONE

__all__ = ["Writer"]

# How often a namespace may be cleared under a writer before that is too much.
_PATIENCE = 50


class Writer:
    """What `DiskKVStore` stores with: values as bytes, under checked keys.

    Args:
        serializer: Its name, which a namespace's folder tells.
        size_limit: The bytes that the whole store may have; ``None``: no limit.
        verify: Keep a checksum with each value.
    """

    def __init__(
        self,
        database: Database,
        folder: Folder,
        cleaner: Cleaner,
        *,
        serializer: str,
        size_limit: Optional[int],
        verify: bool,
    ) -> None:
        self._database = database
        self._folder = folder
        self._cleaner = cleaner
        self._serializer = serializer
        self._size_limit = size_limit
        self._checksum = checksum if verify else None

    def check_sizes(self, items: Iterable[Tuple[str, bytes]], namespace: Optional[str]) -> None:
        """Refuse what is larger than the whole store may be."""
        limit = self._size_limit
        if limit is None:
            return
        for key, data in items:
            if len(data) > limit:
                # Storing it would cost every other entry, and then itself.
                raise SerializationError(
                    f"The value for {where(key, namespace)} has {len(data)} bytes, and the whole "
                    f"store may have {limit} (size_limit=). Nothing was stored."
                )

    def put(
        self,
        key: str,
        data: bytes,
        namespace: Optional[str],
        expires: Optional[int],
        *,
        only_new: bool = False,
    ) -> bool:
        """Store a value in the index; was it stored?"""
        if self._size_limit is not None:
            self.check_sizes([(key, data)], namespace)
        digest = None if self._checksum is None else self._checksum(key, namespace, data)
        row = (namespace or "", key, expires, len(data), data, digest)
        place = (namespace, key)
        for _ in range(_PATIENCE):
            try:
                if only_new:
                    # Without the place: what is there may be the same, and over just now.
                    stored, changes = self._database.write(ADD, (*row, time_ms()))
                else:
                    stored, changes = self._database.write(SET_ONE, row, place)
            except StoreUnavailableError as error:
                if not _lacks_namespace(error):
                    raise
                self._make_namespace(namespace)
            else:
                self._database.writeback.wrote(len(data))
                self._cleaner.after_write(len(data), changes > 1)
                return stored > 0
        raise _cleared_again(key, namespace)

    def put_batch(
        self, batch: List[Tuple[str, bytes]], namespace: Optional[str], expires: Optional[int]
    ) -> None:
        """Store values in the index, in one transaction."""
        # Half of set_many was: asking for the namespace in each row, a step for each row, tuples.
        sums = self._checksum
        rows = [(k, data, None if sums is None else sums(k, namespace, data)) for k, data in batch]
        whole = len(rows) - len(rows) % AT_ONCE
        name = namespace or ""
        rest = [(name, key, expires, len(data), data, digest) for key, data, digest in rows[whole:]]

        def work(connection: sqlite3.Connection) -> bool:
            before = connection.total_changes
            number = connection.execute(
                "SELECT id FROM namespaces WHERE name = ?", (name,)
            ).fetchone()
            shared = (number[0] if number else None, expires)
            stored = 0
            for start in range(0, whole, AT_ONCE):
                fifty = chain(shared, chain.from_iterable(rows[start : start + AT_ONCE]))
                stored += connection.execute(SET_FIFTY, tuple(fifty)).rowcount
            if rest:
                stored += connection.executemany(SET, rest).rowcount
            return connection.total_changes - before > stored

        for _ in range(_PATIENCE):
            try:
                garbage = self._database.transaction(work)
            except StoreUnavailableError as error:
                if not _lacks_namespace(error):
                    raise
                self._make_namespace(namespace)
            else:
                size = sum(len(data) for _, data in batch)
                self._database.writeback.wrote(size)
                self._cleaner.after_write(size, garbage, len(batch))
                return
        raise _cleared_again(batch[0][0], namespace)

    def put_file(
        self,
        key: str,
        data: bytes,
        namespace: Optional[str],
        expires: Optional[int],
        *,
        only_new: bool = False,
    ) -> bool:
        """Store a large value, the file first, then the entry that names it; was it stored?"""
        self.check_sizes([(key, data)], namespace)
        digest = None if self._checksum is None else self._checksum(key, namespace, data)
        sql = SET_FILE + (ONLY_NEW if only_new else "")
        for _ in range(_PATIENCE):
            folder = self._make_namespace(namespace)
            file = self._folder.new_file(folder)
            # Announced before it is written: should this process die, the file is found and goes.
            self._database.write("INSERT INTO garbage VALUES(?, ?)", (file, time_ms()))
            try:
                self._folder.write_file(file, data)
            except FileNotFoundError:
                continue  # the namespace was cleared meanwhile
            except BaseException:
                self._cleaner.discard(file)
                raise
            row: Tuple[object, ...] = (key, expires, len(data), digest, file)
            row += (namespace or "", folder)
            if only_new:
                row += (time_ms(),)

            def enter(
                connection: sqlite3.Connection,
                file: str = file,
                row: Tuple[object, ...] = row,
            ) -> Tuple[bool, bool]:
                before = connection.total_changes
                # Gone from the list: this process was stopped for so long that the file was
                # taken for a dead writer's.
                if not connection.execute("DELETE FROM garbage WHERE file = ?", (file,)).rowcount:
                    return False, False
                if not connection.execute(sql, row).rowcount:
                    connection.execute("INSERT INTO garbage VALUES(?, 0)", (file,))
                    return False, True
                return True, connection.total_changes - before > 2

            try:
                entered, garbage = self._database.transaction(enter)
            except BaseException:
                self._cleaner.discard(file)
                raise
            self._cleaner.after_write(len(data), garbage)
            if entered:
                return True
            if only_new and self._database.fetch_one(EXPIRES, (namespace or "", key, time_ms())):
                return False
        raise _cleared_again(key, namespace)

    def _make_namespace(self, namespace: Optional[str]) -> str:
        """The folder of a namespace, made and entered into the index where there is none."""
        for _ in range(_PATIENCE):
            row = self._database.fetch_one(
                "SELECT folder FROM namespaces WHERE name = ?", (namespace or "",)
            )
            if row is not None:
                return str(row[0])
            folder = self._folder.make_namespace(namespace, self._serializer)
            made, _ = self._database.write(
                "INSERT OR IGNORE INTO namespaces(name, folder) VALUES(?, ?)",
                (namespace or "", folder),
            )
            if made:
                return folder
            # Another thread or process was faster.
            self._folder.remove_namespace(folder)
        raise _cleared_again("", namespace)


def _lacks_namespace(error: StoreUnavailableError) -> bool:
    """Whether entries.ns would be NULL: the namespace is not there, or not any more."""
    cause = error.__cause__
    return isinstance(cause, sqlite3.IntegrityError) and "entries.ns" in str(cause)


def _cleared_again(key: str, namespace: Optional[str]) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{where(key, namespace)} could not be stored: the namespace was cleared again and again "
        "meanwhile. Try again."
    )
