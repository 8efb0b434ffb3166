"""`DiskKVStore`: a folder that many processes share.

::

    path/
      kv-store.sqlite3        the index of all namespaces, and the small values (WAL: -wal, -shm)
      kv-store.reserve        a megabyte of nothing, let go when the disk is full
      namespaces/
        sessions-5f1d9c3a/    one folder a namespace
          namespace.json      its exact name, the serializer, when it was made
          8c1f...e0.value     a value too large for the index

Rooms: `store` (the operations), `database` (connections, waiting, errors), `schema` (tables, first
opening), `folder` (directories and value files), `cleaning` (what has expired or died), `space` (a
full disk), `lease` (locks), `repair` (what `check` does).
"""

from __future__ import annotations

from .store import DiskKVStore

__all__ = ["DiskKVStore"]
