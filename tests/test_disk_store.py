"""What `DiskKVStore` promises beyond the contract."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import math
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Union

import pytest
import time_machine

from kv_store_adapter import (
    DiskKVStore,
    JSONSerializer,
    KVStoreError,
    PickleSerializer,
    SerializationError,
    StoreClosedError,
    StoreFormatError,
    StoreUnavailableError,
)
from kv_store_adapter.disk import database, schema, writeback
from kv_store_adapter.disk.database import Database
from kv_store_adapter.disk.store import SPILL_THRESHOLD
from kv_store_adapter.testing.samples import at_once
from signals import needs_timers, run_among_signals

# Large enough for a file of its own.
LARGE = b"x" * (SPILL_THRESHOLD + 1000)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to give files away"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store can be made."""
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[DiskKVStore]:
    """A store at `path`."""
    with DiskKVStore(path) as store:
        yield store


def _files(path: Path) -> List[Path]:
    """The value files."""
    return sorted(path.glob("namespaces/*/*.value"))


def _snapshot(path: Path) -> Any:
    """Every file under a path with its content, every folder, and their modes."""
    return {
        str(each): (each.lstat().st_mode, each.read_bytes() if each.is_file() else None)
        for each in [path, *sorted(path.rglob("*"))]
    }


def _run(program: str, *arguments: Any, timeout: float = 60) -> str:
    """Run a program in a Python of its own; return what it printed, fail with its complaints."""
    done = subprocess.run(
        # Since 3.12 Python warns of every fork among threads: here it is what is tested.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


# ---------------------------------------------------------------------- what is on disk


def test_it_outlives_the_process(path: Path) -> None:
    """What one process stored another reads, expiry included."""
    _run(
        "import sys; from kv_store_adapter import DiskKVStore as D\n"
        "s = D(sys.argv[1]); s.set('a', [1], 'n', 1000); s.set('large', b'x' * int(sys.argv[2]))",
        path,
        len(LARGE),
    )
    with DiskKVStore(path) as store:
        assert store.get("a", "n") == [1]
        assert store.get("large") == LARGE
        assert store.ttl("a", "n") == pytest.approx(1000, abs=60)
    with time_machine.travel(time.time() + 2000), DiskKVStore(path) as store:
        assert store.keys("n") == []


def test_each_namespace_is_a_folder_with_json(store: DiskKVStore, path: Path) -> None:
    """Each namespace has a folder; its JSON has the format, the exact name, serializer and time."""
    names = ["users", "Users", "../up", "é", "e\u0301", "x" * 5000, "a/b", "CON", None]
    for name in names:
        store.set("key", 1, name)
    found = []
    for folder in (path / "namespaces").iterdir():
        about = json.loads((folder / "namespace.json").read_text("ascii"))
        assert about["format"] == 1
        assert about["serializer"] == "pickle"
        assert time.strptime(about["created"], "%Y-%m-%dT%H:%M:%SZ")
        found.append(about["name"])
    assert sorted(found, key=str) == sorted(names, key=str)
    assert {each.name for each in path.parent.iterdir()} == {"store"}


def test_large_values_are_files_and_small_ones_are_not(path: Path) -> None:
    """From spill_threshold on a value is a file of its own in its namespace's folder."""
    with DiskKVStore(path, spill_threshold=1000) as store:
        store.set("small", b"x" * 100, "n")
        assert _files(path) == []
        store.set("large", b"x" * 1000, "n")
        (file,) = _files(path)
        assert file.stat().st_size > 1000
        assert store.get("large", "n") == b"x" * 1000


@pytest.mark.parametrize("value", [b"bytes-" * 50_000, "text--" * 50_000], ids=type)
def test_bytes_and_text_are_aligned_in_their_file(
    store: DiskKVStore, path: Path, value: Union[bytes, str]
) -> None:
    """They begin at a multiple of 16, as in memory: some processors copy them slowly otherwise."""
    store.set("key", value)
    (file,) = _files(path)
    start = value if isinstance(value, bytes) else value.encode()
    assert file.read_bytes().index(start) % 16 == 0
    assert store.get("key") == value


def test_replaced_and_deleted_files_are_removed(store: DiskKVStore, path: Path) -> None:
    """Replacing, deleting, popping and clearing remove the files of large values."""
    for number in range(4):
        store.set(f"k{number}", LARGE, "n")
    store.set("k0", LARGE + b"!", "n")
    assert len(_files(path)) == 4
    store.set("k0", "small", "n")
    assert len(_files(path)) == 3
    store.delete("k1", "n")
    assert store.pop("k2", "n") == LARGE
    assert len(_files(path)) == 1
    store.set_many({f"m{number}": LARGE for number in range(5)}, "n")
    assert store.delete_many([f"m{number}" for number in range(4)], "n") == 4
    assert len(_files(path)) == 2
    assert store.clear_namespace("n") == 3
    assert _files(path) == []
    assert list((path / "namespaces").iterdir()) == []
    assert store._database.fetch("SELECT * FROM garbage") == []


def test_deleting_does_not_write_what_is_deleted(store: DiskKVStore) -> None:
    """Pages that are given back are not written, however SQLite was built."""
    log = store._database.path + "-wal"
    for number in range(5):
        store.set(f"k{number}", b"x" * 100_000)
    written = os.path.getsize(log)
    assert written > 500_000
    for number in range(5):
        store.delete(f"k{number}")
    assert os.path.getsize(log) - written < 150_000  # with zeros over all of it: 600,000


def test_what_can_t_be_stored_leaves_no_file(store: DiskKVStore, path: Path) -> None:
    """A large value that is refused by add() leaves no file behind."""
    store.set("key", "old", "n")
    assert store.add("key", LARGE, "n") is False
    assert _files(path) == []
    with pytest.raises(SerializationError):
        store.set("key", [LARGE, lambda: None], "n")
    assert _files(path) == []


# ---------------------------------------------------------------------- the root


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_folders_are_0700_and_files_0600(path: Path, umask: int) -> None:
    """Under any umask folders are 0700 and files 0600, SQLite's included."""
    if umask == 0o777 and os.geteuid() != 0:
        pytest.skip("nobody but root gets through such a umask")
    before = os.umask(umask)
    try:
        with DiskKVStore(path) as store:
            store.set("small", 1, "n")
            store.set("large", LARGE, "n")
            modes = {
                stat.S_IMODE(each.lstat().st_mode): each.is_dir()
                for each in [path, *path.rglob("*")]
            }
    finally:
        os.umask(before)
    assert modes == {0o700: True, 0o600: False}


def test_a_file_is_no_root(tmp_path: Path) -> None:
    """A path that is a file is refused, and the file is untouched."""
    file = tmp_path / "file"
    file.write_text("precious")
    for path in (file, file / "below"):
        with pytest.raises(StoreUnavailableError, match="folder"):
            DiskKVStore(path)
    assert file.read_text() == "precious"


def test_a_symlink_is_no_root(tmp_path: Path) -> None:
    """A link is refused, unless told to trust it; a dangling one and a loop are refused anyway."""
    (tmp_path / "real").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    with pytest.raises(StoreUnavailableError, match="trust_root=True"):
        DiskKVStore(link)
    assert list((tmp_path / "real").iterdir()) == []
    with DiskKVStore(link, trust_root=True) as store:
        store.set("key", 1)
    assert (tmp_path / "real" / "kv-store.sqlite3").exists()
    for target in ("nowhere", "broken"):
        broken = tmp_path / "broken"
        broken.symlink_to(tmp_path / target)
        with pytest.raises(StoreUnavailableError):
            DiskKVStore(broken, trust_root=target == "broken")
        broken.unlink()


def test_foreign_content_is_left_untouched(tmp_path: Path) -> None:
    """A folder that holds something else is refused, and not a byte of it is changed."""
    tmp_path.chmod(0o700)
    (tmp_path / "thesis.txt").write_text("precious")
    before = _snapshot(tmp_path)
    with pytest.raises(StoreFormatError, match=r"thesis\.txt"):
        DiskKVStore(tmp_path)
    assert _snapshot(tmp_path) == before


def test_another_program_s_database_is_left_untouched(path: Path) -> None:
    """A database of another program under our name is refused, and not a byte of it is changed."""
    path.mkdir(mode=0o700)
    (path / "namespaces").mkdir(mode=0o700)
    other = sqlite3.connect(str(path / "kv-store.sqlite3"))
    other.execute("CREATE TABLE theirs(a)")
    other.commit()
    other.close()
    (path / "kv-store.sqlite3").chmod(0o600)
    before = _snapshot(path)
    with pytest.raises(StoreFormatError, match="another program"):
        DiskKVStore(path)
    assert _snapshot(path) == before


def test_another_format_is_left_untouched(path: Path) -> None:
    """A store of a later format is refused by number, and its content is not changed."""
    with DiskKVStore(path) as store:
        store.set("key", 1)
        store._database.read(lambda connection: connection.execute("PRAGMA user_version=99"))
    before = _snapshot(path)
    with pytest.raises(StoreFormatError, match="format 99"):
        DiskKVStore(path)
    after = _snapshot(path)
    assert {name: after[name] for name in before} == before


def test_another_serializer_is_left_untouched(path: Path) -> None:
    """A folder written with one serializer is refused to another, and still reads with its own."""
    with DiskKVStore(path, serializer=JSONSerializer()) as store:
        store.set("key", [1], "n")
        store.set("large", "x" * 100_000, "n")
    before = _snapshot(path)
    with pytest.raises(StoreFormatError, match="'json', not 'pickle'"):
        DiskKVStore(path)
    after = _snapshot(path)
    assert {name: after[name] for name in before} == before
    with DiskKVStore(path, serializer=JSONSerializer()) as store:
        assert store.get("key", "n") == [1]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o722])
