"""The tables of a disk store, and what happens when many processes open a new one at once."""

from __future__ import annotations

import logging
import sqlite3
from functools import partial
from typing import Callable, List

from ..exceptions import StoreFormatError, StoreUnavailableError
from .database import Database
from .pool import is_busy
from .space import checkpoint_pages, most_pages

__all__ = ["FORMAT", "make", "preparer", "set_up"]

_log = logging.getLogger("kv_store_adapter")

#: Raised when tables or files change in a way that older code can't read, or that it wrote.
FORMAT = 4

# "kvsa" in ASCII: tells our databases from others. SQLite keeps it in the file's header.
_APPLICATION_ID = 0x6B767361

# One table for all namespaces: a database for each would cost 350 us to open at every visit.
# Rowid tables: WITHOUT ROWID is slower from values of 4 KiB up. The default namespace has the name
# '', which no other can have. AUTOINCREMENT: the number of a cleared namespace never comes back.
#
# A value is in `value` or in the file `file`; times are milliseconds since 1970. `garbage` lists
# value files to delete: those no entry names any more (since 0), and those about to be written
# (since their writer's time), so that a killed writer leaves none for ever. `dropped` are cleared
# namespaces whose entries are not deleted yet.
#
# `blocks` are 64 entries by number, each with a time that none of them expires before: what a write
# has to keep of expiry is almost always kept already. With an index over `expires` storing a new
# entry wrote a third page, as did deleting one, and overwriting was twice as slow. Cleaning renews
# the times that have come. The triggers delete and insert instead of INSERT OR REPLACE, because an
# OR in the statement that fires them would be taken instead of theirs.
_TABLES = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE namespaces(
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, folder TEXT NOT NULL);
CREATE TABLE entries(
    id INTEGER PRIMARY KEY, ns INTEGER NOT NULL, key TEXT NOT NULL, expires INTEGER,
    size INTEGER NOT NULL, value BLOB, file TEXT, digest INTEGER, UNIQUE(ns, key));
CREATE TABLE blocks(id INTEGER PRIMARY KEY, earliest INTEGER NOT NULL);
CREATE INDEX blocks_by_time ON blocks(earliest);
CREATE TABLE garbage(file TEXT PRIMARY KEY, since INTEGER NOT NULL);
CREATE TABLE dropped(ns INTEGER PRIMARY KEY, folder TEXT NOT NULL, since INTEGER NOT NULL);
CREATE TABLE locks(
    name TEXT NOT NULL, key TEXT NOT NULL, token TEXT NOT NULL, expires INTEGER NOT NULL,
    PRIMARY KEY(name, key));
CREATE TRIGGER entries_timed AFTER INSERT ON entries WHEN new.expires < ifnull(
        (SELECT earliest FROM blocks WHERE id = new.id >> 6), 9223372036854775807)
    BEGIN DELETE FROM blocks WHERE id = new.id >> 6;
        INSERT INTO blocks VALUES(new.id >> 6, new.expires); END;
CREATE TRIGGER entries_retimed AFTER UPDATE OF expires ON entries WHEN new.expires < ifnull(
        (SELECT earliest FROM blocks WHERE id = new.id >> 6), 9223372036854775807)
    BEGIN DELETE FROM blocks WHERE id = new.id >> 6;
        INSERT INTO blocks VALUES(new.id >> 6, new.expires); END;
CREATE TRIGGER entries_updated AFTER UPDATE OF file ON entries
    WHEN old.file IS NOT NULL AND old.file IS NOT new.file
    BEGIN INSERT OR REPLACE INTO garbage VALUES(old.file, 0); END;
CREATE TRIGGER entries_deleted AFTER DELETE ON entries WHEN old.file IS NOT NULL
    BEGIN INSERT OR REPLACE INTO garbage VALUES(old.file, 0); END;
