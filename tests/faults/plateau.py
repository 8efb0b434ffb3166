"""What must come back to a plateau, counted: helpers of the long runs."""

from __future__ import annotations

import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any, Callable

from kv_store_adapter import DiskKVStore, KVStoreProtocol, MemoryKVStore, RedisKVStore, renewal


def used() -> int:
    """Bytes of Python's objects in use, about: each block that is allocated counted as 64 bytes.

    Unlike tracemalloc it costs nothing, so that a million operations are over soon.
    """
    gc.collect()
    return 64 * sys.getallocatedblocks()


KINDS = ["memory", "disk", "redis"]


def opener_of(kind: str, request: Any) -> Callable[[], KVStoreProtocol]:
    """A function that opens the same store each time."""
    if kind == "memory":
        return MemoryKVStore
    if kind == "disk":
        folder = request.getfixturevalue("tmp_path") / "store"
        return lambda: DiskKVStore(folder, timeout=20)
    port = request.getfixturevalue("redis_server").port
    return lambda: RedisKVStore(port=port, socket_timeout=20, socket_connect_timeout=20)


def descriptors() -> int:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    return len(os.listdir(folder))


def threads() -> int:
    """How many there are, but for those that renew leases: they end when nothing is left to renew."""
    if not os.path.isdir("/proc/self/task"):
        return threading.active_count()
    # The system knows them all, also those that Python does not.
    return len(os.listdir("/proc/self/task")) - len(renewal._keepers)


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