def test_a_root_that_others_can_write_to_is_refused(path: Path, mode: int) -> None:
    """A root that group or others can write to is refused, unless told to trust it."""
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(StoreUnavailableError, match="trust_root=True"):
        DiskKVStore(path)
    assert list(path.iterdir()) == []
    with DiskKVStore(path, trust_root=True) as store:
        store.set("key", 1)


@needs_root
def test_a_root_of_another_user_is_refused(path: Path) -> None:
    """A root that another user owns is refused, unless told to trust it."""
    path.mkdir(mode=0o700)
    os.chown(str(path), 12345, 12345)
    with pytest.raises(StoreUnavailableError, match="another user"):
        DiskKVStore(path)
    with DiskKVStore(path, trust_root=True) as store:
        store.set("key", 1)


def test_a_root_that_can_t_be_written(tmp_path: Path) -> None:
    """A folder that may not be written to is one clear StoreUnavailableError."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX")
    (tmp_path / "locked").mkdir()
    program = (
        "import os, sys\n"
        "from kv_store_adapter import DiskKVStore, StoreUnavailableError\n"
        "os.chmod(sys.argv[1], 0o500)\n"
        "if os.geteuid() == 0:\n"
        "    os.chown(sys.argv[1], 65534, 65534); os.chmod(os.path.dirname(sys.argv[1]), 0o755)\n"
        "    os.seteuid(65534)\n"
        "for path in (sys.argv[1], sys.argv[1] + '/below', '/proc/nothing/x'):\n"
        "    try:\n"
        "        DiskKVStore(path)\n"
        "    except StoreUnavailableError as error:\n"
        "        print('refused', error.__cause__ is not None)\n"
    )
    # Above the test's folder are others that a stranger may not enter: that is refused as well.
    assert _run(program, tmp_path / "locked").splitlines() == ["refused True"] * 3


@pytest.mark.parametrize(
    ("path", "error"), [(5, TypeError), (None, TypeError), (b"x", TypeError), ("a\0b", ValueError)]
)
def test_what_is_no_path(path: Any, error: Any) -> None:
    """A path is a str or a path object without NUL."""
    with pytest.raises(error):
        DiskKVStore(path)


def test_the_home_folder_and_later_changes_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tilde is the home folder; a relative path stays where it was when the folder changes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with DiskKVStore("~/cache") as store:
        assert store.path == str(tmp_path / "cache")
    with DiskKVStore("relative") as store:
        monkeypatch.chdir("/")
        store.set("large", LARGE)
        assert store.get("large") == LARGE


# ---------------------------------------------------------------------- many processes


def test_many_processes_open_it_at_once(path: Path) -> None:
    """Processes that meet at a new folder all open it, and none loses what it writes."""
    program = (
        "import sys; from kv_store_adapter import DiskKVStore\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "me = sys.argv[2]; store = DiskKVStore(sys.argv[1], spill_threshold=20000)\n"
        "for n in range(20):\n"
        "    store.set(f'{me}-{n}', n, 'shared'); store.set('large', b'x' * 40000, f'own{me}')\n"
        "print(store.add('once', me, 'race'))\n"
    )
    for round_ in range(2):
        root = path.parent / f"store{round_}"
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(root), str(me)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for me in range(6)
        ]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"  # type: ignore[union-attr]
        for worker in workers:
            worker.stdin.write("go\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
        won = [worker.communicate(timeout=60)[0].strip() for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * 6
        assert won.count("True") == 1
        with DiskKVStore(root) as store:
            assert len(store.keys("shared")) == 120
            assert len(store.list_namespaces()) == 8


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_the_tables_are_made_while_they_are_looked_for(path: Path, mode: str) -> None:
    """Another process that makes the tables between two questions is no other program."""
    path.mkdir()
    file = str(path / "kv-store.sqlite3")
    with contextlib.closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as other:
        other.execute(f"PRAGMA journal_mode={mode}")
        tries: List[str] = []

        def make(statement: str) -> None:
            if "user_version" not in statement or tries:
                return
            try:
                other.execute("BEGIN IMMEDIATE")
                schema.make(other, PickleSerializer().name)
                other.execute("COMMIT")
                tries.append("made")
            except sqlite3.OperationalError:  # it has to wait, which is as well
                other.execute("ROLLBACK")
                tries.append("had to wait")

        def prepare(connection: sqlite3.Connection) -> None:
            connection.set_trace_callback(make)

        database = Database(file, prepare, timeout=5.0)
        schema.set_up(database, PickleSerializer().name)
        assert tries == ["made" if mode == "WAL" else "had to wait"]
        assert database.fetch("SELECT name, value FROM meta") == [("serializer", "pickle")]
        database.close()


def test_killed_writers_lose_nothing_that_set_returned_from(path: Path) -> None:
    """After kill -9 all that set() returned from is there, whole; the store opens and cleans up."""
    program = (
        "import sys; from kv_store_adapter import DiskKVStore\n"
        "store = DiskKVStore(sys.argv[1], spill_threshold=20000); n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    store.set(f'k{n % 50}', (n, b'x' * (50000 if n % 3 else 10)), 'n')\n"
        "    if n % 40 == 0: store.clear_namespace('cleared')\n"
        "    store.set(f'k{n}', n, 'cleared')\n"
        "    print(n, flush=True)\n"
    )
    for round_ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout is not None
            told = 0
            for _ in range(60 + 7 * round_):
                told = int(worker.stdout.readline())
            worker.send_signal(signal.SIGKILL)
            for line in worker.stdout:
                told = int(line) if line.endswith("\n") else told
        with DiskKVStore(path) as store:
            for number in range(max(1, told - 49), told + 1):
                stored, data = store.get(f"k{number % 50}", "n")
                assert stored in (number, number + 50)
                assert len(data) == (50000 if stored % 3 else 10)
    with time_machine.travel(time.time() + 3600), DiskKVStore(path) as store:
        store.purge()
        named = store._database.fetch("SELECT file FROM entries WHERE file IS NOT NULL")
        assert sorted(f"{f.parent.name}/{f.name}" for f in _files(path)) == sorted(
            file for (file,) in named
        )
        assert store._database.fetch("SELECT * FROM garbage") == []
        assert store._database.fetch("SELECT * FROM dropped") == []
        assert store._database.fetch_one("PRAGMA integrity_check") == ("ok",)


@needs_fork
def test_children_go_on_using_it(path: Path) -> None:
    """After a fork, with threads writing, parent and children read and write, and lose nothing."""
    program = """
