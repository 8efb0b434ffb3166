"""`lock()`: mutual exclusion as wide as the backend reaches."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable, List

import pytest

from kv_store_adapter import (
    DiskKVStore,
    KVStoreProtocol,
    LockTimeoutError,
    MemoryKVStore,
    RedisKVStore,
    guard,
)
from kv_store_adapter.exceptions import StoreUnavailableError
from kv_store_adapter.leases import Lease, held
from kv_store_adapter.testing.samples import at_once
from kv_store_adapter.thread_lease import _thread_locks
from signals import needs_timers, run_among_signals, signals_spare_with


@pytest.fixture(params=["memory", "disk", pytest.param("redis", marks=pytest.mark.server)])
def opener(request: Any, tmp_path: Path) -> Callable[[], KVStoreProtocol]:
    """A function that opens the same store again: for memory the same object."""
    if request.param == "memory":
        store = MemoryKVStore()
        return lambda: store
    if request.param == "disk":
        return lambda: DiskKVStore(tmp_path / "store")
    server = request.getfixturevalue("redis_server")
    return lambda: RedisKVStore(port=server.port, socket_timeout=20)


def test_it_excludes_across_store_objects(opener: Any) -> None:
    """Two stores on the same backend share their locks; a view's is that of its namespace."""
    one, other = opener(), opener()
    with one.namespace("a").lock("key"):
        with pytest.raises(LockTimeoutError, match="held by somebody else"):
            other.lock("key", "a", timeout=0).__enter__()
        with other.lock("key", timeout=0):
            pass
    with other.lock("key", "a", timeout=0):
        pass


def test_waiting_ends_when_the_lock_is_free(opener: Any) -> None:
    """Who waits gets the lock when it is given back."""
    store, other = opener(), opener()
    order: List[str] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        with other.lock("key", timeout=30):
            order.append("second")

    thread = threading.Thread(target=wait)
    with store.lock("key"):
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_one_lock_object_is_for_one_at_a_time(opener: Any) -> None:
    """Threads that share the object of a lock exclude each other, and it is not reentrant."""
    lock = opener().lock("key", timeout=20)
    inside: List[int] = []

    def work(me: int) -> None:
        for _ in range(5):
            with lock:
                inside.append(me)
                time.sleep(0.001)  # a moment for others to come in
                assert inside == [me]
                inside.clear()

    at_once(4, work)
    again, other = opener().lock("key", timeout=0.05), opener()
    with again:
        with pytest.raises(LockTimeoutError):
            again.__enter__()
        with pytest.raises(LockTimeoutError):
            other.lock("key", timeout=0.05).__enter__()


def test_who_waits_gets_a_turn() -> None:
    """A thread that takes a lock again and again starves nobody who waits for it."""
    store, stop = MemoryKVStore(), threading.Event()

    def hog() -> None:
        while not stop.is_set():
            with store.lock("key"):
                time.sleep(0.001)

    thread = threading.Thread(target=hog)
    thread.start()
    try:
        for _ in range(5):
            with store.lock("key", timeout=5):
                pass
    finally:
        stop.set()
        thread.join(30)
    assert not _thread_locks


def test_a_forgotten_lock_is_given_back(opener: Any) -> None:
    """Who enters a lock by hand and drops its object has given it back."""
    store, other = opener(), opener()
    lock = store.lock("key", ttl=60)
    lock.__enter__()
    gc.collect()
    with pytest.raises(LockTimeoutError):
        other.lock("key", timeout=0.05).__enter__()
    del lock
    gc.collect()
    with other.lock("key", timeout=20):
        pass


