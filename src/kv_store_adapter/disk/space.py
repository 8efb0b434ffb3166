"""A full disk: some space kept back, so that deleting works when nothing else does.

SQLite writes before it frees: on a full disk a DELETE fails like any other write. So each store
keeps a small file of nothing, and lets go of it for operations that free space.
"""

from __future__ import annotations

import contextlib
import os
import stat

from .database import Database
from .folder import RESERVE, SPARE

__all__ = ["Reserve", "checkpoint_pages", "most_pages"]

# Below so many bytes of free space, as seen when a connection opens, the disk counts as small.
_SMALL = 256 << 20

# What is kept back: on a small disk more than the log of writes grows to between two checkpoints,
# so that moving the log into the database always fits.
_KEPT, _KEPT_IF_SMALL = 1 << 20, 512 << 10


def free_bytes(path: str) -> int:
    """The free space where `path` is; very much where it can't be told."""
    try:
        disk = os.statvfs(path)
    except (AttributeError, OSError):
        return 1 << 60
    return disk.f_bavail * disk.f_frsize


def checkpoint_pages(path: str) -> int:
    """How many pages the log of writes may grow to: SQLite's 1,000, or less on a small disk."""
    return 1000 if free_bytes(path) > _SMALL else 64


def most_pages() -> int:
    """How many pages of 4 KiB this process may write to one file; 0: as many as it likes."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return 0 if most == resource.RLIM_INFINITY else max(1, most // 4096)


class Reserve:
    """The space kept back in the folder of one store."""

    def __init__(self, folder: str, database: Database) -> None:
        self._path = os.path.join(folder, RESERVE)
        self._spare = os.path.join(folder, SPARE)
        self._database = database

    def keep(self, share: int = 4) -> None:
        """Keep space back, unless that is done: at most one `share`-th of what is free."""
        if not hasattr(os, "posix_fallocate"):
            return
        if not os.path.lexists(self._spare):
            with contextlib.suppress(OSError):
                handle = os.open(self._spare, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
                os.fchmod(handle, 0o600)  # whatever the umask
                os.close(handle)
        try:
            about = os.lstat(self._path)
        except OSError:
            pass
        else:
            if about.st_size or not stat.S_ISREG(about.st_mode):
                return
            self._let_go()  # whoever made it was killed before there was anything in it
        free = free_bytes(os.path.dirname(self._path))
        size = _KEPT if free > _SMALL else min(_KEPT_IF_SMALL, free // share)
        if size < 64 << 10:
            return
        try:
            handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except OSError:
            return  # another process was faster, or there is no space for that either
        try:
            os.fchmod(handle, 0o600)
            os.posix_fallocate(handle, 0, size)
        except OSError:
            self._let_go()
        finally:
            os.close(handle)

    def release(self) -> None:
        """Let go of the space, and move what was written into the database if it fits now."""
        self._let_go()
        self._database.empty_log()

    def _let_go(self) -> None:
        for path in (self._path, self._spare):
            with contextlib.suppress(OSError):
                os.unlink(path)