import os, sys, threading
from kv_store_adapter import DiskKVStore
store = DiskKVStore(sys.argv[1], spill_threshold=20000)
store.set("before", b"x" * 50000)
stop = threading.Event()
def write(me):
    number = 0
    while number < 20 or not stop.is_set():
        number += 1
        store.set(f"{me}-{number % 20}", number, "threads")
threads = [threading.Thread(target=write, args=(me,)) for me in range(3)]
[t.start() for t in threads]
children = []
for me in range(6):
    pid = os.fork()
    if not pid:
        ok = len(store.get("before")) == 50000
        for number in range(20):
            store.set(f"{me}-{number}", number, "children")
        os._exit(0 if ok else 1)
    children.append(pid)
    store.set(f"parent-{me}", me, "children")
codes = [os.waitpid(pid, 0)[1] for pid in children]
stop.set()
[t.join() for t in threads]
print(codes, len(store.keys("children")), len(store.keys("threads")))
"""
    assert _run(program, path) == "[0, 0, 0, 0, 0, 0] 126 60"


def _write_there(store: DiskKVStore, me: int) -> Any:
    store.set(f"k{me}", me, "n")
    return os.getpid(), store.get("large")


def test_it_travels_to_worker_processes(path: Path) -> None:
    """A pickled store opens the same folder, with its options, in a spawned worker."""
    with DiskKVStore(path, spill_threshold=1000, verify=True, timeout=7) as store:
        store.set("large", LARGE)
        again = pickle.loads(pickle.dumps(store))
        assert again._options == store._options
        again.close()
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            done = list(pool.map(_write_there, [store] * 4, range(4)))
        assert all(pid != os.getpid() and data == LARGE for pid, data in done)
        assert sorted(store.keys("n")) == ["k0", "k1", "k2", "k3"]


def test_a_busy_database_is_waited_for_and_then_told(path: Path) -> None:
    """A process that holds the write lock for too long is a StoreUnavailableError, in time."""
    with DiskKVStore(path, timeout=0.3) as store:
        store.set("key", "old")
        other = sqlite3.connect(str(path / "kv-store.sqlite3"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="kept it busy") as caught:
            store.set("key", "new")
        assert 0.25 < time.monotonic() - began < 5
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert store.get("key") == "old"
        other.execute("ROLLBACK")
        other.close()
        store.set("key", "new")
        assert store.get("key") == "new"


# ---------------------------------------------------------------------- threads


def test_clearing_while_others_write(store: DiskKVStore, path: Path) -> None:
    """Clearing while threads write small and large values fails nobody and leaves no files."""

    def work(me: int) -> None:
        for number in range(25):
            if me == 0:
                store.clear_namespace("n")
            else:
                store.set(f"{me}-{number}", LARGE if number % 2 else number, "n")
                store.add(f"add{number}", LARGE, "n")
                store.get(f"{me}-{number}", "n", default=None)

    at_once(4, work)
    store.clear_namespace("n")
    assert store.keys("n") == []
    with time_machine.travel(time.time() + 3600):
        store.purge()
    assert _files(path) == []


def test_a_large_value_is_whole_while_it_is_replaced(store: DiskKVStore) -> None:
    """Readers of a large value that is replaced over and over always get a whole one."""
    store.set("key", b"0" * len(LARGE))

    def work(me: int) -> None:
        for number in range(40):
            if me % 2:
                store.set("key", b"%d" % (number % 10) * len(LARGE))
            else:
                value = store.get("key")
                assert len(value) == len(LARGE) and len(set(value)) == 1

    at_once(4, work)


def test_clearing_many_entries_holds_no_writer_up(path: Path) -> None:
    """While a large namespace is cleared, another connection's writes never wait long."""
    with DiskKVStore(path) as store, DiskKVStore(path, timeout=1.0) as other:
        store.set_many({f"k{number}": number for number in range(20_000)}, "large")
        done = threading.Event()

        def clear() -> None:
            store.clear_namespace("large")
            done.set()

        thread = threading.Thread(target=clear)
        thread.start()
        writes = 0
        while not done.is_set() or not writes:
            # Would raise after its timeout of a second.
            other.set("key", writes, "busy")
            writes += 1
        thread.join()
        assert store.keys("large") == []
        assert other.get("key", "busy") == writes - 1


