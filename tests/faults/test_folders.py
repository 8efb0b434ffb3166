"""Folders that are locked, foreign, linked, or full of strangers: typed errors, nothing touched."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import disk_children
import pytest
import time_machine
from described import LARGE, SMALL, counter_of, described

from kv_store_adapter import DiskKVStore, KVStoreError, StoreUnavailableError
from kv_store_adapter.disk.folder import DATABASE, RESERVE, SPARE

# A pipe that is waited for is waited for for ever: then these tests would not end.
pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX"),
]
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to be several users"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with small and large values."""
    path = tmp_path / "store"
    furnish(path)
    return path


def furnish(path: Path) -> None:
    with DiskKVStore(path) as store:
        for key, size in (("small", SMALL), ("mine", LARGE), ("theirs", LARGE)):
            store.set(key, described(key, 1, size, "n"), "n")
        store.set("key", described("key", 1, LARGE, "locked"), "locked")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users can get to."""
    path = Path(tempfile.mkdtemp(prefix="kv-faults-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def look(path: Path) -> Dict[str, Any]:
    """All that is below a path: kinds, modes, owners and contents."""
    found = {}
    for each in [path, *sorted(path.rglob("*"))]:
        about = each.lstat()
        content = each.read_bytes() if stat.S_ISREG(about.st_mode) else None
        found[str(each)] = (about.st_mode, about.st_uid, content)
    return found


def folder_of(path: Path, namespace: str) -> Path:
    (found,) = path.glob(f"namespaces/{namespace}-*")
    return found


def tell(shared: Path, name: str) -> List[str]:
    """What another user met in the store."""
    return ended(disk_children.start("as_other", shared / "store", name))


def ended(child: subprocess.Popen[str], patience: float = 30) -> List[str]:
    """What a child said before it ended, which it has to."""
    try:
        out, _ = child.communicate(timeout=patience)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0
    return out.split("\n")[:-1]


# ---------------------------------------------------------------------- other users


@needs_root
def test_entries_of_another_owner(shared: Path, count: Any) -> None:
    """A value file or a folder that this user may not read is a StoreUnavailableError for it alone; the rest is read, replaced and cleared."""
    path = shared / "store"
    furnish(path)
    first = min(folder_of(path, "n").glob("*.value"), key=lambda f: f.read_bytes().count(b"mine"))
    for each in [path, *path.rglob("*")]:
        if each != first and each.parent != folder_of(path, "locked"):
            os.chown(each, disk_children.OTHER, disk_children.OTHER)
    os.chown(folder_of(path, "locked"), 0, 0)
    before = look(folder_of(path, "locked"))
    locked = folder_of(path, "locked")
    assert tell(shared, "with_entries_of_root") == [
        "StoreUnavailableError",  # theirs
        "StoreUnavailableError",
        "1",  # mine
        "1",  # small
        "StoreUnavailableError",  # in the folder that is locked
        "StoreUnavailableError",
        "['mine', 'small', 'theirs']",
        "None",  # replaced
        "2",
        "1",  # cleared: it is gone from the index, if not from the disk
    ]
    assert look(locked) == before
    count("calls as another user", 10)


@needs_root
@pytest.mark.parametrize("what", ["root", "database", "namespaces"])
def test_a_store_of_another_owner(shared: Path, what: str, count: Any) -> None:
    """A store that another user owns, wholly or in part, is a typed error to open or to use, and is left as it was."""
    path = shared / "store"
    furnish(path)
    if what != "root":
        for each in [path, *path.rglob("*")]:
            os.chown(each, disk_children.OTHER, disk_children.OTHER)
        target = path / (DATABASE if what == "database" else what)
        os.chown(target, 0, 0)
    before = look(path)
    told = tell(shared, "all_of_it")
    if what == "namespaces":  # the index can be used, the folders can't
        assert told == [
            "opened",
            "1",
            "None",
            "StoreUnavailableError",
            "StoreUnavailableError",
            "True",
            "2",
        ]
        assert {k: v for k, v in look(path / "namespaces").items() if k in before} == look(
            path / "namespaces"
        )
    else:
        assert told == ["StoreUnavailableError"]
        assert look(path) == before
    count("calls as another user", len(told))


@needs_root
@pytest.mark.parametrize("mode", [0o500, 0o400, 0o000])
def test_a_store_in_a_folder_that_is_read_only(shared: Path, mode: int, count: Any) -> None:
    """A store in a folder that has become read-only is a typed error, and stays as it was; made writable again it has everything."""
    path = shared / "store"
    furnish(path)
    for each in [path, *path.rglob("*")]:
        os.chown(each, disk_children.OTHER, disk_children.OTHER)
    path.chmod(mode)
    before = look(path)
    told = tell(shared, "all_of_it")
    assert set(told) == {"StoreUnavailableError"}
    assert look(path) == before
    path.chmod(0o700)
    assert tell(shared, "all_of_it")[:2] == ["opened", "1"]
    count("calls as another user", len(told))


@needs_root
def test_a_file_system_that_becomes_read_only(tmp_path: Path) -> None:
    """When its file system turns read-only under an open store, writing is a StoreUnavailableError, reading goes on, and after that all is well again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs can't be mounted here: {done.stderr.strip()}")
    try:
        furnish(disk / "store")
        with DiskKVStore(disk / "store") as store:
            store._database.rest()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            for write in (
                lambda: store.set("small", 2, "n"),
                lambda: store.set("mine", "x" * LARGE, "n"),
                lambda: store.set("new", 1, "new"),
                lambda: store.delete("small", "n"),
                lambda: store.clear_namespace("n"),
                lambda: store.purge(),
                lambda: DiskKVStore(disk / "store"),
                lambda: DiskKVStore(disk / "other"),
            ):
                with pytest.raises(StoreUnavailableError):
                    write()
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            assert counter_of(store.get("small", "n"), "small", "n") == 1
            assert counter_of(store.get("mine", "n"), "mine", "n") == 1
            store.set("small", described("small", 2, SMALL, "n"), "n")
            assert counter_of(store.get("small", "n"), "small", "n") == 2
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# ---------------------------------------------------------------------- strangers inside


