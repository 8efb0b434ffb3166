"""What `DiskKVStore.check` does: read everything, say what is damaged, keep what can be read."""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Iterator, List, NamedTuple, Optional, Set, Tuple

from ..exceptions import KVStoreError, SerializationError, StoreUnavailableError
from . import schema
from .folder import DATABASE, Folder, checksum, is_folder

if TYPE_CHECKING:
    from .database import Database

__all__ = ["Damage", "check", "rebuild"]

_PAGE = 200


class Damage(NamedTuple):
    """One thing that is not as it was written.

    Attributes:
        what: ``"database"``, ``"namespace"`` or ``"entry"``.
        namespace: The namespace it is in, ``None`` for the default one (or for the database).
        key: The key, for an entry.
        problem: What is wrong with it.
    """

    what: str
    namespace: Optional[str]
    key: Optional[str]
    problem: str


def check(database: Database, folder: Folder, serializer: str, *, repair: bool) -> List[Damage]:
    """Read everything that a store holds.

    Values are compared with what the index says of them (size, file, checksum where there is one);
    they are not unpickled: what another version of the program wrote is not damaged.
    """
    found = _check_database(database)
    if found and repair:
        database.rest()
        rebuild(folder, serializer)
    if found and not repair:
        return found  # what a damaged index says of the rest means nothing
    found += _check_blocks(database, repair=repair)
    found += _check_namespaces(database, folder, serializer, repair=repair)
    for damage, number in _check_entries(database, folder):
        found.append(damage)
        if repair:
            database.write("DELETE FROM entries WHERE id = ?", (number,))
    return found


def _check_database(database: Database) -> List[Damage]:
    try:
        problems = [str(p) for (p,) in database.fetch("PRAGMA integrity_check(20)") if p != "ok"]
        problems += schema.differences(database)
    except KVStoreError as error:
        return [Damage("database", None, None, str(error.__cause__ or error))]
    return [Damage("database", None, None, problem) for problem in problems]


def _check_blocks(database: Database, *, repair: bool) -> List[Damage]:
    """Does no entry expire before the time of its block? It would be listed, and not cleaned."""
    row = database.fetch_one(
        "SELECT count(*) FROM entries LEFT JOIN blocks ON blocks.id = entries.id >> 6 "
        "WHERE typeof(expires) = 'integer' "
        "AND (typeof(earliest) NOT IN ('integer', 'real') OR earliest > expires)"
    )
    if not row or not row[0]:
        return []
    if repair:
        database.transaction(_time_blocks)
    problem = f"{row[0]} entries expire before the time that is kept for their block"
    return [Damage("database", None, None, problem)]