# ---------------------------------------------------------------------- damage


@pytest.fixture
def damaged(store: DiskKVStore, path: Path) -> Path:
    """The one value file of a store that also holds a sound entry."""
    store.set("sound", LARGE, "other")
    store.set("key", LARGE, "n")
    return next(f for f in _files(path) if "n-" in f.parent.name[:2])


def _truncate(file: Path) -> None:
    with open(str(file), "r+b") as stream:
        stream.truncate(50)


def _swap(file: Path) -> None:
    other = next(f for f in file.parent.parent.glob("other-*/*.value"))
    shutil.copyfile(str(other), str(file))


def _link(file: Path) -> None:
    secret = file.parent.parent.parent.parent / "secret"
    secret.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(secret)


DAMAGES = {
    "truncated": _truncate,
    "empty": lambda file: file.write_bytes(b""),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"!"),
    "swapped": _swap,
    "gone": lambda file: file.unlink(),
    "a link": _link,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(str(file))),
    "garbage": lambda file: file.write_bytes(os.urandom(file.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_told_and_left(store: DiskKVStore, damaged: Path, damage: Any) -> None:
    """A value file that is not what was written is a SerializationError; the rest goes on."""
    damage(damaged)
    there = os.path.lexists(str(damaged))
    for call in (store.get, store.pop):
        with pytest.raises(SerializationError, match="set\\(\\) replaces it"):
            call("key", "n")
    with pytest.raises(SerializationError):
        store.get_many(["key"], "n")
    assert os.path.lexists(str(damaged)) == there
    assert store.exists("key", "n") and store.keys("n") == ["key"]
    assert store.get("sound", "other") == LARGE
    store.set("key", "again", "n")
    assert store.get("key", "n") == "again"
    assert store.delete("key", "n") is True


@pytest.mark.parametrize("on_the_object", [False, True])
def test_who_reads_in_a_way_of_its_own_reads_large_values_so(
    path: Path, on_the_object: bool
) -> None:
    """A serializer's own loads() reads large values, too: it may be there to refuse."""

    def refuse(data: bytes) -> Any:
        raise ValueError("not this one")

    class Careful(PickleSerializer):
        loads = PickleSerializer.loads if on_the_object else staticmethod(refuse)

    serializer = Careful()
    if on_the_object:
        serializer.loads = refuse  # type: ignore[method-assign]  # what some do
    with DiskKVStore(path, serializer=serializer) as store:
        store.set("large", LARGE)
        with pytest.raises(SerializationError, match="not this one"):
            store.get("large")


def test_reading_a_large_value_takes_little_more_memory_than_it(store: DiskKVStore) -> None:
    """A large pickled value is read without its bytes beside it."""
    large = os.urandom(8 << 20)
    store.set("key", large)
    tracemalloc.start()
    try:
        assert store.get("key") == large
        assert tracemalloc.get_traced_memory()[1] < 9 << 20
    finally:
        tracemalloc.stop()


def test_verify_notices_a_single_bit(path: Path) -> None:
    """With verify=True one changed byte of a value, in the index or in a file, is noticed."""
    with DiskKVStore(path, verify=True) as store:
        store.set("small", b"abc", "n")
        store.set("large", LARGE, "n")
        (file,) = _files(path)
        data = bytearray(file.read_bytes())
        data[500] ^= 1
        file.write_bytes(bytes(data))
        (value,) = store._database.fetch_one("SELECT value FROM entries WHERE key = 'small'")
        store._database.write(
            "UPDATE entries SET value = ? WHERE key = 'small'", (value.replace(b"abc", b"abd"),)
        )
        for key in ("small", "large"):
            with pytest.raises(SerializationError, match="checksum"):
                store.get(key, "n")


def test_verify_notices_an_entry_of_another_place(path: Path) -> None:
    """With verify=True a whole entry that shows under another key or namespace is noticed."""
    for column, other in (
        ("key", "'there'"),
        ("ns", "(SELECT id FROM namespaces WHERE name = 'b')"),
    ):
        root = path / column
        with DiskKVStore(root, verify=True) as store:
            store.set("there" if column == "ns" else "here", b"value", "a")
            store.set("else", 1, "b")
            store._database.write(f"UPDATE entries SET {column} = {other} WHERE size > 10")
            with pytest.raises(SerializationError, match="checksum"):
                store.get("there", "b" if column == "ns" else "a")
            assert [damage.key for damage in store.check()] == ["there"]


@pytest.mark.parametrize(
    "content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 9000]
)
def test_a_damaged_database_is_told(path: Path, content: bytes) -> None:
    """A database file that is none is one clear StoreUnavailableError, with SQLite's as cause."""
    with DiskKVStore(path) as store:
        store.set("key", 1)
    for name in ("kv-store.sqlite3-wal", "kv-store.sqlite3-shm"):
        (path / name).unlink() if (path / name).exists() else None
    (path / "kv-store.sqlite3").write_bytes(content)
    with pytest.raises(StoreUnavailableError) as caught:
        DiskKVStore(path)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert (path / "kv-store.sqlite3").read_bytes() == content


def test_a_folder_that_vanishes_is_told(store: DiskKVStore, path: Path) -> None:
    """When the folder is removed under an open store, what can't be stored is an error of ours."""
    store.set("key", 1, "n")
    shutil.rmtree(str(path))
    with pytest.raises(KVStoreError):
        store.set("large", LARGE, "n")
    with pytest.raises(KVStoreError):
        store.set("new", 1, "new namespace")


def test_a_class_that_is_gone(store: DiskKVStore) -> None:
    """A value whose class is gone is a SerializationError, and stays for who still has it."""
    store.set("key", "x", "n")
    data = b"cmodule_that_is_gone\nThing\n."
    store._database.write("UPDATE entries SET value = ?, size = ?", (data, len(data)))
    with pytest.raises(SerializationError, match="module_that_is_gone"):
        store.get("key", "n")
    assert store.keys("n") == ["key"]


# ---------------------------------------------------------------------- expiry and size


def test_expired_entries_leave_the_disk_without_being_read(store: DiskKVStore, path: Path) -> None:
    """What has expired is deleted by other writes, large files included, though nobody reads it."""
    store.set_many({f"k{number}": number for number in range(300)}, "n", 10)
    store.set_many({f"large{number}": LARGE for number in range(5)}, "n", 10)
    with time_machine.travel(time.time() + 60):
        for number in range(200):
            store.set("other", number)
        assert store._database.fetch_one("SELECT count(*) FROM entries") == (1,)
        assert _files(path) == []


@pytest.mark.parametrize("batch", [1, 700])
@pytest.mark.parametrize("longest", [10, 1000])
def test_writers_keep_up_with_what_expires(store: DiskKVStore, batch: int, longest: int) -> None:
    """Of a stream of keys with ttls of all lengths little more is kept than what is alive."""
    chance, start = random.Random(7), time.time()
    alive: List[float] = []
    with time_machine.travel(start, tick=False) as clock:
        for number in range(0, 6300, batch):
            clock.move_to(start + number)  # a second for each key
            ttl = chance.uniform(1, longest)
            if batch == 1:
                store.set(str(number), 1, ttl=ttl)
            else:
                store.set_many({str(number + each): 1 for each in range(batch)}, ttl=ttl)
            alive += [start + number + ttl] * batch
        ((kept,),) = store._database.fetch("SELECT count(*) FROM entries")
        assert kept <= sum(end > time.time() for end in alive) + 100 + batch
        assert store._database.fetch("SELECT count(*) FROM blocks")[0][0] <= kept


@pytest.mark.parametrize("seed", [0, 5])
def test_thousands_of_entries_expire_as_they_should(store: DiskKVStore, seed: int) -> None:
    """However many were set, given more time, deleted and cleared: what is over goes, the rest stays."""
    chance, start = random.Random(seed), time.time()
    ends: Dict[str, float] = {}
    with time_machine.travel(start, tick=False) as clock:
        for step in range(40):
            first, ttl = chance.randrange(3000), chance.choice((None, 1, 50, 500))
            names = [str(number) for number in range(first, first + chance.randrange(1500))]
            act = chance.choice(("set", "set", "delete", "touch", "clear", "wait", "purge"))
            if act == "set":
                store.set_many(dict.fromkeys(names, step), ttl=ttl)
                ends.update(dict.fromkeys(names, time.time() + (ttl or 1e9)))
            elif act == "delete":
                assert store.delete_many(names) == sum(name in ends for name in names)
                for name in names:
                    ends.pop(name, None)
            elif act == "touch":
                for name in names[:100]:
                    assert store.touch(name, ttl=ttl) is (name in ends)
                    if name in ends:
                        ends[name] = time.time() + (ttl or 1e9)
            elif act == "clear" and chance.random() < 0.3:
                assert store.clear_namespace(None) == len(ends)
                ends.clear()
            elif act == "wait":
                clock.move_to(time.time() + chance.choice((2, 60, 600)))
                ends = {name: end for name, end in ends.items() if end > time.time()}
            elif act == "purge":
                store.purge()
                assert store._database.fetch("SELECT count(*) FROM entries") == [(len(ends),)]
            assert sorted(store.keys()) == sorted(ends)
            assert store.check() == []


@pytest.mark.parametrize("later", [None, 2000])
def test_listing_what_is_over_takes_steps_for_each_entry_once(
    store: DiskKVStore, later: Optional[float]
) -> None:
    """Listing and clearing take twice the steps for twice the entries, though all may be over."""
    steps = []
    with time_machine.travel(time.time(), tick=False) as clock:
        for count in (1000, 4000):
            store.set_many({str(number): 1 for number in range(count)}, "n", 10)
            if later:
                store.set_many({str(number): 1 for number in range(count)}, "n", later)
            clock.move_to(time.time() + 60)
            (cursor,) = store._database._idle
            connection = cursor.connection
            calls: List[int] = []
            connection.set_progress_handler(partial(calls.append, 1), 10)
            assert len(store.keys("n")) == (count if later else 0)
            listing = len(calls)
            assert store.clear_namespace("n") == (count if later else 0)
            connection.set_progress_handler(None, 0)
            steps.append((listing, len(calls) - listing))
    (listed, cleared), (listed_four, cleared_four) = steps
    assert 3 < listed_four / listed < 6
    assert 3 < cleared_four / cleared < 6


def test_a_batch_needs_no_temporary_file(
    store: DiskKVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """set_many of large values stores them where the temporary folder can't be written to."""
    assert store._database.fetch("PRAGMA temp_store") == [(2,)]
    monkeypatch.setenv("SQLITE_TMPDIR", "/dev/null")
    values = {str(number): os.urandom(100_000) for number in range(60)}
    store.set_many(values, ttl=10)
    assert store.get_many(values) == values


def test_what_was_deleted_before_its_time_is_no_work_for_ever(store: DiskKVStore) -> None:
    """Times that were kept for entries that are gone go with the next cleaning, many at once."""
    names = [str(number) for number in range(5000)]
    with time_machine.travel(time.time(), tick=False) as clock:
        store.set_many(dict.fromkeys(names, 1), ttl=10)
        store.set("alive", 1, ttl=1000)
        assert store.delete_many(names) == 5000
        clock.move_to(time.time() + 60)
        assert store.purge() == 0
        assert store._database.fetch("SELECT count(*) FROM blocks") == [(1,)]
        assert store.keys() == ["alive"]


def test_purge_drops_all_that_has_expired(store: DiskKVStore, path: Path) -> None:
    """purge() deletes every expired entry, counts them, and removes empty namespaces' folders."""
    for name in ("a", "b"):
        store.set_many({f"k{number}": number for number in range(500)}, name, 10)
    store.set("large", LARGE, "a", 10)
    store.set("kept", 1, "b")
    assert store.purge() == 0
    with time_machine.travel(time.time() + 3600):
        assert store.purge() == 1001
        assert store.purge() == 0
    assert store.keys("b") == ["kept"]
    assert _files(path) == []
    assert len(list((path / "namespaces").iterdir())) == 1


@pytest.mark.parametrize("way", ["set", "set_many", "touch", "large"])
@pytest.mark.parametrize("before", [None, 50, 200], ids="before={}".format)
@pytest.mark.parametrize("after", [None, 20, 100, 300], ids="after={}".format)
def test_the_last_ttl_holds(
    store: DiskKVStore, way: str, before: Optional[float], after: Optional[float]
) -> None:
    """Whatever ttl a key had before, it lives, is listed and is cleaned up by its last one."""
    start = time.time()
    with time_machine.travel(start, tick=False) as clock:
        for number in range(170):  # more than one round of cleaning takes
            store.set(f"k{number:03}", 1, "n", before)
        names = store.keys("n")
        if way == "set_many":
            store.set_many(dict.fromkeys(names, 2), "n", after)
            assert store.get_many(names, "n") == dict.fromkeys(names, 2)
        for number, name in enumerate(names):
            if way == "set":
                store.set(name, 2, "n", after)
            elif way == "touch":
                assert store.touch(name, "n", after)
            elif way == "large" and number % 100 == 0:
                store.set(name, LARGE, "n", after)
        changed = set(names if way != "large" else names[::100])
        ends = {name: after if name in changed else before for name in names}
        for seconds in (19, 60, 150, 250, 400):
            clock.move_to(start + seconds)
            live = [name for name in names if (ends[name] or 1000) > seconds]
            assert store.keys("n") == live == list(store.iter_keys("n"))
            assert store.list_namespaces() == (["n"] if live else [])
            assert store.check() == []
            assert store.purge() == len(names) - len(live)
            names = live
            assert store._database.fetch("SELECT count(*) FROM entries") == [(len(live),)]
            # Nothing is left that the next cleaning would look at in vain.
            ((earliest,),) = store._database.fetch("SELECT min(earliest) FROM blocks")
            assert earliest is None or earliest > (start + seconds) * 1000


def test_purge_leaves_strangers_alone(store: DiskKVStore, path: Path) -> None:
    """Files and folders in ours that we did not make are never removed."""
    store.set("key", LARGE, "n")
    (folder,) = (path / "namespaces").iterdir()
    strangers = [folder / "notes.txt", path / "namespaces" / "mine.txt", path / "README"]
    for stranger in strangers:
        stranger.write_text("precious")
        os.utime(str(stranger), (1, 1))
    (path / "namespaces" / "theirs").mkdir()
    store.clear_namespace("n")
    with time_machine.travel(time.time() + 3600):
        store.purge()
    assert all(stranger.read_text() == "precious" for stranger in strangers)
    assert (path / "namespaces" / "theirs").is_dir()


def test_orphans_are_removed_once_they_are_old(store: DiskKVStore, path: Path) -> None:
    """A value file that no entry names stays while a writer may be at it, and goes after that."""
    store.set("key", LARGE, "n")
    (file,) = _files(path)
    orphan = file.with_name("0" * 32 + ".value")
    orphan.write_bytes(b"half written")
    store.purge()
    assert orphan.exists()
    with time_machine.travel(time.time() + 3600):
        store.purge()
    assert not orphan.exists()
    assert store.get("key", "n") == LARGE


def test_size_limit(path: Path) -> None:
    """With size_limit= what was stored first goes first, and the store stays about that large."""
    with DiskKVStore(path, size_limit=1_000_000, spill_threshold=20_000) as store:
        for number in range(300):
            store.set(f"k{number}", os.urandom(10_000 if number % 3 else 30_000), "n")
        keys = {int(key[1:]) for key in store.keys("n")}
        assert 299 in keys and 0 not in keys
        assert keys == set(range(min(keys), 300))
        used = sum(len(value) for value in store.get_many(store.keys("n"), "n").values())
        assert 500_000 < used <= 1_100_000
        on_disk = sum(file.stat().st_size for file in path.rglob("*") if "-wal" not in file.name)
        assert on_disk < 2_500_000


@pytest.mark.parametrize("limit", [0, -1, True])
def test_no_size_limit_below_one(path: Path, limit: Any) -> None:
    """size_limit is above zero; refused before a folder is made."""
    with pytest.raises(ValueError, match="size_limit"):
        DiskKVStore(path, size_limit=limit)
    assert not path.exists()


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("timeout", "5", TypeError),
        ("timeout", None, TypeError),
        ("timeout", True, TypeError),
        ("timeout", -1, ValueError),
        ("timeout", math.nan, ValueError),
        ("spill_threshold", "1", TypeError),
        ("spill_threshold", None, TypeError),
        ("spill_threshold", 1.5, TypeError),
    ],
)
def test_options_are_checked_before_a_folder_is_made(
    path: Path, option: str, value: Any, error: Any
) -> None:
    """What could only fail at the first busy moment, or the first write, is told at once."""
    with pytest.raises(error, match=option):
        DiskKVStore(path, **{option: value})
    assert not path.exists()


def test_no_namespace_is_slower_than_another(path: Path) -> None:
    """Thousands of namespaces cost no more connections or files open than one."""
    with DiskKVStore(path) as store:
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        for number in range(1000):
            store.set("key", number, f"n{number}")
            assert store.get("key", f"n{number}") == number
        if before:
            assert len(os.listdir("/proc/self/fd")) <= before + 3
        assert len(store.list_namespaces()) == 1000


# ---------------------------------------------------------------------- the end


def test_connections_are_bounded_and_closed(path: Path) -> None:
    """However many threads, the connections are few; close() closes them all."""
    store = DiskKVStore(path)
    at_once(20, lambda me: [store.set(f"{me}-{number}", number) for number in range(5)])
    assert len(store._database._open) <= 8
    store.close()
    assert (len(store._database._open), len(store._database._idle)) == (0, 0)
    with pytest.raises(StoreClosedError, match="closed"):
        store.get("key")
    with DiskKVStore(path) as again:
        assert len(again.keys()) == 100


@contextlib.contextmanager
def _all_in_use(store: DiskKVStore) -> Iterator[threading.Event]:
    """Eight threads read from the store, each with a connection, until the event is set."""
    let_go = threading.Event()
    inside = threading.Barrier(9)

    def look(connection: sqlite3.Connection) -> None:
        inside.wait(30)
        let_go.wait(60)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(store._database.read, look) for _ in range(8)]
        inside.wait(30)
        try:
            yield let_go
        finally:
            let_go.set()
            for reader in readers:
                reader.result(30)


