"""What a disk store remembers of what it read, and that nobody ever gets anything older for it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
import time_machine

from kv_store_adapter import DiskKVStore, KeyNotFoundError, StoreClosedError
from kv_store_adapter.disk import recent, watch
from kv_store_adapter.disk.store import SPILL_THRESHOLD

pytestmark = pytest.mark.skipif(not hasattr(os, "pread"), reason="nothing is remembered here")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store can be made."""
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[DiskKVStore]:
    """A store with entries of two namespaces, all of them remembered."""
    with DiskKVStore(path) as made:
        made.set_many({f"k{n}": n for n in range(20)})
        made.set_many({f"k{n}": -n for n in range(20)}, "n", ttl=60)
        remember(made)
        yield made


def remember(store: DiskKVStore) -> None:
    """Read what the fixture stored, and see that it is remembered."""
    for _ in range(2):
        for n in range(20):
            assert store.get(f"k{n}") == n
            assert store.get(f"k{n}", "n") == -n
    assert asked(store, lambda: [store.get(f"k{n}") for n in range(20)]) == []


def asked(store: DiskKVStore, work: Callable[[], object]) -> List[str]:
    """What `work` asks the database."""
    seen: List[str] = []
    database = store._database
    fetch_one = database.fetch_one

    def fetch(sql: str, parameters: Any = ()) -> Any:
        seen.append(sql)
        return fetch_one(sql, parameters)

    database.fetch_one = fetch  # type: ignore[method-assign]
    try:
        work()
    finally:
        del database.fetch_one  # type: ignore[attr-defined]
    return seen


def elsewhere(path: Path, program: str) -> None:
    """Run something with another process's store."""
    start = f"from kv_store_adapter import DiskKVStore\nstore = DiskKVStore({str(path)!r})\n"
    subprocess.run([sys.executable, "-c", start + program], check=True, timeout=60)


def test_what_nobody_wrote_since_is_not_asked_for_again(store: DiskKVStore) -> None:
    """A value that was read is remembered, by get(), by reader() and in a view, as a fresh copy each time."""
    store.set("list", [1])
    assert store.get("list") == [1]
    view, read = store.namespace("n"), store.reader("n")

    def work() -> None:
        store.get("list").append(2)
        assert store.get("list") == [1]
        assert view.get("k3") == read("k3") == -3

    assert asked(store, work) == []


CHANGES: Dict[str, Tuple[str, str]] = {
    "set": ("store.set('k3', 'new')", "new"),
    "set with the same value and another ttl": ("store.set('k3', 3, ttl=1e-9)", "gone"),
    "delete": ("store.delete('k3')", "gone"),
    "delete_many": ("store.delete_many(['k1', 'k3'])", "gone"),
    "set_many": ("store.set_many({'k3': 'new', 'k4': 1})", "new"),
    "touch": ("store.touch('k3', ttl=1e-9)", "gone"),
    "pop": ("store.pop('k3')", "gone"),
    "clear_namespace": ("store.clear_namespace(None)", "gone"),
    "a large value": (f"store.set('k3', 'x' * {SPILL_THRESHOLD})", "x" * SPILL_THRESHOLD),
    "add after delete": ("store.delete('k3'); store.add('k3', 'new')", "new"),
}


