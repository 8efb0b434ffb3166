"""Directories and value files: made private, written whole, never followed out of the root."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import time
import zlib
from typing import IO, Any, Callable, Iterator, Optional, Tuple

from ..exceptions import SerializationError, StoreFormatError, StoreUnavailableError, where
from ..interruption import let_through

__all__ = ["DATABASE", "RESERVE", "SPARE", "Folder", "checksum", "damaged", "is_folder"]

#: The database's file name inside the root.
DATABASE = "kv-store.sqlite3"
#: The file of nothing that is kept for a full disk.
RESERVE = "kv-store.reserve"

#: An empty file beside it: where inodes are used up, SQLite needs two for its files besides the
#: database.
SPARE = "kv-store.spare"
_NAMESPACES = "namespaces"
_ABOUT = "namespace.json"

# What we make, and therefore what we may delete. Anything else is somebody else's.
_FOLDER_NAME = re.compile(r"[a-z0-9_-]{0,40}-[0-9a-f]{16}")
_VALUE_NAME = re.compile(r"[0-9a-f]{32}\.value")
_OURS = re.compile(
    rf"{re.escape(DATABASE)}(-wal|-shm|-journal)?|{RESERVE}|{SPARE}|{_NAMESPACES}|damaged-.*|lost\+found|\.gitignore"
)

# A value file opens with this and its own token: a truncated or swapped file is always noticed.
# 25 bytes, and the 7 that pickle writes before bytes or a text: these begin at a multiple of 16 in
# the file, as they do in memory. Else a read takes ten times as long where both lie unluckily, see
# docs/design.md.
_MAGIC = b"kv-value\n"
_HEADER = len(_MAGIC) + 16


class Folder:
    """The folder of one store.

    Args:
        path: The root. Made, with mode 0700, where it is not there.
        trust_root: Use the root although others own it or can write to it.
        durable: Wait until files have reached the disk.

    Raises:
        StoreUnavailableError: The root is a file, a link, another user's, or can't be made.
        StoreFormatError: It holds something else.
    """

    def __init__(self, path: str, *, trust_root: bool, durable: bool) -> None:
        self.path = path
        self._durable = durable
        try:
            self._enter(trust_root)
        except OSError as error:
            let_through(error)
            raise StoreUnavailableError(
                f"The folder {path} can't be used: {error.strerror}. Choose one that you may "
                "read and write."
            ) from error

    def _enter(self, trust_root: bool) -> None:
        try:
            about = os.lstat(self.path)
        except FileNotFoundError:
            parent = os.path.dirname(self.path)
            os.makedirs(parent, exist_ok=True)
            try:
                # makedirs() and mkdir() leave the mode to the umask; chmod() does not.
                os.mkdir(self.path, 0o700)
                os.chmod(self.path, 0o700)
            except FileExistsError:
                pass  # another process was faster
            about = os.lstat(self.path)
        if stat.S_ISLNK(about.st_mode) and trust_root:
            about = os.stat(self.path)
        if not stat.S_ISDIR(about.st_mode):
            what = "a symbolic link" if stat.S_ISLNK(about.st_mode) else "not a folder"
            raise StoreUnavailableError(
                f"{self.path} is {what}. A disk store needs a folder of its own"
                + (" (trust_root=True follows a link)." if "link" in what else ".")
            )
        if not trust_root and hasattr(os, "geteuid"):
            self._check_owner(about)
            if about.st_mode & 0o077 and not os.listdir(self.path):
                os.chmod(self.path, 0o700)  # empty and ours: private from now on
        strangers = [name for name in os.listdir(self.path) if not _OURS.fullmatch(name)]
        if strangers and not os.path.lexists(os.path.join(self.path, DATABASE)):
            raise StoreFormatError(
                f"{self.path} holds something else ({strangers[0]!r}, for example). It was left "
                "untouched; a disk store needs a folder of its own."
            )
        self._make_folder(os.path.join(self.path, _NAMESPACES))
        self.make_private(os.path.join(self.path, DATABASE))
        # SQLite would follow a link here, and wait for ever for a pipe.
        for suffix in ("-wal", "-shm", "-journal"):
            path = os.path.join(self.path, DATABASE + suffix)
            if not _is_plain(path):
                raise OSError(errno.EINVAL, f"{path} is not a plain file")

    def _check_owner(self, about: os.stat_result) -> None:
        if about.st_uid != os.geteuid():
            raise StoreUnavailableError(
                f"{self.path} belongs to another user (uid {about.st_uid}), who could plant "
                "values in it. Use a folder of your own, or say trust_root=True if you trust them."
            )
        if about.st_mode & 0o022:
            raise StoreUnavailableError(
                f"Others can write to {self.path} (mode {stat.S_IMODE(about.st_mode):o}) and could "
                f"plant values in it. Run chmod 700 on it, or say trust_root=True."
            )

    @staticmethod
    def _make_folder(path: str) -> None:
        try:
            os.mkdir(path, 0o700)
            os.chmod(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a folder") from None

    @staticmethod
    def make_private(path: str) -> None:
        """Make an empty file with mode 0600, unless there is one."""
        # SQLite gives its own files the mode of the database. Never opened when it exists: closing
        # any handle of a file drops the locks that SQLite holds on it in this process.
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | _NO_FOLLOW, 0o600)
        except FileExistsError:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise OSError(errno.EINVAL, f"{path} is not a plain file") from None
            return
        try:
            if hasattr(os, "fchmod"):
                os.fchmod(handle, 0o600)
        finally:
            os.close(handle)

    @property
    def database(self) -> str:
        """The path of the database file."""
        return os.path.join(self.path, DATABASE)

    # The index may be damaged or tampered with: what it names is looked at before it is used.

    def _at(self, folder: str) -> str:
        """The path of a namespace's folder, which is one of ours and no link to elsewhere."""
        if not is_folder(folder):
            raise OSError(
                errno.EINVAL, f"the index names {folder!r:.100}, which is no folder of ours"
            )
        path = os.path.join(self.path, _NAMESPACES, folder)
        if os.path.islink(path):
            raise OSError(errno.ELOOP, f"{path} is a link")
        return path

    def _file(self, file: str) -> str:
        """The path of a value file, which is in a folder of ours and named as we name them."""
        folder, _, name = file.partition("/") if isinstance(file, str) else ("", "", "")
        if not _VALUE_NAME.fullmatch(name):
            raise OSError(errno.EINVAL, f"the index names {file!r:.100}, which is no file of ours")
        return os.path.join(self._at(folder), name)

    # ------------------------------------------------------------------ namespaces

    def make_namespace(self, namespace: Optional[str], serializer: str) -> str:
        """Make the folder of a namespace, with its metadata; return the folder's name."""
        # A name that a person recognises, and a number that makes it no other's: names that
        # differ by case or accents alone would meet on some file systems.
        label = "default" if namespace is None else namespace
        slug = re.sub(r"[^a-z0-9_]+", "-", label[:40].lower()).strip("-")
        folder = f"{slug}-{secrets.token_hex(8)}"
        with _AsUnavailable(self.path):
            self._make_folder(self._at(folder))
            self.write_about(folder, namespace, serializer)
            self._sync_folder(self._at(folder))
            self._sync_folder(os.path.join(self.path, _NAMESPACES))
        return folder

    def write_about(self, folder: str, namespace: Optional[str], serializer: str) -> None:
        """Write a namespace's metadata: for people and for repairs, the index does not need it."""
        about = {
            "format": 1,
            "name": namespace,
            "serializer": serializer,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with _AsUnavailable(self.path):
            path = self._at(folder)
            self._make_folder(path)
            self._unlink(os.path.join(path, _ABOUT))
            with self._create(os.path.join(path, _ABOUT)) as file:
                _write_all(file, json.dumps(about, indent=2).encode("ascii") + b"\n")

    def set_aside(self, folder: str, aside: str) -> None:
        """Move a namespace's folder away, with all that is in it."""
        with _AsUnavailable(self.path):
            os.replace(self._at(folder), os.path.join(aside, folder))

    def read_about(self, folder: str) -> Any:
        """The metadata of a namespace's folder, or `SerializationError` where it is damaged."""
        try:
            path = os.path.join(self._at(folder), _ABOUT)
            with open(os.open(path, os.O_RDONLY | _NO_FOLLOW | _NO_WAIT), "rb") as file:
                about = json.loads(file.read(1 << 20))
            if not isinstance(about, dict) or "name" not in about:
                raise ValueError("it does not name a namespace")
        except (OSError, ValueError, RecursionError) as error:
            let_through(error)
            raise SerializationError(
                f"The metadata in {os.path.join(_NAMESPACES, str(folder))} is damaged: {error}"
            ) from error
        return about

    def remove_namespace(self, folder: str) -> bool:
        """Remove the folder of a namespace and what we made in it; ``True`` when it is gone."""
        if not is_folder(folder):
            return True
        try:
            path = self._at(folder)
            for name in os.listdir(path):
                if name == _ABOUT or _VALUE_NAME.fullmatch(name):
                    self._unlink(os.path.join(path, name))
            os.rmdir(path)
        except FileNotFoundError:
            return True
        except OSError as error:
            let_through(error)
            # A stranger's file, or a writer who was just about to store here.
            return False
        return True

    def folders(self) -> Iterator[Tuple[str, float]]:
        """The namespace folders on disk, each with the time of its last change."""
        path = os.path.join(self.path, _NAMESPACES)
        with _AsUnavailable(self.path), os.scandir(path) as entries:
            for entry in entries:
                if is_folder(entry.name) and entry.is_dir(follow_symlinks=False):
                    try:
                        when = entry.stat(follow_symlinks=False).st_mtime
                    except FileNotFoundError:
                        continue  # cleared meanwhile
                    yield entry.name, when

    def files(self, folder: str) -> Iterator[Tuple[str, float]]:
        """The value files in one folder, as ``folder/name``, each with its time."""
        try:
            with os.scandir(self._at(folder)) as entries:
                for entry in entries:
                    if _VALUE_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        when = entry.stat(follow_symlinks=False).st_mtime
                        yield f"{folder}/{entry.name}", when
        except OSError as error:
            let_through(error)
            return

    # ------------------------------------------------------------------ value files

    @staticmethod
    def new_file(folder: str) -> str:
        """A name for a new value file: never used before, so nothing is ever overwritten."""
        return f"{folder}/{secrets.token_hex(16)}.value"

    def write_file(self, file: str, data: bytes) -> None:
        """Write a value file. Its name is new, so nobody reads it before the index names it.

        Raises:
            FileNotFoundError: Its namespace was cleared meanwhile.
            StoreUnavailableError: It can't be written; nothing is left behind.
        """
        with _AsUnavailable(self.path):
            path = self._file(file)
        try:
            with self._create(path) as stream:
                token = bytes.fromhex(os.path.basename(file)[:32])
                if _ALLOCATE is not None:
                    try:
                        # Blocks in one piece, and a full disk found out before writing.
                        _ALLOCATE(stream.fileno(), 0, _HEADER + len(data))
                    except OSError as error:
                        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                            raise
                _write_all(stream, _MAGIC + token)
                _write_all(stream, data)
                if self._durable:
                    os.fsync(stream.fileno())
        except FileNotFoundError:
            raise
        except OSError as error:
            self._unlink(path)
            let_through(error)
            raise StoreUnavailableError(
                f"{path} could not be written: {error.strerror}. The old value is still there."
            ) from error
        self._sync_folder(os.path.dirname(path))

    def read_file(
        self,
        file: str,
        size: int,
        key: str,
        namespace: Optional[str],
        load: Optional[Callable[[IO[bytes]], Any]] = None,
    ) -> Tuple[Any, bool]:
        """Read a value file back.

        Args:
            file: What the index calls it.
            size: How many bytes the value has.
            key: For messages.
            namespace: For messages.
            load: What makes a value of a stream, as ``pickle.load``. Then the bytes are never in
                memory beside the value: a second buffer of a megabyte costs more than reading it.

        Returns:
            The value and ``True``; or the bytes and ``False``, without `load` or where it fails.

        Raises:
            FileNotFoundError: It is gone: replaced or deleted since the index was read, or lost.
            SerializationError: It is truncated, or another value's file.
        """
        path = "the index"
        try:
            path = self._file(file)
            with open(
                os.open(path, os.O_RDONLY | _NO_FOLLOW | _NO_WAIT | _BINARY), "rb", 0
            ) as stream:
                about = os.fstat(stream.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise OSError(errno.EINVAL, "it is not a plain file")
                head = stream.read(_HEADER)
                right = _MAGIC + bytes.fromhex(os.path.basename(file)[:32])
                if load is not None and head == right and about.st_size - _HEADER == size:
                    try:
                        return load(stream), True
                    except Exception as error:  # what is wrong comes out when it is decoded
                        let_through(error)
                        stream.seek(_HEADER)
                data = stream.readall()  # unbuffered: a FileIO
        except FileNotFoundError:
            raise
        except OSError as error:
            let_through(error)
            # ELOOP: somebody put a link in its place. Only this entry suffers.
            if error.errno in (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO):
                raise damaged(
                    key, namespace, path, f"it is not the file that was written: {error.strerror}"
                ) from error
            raise StoreUnavailableError(f"{path} could not be read: {error.strerror}.") from error
        if head != right:
            raise damaged(key, namespace, path, "it is not the file that was written")
        if len(data) != size:
            raise damaged(key, namespace, path, f"it has {len(data)} bytes of {size}")
        return data, False

    def remove_file(self, file: str) -> bool:
        """Remove a value file; ``True`` when it is gone."""
        try:
            return self._unlink(self._file(file))
        except OSError as error:
            let_through(error)
            return error.errno == errno.EINVAL  # not ours: nothing to remove

    @staticmethod
    def _unlink(path: str) -> bool:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return True
        except OSError as error:
            let_through(error)
            return False
        return True

    def _create(self, path: str) -> IO[bytes]:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_FOLLOW | _BINARY, 0o600)
        if hasattr(os, "fchmod"):
            os.fchmod(handle, 0o600)
        return open(handle, "wb", 0)

    def _sync_folder(self, path: str) -> None:
        if self._durable and hasattr(os, "O_DIRECTORY"):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _is_plain(path: str) -> bool:
    """Whether a file of ours may be there."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return True  # nothing is there


def is_folder(name: Any) -> bool:
    """Whether it is a name that we give to a namespace's folder."""
    return isinstance(name, str) and _FOLDER_NAME.fullmatch(name) is not None


def checksum(key: str, namespace: Optional[str], data: bytes) -> int:
    """What ``verify=True`` keeps with a value: of its bytes, and of the place they are for.

    A bit that flips in the index may show one entry's bytes under another one's name.
    """
    place = f"{namespace or ''}\0{key}".encode()
    return zlib.crc32(data, zlib.crc32(place))


def damaged(key: str, namespace: Optional[str], path: str, why: str) -> SerializationError:
    """An entry whose bytes are not those that were written."""
    return SerializationError(
        f"What is stored under {where(key, namespace)} is damaged ({path}: {why}). It is left "
        "where it is; set() replaces it, delete() drops it."
    )


def _write_all(stream: IO[bytes], data: bytes) -> None:
    # Unbuffered, so write() may take less than all: over 2 GiB, or on a disk that fills up.
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


class _AsUnavailable:  # used like a function
    """Turns the operating system's errors into ours."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, exc_type: object, error: Optional[BaseException], tb: object) -> None:
        if isinstance(error, OSError):
            let_through(error)
            raise StoreUnavailableError(
                f"The folder {self._path} can't be written: {error.strerror}."
            ) from error


_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_ALLOCATE = getattr(os, "posix_fallocate", None)
