"""Long runs: memory, threads, descriptors, disk and bookkeeping come back to a plateau."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, List

import pytest
import time_machine
from cached_child import wait_for
from plateau import KINDS, descriptors, opener_of, size_of, threads, used

from kv_store_adapter import (
    DiskKVStore,
    KVStoreProtocol,
    MemoryKVStore,
    RedisKVStore,
    cached,
    renewal,
    thread_lease,
)
from kv_store_adapter.caching import flights, health

START = 1_800_000_000.0


@pytest.fixture(params=KINDS)
def opener(request: Any) -> Callable[[], KVStoreProtocol]:
    return opener_of(request.param, request)


def mixed(store: KVStoreProtocol, chance: random.Random, first: int, number: int) -> None:
    """So many operations of all kinds, on keys that are used once and expire within a minute."""
    for index in range(first, first + number):
        key, namespace = f"key {index}", f"n{index % 7}"
        do = chance.randrange(10)
        if do < 4:
            store.set(key, index, namespace, chance.choice((0.5, 5, 50)))
        elif do == 4:
            store.add(key, index, namespace, 20)
        elif do == 5:
            store.set_many({key: index, f"{key}b": index}, namespace, 10)
        elif do == 6:
            store.get(f"key {index - 7}", namespace, default=None)
            store.touch(f"key {index - 7}", namespace, 30)
        elif do == 7:
            store.delete(f"key {index - 14}", namespace)
            store.exists(f"key {index - 21}", namespace)
        elif do == 8:
            store.pop(f"key {index - 28}", namespace, default=None)
        elif index % 1000 == 9:
            store.clear_namespace(namespace)


# ---------------------------------------------------------------------- operations


@pytest.mark.parametrize("maxsize", [None, 1000])
def test_memory_of_a_million_operations(maxsize: Any, rounds: Any, seed: int, count: Any) -> None:
    """A million mixed operations on keys that are used once and expire: memory stays on a plateau."""
    chance, store, part = (
        random.Random(seed),
        MemoryKVStore(maxsize=maxsize),
        rounds(2500, 100_000),
    )
    sizes: List[int] = []
    with time_machine.travel(START, tick=False) as clock:
        for turn in range(10 if maxsize is None else 5):
            for step in range(0, part, 100):
                mixed(store, chance, turn * part + step, 100)
                clock.shift(1.0)
            sizes.append(used())
            count("operations of long runs", part)
        # A minute's worth of keys, of which a hundred came each second, and their notes.
        assert sum(len(table) for table in store._tables.values()) < 8000
        assert len(store._expiry._due) < 2000
    assert max(sizes[2:]) < max(sizes[:2]) + 400_000


@pytest.mark.parametrize("size", [50, 4000])
def test_disk_space_of_a_long_run(
    size: int, tmp_path: Path, rounds: Any, seed: int, count: Any
) -> None:
    """Keys that are used once and expire, small ones and files: the folder and descriptors stay on a plateau."""
    chance, part = random.Random(seed), rounds(400, 2500)
    with DiskKVStore(tmp_path / "store", spill_threshold=2000) as store, time_machine.travel(
        START, tick=False
    ) as clock:
        sizes: List[int] = []
        open_then = 0
        for turn in range(6):
            for index in range(part):
                key = f"{turn} {index}"
                store.set(key, os.urandom(size), f"n{index % 7}", chance.choice((0.5, 5, 20)))
                store.get(f"{turn} {index - 7}", f"n{index % 7}", default=None)
                if index % 5 == 0:
                    store.delete(f"{turn} {index - 14}", f"n{index % 7}")
                clock.shift(0.1)
            mixed(store, chance, turn * part, part // 5)
            sizes.append(size_of(tmp_path / "store"))
            open_then = open_then or descriptors()
            count("operations of long runs", 2 * part + part // 5)
        assert descriptors() <= open_then
        # At most 200 live ones (20 s, ten a second), those due since 32 writes, and the WAL.
        assert sizes[-1] < 1.5 * max(sizes[:2]) + 500_000
        assert len(list((tmp_path / "store").rglob("*.value"))) < 1000
        clock.shift(3600)
        store.purge()
        assert store.list_namespaces() == []
        assert list((tmp_path / "store").rglob("*.value")) == []


def test_a_server_of_a_long_run(redis_server: Any, rounds: Any, seed: int, count: Any) -> None:
    """Keys that are used once and expire leave nothing on the server, nor connections."""
    import redis

    chance, part = random.Random(seed), rounds(500, 6000)
    with RedisKVStore(port=redis_server.port, socket_timeout=20) as store:
        raw = redis.Redis(port=redis_server.port)
        for turn in range(4):
            with ThreadPoolExecutor(4) as pool:
                parts = [
                    pool.submit(mixed, store, random.Random(chance.random()), first, part // 4)
                    for first in range(turn * part, (turn + 1) * part, part // 4)
                ]
                for each in parts:
                    each.result(150)
            assert int(raw.info("clients")["connected_clients"]) < 20
            count("operations of long runs", part)
        # What is there ends: nothing was stored for ever, whatever the operation.
        assert not [
            k for k in raw.scan_iter(count=1000) if raw.pttl(k) == -1 or raw.pttl(k) > 50_000
        ]


# ---------------------------------------------------------------------- threads, opening, namespaces


def test_threads_that_come_and_go(opener: Any, rounds: Any, count: Any) -> None:
    """Hundreds of short-lived threads leave no memory, thread, lock or descriptor behind."""
    with opener() as store:

        @cached(store, lock="store", namespace="threads")
        def f(key: int) -> int:
            return key

        def work(me: int) -> None:
            store.set("key", me, "n", 60)
            assert f(me % 20) == me % 20
            with store.lock("lock"):
                store.get("key", "n")

        def some(number: int) -> None:
            for turn in range(0, number, 10):
                ten = [threading.Thread(target=work, args=(turn + me,)) for me in range(10)]
                for thread in ten:
                    thread.start()
                for thread in ten:
                    thread.join(60)
                    assert not thread.is_alive()

        some(30)
        before = used(), descriptors(), threads()
        some(rounds(50, 600))
        count("short-lived threads", rounds(50, 600))
        assert used() < before[0] + 100_000
        assert descriptors() <= before[1] + 10
        assert threads() <= before[2] + 1
        assert not thread_lease._thread_locks


def test_opening_and_closing(opener: Any, rounds: Any, count: Any) -> None:
    """Hundreds of stores opened, used and closed leave no memory, thread or descriptor behind."""

    async def tasks(store: KVStoreProtocol) -> None:
        await store.aio.set("key", 1, ttl=60)
        assert await store.aio.get("key") == 1

    def cycle() -> None:
        with opener() as store:
            store.set("key", "value", "n", 60)
            assert store.get("key", "n") == "value"
            asyncio.run(tasks(store))
            f = cached(store, namespace="cycle")(lambda key: key)
            assert f(1) == f(1) == 1

    for _ in range(10):
        cycle()
    before = used(), descriptors(), threads()
    for _ in range(rounds(30, 300)):
        cycle()
        count("stores opened and closed")
    gc.collect()
    assert descriptors() <= before[1] + 3
    wait_for(lambda: threads() <= before[2] + 1)
    assert used() < before[0] + 200_000
    assert len(flights._boards) < 50
    assert len(health._healths) < 50


def test_locks_of_stores_that_come_and_go(
    tmp_path: Path, redis_server: Any, rounds: Any, count: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores that are locked and closed leave neither a thread each nor a trace of themselves."""
    monkeypatch.setattr(renewal, "_IDLE", 0.2)
    before, kept = threads(), len(renewal._keepers)
    for _ in range(rounds(30, 200)):
        for store in (DiskKVStore(tmp_path / "store"), RedisKVStore(port=redis_server.port)):
            with store, store.lock("key"):
                pass
            count("stores opened and closed")
    gc.collect()
    wait_for(lambda: len(renewal._keepers) <= kept + 1)
    wait_for(lambda: threads() <= before)