def test_connections_are_waited_for_and_then_told(path: Path) -> None:
    """With all connections in use a call waits for its timeout, and says what it waited for."""
    with DiskKVStore(path, timeout=0.2, remember=0) as store:
        store.set("a", 1)
        with _all_in_use(store):
            for call in (lambda: store.get("a"), lambda: store.set("a", 2)):
                with pytest.raises(StoreUnavailableError, match=r"All 8 connections.*0\.2 s"):
                    call()
        assert store.get("a") == 1


def test_who_waits_for_a_connection_gets_one(path: Path) -> None:
    """A call that found all connections in use goes on when one of them comes back."""
    with DiskKVStore(path, remember=0) as store, concurrent.futures.ThreadPoolExecutor(1) as pool:
        store.set("a", 1)
        with _all_in_use(store) as let_go:
            waiting = pool.submit(store.get, "a")
            until = time.monotonic() + 30
            while not store._database._waiting:
                assert time.monotonic() < until
                time.sleep(0.001)
            let_go.set()
            assert waiting.result(30) == 1


def test_close_ends_what_waits_for_a_connection(path: Path) -> None:
    """A call that waits while the store is closed is told so, and connections in use go later."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        store = DiskKVStore(path, remember=0)
        store.set("a", 1)
        with _all_in_use(store):
            waiting = pool.submit(store.get, "a")
            until = time.monotonic() + 30
            while not store._database._waiting:
                assert time.monotonic() < until
                time.sleep(0.001)
            store.close()
            with pytest.raises(StoreClosedError):
                waiting.result(30)
        assert (len(store._database._open), len(store._database._idle)) == (0, 0)


def test_a_transaction_that_was_left_open_is_undone(store: DiskKVStore) -> None:
    """What came between BEGIN and its end costs the next user of the connection nothing."""
    store.set("a", 1)
    store._database.read(
        lambda connection: connection.execute("BEGIN").execute("DELETE FROM entries")
    )
    assert store.get("a") == 1
    with DiskKVStore(store.path, timeout=0.2) as other:
        other.set("b", 2)
    assert store.get("b") == 2


def test_the_log_goes_to_the_disk_in_pieces(
    store: DiskKVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each half megabyte the system is asked to begin to write the log, and only the log."""
    asked = []

    def begin(handle: int, start: int, length: int, flags: int) -> int:
        log = os.stat(store._database.path + "-wal")
        asked.append((os.fstat(handle).st_ino == log.st_ino, start, length, flags))
        return -1  # as where a sandbox forbids it

    monkeypatch.setattr(writeback, "_sync_file_range", lambda: begin)
    for number in range(20):
        store.set(f"k{number}", b"x" * 100_000)
    one_by_one = len(asked)
    store.set_many({f"m{number}": b"x" * 10_000 for number in range(100)})
    together = len(asked) - one_by_one
    for number in range(20):
        store.set(f"large{number}", b"x" * 200_000)  # into files
    for number in range(100):
        store.delete(f"m{number}")
    assert (one_by_one, together, len(asked)) == (4, 1, 6)
    assert set(asked) == {(True, 0, 0, 2)}


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
def test_linux_takes_the_request_for_the_log(path: Path) -> None:
    """The call that is made is one that Linux knows; without a log nothing happens."""
    begin = writeback._sync_file_range()
    assert begin is not None
    path.write_bytes(b"x" * 10_000)
    with path.open("rb") as file:
        assert begin(file.fileno(), 0, 0, 2) == 0
    assert begin(-1, 0, 0, 2) == -1
    writeback.Writeback(str(path)).wrote(1 << 20)