"""


def preparer(durable: bool, path: str) -> Callable[[sqlite3.Connection], None]:
    """What every new connection is told first."""

    def prepare(connection: sqlite3.Connection) -> None:
        # Nothing that a tampered database brings along runs: no functions from its schema.
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        # What SQLite puts aside within one statement, at most fifty values of set_many, goes to no
        # file: the temporary folder may be full, or read-only.
        connection.execute("PRAGMA temp_store=MEMORY")
        # As SQLite's own makers ship it. Some distributions (Debian) build it to write zeros over
        # what is deleted, pages that are given back included: a 100 KiB value took five times as
        # long to delete.
        connection.execute("PRAGMA secure_delete=OFF")
        connection.execute("PRAGMA journal_size_limit=67108864")
        connection.execute(f"PRAGMA wal_autocheckpoint={checkpoint_pages(path)}")
        # Whether the database can be read shows here, where a full disk can be helped.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        most = most_pages()
        if most:  # else the log could take in what the database can never hold
            connection.execute(f"PRAGMA max_page_count={most}")

    return prepare


def set_up(database: Database, serializer: str) -> None:
    """Make the tables where there are none, else see that they are ours.

    Safe for any number of processes at the same time: one makes them, the others find them.

    Raises:
        StoreFormatError: Another program's database, another format, or another serializer.
    """

    def look_at_one_moment(connection: sqlite3.Connection) -> bool:
        # Another process may make the tables between one question and the next.
        connection.execute("BEGIN")
        try:
            return _is_made(connection, database.path)
        finally:
            if connection.in_transaction:  # some errors end it
                connection.execute("ROLLBACK")

    def make_once(connection: sqlite3.Connection) -> None:
        if not _is_made(connection, database.path):  # else another process was faster
            make(connection, serializer)

    if not database.read(look_at_one_moment):
        database.read(partial(_use_wal, database.path))
        database.transaction(make_once)
    rows = database.fetch("SELECT value FROM meta WHERE name = 'serializer'")
    if len(rows) != 1:
        raise StoreUnavailableError(
            f"{database.path} is damaged: it names {len(rows)} serializers. "
            "DiskKVStore.repair(path) keeps what can be read."
        ) from sqlite3.DatabaseError(f"meta names {len(rows)} serializers")
    ((stored,),) = rows
    if stored != serializer:
        raise StoreFormatError(
            f"The values in {database.path} were written with the serializer {stored!r}, not "
            f"{serializer!r}. They were left untouched; pass the serializer they were written "
            "with, or choose another folder."
        )


def _is_made(connection: sqlite3.Connection, path: str) -> bool:
    """Whether the tables are there; raises where they are not ours."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not application and not version and not tables:
        return False
    if application != _APPLICATION_ID:
        raise StoreFormatError(
            f"{path} is another program's database. It was left untouched; choose another folder."
        )
    if version != FORMAT:
        raise StoreFormatError(
            f"{path} has format {version}, and this version of kv-store-adapter reads format "
            f"{FORMAT}. It was left untouched; choose another folder."
        )
    return True


def _use_wal(path: str, connection: sqlite3.Connection) -> None:
    # Fails with "database is locked" while another process does the same, whatever SQLite's own
    # timeout: the caller tries again.
    try:
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    except sqlite3.OperationalError as error:
        if is_busy(error):
            raise
        mode = str(error)
    if mode != "wal":
        (other,) = connection.execute("PRAGMA journal_mode=TRUNCATE").fetchone()
        _log.warning(
            "%s: this file system does not do SQLite's WAL (%s); the journal mode is %s. The "
            "store works, but writes are slower and readers wait for writers.",
            path,
            mode,
            other,
        )


def make(connection: sqlite3.Connection, serializer: str) -> None:
    """Make the tables, inside of the caller's transaction."""
    for statement in _split(_TABLES):
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES('serializer', ?)", (serializer,))
    connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={FORMAT}")


def differences(database: Database) -> List[str]:
    """What the schema has that `make` has not made, and the other way round.

    A bit that flipped in the text of a trigger is no damage to SQLite: it runs what stands there.
    """
    look = (
        "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_stat%' ESCAPE '\\'"
    )
    fresh = sqlite3.connect(":memory:")
    try:
        make(fresh, "")
        made = set(fresh.execute(look))
    finally:
        fresh.close()
    odd = made.symmetric_difference(database.fetch(look))
    return sorted({f"the schema of {name!r:.100} is not what was made" for _, name, _ in odd})


def _split(script: str) -> list[str]:
    # executescript() would commit the transaction that this is part of.
    statements, current = [], ""
    for line in script.splitlines():
        current += line + "\n"
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
