"""Whether anybody has written since: told by the head of SQLite's index of its log.

Every commit, of whatever process, changes the first 48 bytes of the file beside the log
(``-shm``, "Header Information" in https://sqlite.org/walformat.html): the number of commits, the
length of the log and checksums. They change before the commit returns, and SQLite's own readers see
it by nothing else. So while they are the same, what was read is still what is stored. Reading them
takes a fifteenth of the time of asking SQLite for a value.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
import threading
from typing import Any, Dict, Optional, Tuple

from .. import forking

__all__ = ["HEAD", "Watch", "only"]

#: The bytes of one copy of the head; SQLite keeps two, and writes this one last.
HEAD = 48

# What a head begins with: the version of its format.
_VERSION = (3007000).to_bytes(4, sys.byteorder)

# The number of commits, of frames in the log, and what tells this log from the last one.
_FIELDS = struct.Struct("=8xI4xI12x8s").unpack_from

# More than one statement of ours writes: the largest value in the index takes 33 pages.
_MOST_FRAMES = 64

# Where in it stands that it is in use.
_IN_USE = 12

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

# Every index of a log that was ever watched, by device and inode. Whoever closes a file takes away
# all locks that his process has on it (POSIX), SQLite's too: so one is closed only when it has no
# name any more, which SQLite takes away when its last connection is closed.
_opened: Dict[Tuple[int, int], int] = {}
_mutex = threading.RLock()


def _after_fork() -> None:
    global _mutex
    _mutex = threading.RLock()


forking.after_in_child(_after_fork)


class Watch:
    """Watches one database, with a connection of its own: while it is open the file stays in use.

    Args:
        path: The database.
        inode: Its device and inode as others opened it; another file is not watched.

    Attributes:
        file: The descriptor to read from; -1 once it is closed.
        pid: The process that watches.

    Raises:
        OSError, sqlite3.Error: It can't be watched, or not now.

    Notes:
        *Threads.* `state` may be called by all of them, and while another one closes.
        *Forks.* Closed before; what came through a fork that Python was not told of must not be
        used, see `pid`.
    """

    __slots__ = ("_connection", "file", "pid")

    def __init__(self, path: str, inode: Tuple[int, int]) -> None:
        self.pid: int = os.getpid()
        self.file: int = -1
        # Before SQLite would make a new one where there is none.
        _check_inode(path, inode)
        self._connection: Any = sqlite3.connect(
            path, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            (mode,) = self._connection.execute("PRAGMA journal_mode").fetchone()
            # Opens the log, too.
            self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            _check_inode(path, inode)
            if mode != "wal":
                raise OSError(f"{path} has no log")
            self.file = _file_of(f"{path}-shm")
            two = os.pread(self.file, 2 * HEAD, 0)
            if two[:4] != _VERSION or two[_IN_USE] != 1 or len(two) != 2 * HEAD:
                raise OSError(f"{path}-shm is not as this version knows it")
        except BaseException:
            self.close()
            raise

    def state(self) -> Optional[bytes]:
        """What changes with every commit; ``None``: it can't be told."""
        try:
            return os.pread(self.file, HEAD, 0)
        except OSError:
            return None

    def close(self) -> None:
        """Stop watching. Twice is fine."""
        self.file = -1
        self._connection.close()
        _close_unnamed()


def _check_inode(path: str, inode: Tuple[int, int]) -> None:
    about = os.stat(path)
    if (about.st_dev, about.st_ino) != inode:
        raise OSError(f"{path} is not what was opened")


def only(count: int, before: bytes, state: bytes) -> bool:
    """Whether exactly `count` small commits lie between two states of one watch.

    The commits are counted, and the count begins anew only where a process dies in the one moment
    in which the index is being changed. So the length of the log, which may have begun anew as
    well, must fit.
    """
    if not count:
        return before == state
    commits, frames, salts = _FIELDS(before)
    now_commits, now_frames, now_salts = _FIELDS(state)
    written = now_frames - frames if salts == now_salts else now_frames
    return bool(now_commits == commits + count and 0 < written <= _MOST_FRAMES * count)


def _file_of(path: str) -> int:
    """A descriptor of the file at `path`: the same one for as long as it is the same file."""
    with _mutex:
        about = os.stat(path)
        inode = about.st_dev, about.st_ino
        if inode in _opened and not _is_open(inode):
            del _opened[inode]
        if inode not in _opened:
            found = os.open(path, _FLAGS)
            about = os.fstat(found)
            inode = about.st_dev, about.st_ino
            # Replaced just now by one that is known already: then both stay open.
            _opened.setdefault(inode, found)
        return _opened[inode]


def _is_open(inode: Tuple[int, int]) -> bool:
    """Whether the descriptor is still that file's: daemons close all, and numbers come again."""
    try:
        about = os.fstat(_opened[inode])
    except OSError:
        return False
    return (about.st_dev, about.st_ino) == inode


def _close_unnamed() -> None:
    with _mutex:
        for inode, file in list(_opened.items()):
            if not _is_open(inode):
                del _opened[inode]
            elif not os.fstat(file).st_nlink:
                del _opened[inode]
                os.close(file)
