"""What `DiskKVStore` says to SQLite: the statements that more than one operation needs."""

from __future__ import annotations

from typing import Tuple

__all__ = [
    "ADD",
    "ALIVE",
    "AT_ONCE",
    "DELETE",
    "EXPIRES",
    "GET",
    "LIVE",
    "NS",
    "SET",
    "SET_FIFTY_QUICKLY",
    "SET_FILE",
    "SET_QUICKLY",
    "between",
]

# The namespace's number, or NULL where there is none. '' stands for the default namespace.
NS = "(SELECT id FROM namespaces WHERE name = ?)"
LIVE = "(expires IS NULL OR expires > ?)"
GET = f"SELECT value, expires, size, file, digest FROM entries WHERE ns = {NS} AND key = ?"
_INSERT = "INSERT INTO entries(ns, key, expires, noted, size, value, digest, file)"
# With the expiry of an entry twice, as its note as well.
_ROW = f" VALUES({NS}, ?, ?, ?, ?, ?, ?, NULL)"
_KEEP_NOTE = (
    " ON CONFLICT(ns, key) DO UPDATE SET expires = excluded.expires, size = excluded.size, "
    "value = excluded.value, digest = excluded.digest, file = excluded.file"
)
_UPDATE = _KEEP_NOTE + ", noted = excluded.noted"
# Writes nothing where the old note would be later than the new expiry: then `SET` does it.
_QUICKLY = _KEEP_NOTE + " WHERE excluded.expires IS NULL OR entries.noted <= excluded.expires"
SET_QUICKLY = _INSERT + _ROW + _QUICKLY
# Fifty entries in one step: namespace (its number), expiry and note, then key, value and digest of
# each. It takes half the time of fifty steps. More make no difference, and SQLite before 3.32 takes
# 999 parameters at most. What ON CONFLICT belongs to is clear to SQLite only after a WHERE.
AT_ONCE = 50
SET_FIFTY_QUICKLY = (
    f"{_INSERT} SELECT ?, column1, ?, ?, length(column2), column2, column3, NULL"
    f" FROM (VALUES {', '.join(['(?, ?, ?)'] * AT_ONCE)}) WHERE true{_QUICKLY}"
)
SET = _INSERT + _ROW + _UPDATE
ADD = _INSERT + _ROW + _UPDATE + " WHERE entries.expires <= ?"
# A file lies in the folder of one generation of its namespace, so the entry names that one.
SET_FILE = (
    "INSERT INTO entries(ns, key, expires, noted, size, value, digest, file)"
    " SELECT id, ?, ?, ?, ?, NULL, ?, ? FROM namespaces WHERE name = ? AND folder = ?" + _UPDATE
)
EXPIRES = f"SELECT expires FROM entries WHERE ns = {NS} AND key = ? AND {LIVE}"
# What has expired in a namespace. Few entries whose note is past are alive; the + makes SQLite look
# for them by their notes and not go through the whole namespace.
_EXPIRED = f"SELECT id FROM entries WHERE noted <= ? AND +ns = {NS} AND expires <= ?"
# A condition of listings, which never look at the entries themselves. Asked first is whether
# anything is due at all: comparing each entry with a list of none was a third of a listing.
ALIVE = f"(NOT EXISTS (SELECT 1 FROM entries WHERE noted <= ?) OR id NOT IN ({_EXPIRED}))"
DELETE = f"DELETE FROM entries WHERE ns = {NS} AND key = ? AND {LIVE}"
# Numbers come before all text, and blobs after it: they are damage, and no keys. The + makes SQLite
# look at each key: of a range in an index it trusts the order, which damage may have broken.
_TEXT = " AND +key >= ''"


def between(prefix: str) -> Tuple[str, Tuple[str, ...]]:
    """A condition on `key` that what starts with `prefix` meets, by the order of code points."""
    # SQLite compares UTF-8 byte by byte, which is the order of code points. What follows all keys
    # with this prefix is the prefix with its last character raised by one.
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return f"{_TEXT} AND key >= ? AND key < x''", (prefix,)
    last = ord(stem[-1]) + 1
    if 0xD800 <= last <= 0xDFFF:  # surrogates are no characters
        last = 0xE000
    return f"{_TEXT} AND key >= ? AND key < ?", (prefix, stem[:-1] + chr(last))
