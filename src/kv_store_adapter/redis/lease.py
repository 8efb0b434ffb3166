"""A lock between everybody on a server: redis-py's own lock, an attempt at a time."""

from __future__ import annotations

import uuid
from typing import Any

from ..interruption import let_through
from ..leases import Lease
from .errors import repeats, translate

__all__ = ["RedisLease"]


class RedisLease(Lease):
    """redis-py's lock: a key with a token and an expiry, released and extended by script."""

    def __init__(self, client: Any, name: bytes, ttl_ms: int) -> None:
        self._client = client
        # thread_local=False: the keeper's thread renews what another thread acquired.
        self._lock = client.lock(name.decode("utf-8"), timeout=ttl_ms / 1000, thread_local=False)
        self._token = uuid.uuid4().hex.encode()
        self.ttl_ms = ttl_ms
        self.group = id(client)

    def _do(self, action: Any) -> bool:
        from redis.exceptions import LockError

        try:
            return bool(action())
        except LockError:
            return False  # not ours any more
        except Exception as error:  # the driver's, whatever it is: see translate()
            let_through(error)
            raise translate(error, None, self._client) from error

    def acquire(self, wait: float) -> bool:
        """Try once; the caller waits."""
        return self._do(self._acquire)

    def _acquire(self) -> bool:
        if self._lock.acquire(blocking=False, token=self._token):
            return True
        # A client that repeats by itself may have been refused by its own first attempt.
        if not repeats(self._client) or self._client.get(self._lock.name) != self._token:
            return False
        self._lock.local.token = self._token
        return True

    def renew(self) -> bool:
        """Hold on for another `ttl_ms`, unless somebody took over."""
        return self._do(lambda: self._lock.extend(self.ttl_ms / 1000, replace_ttl=True))

    def release(self) -> bool:
        """Delete the key, if it is still ours."""

        def action() -> bool:
            # redis-py's lock does not know it where a signal's handler raised in acquire().
            self._lock.local.token = self._token
            self._lock.release()
            return True

        return self._do(action)
