"""What `DiskKVStore` says to SQLite: the statements that more than one operation needs."""

from __future__ import annotations

from typing import Tuple

__all__ = [
    "ADD",
    "ALIVE",
    "AT_ONCE",
    "DELETE",
    "DUE",
    "EXPIRES",
    "GET",
    "GET_QUICKLY",
    "GET_TO_KEEP",
    "IN_DUE",
    "LIVE",
    "NS",
    "ONLY_NEW",
    "SET",
    "SET_FIFTY",
    "SET_FILE",
    "SET_ONE",
    "between",
]

# The namespace's number, or NULL where there is none. '' stands for the default namespace.
NS = "(SELECT id FROM namespaces WHERE name = ?)"
LIVE = "(expires IS NULL OR expires > ?)"
GET = f"SELECT value, expires, size, file, digest FROM entries WHERE ns = {NS} AND key = ?"
# The value in one column, where it is what a reader would expect: each column costs him as much as
# all of these comparisons. NULL, or what is no blob: it has expired or a file, is damaged, or wants
# a closer look. Every number is below every text.
GET_QUICKLY = (
    "SELECT CASE WHEN file IS NULL AND length(value) = size "
    "AND (expires IS NULL OR (expires > ? AND expires < '')) THEN value END "
    "FROM namespaces CROSS JOIN entries ON ns = namespaces.id WHERE name = ? AND key = ?"
)
# The same with its expiry, where the value will be remembered.
GET_TO_KEEP = GET_QUICKLY.replace(" END FROM", " END, expires FROM")
_INSERT = "INSERT INTO entries(ns, key, expires, size, value, digest, file)"
_ROW = f" VALUES({NS}, ?, ?, ?, ?, ?, NULL)"
_UPDATE = (
    " ON CONFLICT(ns, key) DO UPDATE SET expires = excluded.expires, size = excluded.size, "
    "value = excluded.value, digest = excluded.digest, file = excluded.file"
)
SET = _INSERT + _ROW + _UPDATE
# By itself, not in a batch: what is there already is not written once more. SQLite would see that,
# too, and commit nothing, but count a change.
SET_ONE = SET + (
    " WHERE entries.expires IS NOT excluded.expires OR entries.size IS NOT excluded.size "
    "OR entries.value IS NOT excluded.value OR entries.digest IS NOT excluded.digest"
)
# Fifty entries in one step: namespace (its number) and expiry, then key, value and digest of each.
# It takes half the time of fifty steps. More make no difference, and SQLite before 3.32 takes 999
# parameters at most. What ON CONFLICT belongs to is clear to SQLite only after a WHERE.
AT_ONCE = 50
SET_FIFTY = (
    f"{_INSERT} SELECT ?, column1, ?, length(column2), column2, column3, NULL"
    f" FROM (VALUES {', '.join(['(?, ?, ?)'] * AT_ONCE)}) WHERE true{_UPDATE}"
)
# Only where what is there has expired.
ONLY_NEW = " WHERE entries.expires <= ?"
ADD = SET + ONLY_NEW
# A file lies in the folder of one generation of its namespace, so the entry names that one.
SET_FILE = (
    f"{_INSERT} SELECT id, ?, ?, ?, NULL, ?, ? FROM namespaces WHERE name = ? AND folder = ?"
    + _UPDATE
)
EXPIRES = f"SELECT expires FROM entries WHERE ns = {NS} AND key = ? AND {LIVE}"
# Whether anything may have expired, and what may have, by the times of the blocks. CROSS, and a +
# before each ns that follows: or SQLite looks at the whole namespace for each block.
DUE = "SELECT 1 FROM blocks WHERE earliest <= ?"
IN_DUE = (
    "FROM blocks CROSS JOIN entries ON entries.id BETWEEN blocks.id << 6 AND (blocks.id << 6) + 63"
    " WHERE earliest <= ?"
)
_EXPIRED = f"SELECT entries.id {IN_DUE} AND +ns = {NS} AND expires <= ?"
# A condition of listings, which never look at the entries themselves. Asked first is whether
# anything is due at all: comparing each entry with a list of none was a third of a listing.
ALIVE = f"(NOT EXISTS ({DUE}) OR id NOT IN ({_EXPIRED}))"
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