def test_a_thread_is_started_by_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its name and is a daemon; and where no second thread is to be had, the first will do."""
    told: List[Any] = []
    done = threading.Event()

    def work() -> None:
        here = threading.current_thread()
        told.append((here.name, here.daemon))
        done.set()

    guard.start(work, "a name")
    assert done.wait(20)
    assert told == [("a name", True)]

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done.clear()
    monkeypatch.setattr(threading.Thread, "start", fail)
    guard.start(done.set, "a name")
    assert done.wait(20)


def test_a_lease_is_renewed_while_its_holder_lives(opener: Any, caplog: Any) -> None:
    """A lock whose lease is shorter than the work is still held at the end of the work."""
    store, other = opener(), opener()
    for ttl in (0.8, 3.2, 12.8):
        caplog.clear()
        with store.lock("key", ttl=ttl):
            # The other's wait is longer than three leases, so it is the time that passes here.
            try:
                with other.lock("key", timeout=3.25 * ttl):
                    pass
            except LockTimeoutError:
                break
        # The machine stood still for a whole lease, and that is told: again, with a longer one.
        assert "ran out before it was renewed" in caplog.text
    else:
        pytest.fail("No lease was renewed.")
    with other.lock("key", timeout=5):
        pass


def test_a_lease_of_a_killed_process_ends(tmp_path: Path) -> None:
    """A holder that was killed keeps others out for its lease, not for ever."""
    program = (
        "import sys; from kv_store_adapter import DiskKVStore\n"
        "lock = DiskKVStore(sys.argv[1]).lock('key', ttl=1.5)\n"
        "lock.__enter__(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "store")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder, DiskKVStore(tmp_path / "store") as store:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        with pytest.raises(LockTimeoutError):
            store.lock("key", timeout=0).__enter__()
        holder.kill()
        holder.wait(30)
        began = time.monotonic()
        with store.lock("key", timeout=20):
            assert time.monotonic() - began < 5


def test_a_lost_lock_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When somebody took the lock away, leaving says so in the log, and raises nothing."""
    with DiskKVStore(tmp_path / "store") as store, caplog.at_level(logging.WARNING):
        with store.lock("key", "n"):
            store._database.write("DELETE FROM locks", ())
        assert "The lock on key 'key' in namespace 'n' was lost" in caplog.text


def test_a_wait_has_a_limit(opener: Any) -> None:
    """timeout= is how long the wait is, and no longer; the error says what to do."""
    store, other = opener(), opener()
    with store.lock("key"):
        began = time.monotonic()
        with pytest.raises(LockTimeoutError, match=r"whole 0\.1 s .*timeout="):
            other.lock("key", timeout=0.1).__enter__()
        assert 0.09 < time.monotonic() - began < 5


@pytest.mark.parametrize("ttl", [None, 0, -1, True, "10", float("inf")])
def test_a_lock_has_an_end(ttl: Any) -> None:
    """A lock without a proper ttl is refused when it is made."""
    store = MemoryKVStore()
    for lock in (store.lock, store.namespace("n").lock, store.aio.lock):
        with pytest.raises((TypeError, ValueError), match="lock's ttl|ttl is a(n int| number)"):
            lock("key", ttl=ttl)


@pytest.mark.parametrize("timeout", ["1", True, -1, float("nan")])
def test_a_wait_is_a_number(timeout: Any) -> None:
    """A timeout= that is no number of seconds is refused when the lock is made."""
    store = MemoryKVStore()
    for lock in (store.lock, store.namespace("n").lock, store.aio.lock):
        with pytest.raises((TypeError, ValueError), match="timeout= is a number of seconds"):
            lock("key", timeout=timeout)
    for good in (0, 0.5, Fraction(1, 2), 10**400, float("inf"), None):
        with store.lock("key", timeout=good):  # type: ignore[arg-type]  # Fraction
            pass


def test_locks_leave_nothing_behind() -> None:
    """A thousand locks, taken and waited for in vain, are forgotten once they are given back."""
    store = MemoryKVStore()
    before = len(_thread_locks)
    for number in range(1000):
        with store.lock(f"k{number}"):
            with pytest.raises(LockTimeoutError):
                store.lock(f"k{number}", timeout=0).__enter__()
    assert len(_thread_locks) == before


def test_readers_and_writers_under_a_lock(opener: Any) -> None:
    """Threads with store objects of their own lose no count under the lock."""
    first = opener()
    first.set("count", 0)

    def work(me: int) -> None:
        store = opener()
        for _ in range(5):
            with store.lock("count"):
                store.set("count", store.get("count") + 1)

    at_once(4, work)
    assert first.get("count") == 20


