"""Many processes with one store: at once, forked while it is in use, and spawned with it."""

from __future__ import annotations

import collections
import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Iterator, List

import disk_children
import pytest
from described import LARGE, SMALL, counter_of, described

from kv_store_adapter import DiskKVStore
from server import Server

pytestmark = pytest.mark.timeout(600)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def test_many_processes_at_once(tmp_path: Path, rounds: Any, seed: int, count: Any) -> None:
    """Processes that open, write, clear, list, purge and let expire one store at once read nothing torn, mixed or foreign, miss no key that is there throughout, meet no error, and add() has one winner."""
    path, chance = tmp_path / "store", random.Random(seed)
    with DiskKVStore(path) as store:
        store.set_many(
            {f"s{n}": described(f"s{n}", 1, SMALL, "steady") for n in range(50)}, "steady"
        )
        processes = [
            disk_children.start("crowd", path, me, chance.randrange(2**31), rounds(3, 60))
            for me in range(6)
        ]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        won: List[str] = []
        for process in processes:
            assert process.stdout is not None
            *wins, tally = process.stdout.read().splitlines()
            assert process.wait(60) == 0
            won += wins
            for what, number in json.loads(tally).items():
                count(f"many processes: {what}", number)
        twice = [number for number, times in collections.Counter(won).items() if times > 1]
        assert won and twice == [], "won twice"
        assert sorted(f"race{line.split()[1]}" for line in won) == sorted(store.keys("race"))
        count("races with one winner", len(won))
        store.purge()
        assert store.check() == []


def _open_new_ones(root: Path, me: int, rounds: int, meet: Any, trouble: Any) -> None:
    for number in range(rounds):
        meet.wait(60)
        try:
            with DiskKVStore(root / str(number)) as store:
                store.set(f"{me}", number)
        except Exception as error:
            trouble.put(f"round {number}: {error!r}")


