"""What a disk store remembers of what it read, and that nobody ever gets anything older for it."""

from __future__ import annotations

import contextlib
import dis
import gc
import multiprocessing
import os
import pickle
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
import time_machine

from kv_store_adapter import DiskKVStore, KeyNotFoundError, StoreClosedError
from kv_store_adapter.disk import pool, recent, watch
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
        # Commits that are counted: only where there were many can few be told from others'.
        for n in range(700):
            made.set("counted", n)
        made.delete("counted")
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
    """After set() and delete() of single keys the other values need not be asked for."""
    store.set("k1", "new", ttl=5)
    store.set("k2", "new")
    store.set("k2", "new")  # commits nothing
    store.delete("k3")
    assert asked(store, lambda: [store.get(f"k{n}") for n in range(4, 20)]) == []
    assert store.get("k1") == store.get("k2") == "new"
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


@pytest.mark.parametrize("between", [[], ["k5"]], ids=["", "with a look"])
def test_what_was_read_before_a_write_is_not_kept_after_it(
    store: DiskKVStore, between: List[str]
) -> None:
    """A thread that reads, and remembers after another one has written, remembers nothing older."""
    memory, place = store._recent, (None, "k3")
    seen = memory.look()
    assert seen is not None
    row = store._encode(3, "k3", None), None
    store.set("k3", "new")
    for key in between:
        store.get(key)
    memory.keep(place, row, seen)
    assert store.get("k3") == "new"


def test_a_write_in_the_middle_of_remembering(store: DiskKVStore) -> None:
    """A signal's handler that writes between two steps of remembering does not have what it replaced remembered."""
    code, reached = recent.Recent.keep.__wrapped__.__code__, []
    for stop in sorted({line for _, line in dis.findlinestarts(code) if line}):
        for key in ("k3", "k4"):  # what is being remembered, and something else
            old, written = f"old {stop} {key}", []
            store.set("k3", old)

            def write(key: str = key, written: List[str] = written) -> None:
                store.set(key, "new")
                written.append(key)

            assert _interrupted(store, "k3", code, stop, write) == old
            expected = "new" if "k3" in written else old  # not all lines are reached
            assert store.get("k3") == store.get("k3") == expected
            reached.extend(written)
    assert len(reached) > 10