def test_the_log_is_written_without_the_request_too(
    store: DiskKVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On other systems, and where Python has no ctypes, storing goes on as ever."""
    writeback._sync_file_range.cache_clear()
    monkeypatch.setitem(sys.modules, "ctypes", None)
    try:
        assert writeback._sync_file_range() is None
        store.set_many({f"m{number}": b"x" * 10_000 for number in range(100)})
        assert len(store.keys()) == 100
    finally:
        writeback._sync_file_range.cache_clear()


def test_the_log_is_emptied_once_a_reader_is_gone(store: DiskKVStore) -> None:
    """What frees space on a full disk waits a moment for who still reads the log, or moves it."""
    pool = store._database
    store.set("key", b"x" * 10_000)
    log = pool.path + "-wal"
    assert os.path.getsize(log) > 10_000
    with contextlib.closing(sqlite3.connect(pool.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchone()
        pool.empty_log()  # in vain, and in bounded time
        assert os.path.getsize(log) > 10_000
        sleep = time.sleep
        with pytest.MonkeyPatch.context() as patch:
            # The reader ends while it waits.
            patch.setattr(time, "sleep", lambda _: reader.in_transaction and reader.rollback())
            pool.empty_log()
        assert time.sleep is sleep
    assert os.path.getsize(log) == 0
    assert store.get("key") == b"x" * 10_000


def test_a_timeout_may_be_endless(path: Path) -> None:
    """Also where writers wait for each other: more seconds than threading can count are no error."""
    with DiskKVStore(path, timeout=math.inf) as store:
        turn, held, go_on = store._database._turn, threading.Event(), threading.Event()

        def hold() -> None:
            with turn.lock:
                held.set()
                go_on.wait(60)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(20)
        threading.Timer(0.05, go_on.set).start()
        store.set("key", 1)
        holder.join(20)
        assert store.get("key") == 1


def test_durable_syncs_everything(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With durable=True a large value is synced to the disk before the index names it."""
    synced: List[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), real(handle))[1])
    with DiskKVStore(path, durable=True) as store:
        store.set("key", LARGE, "n")
        assert len(synced) >= 3
        assert store._database.fetch_one("PRAGMA synchronous") == (2,)
    with DiskKVStore(path) as store:
        synced.clear()
        store.set("key", LARGE, "n")
        assert synced == []