FEW_DESCRIPTORS = """
import os, resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from kv_store_adapter import DiskKVStore, RedisKVStore, cached

number = int(sys.argv[2])
if sys.argv[1].startswith("redis"):
    store = RedisKVStore.from_url(sys.argv[1], socket_timeout=20, socket_connect_timeout=20)
else:
    store = DiskKVStore(sys.argv[1], timeout=20, spill_threshold=500)

def work(me):
    try:
        for index in range(me, number, 8):
            name = f"namespace {index}"
            store.set("small", index, name)
            store.set("large", "v" * 600, name)
            with store.namespace(name).lock("key"):
                assert store.get("small", name) == index
            assert len(store.get("large", name)) == 600
        done.append(me)
    except BaseException as error:
        print(repr(error))

done = []
threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
functions = [cached(store, namespace=f"namespace {i}", key="{x}")(lambda x, i=i: i) for i in range(50)]
assert [f(0) for f in functions] == list(range(50))
assert len(store.list_namespaces()) == number
descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
for index in range(0, number, 2):
    store.clear_namespace(f"namespace {index}")
assert len(store.list_namespaces()) == number // 2
print(len(done), descriptors < 60)
"""


@pytest.mark.parametrize("kind", ["disk", "redis"])
def test_thousands_of_namespaces_and_few_descriptors(
    kind: str, request: Any, tmp_path: Path, rounds: Any, count: Any
) -> None:
    """Thousands of namespaces, from eight threads, in a process that may open 256 files."""
    where = (
        str(tmp_path / "store") if kind == "disk" else request.getfixturevalue("redis_server").url
    )
    number = rounds(300, 3000)
    child = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, where, str(number)],
        capture_output=True,
        timeout=170,
        check=False,
        text=True,
    )
    assert child.returncode == 0, child.stdout + child.stderr[-3000:]
    assert child.stdout.split() == ["8", "True"]
    count("namespaces under RLIMIT_NOFILE", number)