def test_new_stores_are_opened_by_all_at_once(tmp_path: Path, rounds: Any, count: Any) -> None:
    """Processes that meet at a folder that is not there yet all open it, time and again, and what each sets is there."""
    how_often, many = rounds(25, 1500), multiprocessing.get_context("spawn")
    meet, trouble = many.Barrier(4), many.Queue()
    processes = [
        many.Process(target=_open_new_ones, args=(tmp_path, me, how_often, meet, trouble))
        for me in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(400)
        assert process.exitcode == 0
    assert trouble.empty(), trouble.get()
    for number in range(how_often):
        with DiskKVStore(tmp_path / str(number)) as store:
            assert store.get_many(map(str, range(4))) == {str(me): number for me in range(4)}
    count("new stores opened by four at once", how_often)


def test_purge_while_another_process_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """purge() is not failed by a namespace that another process clears at that moment."""
    with DiskKVStore(tmp_path / "store") as store, DiskKVStore(tmp_path / "store") as other:
        for name in ("a", "b", "c"):
            store.set("key", 1, name)
        real = os.scandir

        @contextlib.contextmanager
        def then_cleared(path: Any) -> Iterator[Any]:
            with real(path) as entries:
                found = list(entries)
            for name in ("a", "b", "c"):
                other.clear_namespace(name)
            yield iter(found)

        monkeypatch.setattr(os, "scandir", then_cleared)
        assert store.purge() == 0


# ---------------------------------------------------------------------- forks

PRELOADED = """
import os, random, signal, sys, threading, time
sys.path.insert(0, sys.argv[2])
from described import LARGE, counter_of, described
from kv_store_adapter import DiskKVStore, cached

# As a server does that loads its program, and then forks its workers.
store = DiskKVStore(sys.argv[1])
store.set("large", described("large", 1, LARGE))
@cached(store, lock="store")
def square(number):
    return number * number
assert square(3) == 9
holding, let_go = threading.Event(), threading.Event()
def hold():
    with store.lock("busy", ttl=2):
        holding.set()
        let_go.wait(60)
threading.Thread(target=hold).start()
def write():
    number = 0
    while not let_go.is_set():
        number += 1
        store.set("thread", described("thread", number, LARGE if number % 5 == 0 else 100))
threading.Thread(target=write).start()
holding.wait(60)

def work(me):
    for number in range(30):
        store.set(f"w{me}", described(f"w{me}", number, LARGE if number % 10 == 0 else 100))
        assert counter_of(store.get(f"w{me}"), f"w{me}") == number
        assert square(number) == number * number
        counter_of(store.get("thread"), "thread")
    try:
        with store.lock("busy", timeout=0.05):
            os._exit(3)  # it is the parent's
    except TimeoutError:
        pass

def spawn(me):
    pid = os.fork()
    if pid:
        return pid
    try:
        work(me)
        os._exit(0)
    finally:
        os._exit(9)

workers, killed, ended = {spawn(me): me for me in range(4)}, 0, 0
rounds = int(sys.argv[3])
chance = random.Random(int(sys.argv[4]))
while workers:
    if killed < rounds:  # one dies in the middle, and another one takes its place
        victim = chance.choice(sorted(workers))
        os.kill(victim, signal.SIGKILL)
        killed += 1
    pid, status = os.wait()
    me = workers.pop(pid)
    if status == signal.SIGKILL:
        workers[spawn(me)] = me
    else:
        assert status == 0, status
        ended += 1
        if killed < rounds:
            workers[spawn(me)] = me
let_go.set()
for me in range(4):
    assert counter_of(store.get(f"w{me}"), f"w{me}") == 29
with store.lock("busy", timeout=30):
    pass
assert store.check() == []
print(killed, ended)
"""


@needs_fork
def test_a_server_that_loads_first_and_forks_then(
    tmp_path: Path, rounds: Any, seed: int, count: Any
) -> None:
    """Workers forked from a process whose threads write and hold a lock use its store at once, respect the lock, and go on when some of them are killed and replaced."""
    kills = rounds(10, 150)
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            PRELOADED,
            str(tmp_path / "store"),
            os.path.dirname(__file__),
            str(kills),
            str(seed),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    killed, ended = map(int, done.stdout.split())
    count("SIGKILLs", killed)
    count("forked workers", killed + ended)


@needs_fork
def test_a_fork_in_the_middle_of_everything(tmp_path: Path, rounds: Any, count: Any) -> None:
    """A process that forks in the middle of a listing, inside of a lock and of its threads' writes has a child that uses the store, and goes on itself."""
    with DiskKVStore(tmp_path / "store") as store:
        keys = {f"k{n}" for n in range(2500)}
        store.set_many(dict.fromkeys(keys, 1), "n")
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                store.set("thread", described("thread", number, LARGE))

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(rounds(5, 60)):
                listing = store.iter_keys("n")
                first = next(listing)
                with store.lock("mine"):
                    child = os.fork()
                    if not child:
                        signal.alarm(60)  # whatever happens, it ends
                        fine = {first, *listing} == keys
                        store.set("child", described("child", 1, LARGE))
                        fine = fine and counter_of(store.get("child"), "child") == 1
                        os._exit(0 if fine else 9)
                    assert os.waitpid(child, 0)[1] == 0
                    assert {first, *listing} == keys
                count("forks")
        finally:
            stop.set()
            thread.join()
        counter_of(store.get("thread"), "thread")
        assert store.check() == []


BESIDE_REDIS = """
import os, random, signal, sys, threading
from kv_store_adapter import RedisKVStore

# By name: to look up an address is where the C library is not ready for forks.
store = RedisKVStore("localhost", int(sys.argv[1]), socket_timeout=20)
store.set("before", 1)
stop, wrong, done = threading.Event(), [], 0
def work(me):
    while not stop.is_set():
        store.set(f"t{me}", me)
        if store.get(f"t{me}") != me:
            wrong.append(me)
        if chance.random() < 0.3:
            store._client.connection_pool.disconnect(inuse_connections=False)  # look it up again
chance = random.Random(int(sys.argv[3]))
threads = [threading.Thread(target=work, args=(me,)) for me in range(3)]
[thread.start() for thread in threads]
for me in range(int(sys.argv[2])):
    child = os.fork()
    if not child:
        signal.alarm(30)
        for number in range(5):
            store.set(f"c{me}", (me, number))
            assert store.get(f"c{me}") == (me, number)
        os._exit(0 if store.get("before") == 1 else 9)
    if os.waitpid(child, 0)[1]:
        wrong.append(f"child {me}")
    done += 1
stop.set()
[thread.join() for thread in threads]
print(done, wrong)
"""


@needs_fork
def test_forks_beside_threads_that_use_redis(
    redis_server: Server, rounds: Any, seed: int, count: Any
) -> None:
    """Processes forked one after the other beside threads that use Redis are answered at once and rightly, and so are the threads."""
    forks = rounds(50, 600)
    arguments = map(str, (redis_server.port, forks, seed))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", BESIDE_REDIS, *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (f"{forks} []", "")
    count("forks", forks)


# ---------------------------------------------------------------------- spawned


def _work(view: Any, mapping: Any, me: int) -> None:
    view.set(f"v{me}", me)
    mapping[f"m{me}"] = b"x" * LARGE
    with view.lock("one at a time"):
        view.set("sum", view.get("sum", default=0) + me)


def test_views_and_mappings_travel_to_spawned_workers(tmp_path: Path, count: Any) -> None:
    """Views and mappings of a store that is in use are sent to spawned workers, and a lock is one lock for all of them."""
    context = multiprocessing.get_context("spawn")
    with DiskKVStore(tmp_path / "store") as store:
        view, mapping = store.namespace("view"), store.as_mapping("mapping", ttl=600)
        workers = [context.Process(target=_work, args=(view, mapping, me)) for me in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert view.get("sum") == 0 + 1 + 2 + 3
        assert sorted(view.keys()) == ["sum", "v0", "v1", "v2", "v3"]
        assert sorted(mapping) == ["m0", "m1", "m2", "m3"]
        assert 500 < store.ttl("m0", "mapping") <= 600
        count("spawned workers", len(workers))
