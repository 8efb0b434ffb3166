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
import weakref
from typing import Any, Dict, Optional, Tuple

from ..guard import Guard
from ..interruption import let_through

__all__ = ["HEAD", "Watch", "only", "sweep"]

#: The bytes of one copy of the head; SQLite keeps two, and writes this one last.
HEAD = 48

# What a head begins with: the version of its format.
_VERSION = (3007000).to_bytes(4, sys.byteorder)

# The number of commits, of frames in the log, and what tells this log from the last one.
_FIELDS = struct.Struct("=8xI4xI12x8s").unpack_from

# More than most commits of ours write: a value of 128 KiB takes 33 pages.
_MOST_FRAMES = 64

# Where in it stands that it is in use.
_IN_USE = 12

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

# Every index of a log that was ever watched, by device and inode. Whoever closes a file takes away
# all locks that his process has on it (POSIX), SQLite's too: so one is closed only when it has no
# name any more. SQLite takes it away with its last connection; who else does has taken the data.
_opened: Dict[Tuple[int, int], int] = {}
_watches: weakref.WeakSet[Any] = weakref.WeakSet()
_guard = Guard()

# So many may be open: one for each folder that is watched, or was and is open in other processes.
_MOST_FILES = 64


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

    __slots__ = ("__weakref__", "_connection", "file", "pid")

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
            _attach(self, f"{path}-shm")
            _check_inode(path, inode)
            two = os.pread(self.file, 2 * HEAD, 0)
            if two[:4] != _VERSION or two[_IN_USE] != 1 or len(two) != 2 * HEAD:
                raise OSError(f"{path}-shm is not as this version knows it")
        except BaseException:
            self.close()
            raise

    def state(self) -> Optional[bytes]:
        """What changes with every commit; ``None``: it can't be told."""
        try:
            head = os.pread(self.file, HEAD, 0)
        except OSError as error:
            let_through(error)
            return None
        return head if len(head) == HEAD else None

    def close(self) -> None:
        """Stop watching. Twice is fine."""
        self.file = -1
        self._connection.close()


def _check_inode(path: str, inode: Tuple[int, int]) -> None:
    about = os.stat(path)
    if (about.st_dev, about.st_ino) != inode:
        raise OSError(f"{path} is not what was opened")


def only(count: int, before: bytes, state: bytes) -> bool:
    """Whether exactly `count` small commits lie between two states of one watch.

    Commits are numbered. The numbers begin anew where SQLite has to mend the index, because a
    process died in the one moment in which it changed it. Then the numbers of others' commits may
    come again, but as many commits as there were before make the log longer than `count` small
    ones would. Where the log itself has begun anew its length says nothing.
    """
    if not count:
        return before == state
    commits, frames, salts = _FIELDS(before)
    now_commits, now_frames, now_salts = _FIELDS(state)
    most = _MOST_FRAMES * count
    return bool(
        salts == now_salts
        and commits >= most >= now_frames - frames > 0
        and now_commits == commits + count
    )


def sweep() -> None:
    """Close the files that nobody needs any more."""
    if _opened:
        _close_unnamed()


@_guard
def _attach(watch: Watch, path: str) -> None:
    """Give a watch the file at `path`: the same descriptor for as long as it is the same file."""
    _close_unnamed()
    about = os.stat(path)
    found = _opened.get((about.st_dev, about.st_ino))
    if found is None:
        if len(_opened) >= _MOST_FILES:
            raise OSError(f"{path} would be one of too many files that must stay open")
        found = os.open(path, _FLAGS)
        about = os.fstat(found)
        # Where it was replaced just now by one that is known already, both stay open.
        found = _opened.setdefault((about.st_dev, about.st_ino), found)
    watch.file = found
    _watches.add(watch)


@_guard
def _close_unnamed() -> None:
    read = {watch.file for watch in _watches}
    for inode, file in list(_opened.items()):
        if file in read:
            continue
        try:
            about = os.fstat(file)
        except OSError:  # somebody closed it, as daemons close all
            del _opened[inode]
            continue
        if (about.st_dev, about.st_ino) != inode:  # its number is another file's by now
            del _opened[inode]
        elif not about.st_nlink:
            del _opened[inode]
            os.close(file)