def plant(place: Path, kind: str, outside: Path) -> None:
    """Put something that is no plain file or folder of ours at a place."""
    if kind == "a pipe":
        os.mkfifo(place)
    elif kind == "a socket":
        here = os.getcwd()
        os.chdir(place.parent)  # the name of a socket may not be long
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(place.name)
        finally:
            os.chdir(here)
    elif kind == "a link":
        place.symlink_to(outside)
    elif kind == "a dangling link":
        place.symlink_to(outside / "nothing")
    elif kind == "a folder":
        place.mkdir()
    else:
        place.write_text("precious")


KINDS = ["a pipe", "a socket", "a link", "a dangling link", "a folder", "a file"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is none of ours, with files that are named as ours are."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    for name in ("namespace.json", "0" * 32 + ".value", DATABASE, "thesis.txt"):
        (outside / name).write_text("precious")
    return outside


@pytest.mark.parametrize("kind", KINDS)
def test_strangers_inside_are_left_alone(path: Path, outside: Path, kind: str, count: Any) -> None:
    """Pipes, sockets, links, folders and files that are not ours are never read, waited for, listed or deleted, wherever they lie in the store's folder."""
    strangers = [
        path / "stranger",
        path / "namespaces" / "stranger",
        path / "namespaces" / ("stranger-" + "0" * 16),
        folder_of(path, "n") / "stranger",
        folder_of(path, "n") / "stranger.value",
    ]
    for stranger in strangers:
        plant(stranger, kind, outside)
        os.utime(stranger, (1, 1), follow_symlinks=False)
    strange = {str(stranger): stranger.lstat().st_mode for stranger in strangers}
    before = look(outside)
    if kind == "a folder":  # empty, old, and named as ours are: a leftover that purge() takes away
        strange.pop(str(path / "namespaces" / ("stranger-" + "0" * 16)))
    with DiskKVStore(path) as store:
        assert store.check() == []
        assert store.check(repair=True) == []
        assert sorted(store.list_namespaces()) == ["locked", "n"]
        assert sorted(store.keys("n")) == ["mine", "small", "theirs"]
        store.set("mine", described("mine", 2, LARGE, "n"), "n")
        assert counter_of(store.get("mine", "n"), "mine", "n") == 2
        with time_machine.travel(time.time() + 3600):
            store.purge()
        assert store.clear_namespace("n") == 3
        with time_machine.travel(time.time() + 7200):
            store.purge()
    assert {name: os.lstat(name).st_mode for name in strange} == strange
    assert look(outside) == before
    count("strangers planted", len(strangers))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in (
            *(DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal"),
            *(RESERVE, SPARE),
        )
        for kind in KINDS
        if kind != "a file"
    ],
)
def test_strangers_in_the_place_of_our_files(
    path: Path, outside: Path, name: str, kind: str, count: Any
) -> None:
    """A pipe, a socket, a link or a folder in the place of one of our files is a typed error or does no harm; it is not waited for, and what a link points to is not touched."""
    place = path / name
    if place.exists():
        place.unlink()
    plant(place, kind, outside / DATABASE if kind == "a link" else outside)
    before = look(outside)
    # In a process of its own: one that SQLite keeps waiting hears no signal but this.
    told = ended(disk_children.start("all_of_it", path), 30)
    assert set(told) <= {"opened", "1", "None", "True", "2", "3", "4", "StoreUnavailableError"}
    assert look(outside) == before
    count("strangers planted")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a folder"])
