"""A full disk: what is stored stays readable, deleting works and frees space, calls are answered."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import disk_children
import pytest
import time_machine
from described import LARGE, SMALL, counter_of, described

from kv_store_adapter import DiskKVStore, StoreUnavailableError, cached
from kv_store_adapter.disk.folder import RESERVE

pytestmark = pytest.mark.timeout(300)


class Disk(NamedTuple):
    """A small disk: where it is, what uses it up, and what gives the space back."""

    path: Path
    squeeze: Callable[[], None]
    relax: Callable[[], None]


@contextlib.contextmanager
def _mounted(path: Path, options: str) -> Iterator[Path]:
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs Linux, root and mount(8) for a small tmpfs")
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a tmpfs can't be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def _blocks(path: Path) -> None:
    """Write until there is not a block left."""
    try:
        with open(path / "filler", "ab", 0) as file:
            while True:
                file.write(b"x" * 4096)
    except OSError as error:
        assert error.errno == errno.ENOSPC


def _inodes(path: Path) -> None:
    """Make empty files until there is not one more to be had."""
    (path / "filler").mkdir(exist_ok=True)
    number = len(os.listdir(path / "filler"))
    try:
        while True:
            (path / "filler" / str(number)).touch(exist_ok=False)
            number += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC


@pytest.fixture(params=["4 MB", "2 MB", "30 inodes"])
def disk(request: Any, tmp_path: Path) -> Iterator[Disk]:
    """A small disk, used up in one of several ways."""
    size = "8m,nr_inodes=30" if request.param == "30 inodes" else request.param.replace(" MB", "m")
    use_up = _inodes if request.param == "30 inodes" else _blocks
    with _mounted(tmp_path / "disk", f"size={size}") as path:

        def relax() -> None:
            filler = path / "filler"
            shutil.rmtree(filler) if filler.is_dir() else filler.unlink()

        yield Disk(path, lambda: use_up(path), relax)


def furnish(store: DiskKVStore) -> None:
    """Small and large values, the first generation."""
    store.set_many({f"k{n}": described(f"k{n}", 1, SMALL, "n") for n in range(20)}, "n")
    store.set("large", described("large", 1, LARGE))
    store.set("second", described("second", 1, LARGE))
    store.set("small", described("small", 1))


def fails_once_full(write: Callable[[int], Any]) -> int:
    """Call `write` until it fails, as it must; return the last number that was stored."""
    for number in range(2, 20_000):
        try:
            write(number)
        except StoreUnavailableError as error:
            assert isinstance(error.__cause__, Exception)
            return number - 1
    raise AssertionError("the disk never was full")


def counters(store: DiskKVStore) -> Any:
    """The generation of each entry, all of them read whole."""
    return [counter_of(store.get(key), key) for key in ("small", "large", "second")], {
        counter_of(value, key, "n") for key, value in store.get_many(store.keys("n"), "n").items()
    }


def test_set_fails_and_the_old_value_stays(disk: Disk, count: Any) -> None:
    """On a full disk every kind of write raises StoreUnavailableError, and what was there stays, whole."""
    with DiskKVStore(disk.path / "store") as store:
        furnish(store)
        disk.squeeze()
        small = 1
        if not (disk.path / "filler").is_dir():  # a small value takes no inode
            small = fails_once_full(lambda n: store.set("small", described("small", n)))
            disk.squeeze()
        writes = {
            "set": lambda: store.set("large", described("large", 2, LARGE)),
            "set_many": lambda: store.set_many({"large": described("large", 2, LARGE)}),
            "add": lambda: store.add("new", described("new", 2, LARGE)),
            "a new namespace": lambda: store.set("key", described("key", 2, LARGE), "new"),
        }
        for write in writes.values():
            for _ in range(3):
                with pytest.raises(StoreUnavailableError):
                    write()
                disk.squeeze()
                assert counters(store) == ([small, 1, 1], {1})
        count("writes that a full disk refused", 3 * len(writes) + 1)
        assert not store.exists("new") and store.list_namespaces() == ["n"]
        disk.relax()
        for write in writes.values():
            write()
        assert counters(store) == ([small, 2, 1], {1})
    with time_machine.travel(time.time() + 3600), DiskKVStore(disk.path / "store") as store:
        store.purge()
        assert len(list(disk.path.glob("store/namespaces/*/*.value"))) == 4
        assert store.check() == []


def test_what_frees_space_works(disk: Disk, count: Any) -> None:
    """On a full disk delete, delete_many, pop, clear_namespace and purge work, and free space."""
    with DiskKVStore(disk.path / "store") as store:
        furnish(store)
        store.set_many({f"e{n}": n for n in range(50)}, "expiring", 30)
        disk.squeeze()
        assert [store.delete(f"k{n}", "n") for n in range(10)] == [True] * 10
        assert store.delete_many([f"k{n}" for n in range(10, 15)], "n") == 5
        with time_machine.travel(time.time() + 60):
            assert store.purge() == 50
        assert store.clear_namespace("n") == 5
        assert counter_of(store.pop("second"), "second") == 1
        assert store.delete("large") is True
        count("deletions on a full disk", 10 + 5 + 50 + 5 + 1 + 1)
        assert counters_left(store) == {"small"}
        # There is room again, although nothing but our own entries went.
        store.set("small", described("small", 7))
        store.set("large", described("large", 7, LARGE))
        assert counters_left(store) == {"small", "large"}
        assert store.check() == []


@pytest.mark.parametrize("disk", ["4 MB", "2 MB"], indirect=True)
def test_deleting_works_time_and_again(disk: Disk, count: Any) -> None:
    """However often another program takes all the space that a deletion freed, the next one works."""
    with DiskKVStore(disk.path / "store") as store:
        furnish(store)
        for number in range(20):
            disk.squeeze()
            assert store.delete(f"k{number}", "n") is True
        count("deletions on a full disk", 20)
        disk.squeeze()
        assert store.clear_namespace(None) == 3


def counters_left(store: DiskKVStore) -> Any:
    """The keys of the default namespace, each value looked at."""
    for key in store.keys():
        counter_of(store.get(key), key)
    return set(store.keys())


def test_another_process_can_free_space(disk: Disk, count: Any) -> None:
    """While a store is in use on a full disk, a process that comes to it reads, deletes and clears."""
    with DiskKVStore(disk.path / "store") as store:
        furnish(store)
        disk.squeeze()
        newcomer = disk_children.start("tidy", disk.path / "store")
        out, _ = newcomer.communicate(timeout=60)
        assert (newcomer.returncode, out.split()) == (0, ["1", "True", "19", "3"])
        count("deletions on a full disk", 23)
        assert store.keys() == store.keys("n") == []


def test_a_process_that_starts_on_a_full_disk_can_free_space(disk: Disk) -> None:
    """A store that nobody had open can be opened on a full disk, read, and emptied."""
    with DiskKVStore(disk.path / "store") as store:
        furnish(store)
    disk.squeeze()
    with DiskKVStore(disk.path / "store") as store:
        assert counters(store) == ([1, 1, 1], {1})
        assert store.delete("k1", "n") is True
        assert store.clear_namespace("n") == 19
        assert store.clear_namespace(None) == 3


@pytest.mark.parametrize("lock", [None, "store"])
def test_cached_still_answers(disk: Disk, lock: Any, count: Any) -> None:
    """On a full disk @cached answers every call: what it has from the store, the rest computed."""
    with DiskKVStore(disk.path / "store") as store:

        @cached(store, lock=lock)
        def square(number: int) -> Any:
            return number * number, b"x" * (LARGE if number % 2 else SMALL)

        assert square(2)[0] == 4
        disk.squeeze()
        for number in range(1, 40):
            assert square(number)[0] == number * number
            assert square(number)[0] == number * number
            disk.squeeze()
        count("calls answered on a full disk", 78)
        disk.relax()
        assert square(2)[0] == 4


def test_an_empty_reserve_is_made_anew(tmp_path: Path) -> None:
    """A reserve that its process was killed in the middle of making is made whole by who opens next."""
    with DiskKVStore(tmp_path / "store"):
        reserve = tmp_path / "store" / RESERVE
        whole = reserve.stat().st_size
    if not whole:
        pytest.skip("this system keeps no space back")
    os.truncate(reserve, 0)
    with DiskKVStore(tmp_path / "store"):
        assert reserve.stat().st_size == whole


# ---------------------------------------------------------------------- a limit on file sizes


@pytest.mark.parametrize("limit", [100_000, 500_000, 3_000_000])
def test_a_limit_on_file_sizes(tmp_path: Path, limit: int, count: Any) -> None:
    """Under RLIMIT_FSIZE set raises StoreUnavailableError, the old value stays, and get, delete, clear_namespace and @cached work."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux's RLIMIT_FSIZE")
    child = disk_children.start("limited", tmp_path / "store", limit)
    out, _ = child.communicate(timeout=120)
    assert (child.returncode, out) == (0, "whole\n")
    count("processes under RLIMIT_FSIZE")
    with DiskKVStore(tmp_path / "store") as store:
        assert store.keys() == store.keys("n") == []
        assert store.check() == []


# ---------------------------------------------------------------------- repairing


def test_repairing_on_a_full_disk(tmp_path: Path) -> None:
    """A repair that finds no room is a StoreUnavailableError, and leaves everything as it was."""
    with _mounted(tmp_path / "disk", "size=4m") as path:
        root = path / "store"
        with DiskKVStore(root) as store:
            for number in range(1000):
                store.set(f"k{number}", described(f"k{number}", 1))
        os.unlink(root / RESERVE)  # on a disk that was full before there was a store
        with open(root / "kv-store.sqlite3", "r+b") as file:
            file.write(b"garbage!" * 512)
        _blocks(path)
        before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
        with pytest.raises(StoreUnavailableError):
            DiskKVStore.repair(root)
        assert {f: f.read_bytes() for f in root.rglob("*") if f.is_file()} == before
