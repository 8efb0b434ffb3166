"""`RedisKVStore`: a Redis or Valkey server, standalone, behind Sentinel, or a cluster.

Rooms: `layout` (which Redis key holds which entry), `conversation` (what each operation says to the
server, written once for both colours), `errors` (the seam to the driver), `store` and `aio` (the
two that speak it), `lease` (locks).
"""

from __future__ import annotations

from .store import RedisKVStore

__all__ = ["RedisKVStore"]