@pytest.mark.parametrize("anew", [False, True], ids=["", "all forgotten"])
def test_a_look_before_a_commit_is_counted(
    store: DiskKVStore, path: Path, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    """A thread that looks between another's commit and its being counted does not lose count."""
    wrote = recent.Recent.wrote

    def read_first(self: recent.Recent, place: Any) -> None:
        if anew:
            self.forget()
        assert [store.get("k9"), store.get("k9")] == [9, 9]
        wrote(self, place)

    monkeypatch.setattr(recent.Recent, "wrote", read_first)
    store.set("k3", "new")
    monkeypatch.undo()
    with DiskKVStore(path) as other:
        other.set("k9", "new")
    assert store.get("k9") == "new"


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


# The head of an index of the log: the number of commits, of frames, and two salts.
SHAPE = struct.Struct("=8xI4xI12x4s4s8x")


def test_commits_are_counted_only_where_no_others_can_be_among_them() -> None:
    """What lies between two states is this process's if number and length of commits say so, and the numbers can't have begun anew."""

    def head(commits: int, frames: int, salt: int = 7) -> bytes:
        return SHAPE.pack(commits, frames, salt.to_bytes(4, "big"), b"salt")

    before = head(1000, 500)
    assert watch.only(0, before, before)
    assert not watch.only(0, before, head(1000, 501))
    assert watch.only(1, before, head(1001, 502))
    assert watch.only(3, before, head(1003, 503))
    assert not watch.only(1, before, head(1002, 502))
    assert not watch.only(2, before, head(1001, 502))
    # The log has begun anew: nothing is known of the old one's end.
    assert not watch.only(1, before, head(1001, 2, 8))
    assert not watch.only(1, before, head(1001, 502, 8))
    # Longer than one commit is, or no longer: not only that commit.
    assert not watch.only(1, before, head(1001, 565))
    assert not watch.only(1, before, head(1001, 500))
    # The index was mended, and as many commits followed as it had counted before: 64 frames or more.
    assert not watch.only(1, head(63, 500), head(64, 564))
    assert watch.only(1, head(64, 500), head(65, 564))
    assert not watch.only(2, head(127, 500), head(129, 510))


@pytest.mark.skipif(sys.platform != "linux", reason="opens a descriptor once more")
def test_an_index_that_is_mended_counts_for_nothing(path: Path) -> None:
    """Where SQLite makes the index anew, and its numbers with it, what others wrote before is seen."""
    with DiskKVStore(path) as store, DiskKVStore(path) as other:
        index = -1
        for own in range(1, 4):
            store.set("x", "old")
            assert store.get("x") == store.get("x") == "old"
            for n in range(3):
                other.set("x", n)
            # As a process leaves it that dies between the two copies of the head. Closed at the
            # end only: that takes away SQLite's locks.
            if index < 0:
                index = os.open(f"{path}/kv-store.sqlite3-shm", os.O_RDWR)
            os.pwrite(index, b"\0" * 8, watch.HEAD + 8)
            for n in range(own):
                store.set("z", (own, n))
            assert store.get("x") == 2
    os.close(index)


def test_the_same_entry_added_twice_is_one_commit(path: Path) -> None:
    """An add() in place of what is the same and over counts as a row and commits nothing; others' writes are seen all the same."""
    with DiskKVStore(path) as store, DiskKVStore(path) as other:
        store.set("x", "old")
        for _ in range(200):
            store.set("y", random.random())
        now = time.time()
        expires = int(now * 1000) + 20
        data = store._encode("v", "k", None)
        with time_machine.travel(now, tick=False):
            assert store._writer.put("k", data, None, expires, only_new=True)
            assert store.get("x") == store.get("x") == "old"
        with time_machine.travel(now + 1, tick=False):
            assert store._writer.put("k", data, None, expires, only_new=True)
            other.set("x", "new")
            assert store.get("x") == "new"


@needs_fork
def test_forks_beside_a_writer_are_quick(store: DiskKVStore) -> None:
    """A fork waits for a writer's one operation, and its child can use the store."""
    ended = threading.Event()

    def write() -> None:
        n = 0
        while not ended.is_set():
            n += 1
            store.set(f"w{n % 50}", n)
            assert store.get("k1") == 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        slow = 0
        for _ in range(20):
            start = time.perf_counter()
            child = os.fork()
            if not child:
                code = 1
                try:
                    code = store.get("k1") - 1
                finally:
                    os._exit(code)
            slow += time.perf_counter() - start > 1
            assert os.waitpid(child, 0)[1] == 0
        assert slow < 10, slow
    finally:
        ended.set()
        writer.join()


@needs_fork
def test_a_fork_in_the_middle_of_a_look(path: Path) -> None:
    """Where a signal's handler forks and reads between two steps of a get(), what was written before the get() began is read."""
    with DiskKVStore(path) as store:
        store.set_many({"k": "old", "o": 1})
    code = recent.Recent.recall.__code__
    for stop in sorted({line for _, line in dis.findlinestarts(code) if line}):
        with DiskKVStore(path) as store:
            store.set("k", "old")
        with DiskKVStore(path) as store:
            assert store.get("o") == 1
            assert store.get("k") == store.get("k") == "old"
            elsewhere(path, "store.set('k', 'new')")

            def fork_and_read(store: DiskKVStore = store) -> None:
                child = os.fork()
                if not child:
                    os._exit(0)
                os.waitpid(child, 0)
                assert store.get("o") == 1

            found = _interrupted(store, "k", code, stop, fork_and_read)
            assert found == "new", f"line {stop}"


def _interrupted(
    store: DiskKVStore, key: str, code: Any, stop: int, work: Callable[[], object]
) -> Any:
    """Get a key; before line `stop` of `code` something else is done."""

    def at(frame: Any, event: str, _: Any) -> Any:
        if event == "line" and frame.f_lineno == stop:
            sys.settrace(None)
            frame.f_trace = None
            work()
        return at

    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: at if frame.f_code is code else None)
    try:
        return store.get(key)
    finally:
        sys.settrace(before)


