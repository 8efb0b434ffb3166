"""A lock between processes, as a row in the index."""

from __future__ import annotations

import secrets
from typing import Optional

from ..leases import Lease
from .clock import time_ms
from .database import Database

__all__ = ["DiskLease"]


class DiskLease(Lease):
    """A row that names its holder and when it ends. A killed holder's row is taken over then."""

    def __init__(self, database: Database, key: str, namespace: Optional[str], ttl_ms: int) -> None:
        self._database = database
        self._place = (namespace or "", key)
        self._token = secrets.token_hex(16)
        self.ttl_ms = ttl_ms
        self.group = id(database)

    def acquire(self, wait: float) -> bool:
        """Try once; the caller waits."""
        now = time_ms()
        # Read first: waiters must not take turns at the writers' lock just to be refused.
        row = self._database.fetch_one(
            "SELECT expires FROM locks WHERE name = ? AND key = ?", self._place
        )
        # A lease that ends later than any could: the clock went back since. It is nobody's.
        if row is not None and now < row[0] <= now + 1000 * self.ttl_ms + 86_400_000:
            return False
        taken, _ = self._database.write(
            "INSERT INTO locks VALUES(?, ?, ?, ?) ON CONFLICT(name, key) DO UPDATE "
            "SET token = excluded.token, expires = excluded.expires WHERE locks.expires = ?",
            (*self._place, self._token, now + self.ttl_ms, -1 if row is None else row[0]),
        )
        if taken and time_ms() >= now + self.ttl_ms:
            self.release()
            return False  # getting it took longer than it holds
        return taken > 0

    def renew(self) -> bool:
        """Hold on for another `ttl_ms`, unless somebody took over."""
        kept, _ = self._database.write(
            "UPDATE locks SET expires = ? WHERE name = ? AND key = ? AND token = ?",
            (time_ms() + self.ttl_ms, *self._place, self._token),
        )
        return kept > 0

    def release(self) -> bool:
        """Take the row away, if it is still ours."""
        gone, _ = self._database.write(
            "DELETE FROM locks WHERE name = ? AND key = ? AND token = ?",
            (*self._place, self._token),
        )
        return gone > 0