@pytest.mark.parametrize("who", ["itself", "another store", "another process"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_at_once(store: DiskKVStore, path: Path, change: str, who: str) -> None:
    """Whoever changes an entry, in whichever way: who reads it after that gets nothing older."""
    program, expected = CHANGES[change]
    if who == "itself":
        exec(program, {"store": store})
    elif who == "another store":
        with DiskKVStore(path) as other:
            exec(program, {"store": other})
    else:
        elsewhere(path, program)
    time.sleep(0.002)  # the shortest ttl is a millisecond
    assert store.get("k3", default="gone") == expected
    assert store.get("k5", "n") == -5


def test_a_change_by_another_program_is_seen(store: DiskKVStore, path: Path) -> None:
    """What is changed by SQLite alone is seen as well."""
    with sqlite3.connect(path / "kv-store.sqlite3") as other:
        other.execute("UPDATE entries SET value = x'4e2e', size = 2 WHERE key = 'k3'")
    other.close()
    assert store.get("k3") is None


def test_what_a_process_writes_itself_leaves_the_rest_remembered(store: DiskKVStore) -> None:
    """After set(), add() and delete() of single keys the other values need not be asked for."""
    store.set("k1", "new", ttl=5)
    store.set("k2", "new")
    store.set("k2", "new")  # commits nothing
    store.delete("k3")
    store.add("k4", "there already")
    store.add("k30", "new")
    assert asked(store, lambda: [store.get(f"k{n}") for n in range(4, 20)]) == []
    assert store.get("k1") == store.get("k2") == store.get("k30") == "new"
    assert store.get("k3", default=None) is None


@pytest.mark.parametrize(
    "own",
    [
        "store.set('k1', 1)",
        "store.set('k1', 1); store.set('k2', 2); store.delete('absent')",
        "store.add('k1', 0)",
        "store.touch('k1'); store.touch('absent', ttl=3)",
        "store.set('k1', 1, ttl=60)",
        "store.set('k1', 'new'); store.set('k1', 'new')",
        "store.set('k1', 'new'); store.delete('k2'); store.set_many({'k6': 6})",
        "store.delete('absent'); store.pop('absent', default=None)",
    ],
)
@pytest.mark.parametrize("others", [1, 2, 3])
def test_writes_of_others_are_not_taken_for_own_ones(
    store: DiskKVStore, path: Path, own: str, others: int
) -> None:
    """Commits are counted: a write of this process that changes nothing makes no room for another's."""
    with DiskKVStore(path) as other, time_machine.travel(time.time(), tick=False):
        for first in (True, False):
            if not first:
                exec(own, {"store": store})
            for n in range(others):
                other.set("k9", (first, n))
            if first:
                exec(own, {"store": store})
            assert store.get("k9") == (first, others - 1)
            assert store.get("k9") == (first, others - 1)


def test_what_is_remembered_expires(store: DiskKVStore) -> None:
    """A remembered value is absent from the moment it expires, also where only time passes."""
    with time_machine.travel(time.time() + 59, tick=False):
        assert store.get("k3", "n") == -3
    with time_machine.travel(time.time() + 61, tick=False), pytest.raises(KeyNotFoundError):
        store.get("k3", "n")
    assert store.get("k3", "n") == -3


def test_a_closed_store_remembers_nothing(store: DiskKVStore) -> None:
    """After close() what was remembered is refused like everything else."""
    store.close()
    for _ in range(200):
        with pytest.raises(StoreClosedError):
            store.get("k3")
    assert not store._recent


@needs_fork
def test_both_sides_of_a_fork_see_each_other(store: DiskKVStore, path: Path) -> None:
    """Parent and child remember apart, and each sees at once what the other one writes."""
    to_child, to_parent = multiprocessing.Pipe(), multiprocessing.Pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            for n in range(300):
                assert store.get("k3") == (3 if not n else f"parent {n}")
                assert store.get("k5", "n") == -5
                store.set("k3", f"child {n}")
                to_parent[1].send(n)
                assert to_child[0].poll(30)
                to_child[0].recv()
            code = 0
        finally:
            os._exit(code)
    for n in range(300):
        assert to_parent[0].poll(30)
        to_parent[0].recv()
        assert store.get("k3") == f"child {n}"
        assert store.get("k5", "n") == -5
        store.set("k3", f"parent {n + 1}")
        to_child[1].send(n)
    assert os.waitpid(child, 0)[1] == 0


def _pass_on(path: Path, me: int, rounds: int, inbox: Any, outbox: Any) -> None:
    """Whoever gets a number must read it, or a later one; and never an earlier one than before."""
    trouble: List[str] = []
    ended = threading.Event()
    with DiskKVStore(path) as store:

        def watch_it_rise() -> None:
            last = -1
            while not ended.is_set():
                value = store.get("number")
                if value < last:
                    trouble.append(f"{value} after {last}")
                last = value
                store.get(f"k{last % 20}")

        readers = [threading.Thread(target=watch_it_rise) for _ in range(2)]
        for reader in readers:
            reader.start()
        chance = random.Random(me)
        for _ in range(rounds):
            number = inbox.get(timeout=60)
            if store.get("number") != number:
                trouble.append(f"{store.get('number')} instead of {number}")
            for _ in range(chance.randrange(4)):
                # Some that change nothing, and some that do.
                store.set("idle", chance.randrange(2))
                store.set(f"mine {me}", chance.random())
                store.get(f"k{chance.randrange(20)}")
            store.set("number", number + 1)
            outbox.put(number + 1)
        ended.set()
        for reader in readers:
            reader.join()
    assert not trouble, trouble[:5]


def test_nobody_reads_what_is_older_than_what_he_was_told(path: Path) -> None:
    """Processes that pass a number on through the store and beside it, with threads that read it, never see an older one."""
    rounds, many = 400, multiprocessing.get_context("spawn")
    queues = [many.Queue() for _ in range(3)]
    with DiskKVStore(path) as store:
        store.set_many({f"k{n}": n for n in range(20)})
        store.set("number", 0)
    processes = [
        many.Process(target=_pass_on, args=(path, me, rounds, queues[me], queues[(me + 1) % 3]))
        for me in range(3)
    ]
    for process in processes:
        process.start()
    queues[0].put(0)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with DiskKVStore(path) as store:
        assert store.get("number") == 3 * rounds


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_watching_keeps_no_file_open(path: Path) -> None:
    """Stores that come and go leave no descriptor behind, with and without others that stay."""

    def use() -> None:
        with DiskKVStore(path) as store:
            store.set_many({f"k{n}": n for n in range(20)})
            store.set_many({f"k{n}": -n for n in range(20)}, "n")
            remember(store)

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    use()
    before = count()
    for _ in range(20):
        use()
    assert count() == before
    with DiskKVStore(path) as other:
        other.set("k3", 3)
        use()
        before = count()
        for _ in range(20):
            use()
        assert count() == before


LOCKED = """
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    try:
        fcntl.lockf(index, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)
    except OSError:
        print("locked")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="knows where SQLite locks")
def test_closing_one_store_leaves_the_locks_of_another(store: DiskKVStore, path: Path) -> None:
    """A process that closes one of two stores on a folder keeps the lock that tells others it is there."""
    # POSIX: closing any descriptor of a file gives back all locks that the process has on it.
    for _ in range(3):
        with DiskKVStore(path) as other:
            remember(other)
    index = str(path / "kv-store.sqlite3-shm")
    told = subprocess.run(
        [sys.executable, "-c", LOCKED, index], capture_output=True, text=True, check=True
    )
    assert told.stdout == "locked\n"


def test_it_is_bounded(path: Path) -> None:
    """Only so many bytes are remembered, and no long value."""
    with DiskKVStore(path, remember=100_000) as store:
        store.set_many({f"many{n}": b"x" * 1000 for n in range(300)})
        store.set("long", b"x" * (recent._LONGEST + 1))
        most = 0
        for n in range(300):
            store.get(f"many{n}")
            store.get("long")
            most = max(most, sum(len(entry[0]) for entry in store._recent.values()))
        assert 50_000 < most <= 100_000
        assert (None, "long") not in store._recent
        assert (None, "many299") in store._recent


def test_it_can_be_left_out(path: Path) -> None:
    """remember=0 remembers nothing, also after a fork or a pickle; nonsense is refused."""
    with DiskKVStore(path, remember=0) as store, pickle.loads(pickle.dumps(store)) as other:
        store.set("key", 1)
        for each in (store, other):
            assert len(asked(each, lambda each=each: [each.get("key") for _ in range(300)])) == 300
            assert each._recent._watch is None
    with pytest.raises(ValueError, match="remember"):
        DiskKVStore(path, remember=-1)
    for wrong in (True, 1.5, "8", None):
        with pytest.raises(TypeError, match="remember"):
            DiskKVStore(path, remember=wrong)  # type: ignore[arg-type]


def test_what_was_verified_is_remembered(path: Path) -> None:
    """With verify=True a value is remembered once its checksum has been compared."""
    with DiskKVStore(path, verify=True) as store:
        store.set_many({f"k{n}": n for n in range(20)})
        store.set_many({f"k{n}": -n for n in range(20)}, "n", ttl=60)
        remember(store)
        with time_machine.travel(time.time() + 61, tick=False), pytest.raises(KeyNotFoundError):
            store.get("k3", "n")


def test_it_sleeps_where_nothing_is_read_twice(
    store: DiskKVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where remembering does not pay it stops for a while, and tries again after it."""
    monkeypatch.setattr(recent, "_CREDIT", 50)
    monkeypatch.setattr(recent, "_SLEEP", 100)
    store._recent.forget()
    store.set_many({f"many{n}": n for n in range(300)})
    for n in range(60):
        assert store.get(f"many{n}") == n
    assert store._recent.asleep > 0 and not store._recent
    for n in range(100):
        assert store.get(f"many{n}") == n
    remember(store)


@pytest.mark.parametrize(
    "trouble", ["another format", "no log", "not to be read", "no descriptors"]
)
def test_what_can_not_be_watched_is_read_each_time(
    path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the state of the database can't be told, nothing is remembered and everything works."""
    pread, opened = os.pread, os.open
    with DiskKVStore(path) as store:
        store.set("key", 1)
        if trouble == "another format":
            monkeypatch.setattr(watch, "_VERSION", b"1234")
        elif trouble == "no log":
            store._database.read(lambda c: c.execute("PRAGMA journal_mode=DELETE").fetchone())
        elif trouble == "not to be read":
            monkeypatch.setattr(os, "pread", lambda *a: pread(-1, 1, 0))
        else:

            def refuse(name: Any, *arguments: Any, **options: Any) -> int:
                if str(name).endswith("-shm"):
                    raise OSError(24, "Too many open files")
                return opened(name, *arguments, **options)

            monkeypatch.setattr(os, "open", refuse)
        for n in range(20):
            store.set("key", n)
            assert store.get("key") == store.get("key") == n
        assert not store._recent
        # And what was begun was closed again.
        assert store._recent._watch is None


def test_another_folder_in_its_place_is_not_watched(path: Path, tmp_path: Path) -> None:
    """Where a folder was replaced under an open store, the new one's writes say nothing of the old one's."""
    with DiskKVStore(path) as store:
        store.set("key", 1)
        os.rename(path, tmp_path / "old")
        with DiskKVStore(path) as new:
            new.set("key", "new")
            for n in range(20):
                store.set("key", n)
                assert store.get("key") == store.get("key") == n
            assert store._recent._watch is None