FORKED_IN_C = """
import ctypes, os, signal, sys, threading
from kv_store_adapter import DiskKVStore, StoreUnavailableError
from kv_store_adapter.disk import recent

recent._WORTH = 0
store = DiskKVStore(sys.argv[1])
store.set("k", 1)
store.get("k"), store.get("k")
only, inside, go = recent.only, threading.Event(), threading.Event()

def wait(*arguments):
    inside.set()
    go.wait(30)
    return only(*arguments)

recent.only = wait
DiskKVStore(sys.argv[1]).set("k", 2)
reader = threading.Thread(target=store.get, args=("k",))
reader.start()
assert inside.wait(30)
child = ctypes.PyDLL(None).fork()  # as servers written in C do
if not child:
    recent.only = only
    signal.alarm(20)
    try:
        store.get("k")
    except StoreUnavailableError:
        os._exit(7)  # as documented
    os._exit(1)
go.set()
reader.join()
assert os.waitpid(child, 0)[1] == 7 << 8
"""


@needs_fork
def test_a_fork_from_c_hangs_nobody(path: Path) -> None:
    """A child that Python was not told of meets no lock that another thread of its parent had."""
    subprocess.run([sys.executable, "-c", FORKED_IN_C, str(path)], check=True, timeout=60)


def test_a_folder_that_is_replaced_under_a_watch(path: Path, tmp_path: Path) -> None:
    """Where another folder takes its place and a new connection opens that one, nothing is remembered of the old one."""
    with DiskKVStore(path) as store:
        store.set_many({"k": "old", "j": 0})
        assert store.get("k") == store.get("k") == "old"
        os.rename(path, tmp_path / "old")
        with DiskKVStore(path) as new:
            new.set_many({"k": "new", "j": 0})
            store._database._drop(store._database._take())  # as after a signal
            for n in range(20):
                new.set("j", n)
                assert store.get("j") == store.get("j") == n
            assert store.get("k") == "new"
        # And with connections to both the replaced one and that in its place: nothing at all.
        os.rename(path, tmp_path / "older")
        with DiskKVStore(path) as newest:
            cursors = [store._database._take(), store._database._take()]
            for cursor in cursors:
                store._database._give(cursor)
            for n in range(20):
                newest.set("j", n)
                assert store.get("j") == store.get("j") == n
            assert store._recent._watch is None


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_stores_that_are_dropped_leave_no_file_open(tmp_path: Path) -> None:
    """Stores that nobody closed leave few descriptors behind, however many there were."""
    before = len(os.listdir("/proc/self/fd"))
    for n in range(30):
        store = DiskKVStore(tmp_path / f"dropped {n}")
        store.set("k", n)
        assert store.get("k") == store.get("k") == n
        del store
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 5


