"""Forks: nothing inherited is used, nothing is left locked, whoever forks and whenever."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from kv_store_adapter import DiskKVStore, MemoryKVStore, RedisKVStore, cached, forking
from kv_store_adapter.caching import decorator, flights, health
from kv_store_adapter.exceptions import StoreClosedError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

TWO_FORKS = """
    import logging  # first, so that its own fork hook does not serialise the forks by luck
    import os, sys, threading
    from kv_store_adapter import DiskKVStore, MemoryKVStore

    disk, memory = DiskKVStore(sys.argv[1]), MemoryKVStore()
    disk.set("a", 1), memory.set("a", 1)
    reading, go_on, forked = threading.Event(), threading.Event(), []

    def use():
        done = []
        def work():
            memory.set("b", 2), disk.set("b", 2), done.append(disk.get("b"))
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(20)
        return done == [2]

    def fork():
        child = os.fork()
        if not child:
            os._exit(0 if use() else 9)
        forked.append(os.waitpid(child, 0)[1])

    def read_slowly(connection):
        reading.set()
        go_on.wait(0.5)

    threading.Thread(target=disk._database.read, args=(read_slowly,)).start()
    reading.wait(20)
    threads = [threading.Thread(target=fork) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert forked == [0, 0, 0], forked
    assert use()
    os._exit(0)
"""


def test_threads_that_fork_at_once(tmp_path: Path) -> None:
    """Three threads that fork while another one reads: parent and children go on using stores."""
    code = textwrap.dedent(TWO_FORKS)
    # Python 3.12 and later warn of forks with threads around: that is what this is about.
    quiet = ["-W", "ignore::DeprecationWarning"]
    command = [sys.executable, *quiet, "-c", code, str(tmp_path / "store")]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


FORKED_WHILE_OPEN = """
    import ctypes, os, sys, threading
    from kv_store_adapter import DiskKVStore, MemoryKVStore, StoreUnavailableError
    from kv_store_adapter.disk import pool

    pool._PATIENCE = 0.1
    _, how, path, other = sys.argv
    store = DiskKVStore(path)
    store.set("a", 1)
    inside, go_on = threading.Event(), threading.Event()
    if how == "in use":
        def wait(connection):
            inside.set()
            go_on.wait(60)
        threading.Thread(target=store._database.read, args=(wait,)).start()
        inside.wait(60)
        child = os.fork()
    else:
        child = ctypes.PyDLL(None).fork()  # as servers written in C do
    if not child:
        calls = [
            lambda: store.set("b", 2),
            lambda: store.get("a"),
            lambda: DiskKVStore(path).get("a"),
            lambda: DiskKVStore(os.path.join(path, "..", "store")),
        ]
        told = 0
        for call in calls:
            try:
                call()
            except StoreUnavailableError as error:
                told += "This process was forked while" in str(error)
        store.close()
        with DiskKVStore(other) as free:
            free.set("a", 3)
            told += free.get("a") == 3
        os._exit(told)
    assert os.waitpid(child, 0)[1] == 5 << 8
    go_on.set()
    store.set("c", 3)
    child = os.fork()
    if not child:
        store.set("d", 4)
        os._exit(0 if store.get("c") == 3 else 9)
    assert os.waitpid(child, 0)[1] == 0
    print(sorted(store.keys()), store.check())
    store.close()
"""


@pytest.mark.parametrize("how", ["in use", "from C"])
def test_a_child_that_can_t_use_it_is_told(tmp_path: Path, how: str) -> None:
    """Where SQLite had it open at the fork all the same, the child is refused, and loses nothing."""
    if how == "from C" and not sys.platform.startswith("linux"):
        pytest.skip("calls fork of Linux's C library")
    code = textwrap.dedent(FORKED_WHILE_OPEN)
    places = [str(tmp_path / "store"), str(tmp_path / "other")]
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, how, *places]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['a', 'c', 'd'] []\n", "")


def test_a_hook_that_fails_spoils_no_other() -> None:
    """When one store's hook raises, the others are put to rest and woken all the same."""

    class Failing(forking.Forkable):
        def _before_fork(self) -> None:
            raise IndexError("a bug")

    failing, stores = Failing(), [MemoryKVStore() for _ in range(20)]
    forking.register(failing)
    child = os.fork()
    if not child:
        for store in stores:
            store.set("a", 1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for store in stores:
        assert store._lock.acquire(timeout=5)
        store._lock.release()
        store.set("a", 1)


def test_a_child_refreshes_stale_values_itself(tmp_path: Path) -> None:
    """Places for background refreshes that the parent's threads hold are free in the child."""
    from kv_store_adapter.caching import drivers

    places = drivers._refreshing
    taken = 0
    while places.acquire(blocking=False):
        taken += 1
    try:
        child = os.fork()
        if not child:
            os._exit(0 if drivers._refreshing.acquire(blocking=False) else 9)
        assert os.waitpid(child, 0)[1] == 0
        assert drivers._refreshing is places
    finally:
        for _ in range(taken):
            places.release()


def succeeds_in_a_child(work: Callable[[], Any]) -> bool:
    """Whether `work` is true in the child of a fork, within half a minute."""
    with warnings.catch_warnings():
        # Python 3.12 and later warn of forks with threads around: that is what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        # Before that: where it hangs.
        faulthandler.dump_traceback_later(25, file=sys.__stderr__)
        try:
            os._exit(0 if work() else 9)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(8)
    return os.waitpid(child, 0)[1] == 0


def test_a_child_computes_what_its_parent_was_computing() -> None:
    """Nobody in the child waits for a computation of the parent's: its thread is not there."""
    parent, inside, go_on = os.getpid(), threading.Semaphore(0), threading.Event()

    @cached(MemoryKVStore())
    def f(x: int) -> int:
        if os.getpid() == parent:
            inside.release()
            go_on.wait(60)
        return os.getpid()

    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(f, 1), pool.submit(f.refresh, 2)]
        try:
            assert inside.acquire(timeout=30)
            assert inside.acquire(timeout=30)
            assert succeeds_in_a_child(lambda: len(f._self_cached.flow.board) == 0)
            assert succeeds_in_a_child(lambda: f(1) == f(2) == f(1) == os.getpid())
        finally:
            go_on.set()
        assert [each.result(30) for each in slow] == [parent, parent]
    assert f(1) == parent


@pytest.mark.parametrize("module", [decorator, flights, health])
def test_a_lock_held_during_a_fork_is_free_in_the_child(module: Any) -> None:
    """Whatever another thread was doing at the fork, the child decorates, computes and warns."""
    f = cached(MemoryKVStore(), namespace="n")(lambda x: (each for each in [x]))

    def work() -> bool:
        store = MemoryKVStore()
        g = cached(store)(lambda x: -x)
        with pytest.raises(ValueError, match="namespace="):
            cached(store)(lambda x: x)
        return g(1) == g(1) == -1 and list(f(5)) == [5]

    guard = module._guard
    with guard.lock:
        assert succeeds_in_a_child(work)
    assert module._guard is guard
    assert work()


@contextlib.contextmanager
def held_by_a_thread(lock: Any) -> Iterator[None]:
    """Another thread holds `lock`; this one would get an RLock of its own again."""
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            let_go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(30)
        yield
    finally:
        let_go.set()
        thread.join()


@pytest.mark.parametrize("alone", [False, True])
def test_a_child_talks_to_redis(redis_server: Any, alone: bool) -> None:
    """Whatever connection another thread was taking at the fork, the child asks the server at once."""
    with RedisKVStore(port=redis_server.port, single_connection_client=alone) as store:
        store.set("a", 1)
        with held_by_a_thread(store._client.connection_pool._lock):
            assert succeeds_in_a_child(lambda: store.get("a") == 1)
        assert store.get("a") == 1


def test_a_closed_store_stays_closed_in_the_child(redis_server: Any) -> None:
    """A child of a process that had closed its Redis store is told so, too."""
    store = RedisKVStore(port=redis_server.port)
    store.close()

    def work() -> bool:
        with pytest.raises(StoreClosedError):
            store.get("a")
        return True

    assert succeeds_in_a_child(work)


def test_a_fork_waits_for_connections_that_are_being_made(
    redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fork falls into another thread's look-up of an address: its child could never do one."""
    # Its usual half a second is over too soon where the machine stands still for a moment.
    monkeypatch.setattr(forking, "_PATIENCE", 20.0)
    inside, forked, order = threading.Event(), threading.Event(), []
    real = socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        # Once, and only in the thread that this is about.
        if threading.current_thread().name.startswith("looking") and not inside.is_set():
            inside.set()
            # Only a fork that did not wait ends this early.
            order.append("divided" if forked.wait(0.2) else "looked up")
        return real(*args, **kwargs)

    with RedisKVStore(port=redis_server.port) as store:
        with monkeypatch.context() as patch, ThreadPoolExecutor(1, "looking") as pool:
            patch.setattr(socket, "getaddrinfo", slow)
            looking = pool.submit(store.set, "a", 1)
            assert inside.wait(30)
            patch.setattr(socket, "getaddrinfo", real)
            assert succeeds_in_a_child(lambda: store.get("a", default=1) == 1)
            order.append("forked")
            forked.set()
            looking.result(30)
        assert order == ["looked up", "forked"]
        assert succeeds_in_a_child(lambda: store.get("a") == 1)


def ending_slowly(work: Callable[[], Any], microseconds: int) -> int:
    """The system's number of a thread that did `work` and that only the C library is still at."""
    libc = ctypes.CDLL(None)
    key, numbers, done = ctypes.c_uint(), [], threading.Event()
    # glibc calls what a key was made with when a thread ends that has set it.
    assert libc.pthread_key_create(ctypes.byref(key), libc.usleep) == 0

    def run() -> None:
        work()
        numbers.append(threading.get_native_id())
        libc.pthread_setspecific(key, ctypes.c_void_p(microseconds))
        done.set()

    # Not a Thread: since Python 3.13 its join() waits for the C library.
    _thread.start_new_thread(run, ())
    assert done.wait(30)
    return numbers[0]


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="where the system says its threads"
)
def test_a_fork_waits_for_the_end_of_a_thread_that_connected(
    redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that looked up an address takes glibc's lock again at its end: no fork divides that."""
    monkeypatch.setattr(forking, "_PATIENCE", 20.0)
    with RedisKVStore(port=redis_server.port) as store:
        for work, waits in [(lambda: store.set("a", 1), True), (lambda: None, False)]:
            thread = f"/proc/{os.getpid()}/task/{ending_slowly(work, 700_000)}"
            assert succeeds_in_a_child(lambda: os.path.exists(thread) is not waits)  # noqa: B023
        assert succeeds_in_a_child(lambda: store.get("a") == 1)


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="where the system says its threads"
)
def test_a_fork_does_not_wait_for_a_thread_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that Python lost sight of costs one fork half a second, and the next one nothing."""

    def visit() -> None:
        with forking.undivided():
            pass

    monkeypatch.setattr(forking, "_PATIENCE", 0.1)
    thread = ending_slowly(visit, 5_000_000)
    assert succeeds_in_a_child(lambda: True)
    assert os.path.exists(f"/proc/self/task/{thread}")
    assert thread not in forking._gate._visitors


def test_a_fork_does_not_wait_for_greenlets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under gevent a thread calls itself by the name of its greenlet, and is still there."""
    monkeypatch.setattr(forking, "_PATIENCE", 20.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading, "get_ident", lambda: 12345)
        with forking.undivided():
            pass
    assert 12345 in forking._gate._visitors.values()
    before = time.monotonic()
    assert succeeds_in_a_child(lambda: True)
    assert time.monotonic() - before < 10


def test_threads_that_ended_are_forgotten() -> None:
    """A process whose threads connect and end, day after day, does not remember them all."""

    def visit() -> None:
        with forking.undivided():
            pass

    for _ in range(400):
        thread = threading.Thread(target=visit)
        thread.start()
        thread.join()
    assert len(forking._gate._visitors) <= 210


def test_a_fork_waits_half_a_second_at_most() -> None:
    """A fork from inside of such a block, or beside one that never ends, goes through all the same."""
    with forking.undivided():
        before = time.monotonic()
        assert succeeds_in_a_child(lambda: not forking._gate._fork_is_near)
        assert 0.4 < time.monotonic() - before < 20
    with forking.undivided():
        pass
    before = time.monotonic()
    assert succeeds_in_a_child(lambda: True)
    assert time.monotonic() - before < 10


def test_a_child_awaits_redis(redis_server: Any) -> None:
    """Whatever another thread awaited of a Redis store at the fork, the child's event loop goes on."""
    with RedisKVStore(port=redis_server.port) as store:
        asyncio.run(store.aio.set("a", 1))
        with store.aio._lock:
            assert succeeds_in_a_child(lambda: asyncio.run(store.aio.get("a")) == 1)
        assert asyncio.run(store.aio.get("a")) == 1


def test_a_child_asks_the_store_for_itself() -> None:
    """A breaker that was open or held at the fork is closed in the child, and stays the parent's."""
    store = MemoryKVStore()
    f = cached(store)(lambda x: x)
    f(1)
    breakers = [health.health_of(store).reading, health.health_of(store).writing]
    for breaker in breakers:
        breaker.failed()

    def work() -> bool:
        f(1), f(2), f(2)
        for breaker in breakers:
            breaker.failed()
            breaker.worked()
        return bool(f.cache_info()[:4] == (2, 2, None, 2))

    with health._guard.lock:
        assert succeeds_in_a_child(work)
    assert [bool(breaker.open) for breaker in breakers] == [True, True]


def test_a_signal_while_waiting_costs_no_connection(tmp_path: Path) -> None:
    """An exception that a signal's handler raises while the disk is busy leaves the pool whole."""
    import signal
    import sqlite3

    class SoftLimitError(Exception):
        pass

    def limit(*args: Any) -> None:
        raise SoftLimitError

    with DiskKVStore(tmp_path / "store", timeout=5) as store:
        store.set("a", 1)
        other = sqlite3.connect(store.path + "/kv-store.sqlite3", isolation_level=None)
        before = signal.signal(signal.SIGALRM, limit)
        try:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(10):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                with pytest.raises(SoftLimitError):
                    store.set("a", 2)
            other.execute("ROLLBACK")
        finally:
            signal.signal(signal.SIGALRM, before)
            other.close()
        assert len(store._database._open) == len(store._database._idle) <= 1
        store.set("a", 3)
        assert store.get("a") == 3
