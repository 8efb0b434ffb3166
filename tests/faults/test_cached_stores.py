"""Our stores in trouble under `@cached`: killed, closed, full, or with entries that can't be read."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kv_store_adapter import (
    DiskKVStore,
    KVStoreProtocol,
    MemoryKVStore,
    RedisKVStore,
    cached,
)
from kv_store_adapter.serializers import SignedSerializer
from server import NO_SERVER, Server, find_server


def answer(key: int) -> str:
    return f"{key}:" + "v" * (key * 997 % 5000)


# ---------------------------------------------------------------------- our stores, in the middle


def test_a_server_killed_in_the_middle(rounds: Any, seed: int, count: Any) -> None:
    """A Redis server killed under a stampede costs no answer, and its loss a second or so."""
    binary = find_server()
    if binary is None:
        pytest.skip(NO_SERVER)
    for number in range(rounds(1, 5)):
        server = Server(binary)
        store = RedisKVStore(port=server.port)
        f = cached(store, lock="store", namespace=f"killed{number}")(answer)
        g = cached(store, namespace=f"async{number}")(asyncio_answer)
        begun, over = threading.Barrier(7), threading.Event()

        def work(me: int, f: Any = f, begun: Any = begun, over: Any = over) -> int:
            mine, calls = random.Random(seed + me), 0
            while calls < 50 or not over.is_set():
                key = mine.randrange(10_000)
                assert f(key) == answer(key)
                calls += 1
                if calls == 50:
                    begun.wait(60)
            return calls

        async def tasks(g: Any = g) -> None:
            keys = list(range(100))
            assert await asyncio.gather(*[g(key) for key in keys]) == [answer(k) for k in keys]

        with ThreadPoolExecutor(6) as pool:
            workers = [pool.submit(work, me) for me in range(6)]
            begun.wait(60)
            server._process.kill()
            count("servers killed under @cached")
            began = time.monotonic()
            assert [f(key) for key in range(300)] == [answer(key) for key in range(300)]
            asyncio.run(tasks())
            assert time.monotonic() - began < 30
            over.set()
            count("answers checked on a store in trouble", sum(w.result(60) for w in workers) + 400)
        assert f.cache_info().errors
        store.close()
        server.stop()


async def asyncio_answer(key: int) -> str:
    return answer(key)


@pytest.mark.parametrize("lock", [None, "store"])
def test_a_store_closed_in_the_middle(lock: Any, tmp_path: Path, rounds: Any, count: Any) -> None:
    """A disk store closed under threads that call costs no answer."""
    for number in range(rounds(3, 30)):
        store = DiskKVStore(tmp_path / f"store{number}")
        f = cached(store, lock=lock, namespace="closed")(answer)
        begun = threading.Barrier(5)

        def work(me: int, f: Any = f, begun: Any = begun) -> None:
            begun.wait(60)
            for key in range(60):
                assert f(key) == answer(key)

        with ThreadPoolExecutor(4) as pool:
            workers = [pool.submit(work, me) for me in range(4)]
            begun.wait(60)
            time.sleep(0.003 * (number % 10))
            store.close()
            for worker in workers:
                worker.result(60)
        count("answers checked on a store in trouble", 240)


FULL_DISK = """
import json, resource, sys, time
from kv_store_adapter import DiskKVStore, StoreUnavailableError, cached
from kv_store_adapter.caching import health

store, number = DiskKVStore(sys.argv[1]), int(sys.argv[2])

@cached(store, namespace="full")
def small(key):
    return f"{key}:" + "s" * 3000

@cached(store, namespace="full", ttl=0.05, stale=600)
def stale(key):
    return f"{key}:" + "t" * 3000

@cached(store, namespace="full")
def large(key):
    return f"{key}:" + "l" * 300_000

@cached(store, namespace="strict", on_error="raise")
def strict(key):
    return "r" * 500_000

def right():
    for key in range(number):
        assert small(key) == f"{key}:" + "s" * 3000
        assert stale(key) == f"{key}:" + "t" * 3000
        assert large(key) == f"{key}:" + "l" * 300_000

for key in range(20):
    small(key), large(key)
kept = [(f, key) for f in (small, large) for key in range(20)]
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
began = time.monotonic()
right()
before = small.cache_info().hits + large.cache_info().hits
for function, key in kept:
    assert function.peek(key) == function(key)
served = small.cache_info().hits + large.cache_info().hits - before
health.health_of(store).writing.start_afresh()
try:
    strict(1)
    raised = "nothing"
except StoreUnavailableError:
    raised = "StoreUnavailableError"
seconds = time.monotonic() - began
errors = small.cache_info().errors + stale.cache_info().errors + large.cache_info().errors
assert small.invalidate(3) and large.invalidate(3)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
for _ in range(3):  # a connection that was opened under the limit fails once, and is made anew
    health.health_of(store).writing.start_afresh()
    right()
before = small.cache_info().hits + large.cache_info().hits
right()
hits = small.cache_info().hits + large.cache_info().hits - before
print(json.dumps(
    {"errors": errors, "raised": raised, "seconds": seconds, "hits": hits, "served": served}
))
"""

LOCK_ON_A_FULL_DISK = """
import resource, sys
from kv_store_adapter import DiskKVStore, cached