def test_where_wal_can_t_work_it_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a file system without WAL the store works in another mode, and warns once."""
    real = sqlite3.connect

    class NoWal(sqlite3.Connection):
        def execute(self, sql: str, *rest: Any) -> Any:
            if sql == "PRAGMA journal_mode=WAL":
                sql = "PRAGMA journal_mode"
            return super().execute(sql, *rest)

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, factory=NoWal, **k))
    with caplog.at_level(logging.WARNING, "kv_store_adapter"), DiskKVStore(path) as store:
        store.set("key", 1)
        assert store.get("key") == 1
    assert "WAL" in caplog.text
    with DiskKVStore(path) as store:
        assert store.get("key") == 1


def test_a_value_over_the_whole_limit_costs_no_other(tmp_path: Path) -> None:
    """What can't fit into size_limit is refused; the entries that are there stay."""
    with DiskKVStore(tmp_path / "store", size_limit=200_000) as store:
        for index in range(20):
            store.set(f"k{index}", b"x" * 100)
        for write in (store.set, store.add, lambda key, value: store.set_many({key: value})):
            with pytest.raises(SerializationError, match="size_limit"):
                write("z", b"x" * 500_000)
        assert len(store.keys()) == 20


def test_paths_that_name_nothing(tmp_path: Path) -> None:
    """An empty path and a repair where no store is are refused, and nothing is made."""
    with pytest.raises(ValueError, match="can't be empty"):
        DiskKVStore("")
    with pytest.raises(StoreUnavailableError, match="no store"):
        DiskKVStore.repair(tmp_path / "typo")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_becomes_private(tmp_path: Path) -> None:
    """A folder that was there before, empty and ours, gets mode 0700."""
    (tmp_path / "store").mkdir(mode=0o755)
    (tmp_path / "store").chmod(0o755)
    DiskKVStore(tmp_path / "store").close()
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("why", ["no json", "too big"])
def test_listings_without_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Where SQLite was built without JSON, or the keys are more than it takes, listings are the same."""
    names = {"a", 'qu"ote', "back\\slash", "line\nend", "\x01", "\x7f", "\u2028é\U0010ffff"}
    with DiskKVStore(tmp_path / "store") as store:
        for name in names:
            store.set(name, 1, name)
            store.set_many(dict.fromkeys(names, 1), "all")
        assert set(store.list_namespaces()) == {*names, "all"}
        asked: List[str] = []
        if why == "no json":
            monkeypatch.setattr(database, "_speaks_json", lambda: False)
        else:
            real = store._database.fetch_one

            def too_big(sql: str, *args: Any) -> Any:
                asked.append(sql)
                # What SQLite raises by itself for a text over its limit.
                return real("SELECT length(zeroblob(3000000000))")

            monkeypatch.setattr(store._database, "fetch_one", too_big)
        assert set(store.list_namespaces()) == {*names, "all"}
        assert set(store.keys("all")) == names
        assert store.keys("all", "qu*") == ['qu"ote']
        assert len(asked) == (0 if why == "no json" else 3)


def test_a_garbled_key_is_quoted_alone(tmp_path: Path) -> None:
    """A listing that meets a key which is no UTF-8 any more is an error of readable length."""
    with DiskKVStore(tmp_path / "store") as store:
        store.set_many(dict.fromkeys((f"k{number}" for number in range(500)), 1))
        store._database.write("UPDATE entries SET key = CAST(x'6bff' AS TEXT) WHERE key = 'k7'")
        with pytest.raises(StoreUnavailableError, match="decode") as caught:
            store.keys()
        assert len(str(caught.value)) < 500


def test_listings_fail_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of a database that can't be read is the error that it is, and is not tried again."""
    with DiskKVStore(tmp_path / "store") as store:
        asked: List[str] = []

        def broken(sql: str, *args: Any) -> Any:
            asked.append(sql)
            raise StoreUnavailableError("broken") from sqlite3.DatabaseError("malformed")

        monkeypatch.setattr(store._database, "fetch_one", broken)
        monkeypatch.setattr(store._database, "fetch", broken)
        with pytest.raises(StoreUnavailableError, match="broken"):
            store.keys()
        assert len(asked) == 1