def _time_blocks(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM blocks")
    connection.execute(
        "INSERT INTO blocks SELECT id >> 6, min(expires) FROM entries "
        "WHERE typeof(expires) = 'integer' GROUP BY 1"
    )


def _check_namespaces(
    database: Database, folder: Folder, serializer: str, *, repair: bool
) -> List[Damage]:
    found = []
    for number, name, place in database.fetch("SELECT id, name, folder FROM namespaces"):
        if not isinstance(name, str):
            found.append(Damage("namespace", None, None, f"its name is no text: {name!r:.100}"))
            if repair:
                database.transaction(partial(_drop_namespace, number))
            continue
        namespace = name or None
        try:
            about = folder.read_about(place)
            if about["name"] == namespace:
                continue
            problem = f"its metadata names {about['name']!r}"
        except SerializationError as error:
            problem = str(error)
        found.append(Damage("namespace", namespace, None, problem))
        if not repair:
            continue
        if is_folder(place):
            folder.write_about(place, namespace, serializer)
        else:
            new = _lost_folder(database, number)
            if new is None:
                new = folder.make_namespace(namespace, serializer)
            else:
                folder.write_about(new, namespace, serializer)
            database.write("UPDATE namespaces SET folder = ? WHERE id = ?", (new, number))
    return found


def _drop_namespace(number: int, connection: sqlite3.Connection) -> None:
    # Nobody can name it any more: purge() takes away what is in it.
    connection.execute("DELETE FROM entries WHERE ns = ?", (number,))
    connection.execute("DELETE FROM namespaces WHERE id = ?", (number,))


def _lost_folder(database: Database, number: int) -> Optional[str]:
    """The folder of a namespace, by what its entries say of their files."""
    rows = database.fetch("SELECT file FROM entries WHERE ns = ? AND file IS NOT NULL", (number,))
    folders = (str(file).partition("/")[0] for (file,) in rows)
    return next(filter(is_folder, folders), None)


def _check_entries(database: Database, folder: Folder) -> Iterator[Tuple[Damage, int]]:
    last = 0
    while True:
        rows = database.fetch(
            "SELECT entries.id, name, key, value, size, file, digest, expires FROM entries "
            "JOIN namespaces ON namespaces.id = ns AND name < x'' "  # text: see _check_namespaces
            f"WHERE entries.id > ? ORDER BY 1 LIMIT {_PAGE}",
            (last,),
        )
        for number, name, key, value, size, file, digest, expires in rows:
            last = number
            namespace = name or None
            if not isinstance(key, str):
                yield Damage("entry", namespace, None, f"its key is no text: {key!r:.100}"), number
                continue
            try:
                problem = None
                data = value
                if file is not None:
                    data, _ = folder.read_file(file, size, key, namespace)
                if type(data) is not bytes or len(data) != size:
                    problem = "its size is not what was written"
                elif digest is not None and digest != checksum(key, namespace, data):
                    problem = "its checksum does not fit"
                elif not isinstance(expires, (int, float, type(None))):
                    problem = "its expiry is no number"
            except FileNotFoundError:
                now = database.fetch_one("SELECT file FROM entries WHERE id = ?", (number,))
                # Replaced while we looked: then there is nothing wrong.
                problem = "its file is missing" if now is not None and now[0] == file else None
            except KVStoreError as error:
                problem = str(error)
            if problem is not None:
                yield Damage("entry", namespace, key, problem), number
        if len(rows) < _PAGE:
            return


def rebuild(folder: Folder, serializer: str) -> str:
    """Move a damaged database aside and put a new one in its place, with all that can be read.

    Nobody else may use the store meanwhile.

    Returns:
        Where the damaged files are now.

    Raises:
        StoreUnavailableError: There is no room for the new one, for example.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = os.path.join(folder.path, f"damaged-{stamp}-{secrets.token_hex(4)}")
    fresh_path = os.path.join(aside, "rebuilt.sqlite3")
    try:
        os.mkdir(aside, 0o700)
        known = _make_fresh(folder, serializer, fresh_path)
        _exchange(folder, fresh_path, aside)
    except (OSError, sqlite3.Error) as error:
        left = f"What could be read is in {aside}."
        if os.path.lexists(folder.database):
            shutil.rmtree(aside, ignore_errors=True)
            left = "It was left as it was."
        raise StoreUnavailableError(f"{folder.path} can't be repaired: {error}. {left}") from error
    for name, _ in list(folder.folders()):
        if name not in known:
            folder.set_aside(name, aside)
    return aside


def _make_fresh(folder: Folder, serializer: str, fresh_path: str) -> Set[str]:
    """Make the new database; return the folders of its namespaces."""
    folder.make_private(fresh_path)
    fresh = sqlite3.connect(fresh_path, isolation_level=None)
    try:
        fresh.execute("BEGIN IMMEDIATE")
        schema.make(fresh, serializer)
        for table in ("namespaces", "entries"):
            _copy(folder.database, fresh, table)
        # An entry whose namespace could not be read has no name any more.
        fresh.execute("DELETE FROM entries WHERE ns NOT IN (SELECT id FROM namespaces)")
        fresh.execute("DELETE FROM garbage")
        _time_blocks(fresh)
        fresh.execute("COMMIT")
        fresh.execute("PRAGMA journal_mode=WAL")
        # Also those that only entries name: where the namespace's own row was hit.
        return {
            place
            for (place,) in fresh.execute(
                "SELECT folder FROM namespaces UNION SELECT substr(file, 1, instr(file, '/') - 1) "
                "FROM entries WHERE file IS NOT NULL"
            )
        }
    finally:
        fresh.close()


def _exchange(folder: Folder, fresh_path: str, aside: str) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        if os.path.lexists(folder.database + suffix):
            os.replace(folder.database + suffix, os.path.join(aside, DATABASE + suffix))
    os.replace(fresh_path, folder.database)


def _copy(path: str, fresh: sqlite3.Connection, table: str) -> None:
    """Copy the rows that can be read: from the front, and from the back where the front breaks."""
    for direction in ("ASC", "DESC"):
        old = sqlite3.connect(path, isolation_level=None)
        old.text_factory = _text
        try:
            last = None
            for row in old.execute(f"SELECT * FROM {table} ORDER BY id {direction}"):
                # A page that names one above it makes a walk without end, over the same rows.
                if last is not None and (row[0] <= last if direction == "ASC" else row[0] >= last):
                    break
                last = row[0]
                if _GARBLED not in row:
                    marks = ",".join("?" * len(row))
                    fresh.execute(f"INSERT OR IGNORE INTO {table} VALUES({marks})", row)
            else:
                return
        except (sqlite3.Error, UnicodeDecodeError):
            continue
        finally:
            old.close()


# Stands for text that is no UTF-8 any more: damage, too, and its row is left out.
_GARBLED = object()


def _text(data: bytes) -> Any:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return _GARBLED
