"""Sending SQLite's log to the disk early and in pieces, so that nobody waits for all of it at once.

Before SQLite moves its log into the database it waits until the log is on the disk: 4 MB, of which
the system has usually not written any by then. So it is asked to begin, each time that a process
has written another piece, and nobody waits for that. PostgreSQL (``checkpoint_flush_after``) and
RocksDB (``bytes_per_sync``) treat their files in the same way.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import lru_cache
from typing import Callable, Optional

__all__ = ["Writeback"]

# The bytes between two calls: an eighth of what SQLite's log grows to.
_PIECE = 512 << 10

# What a write adds to the log besides its value: most change two pages.
_PAGES = 2 * 4096

_BEGIN = 2  # SYNC_FILE_RANGE_WRITE: begin to write what is not being written, wait for nothing

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@lru_cache(maxsize=None)
def _sync_file_range() -> Optional[Callable[[int, int, int, int], object]]:
    """Linux's call, which Python does not offer; ``None`` where there is none, or no ctypes."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes  # 1.4 ms, and only for who writes a piece

        call = ctypes.CDLL(None).sync_file_range
    except (ImportError, OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found: Callable[[int, int, int, int], object] = call
    return found


class Writeback:
    """Counts what this process writes to the log of `database`, roughly. Threads may miscount."""

    __slots__ = ("_log", "_written")

    def __init__(self, database: str) -> None:
        self._log = f"{database}-wal"
        self._written = 0

    def wrote(self, size: int) -> None:
        """Called with each write: the bytes of its values."""
        self._written += size + _PAGES
        if self._written >= _PIECE:
            self._written = 0
            self._begin()

    def _begin(self) -> None:
        begin = _sync_file_range()
        if begin is None:
            return
        # No more than a hint: whatever is wrong with the log or the disk, SQLite sees it itself.
        with contextlib.suppress(OSError):
            # Opened each time, because the log comes and goes. Closing it does no harm, as it would
            # with the database: SQLite has no locks on this file.
            log = os.open(self._log, _FLAGS)
            try:
                begin(log, 0, 0, _BEGIN)
            finally:
                os.close(log)