def test_a_sqlite_without_json_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether SQLite speaks JSON is asked of SQLite itself, once."""
    assert database._speaks_json.__wrapped__() is True

    class Without:
        def execute(self, sql: str) -> None:
            raise sqlite3.OperationalError("no such function: json_group_array")

        def close(self) -> None:
            pass

    monkeypatch.setattr(sqlite3, "connect", lambda path: Without())
    assert database._speaks_json.__wrapped__() is False


def test_a_listing_of_keys_that_go_round_in_a_circle_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where damage leads from a page of keys to one before it, iter_keys() says so and ends."""
    with DiskKVStore(tmp_path / "store") as store:
        store.set_many(dict.fromkeys((f"k{number:04}" for number in range(1500)), 1))
        real = store._database.fetch
        pages: List[Any] = []

        def round_in_a_circle(*args: Any) -> Any:
            pages.append(pages[0] if pages else real(*args))
            return pages[-1]

        assert len(list(store.iter_keys())) == 1500
        monkeypatch.setattr(store._database, "fetch", round_in_a_circle)
        with pytest.raises(StoreUnavailableError, match=r"go round in a circle.*repair"):
            list(store.iter_keys())
        assert len(pages) == 2


def test_one_connection_remembers_more_than_the_others(path: Path) -> None:
    """The first connection of a pool remembers 32 MB of pages, each further one 8 MB."""
    with DiskKVStore(path) as store:
        pool = store._database
        opened = threading.Barrier(2)
        prepare = pool._prepare
        met = set()

        def prepare_together(connection: sqlite3.Connection) -> None:
            # Once each: who finds the database busy comes again, and alone.
            if threading.get_ident() not in met:
                met.add(threading.get_ident())
                opened.wait(20)
            prepare(connection)

        def size(cursor: sqlite3.Cursor) -> Any:
            return cursor.execute("PRAGMA cache_size").fetchone()[0]

        pool.rest()
        pool._prepare = prepare_together
        both = at_once(2, lambda _: pool._take())
        pool._prepare = prepare
        third = pool._take()
        assert [*sorted(map(size, both)), size(third)] == [-32_000, -8_000, -8_000]
        for cursor in (*both, third):
            pool._give(cursor)
        pool.rest()
        alone = pool._take()
        assert size(alone) == -32_000
        pool._give(alone)


AMONG_SIGNALS = """
    from kv_store_adapter import DiskKVStore

    def work():
        for number in range(200):
            store.set("a", number, ttl=9)
            store.get("a")
            store.set_many({"b": number, "c": number})
            store.set("a", number, f"n{number % 2}")

    def after():
        taken = []

        def write():
            taken.append(database._turn.lock.acquire(False))
            database._turn.lock.release()

        other = threading.Thread(target=write)
        other.start()
        other.join()
        assert taken == [True], "the writers' lock was lost"
        if len(database._open) != len(database._idle):
            gc.collect()  # the exception's frames may be a circle
        assert len(database._open) == len(database._idle), "a connection was lost"
        assert all(not cursor.connection.in_transaction for cursor in database._idle)

    store = DiskKVStore(sys.argv[1], timeout=20)
    database = store._database
    attack(work, 600, 8e-4, after)
    assert store.check() == []
"""


@needs_timers
def test_a_signal_at_any_moment_leaves_lock_and_connections_to_others(tmp_path: Path) -> None:
    """Wherever a signal's handler raises, others can have the lock and the connections."""
    run_among_signals(AMONG_SIGNALS, str(tmp_path / "store"))