store = DiskKVStore(sys.argv[1])

@cached(store, namespace="full")
def plain(key):
    return key

@cached(store, namespace="full", lock="store")
def locked(key):
    return key

plain(1), locked(1)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
for key in range(2, 200):
    assert locked(key) == key
assert plain(1) == plain(1) == locked(1) == 1
print(plain.cache_info().hits, locked.cache_info().hits)
"""


def _in_a_child(program: str, *arguments: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        timeout=150,
        check=False,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert "Traceback" not in child.stderr
    return child.stdout


def test_a_full_disk(tmp_path: Path, rounds: Any, count: Any) -> None:
    """On a full disk every answer comes, what is stored is served and can be dropped; with room all is kept."""
    number = rounds(60, 400)
    told = json.loads(_in_a_child(FULL_DISK, str(tmp_path / "store"), str(number)))
    assert told["errors"] > 0
    assert told["raised"] == "StoreUnavailableError"
    assert told["seconds"] < 60
    assert told["served"] == 40
    assert told["hits"] == 2 * number
    count("answers checked on a store in trouble", 9 * number)


def test_a_lock_on_a_full_disk_costs_no_hits(tmp_path: Path) -> None:
    """Where a full disk lets no lock be taken, what is stored is served all the same."""
    assert _in_a_child(LOCK_ON_A_FULL_DISK, str(tmp_path / "store")).split() == ["2", "1"]


# ---------------------------------------------------------------------- entries that can't be read


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_mutated_entries_are_computed_anew(
    kind: str, request: Any, rounds: Any, seed: int, count: Any
) -> None:
    """An entry with any byte changed, cut, or moved from another key is a miss, and is overwritten."""
    serializer = SignedSerializer(b"a secret of thirty-two bytes....")
    raw: Any
    if kind == "memory":
        store: KVStoreProtocol = MemoryKVStore(serializer=serializer)
    else:
        import redis

        port = request.getfixturevalue("redis_server").port
        store = RedisKVStore(port=port, serializer=serializer, socket_timeout=20)
        raw = redis.Redis(port=port)

    @cached(store, namespace="mutated", key="{key}")
    def plain(key: int) -> str:
        return f"plain {key}"

    @cached(store, namespace="stale", key="{key}", ttl=60, stale=60, tags=("t",))
    def stale(key: int) -> str:
        return f"stale {key}"

    def bytes_of(function: Any, key: int) -> bytes:
        name, namespace = function.cache_key(key), function.cache_parameters()["namespace"]
        if kind == "memory":
            return bytes(store._tables[namespace][name][0])
        return bytes(raw.get(f"kv:{namespace}:{name}") or raw.get(found(namespace, name)))

    def found(namespace: str, name: str) -> Any:
        return next(k for k in raw.scan_iter(f"*{namespace}*{name}*"))

    def plant(function: Any, key: int, data: bytes) -> None:
        name, namespace = function.cache_key(key), function.cache_parameters()["namespace"]
        if kind == "memory":
            entry = store._tables[namespace][name]
            store._tables[namespace][name] = (data, *entry[1:])
        else:
            raw.set(found(namespace, name), data, keepttl=True)

    chance = random.Random(seed)
    for number in range(rounds(150, 3000)):
        function = (plain, stale)[number % 2]
        expected = f"{('plain', 'stale')[number % 2]} 1"
        assert function(1) == expected
        function(2)
        whole = bytearray(bytes_of(function, 1))
        where = chance.randrange(len(whole))
        fate = chance.randrange(5)
        if fate == 0:
            data = bytes(whole[:where])
        elif fate == 1:
            data = bytes_of(function, 2)
        elif fate == 2:
            data = chance.getrandbits(8 * 40).to_bytes(40, "big")
        else:
            whole[where] ^= 1 << chance.randrange(8)
            data = bytes(whole)
        plant(function, 1, data)
        misses = function.cache_info().misses
        assert function(1) == expected
        assert function.cache_info().misses == misses + 1
        assert function.peek(1) == expected
        count("entries mutated under @cached")


@pytest.mark.parametrize("options", [{}, {"ttl": 60, "stale": 60}, {"lock": "store"}])
def test_a_redis_key_of_another_type(options: Any, redis_server: Any, count: Any) -> None:
    """A list or a hash where the entry should be is a miss for everybody, and is overwritten."""
    import redis

    store = RedisKVStore(port=redis_server.port, socket_timeout=20)
    raw = redis.Redis(port=redis_server.port)
    f = cached(store, namespace="type", key="{key}", **options)(answer)
    f(1)
    (name,) = raw.keys("*type*")
    for plant in (lambda: raw.lpush(name, "x"), lambda: raw.hset(name, "a", "b")):
        raw.delete(name)
        plant()
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: f(1), range(8), timeout=60)) == [answer(1)] * 8
        assert f.peek(1) == answer(1)
        count("entries mutated under @cached")