def test_processes_exclude_each_other(tmp_path: Path) -> None:
    """Processes that count under a disk store's lock lose no count."""
    program = (
        "import sys; from kv_store_adapter import DiskKVStore\n"
        "store = DiskKVStore(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(20):\n"
        "    with store.lock('count'):\n"
        "        store.set('count', store.get('count') + 1)\n"
    )
    with DiskKVStore(tmp_path / "store") as store:
        store.set("count", 0)
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path / "store")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(3)
        ]
        for worker in workers:
            assert worker.stdout.readline().strip() == b"ready"  # type: ignore[union-attr]
        for worker in workers:
            worker.communicate(b"go\n", timeout=60)
        assert [worker.returncode for worker in workers] == [0, 0, 0]
        assert store.get("count") == 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_give_its_parent_s_lock_back(tmp_path: Path) -> None:
    """A fork inside the block: the child leaving it leaves the parent's lock alone."""
    program = """
import os, sys
from kv_store_adapter import DiskKVStore, LockTimeoutError
store = DiskKVStore(sys.argv[1])
with store.lock("key"):
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        try:
            DiskKVStore(sys.argv[1]).lock("key", timeout=0).__enter__()
        except LockTimeoutError:
            print("still held")
if not pid:
    os._exit(0)
"""
    done = subprocess.run(
        # Since 3.12 Python warns of every fork among threads, and the lease's keeper is one.
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            program,
            str(tmp_path / "store"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("still held", "")


def test_a_cancelled_task_holds_no_lock(opener: Any) -> None:
    """A task cancelled while it waits for a lock neither gets it later nor keeps it."""

    async def scenario() -> None:
        store, other = opener(), opener()

        async def wait() -> None:
            async with other.aio.lock("key"):
                raise AssertionError("it was cancelled")

        async with store.aio.lock("key"):
            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with store.aio.lock("key", timeout=20):
            pass

    asyncio.run(scenario())


def test_waiting_does_not_block_the_event_loop(opener: Any) -> None:
    """While a task waits for a lock others run."""

    async def scenario() -> None:
        store, other = opener(), opener()
        ran = asyncio.Event()

        async def wait() -> None:
            async with other.aio.lock("key", timeout=30):
                assert ran.is_set()

        async with store.aio.lock("key"):
            task = asyncio.ensure_future(wait())
            for _ in range(20):
                await asyncio.sleep(0)
            ran.set()
        await task

    asyncio.run(scenario())


def test_an_interrupted_wait_is_over() -> None:
    """Ctrl-C while waiting for a lock is a KeyboardInterrupt, and the lock is free afterwards."""
    program = """
import os, signal, threading
from kv_store_adapter import MemoryKVStore
# What a shell starts in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
store = MemoryKVStore()
held, leave = threading.Event(), threading.Event()
def hold():
    with store.lock("key"):
        held.set()
        leave.wait(30)
thread = threading.Thread(target=hold)
thread.start()
held.wait(30)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    with store.lock("key"):
        print("got it")
except KeyboardInterrupt:
    print("interrupted")
leave.set()
thread.join()
with store.lock("key", timeout=5):
    print("free")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["interrupted", "free"], "")


class Scripted(Lease):
    """A backend's lease of a minute that notes what it is asked, and raises what it was told to."""

    ttl_ms = 60_000

    def __init__(self, **raising: BaseException) -> None:
        self.raising, self.asked = raising, []  # type: ignore[var-annotated]

    def _do(self, name: str) -> bool:
        self.asked.append(name)
        if name in self.raising:
            raise self.raising.pop(name)
        return True

    def acquire(self, wait: float) -> bool:
        return self._do("acquire")

    def renew(self) -> bool:
        return self._do("renew")

    def release(self) -> bool:
        return self._do("release")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_lock_is_given_back(kind: Any) -> None:
    """Whatever comes between a lock and its block, or its end, the lock does not stay."""
    lease = Scripted(acquire=kind("as it came"))
    with pytest.raises(kind, match="as it came"), held(lease, "key", None, 1):
        raise AssertionError("the block must not run")
    assert lease.asked == ["acquire", "release"]
    assert lease.over

    lease = Scripted(release=kind("as it went"))
    with pytest.raises(kind, match="as it went"), held(lease, "key", None, 1):
        pass
    assert lease.asked == ["acquire", "release", "release"]
    assert lease.over


def test_an_interrupted_lock_that_can_t_be_given_back() -> None:
    """What interrupted is what the caller sees, though the backend fails as well."""
    lease = Scripted(acquire=KeyboardInterrupt("mine"), release=OSError("the backend's"))
    with pytest.raises(KeyboardInterrupt, match="mine"):
        held(lease, "key", None, 1).__enter__()
    assert lease.asked == ["acquire", "release"]
    assert not lease.over  # it ends by itself


def test_a_renewal_that_fails_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """A lease that could not be renewed once is not lost: the next renewal may be in time."""
    lease = Scripted(renew=OSError("no route"))
    lock = held(lease, "key", "n", 1)
    with lock:
        lock.renew()
        assert "key" in caplog.text
        assert "no route" in caplog.text
        assert not lock.lost
        lock.renew()
    assert lease.asked == ["acquire", "renew", "renew", "release"]
    assert len(caplog.records) == 1


def test_a_lock_that_can_t_be_given_back_keeps_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Where the backend is down at the end of the block, the block's result counts; a warning."""
    lease = Scripted(release=StoreUnavailableError("down"))
    with held(lease, "key", "n", 1):
        pass
    assert lease.over
    assert "ends with its lease: down" in caplog.text


def test_a_backend_without_locks_says_so() -> None:
    """A lease has to bring its own acquire() and release()."""
    for call in (lambda: Lease().acquire(0), Lease().release):
        with pytest.raises(NotImplementedError, match="Lease does not"):
            call()
    assert Lease().renew()


def test_a_slow_backend_delays_no_other_backends_leases() -> None:
    """Leases are renewed by a thread for each backend, so one that hangs costs only its own."""
    from kv_store_adapter import leases

    hanging, renewed, release = threading.Event(), threading.Event(), threading.Event()

    class Renewing(leases.Lease):
        def __init__(self, group: int, renew: Any) -> None:
            self.group, self.ttl_ms, self._renew = group, 30, renew

        def acquire(self, wait: float) -> bool:
            return True

        def renew(self) -> bool:
            self._renew()
            return True

        def release(self) -> bool:
            return True

    def hang() -> None:
        hanging.set()
        release.wait(30)

    def fail() -> None:
        renewed.set()
        raise RuntimeError("a driver's bug")

    try:
        with leases.held(Renewing(1, hang), "a", None, 1):
            assert hanging.wait(30)
            with leases.held(Renewing(2, fail), "b", None, 1):
                for _ in range(3):  # and what a renewal raises does not end the renewing
                    assert renewed.wait(30)
                    renewed.clear()
    finally:
        release.set()


AMONG_SIGNALS = """
    import faulthandler
    from kv_store_adapter import DiskKVStore, LockTimeoutError, MemoryKVStore, RedisKVStore

    def work():
        for _ in range(200):
            with store.lock("a", ttl=60, timeout=20):
                pass
            try:
                with store.lock("b", ttl=60), store.lock("b", ttl=60, timeout=0.0002):
                    raise AssertionError("twice")
            except LockTimeoutError:
                pass

    def after():
        got = []

        def take():
            for key in "ab":
                with store.lock(key, timeout=20):
                    got.append(key)

        other = threading.Thread(target=take, daemon=True)
        other.start()
        other.join(60)
        if got != ["a", "b"]:
            faulthandler.dump_traceback()
        assert got == ["a", "b"], "a lock was lost"

    kind, place, rounds = sys.argv[1:]
    if kind == "memory":
        store = MemoryKVStore()
    elif kind == "disk":
        store = DiskKVStore(place, timeout=20)
    else:
        store = RedisKVStore(port=int(place), socket_timeout=20)
    attack(work, int(rounds), 3e-3, after)
"""


@needs_timers
@pytest.mark.parametrize(
    "kind",
    ["memory", "disk", pytest.param("redis", marks=[pytest.mark.server, signals_spare_with])],
)
def test_a_signal_at_any_moment_leaves_the_lock_to_others(
    kind: str, request: Any, tmp_path: Path
) -> None:
    """Wherever a signal's handler raises, before, in or after the block, the next one gets the lock."""
    place = tmp_path / "store"
    if kind == "redis":
        place = request.getfixturevalue("redis_server").port
    run_among_signals(AMONG_SIGNALS, kind, str(place), "1500" if kind == "memory" else "200")