def test_strangers_in_the_place_of_namespaces(
    path: Path, outside: Path, kind: str, count: Any
) -> None:
    """Something else in the place of the folder of all namespaces refuses the store, and is left."""
    shutil.move(str(path / "namespaces"), str(path.parent / "moved"))
    plant(path / "namespaces", kind, outside)
    before = look(outside), (path / "namespaces").lstat().st_mode
    with pytest.raises(StoreUnavailableError):
        DiskKVStore(path)
    assert (look(outside), (path / "namespaces").lstat().st_mode) == before
    count("strangers planted")


@pytest.mark.parametrize("kind", ["a pipe", "a socket"])
def test_a_root_that_is_no_folder(tmp_path: Path, kind: str) -> None:
    """A pipe or a socket as root is refused at once."""
    plant(tmp_path / "root", kind, tmp_path)
    for trust_root in (False, True):
        with pytest.raises(StoreUnavailableError, match="not a folder"):
            DiskKVStore(tmp_path / "root", trust_root=trust_root)


def test_purge_ends_although_a_file_can_t_be_removed(path: Path) -> None:
    """purge() comes to an end when something in the place of a value file can't be removed, and does the rest."""
    with DiskKVStore(path) as store:
        ((file,),) = store._database.fetch("SELECT file FROM entries WHERE key = 'mine'")
        (path / "namespaces" / file).unlink()
        (path / "namespaces" / file).mkdir()
        store.delete("mine", "n")
        store.set("short", 1, "n", 0.001)
    assert ended(disk_children.start("purge", path), 30) == ["1"]
    assert (path / "namespaces" / file).is_dir()


def test_a_folder_that_became_a_link_is_not_followed(path: Path, outside: Path) -> None:
    """When a namespace's folder is replaced by a link, nothing is read, written or deleted at its other end."""
    folder = folder_of(path, "n")
    for file in folder.glob("*.value"):  # what a reader would take for ours
        shutil.copy(file, outside)
    shutil.rmtree(folder)
    folder.symlink_to(outside)
    before = look(outside)
    with DiskKVStore(path) as store:
        for call in (
            lambda: store.get("mine", "n"),
            lambda: store.set("new", described("new", 1, LARGE, "n"), "n"),
        ):
            with pytest.raises(KVStoreError):
                call()
            assert look(outside) == before
        assert counter_of(store.get("small", "n"), "small", "n") == 1
        store.delete("mine", "n")
        assert [(d.what, d.namespace) for d in store.check()] == [
            ("namespace", "n"),
            ("entry", "n"),
        ]
        store.clear_namespace("n")
        with time_machine.travel(time.time() + 3600):
            store.purge()
    assert look(outside) == before


@pytest.mark.parametrize("place", ["../../outside", "/OUTSIDE", ".."])
def test_an_index_that_points_outside_is_not_followed(
    path: Path, outside: Path, place: str
) -> None:
    """An index that was tampered with makes nothing outside of the folder be written, read or deleted."""
    place = place.replace("/OUTSIDE", str(outside))
    (path / "inner").mkdir()
    with DiskKVStore(path) as store:
        store._database.write("UPDATE namespaces SET folder = ? WHERE name = 'n'", (place,))
        store._database.write(
            "UPDATE entries SET file = ? WHERE key = 'mine'", (f"{place}/{'0' * 32}.value",)
        )
        store._database.write("INSERT INTO garbage VALUES(?, 0)", (f"{place}/{'0' * 32}.value",))
        before = look(outside), sorted(each.name for each in path.iterdir())
        for call in (
            lambda: store.get("mine", "n"),
            lambda: store.set("new", described("new", 1, LARGE, "n"), "n"),
            lambda: store.check(repair=True),
            lambda: store.clear_namespace("n"),
            lambda: store.purge(),
        ):
            try:
                call()
            except KVStoreError:
                pass
            assert (look(outside), sorted(each.name for each in path.iterdir())) == before


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_what_a_repair_makes_is_private(path: Path, umask: int) -> None:
    """Under any umask all that check(repair=True) makes is 0700 and 0600, too."""
    with open(path / DATABASE, "r+b") as file:
        file.write(b"garbage!" * 1000)
    before = os.umask(umask)
    try:
        assert DiskKVStore.repair(path)[0].what == "database"
        with DiskKVStore(path) as store:
            store.set("large", described("large", 1, LARGE))
            modes = {
                (stat.S_IMODE(each.lstat().st_mode), each.is_dir())
                for each in [path, *path.rglob("*")]
            }
    finally:
        os.umask(before)
    assert modes == {(0o700, True), (0o600, False)}
    assert sys.platform == "win32" or list(path.glob("damaged-*/" + DATABASE))