def test_so_many_files_stay_open_and_no_more(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where too many files must be kept open because others use them, further stores remember nothing."""
    gc.collect()
    watch.sweep()
    monkeypatch.setattr(watch, "_MOST_FILES", len(watch._opened) + 2)
    watched = []
    with contextlib.ExitStack() as stack:
        for n in range(4):
            store = stack.enter_context(DiskKVStore(tmp_path / str(n)))
            store.set("k", n)
            assert store.get("k") == store.get("k") == n
            watched.append(store._recent._watch is not None)
    assert watched == [True, True, False, False]
    with DiskKVStore(path) as store:
        store.set("k", 1)
        assert store.get("k") == store.get("k") == 1
        assert store._recent._watch is not None


def test_a_folder_that_is_removed_under_a_watch(path: Path, tmp_path: Path) -> None:
    """Where somebody removes the folder, the descriptor that a store still reads from is not closed for others to get."""
    with DiskKVStore(path) as store:
        store.set("k", "old")
        assert store.get("k") == store.get("k") == "old"
        shutil.rmtree(path)
        with DiskKVStore(tmp_path / "other") as other:
            other.set("k", 1)
        with contextlib.ExitStack() as files:
            for _ in range(5):
                files.enter_context(open(__file__))
            assert store.get("k") == store.get("k") == "old"
            store.set_many({"k": "new"})
            assert store.get("k") == store.get("k") == "new"


def test_a_watch_that_is_closed_in_the_middle(store: DiskKVStore) -> None:
    """A look at a watch that another thread closes just now finds nothing, and what is stored is read."""
    seen = store._recent._now[2]
    assert seen is not None
    seen.file = -1
    assert store.get("k3") == store.get("k3") == 3


def test_an_exception_in_the_middle_of_a_look_leaves_nothing_locked(
    store: DiskKVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a signal's handler raises while something is looked up, other threads can look and write."""

    def interrupt(self: watch.Watch) -> None:
        raise KeyboardInterrupt

    store.set("k3", "new")
    with monkeypatch.context() as patch:
        patch.setattr(watch.Watch, "state", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.get("k4")
    got: List[Any] = []
    other = threading.Thread(target=lambda: got.extend([store.get("k3"), store.set("k4", 1)]))
    other.start()
    other.join(30)
    assert got == ["new", None]


def test_a_fork_does_not_wait_for_ever(store: DiskKVStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another thread does not come to an end of its look, a fork goes on without."""
    monkeypatch.setattr(recent, "_LONGEST_REST", 0.01)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store._recent._mutex:
            inside.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(30)
    store._recent.rest()
    store._recent.wake()
    leave.set()
    holder.join()
    remember(store)
    store._recent.rest()
    assert store._recent._watch is None
    store._recent.wake()
    remember(store)


def test_a_daemon_that_closed_all_files(path: Path) -> None:
    """A descriptor that somebody else closed, or whose number is another file's now, is forgotten and not closed."""
    with DiskKVStore(path) as other:
        other.set("k", 1)
        for reused in (False, True):
            with DiskKVStore(path) as store:
                assert store.get("k") == store.get("k") == 1
                file = store._recent._now[2].file  # type: ignore[union-attr]
            assert file in watch._opened.values()  # kept, because the other one uses the file
            with open(__file__) as another:
                if reused:
                    os.dup2(another.fileno(), file)
                else:
                    os.close(file)
                watch.sweep()
            assert file not in watch._opened.values()
            if reused:
                os.close(file)  # it was left open


def test_a_folder_that_is_replaced_while_it_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a connection may have opened another folder than the path names now, nothing is remembered."""
    with DiskKVStore(path) as store:
        store.set("k", 1)
        database = store._database
        inode = database._inode
        assert inode is not None
        for named in ([inode, (0, 1)], [(0, 1), (0, 1)]):
            order = iter(named)
            with monkeypatch.context() as patch:
                patch.setattr(pool, "_inode_of", lambda path, order=order: next(order))
                cursors = [database._take(), database._take()]
            for cursor in cursors:
                database._give(cursor)
            assert database._inode is None
            assert [store.get("k") for _ in range(9)] == [1] * 9
            assert store._recent._watch is None
            # With one connection at a time all is clear again; and with a second one beside it.
            database.rest()
            assert store.get("k") == store.get("k") == 1
            assert store._recent._watch is not None
            cursors = [database._take(), database._take()]
            for cursor in cursors:
                database._give(cursor)
            assert database._inode == inode
            database.rest()
            assert store.get("k") == 1


def test_names_count_as_well(path: Path) -> None:
    """Keys and namespaces that are long count among the bytes that are remembered."""
    with DiskKVStore(path, remember=200_000) as store:
        most = 0
        for n in range(100):
            key, space = f"{'k' * 1000}{n}", f"{'n' * 16_000}{n % 2}"
            store.set(key, n, space)
            store.get(key, space)
            most = max(most, len(store._recent))
        assert 5 < most <= 12


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
