"""A Redis server that is there but will not: a replica, a full one, one that somebody else uses, too."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
import redis
from breakable import EVERY_OPERATION, BreakableServer

from kv_store_adapter import (
    JSONSerializer,
    KeyNotFoundError,
    RedisKVStore,
    SerializationError,
    StoreUnavailableError,
    cached,
    cached_many,
)

pytestmark = pytest.mark.server

READS = {
    "get": lambda store: store.get("key"),
    "exists": lambda store: store.exists("key"),
    "ttl": lambda store: store.ttl("key"),
    "keys": lambda store: store.keys(),
    "list_namespaces": lambda store: store.list_namespaces(),
    "get_many": lambda store: store.get_many(["key", "no"]),
}


@pytest.fixture(scope="module")
def server() -> Iterator[BreakableServer]:
    with BreakableServer() as server:
        yield server


@pytest.fixture
def raw(server: BreakableServer) -> Iterator[Any]:
    with redis.Redis(port=server.port, socket_timeout=20) as raw:
        raw.flushall()
        yield raw
        raw.config_set("maxmemory", "0")
        raw.config_set("maxmemory-policy", "noeviction")


@pytest.fixture
def store(server: BreakableServer, raw: Any) -> Iterator[RedisKVStore]:
    with RedisKVStore(port=server.port, socket_timeout=20) as store:
        yield store


both = pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])


def do(store: RedisKVStore, call: Callable[[Any], Any], awaited: bool) -> Any:
    async def await_it() -> Any:
        return await call(store.aio)

    return asyncio.run(await_it()) if awaited else call(store)


# ---------------------------------------------------------------------- a replica


@pytest.fixture(scope="module")
def replica(server: BreakableServer) -> Iterator[BreakableServer]:
    """A read-only replica of the server, in step with it."""
    options = ("--replicaof", f"127.0.0.1 {server.port}", "--repl-diskless-sync-delay", "0")
    with redis.Redis(port=server.port) as primary:
        primary.config_set("repl-diskless-sync-delay", 0)
    with BreakableServer(*options) as replica, redis.Redis(port=replica.port) as raw:
        deadline = time.monotonic() + 60
        while raw.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield replica


def in_step(primary: Any, replica: BreakableServer) -> None:
    """Wait until the replica has all that was written."""
    assert primary.wait(1, 20_000) == 1


@both
def test_a_replica_takes_no_writes(
    store: RedisKVStore, raw: Any, replica: BreakableServer, awaited: bool, count: Any
) -> None:
    """On a read-only replica every write says so, nothing is changed, and every read is right."""
    store.set_many({"key": 1, "a": 1})
    store.set("key", 1, "n")
    in_step(raw, replica)
    # These find nothing to change before they would have to write, or change nothing.
    reads = [*READS, "get with a default"]
    with RedisKVStore(port=replica.port, socket_timeout=20) as there:
        for name, call in EVERY_OPERATION.items():
            if name in reads:
                assert do(there, call, awaited) == do(store, call, awaited)
                continue
            with pytest.raises(StoreUnavailableError, match="read-only replica") as caught:
                do(there, call, awaited)
            assert "may have been applied" not in str(caught.value)
            count("writes refused")
        assert there.get_many(["key", "a"]) == {"key": 1, "a": 1}
        assert there.keys("n") == ["key"]


def test_a_cached_function_on_a_replica(
    store: RedisKVStore, raw: Any, replica: BreakableServer, caplog: Any, count: Any
) -> None:
    """A function cached in a replica goes on hitting what is there, and answers what is not."""
    computed: List[int] = []

    def square(x: int) -> int:
        computed.append(x)
        return x * x

    on_primary = cached(store, namespace="square")(square)
    assert [on_primary(x) for x in range(5)] == [0, 1, 4, 9, 16]
    in_step(raw, replica)
    with RedisKVStore(port=replica.port, socket_timeout=20) as there:
        on_replica = cached(there, namespace="square")(square)
        assert [on_replica(x) for x in range(10)] == [x * x for x in range(10)]
        assert [on_replica(x) for x in range(10)] == [x * x for x in range(10)]
        assert on_replica.cache_info().hits == 10
    assert computed == [*range(5), *range(5, 10), *range(5, 10)]
    assert "read-only replica" in caplog.text
    count("writes refused")


# ---------------------------------------------------------------------- out of memory


@both
def test_out_of_memory(store: RedisKVStore, raw: Any, awaited: bool, count: Any) -> None:
    """A full server that evicts nothing refuses what needs room; the old value stays, the rest works."""
    raw.config_set("maxmemory-policy", "noeviction")
    needs_room: Dict[str, Callable[[Any], Any]] = {
        "set": lambda s: s.set("key", 2),
        "set with a ttl": lambda s: s.set("key", 2, ttl=50),
        "add": lambda s: s.add("new", 2),
        "set_many": lambda s: s.set_many({"key": 2, "new": 2}),
        "set_many with a ttl": lambda s: s.set_many({"key": 2, "new": 2}, ttl=50),
    }
    store.set_many({"key": 1, "other": 1, "popped": 1, "gone": 1})
    store.set("key", 1, "n")
    raw.config_set("maxmemory", "1")
    for name, call in needs_room.items():
        with pytest.raises(StoreUnavailableError, match="maxmemory") as caught:
            do(store, call, awaited)
        assert "may have been applied" not in str(caught.value), name
        assert store.get_many(["key", "new"]) == {"key": 1}
        assert store.ttl("key") is None
        count("writes refused")
    assert do(store, lambda s: s.touch("other", ttl=50), awaited) is True
    assert do(store, lambda s: s.touch("other"), awaited) is True
    assert do(store, lambda s: s.pop("popped"), awaited) == 1
    assert do(store, lambda s: s.delete("gone"), awaited) is True
    assert do(store, lambda s: s.delete_many(["other", "no"]), awaited) == 1
    assert do(store, lambda s: s.clear_namespace("n"), awaited) == 1
    assert store.keys() == ["key"]
    raw.config_set("maxmemory", "0")
    do(store, lambda s: s.set("key", 3), awaited)
    assert store.get("key") == 3


def test_a_cached_function_without_room(store: RedisKVStore, raw: Any, caplog: Any) -> None:
    """Functions cached in a full server answer, singly and in batches, and hit what was there."""
    one = cached(store, namespace="one")(lambda x: x)
    many = cached_many(store, namespace="many")(lambda ids: {i: -i for i in ids})
    assert one(1) == 1
    assert many([1]) == {1: -1}
    raw.config_set("maxmemory", "1")
    assert [one(x) for x in (1, 2, 3, 2)] == [1, 2, 3, 2]
    assert many([1, 2, 3]) == {1: -1, 2: -2, 3: -3}
    assert one.cache_info().hits == 1
    assert "maxmemory" in caplog.text


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-ttl"])
def test_eviction_is_absence(
    store: RedisKVStore, raw: Any, policy: str, rounds: Any, count: Any
) -> None:
    """What the server evicts is absent for every operation, and what is left is right."""
    number = rounds(1500, 20_000)
    entries = {f"k{each}": (each, "x" * 1000) for each in range(number)}
    store.set_many(entries, "n", 1000)
    # Less than what is there: a limit above it may be room enough, for what a server has given
    # back by then.
    full = raw.info("memory")["used_memory"]
    raw.config_set("maxmemory-policy", policy)
    raw.config_set("maxmemory", full - number * 400)
    for name, value in entries.items():
        store.set(name, value, "n", 1000)
    assert store.exists(f"k{number - 1}", "n") or policy != "allkeys-lru"
    keys = store.keys("n")
    assert 0 < len(keys) < number
    names = [f"k{each}" for each in range(number)]
    found = store.get_many(names, "n")
    for name, value in found.items():
        assert value == (int(name[1:]), "x" * 1000)
    gone = [name for name in names if name not in set(keys)]
    for name in gone[:50]:
        assert store.get(name, "n", default=None) is None
        assert store.exists(name, "n") is False
        assert store.delete(name, "n") is False
        with pytest.raises(KeyNotFoundError):
            store.ttl(name, "n")
    count("entries evicted", len(gone))
    count("reads checked", len(found))
    f = cached(store, namespace="f", ttl=1000)(lambda x: (x, "y" * 1000))
    for x in range(number // 2):
        assert f(x) == (x, "y" * 1000)


# ---------------------------------------------------------------------- foreign things


@both
def test_foreign_bytes(
    server: BreakableServer, raw: Any, seed: int, rounds: Any, awaited: bool, count: Any
) -> None:
    """Random bytes under our names: get, get_many, pop and default= agree, and nothing is touched."""
    chance = random.Random(seed)
    for serializer in (None, JSONSerializer()):
        with RedisKVStore(port=server.port, socket_timeout=20, serializer=serializer) as store:
            store.set("sound", [1], "n")
            for _ in range(rounds(15, 200)):
                data = bytes(chance.randrange(256) for _ in range(chance.randrange(12)))
                raw.set("kv:n:key", data)
                try:
                    came = do(store, lambda s: s.get("key", "n"), awaited)
                except SerializationError:
                    for call in (
                        lambda s: s.get("key", "n", default=None),
                        lambda s: s.get_many(["sound", "key"], "n"),
                        lambda s: s.pop("key", "n", default=None),
                    ):
                        with pytest.raises(SerializationError):
                            do(store, call, awaited)
                    assert raw.get("kv:n:key") == data
                    assert store.keys("n", "k*") == ["key"]
                else:
                    found = do(store, lambda s: s.get_many(["sound", "key"], "n"), awaited)
                    assert repr(found) == repr({"sound": [1], "key": came})
                count("foreign values")


PLANTS: Dict[str, Tuple[Any, ...]] = {
    "list": ("RPUSH", "theirs"),
    "set": ("SADD", "theirs"),
    "hash": ("HSET", "field", "theirs"),
    "sorted set": ("ZADD", 1, "theirs"),
    "stream": ("XADD", "*", "field", "theirs"),
}


@pytest.mark.parametrize("kind", PLANTS)
@both
def test_keys_of_every_wrong_type(
    store: RedisKVStore, raw: Any, kind: str, awaited: bool, count: Any
) -> None:
    """What is no string is there and can't be read: by get, get_many and pop alike, with its ttl kept."""
    command, *rest = PLANTS[kind]
    raw.execute_command(command, "kv:n:key", *rest)
    raw.pexpire("kv:n:key", 1_000_000)
    store.set_many({f"k{number}": number for number in range(700)}, "n")
    wanted = [f"k{number}" for number in range(700)]
    for call in (
        lambda s: s.get("key", "n"),
        lambda s: s.get("key", "n", default=None),
        lambda s: s.get_many(["key"], "n"),
        lambda s: s.get_many(["no", *wanted, "key"], "n"),
        lambda s: s.pop("key", "n", default=None),
    ):
        with pytest.raises(SerializationError, match="no string"):
            do(store, call, awaited)
        assert raw.type("kv:n:key") != b"string"
        assert raw.pttl("kv:n:key") > 900_000
        count("foreign values")
    assert do(store, lambda s: s.add("key", 1, "n"), awaited) is False
    assert len(do(store, lambda s: s.get_many(wanted, "n"), awaited)) == 700
    assert do(store, lambda s: s.delete_many(["key", "no"], "n"), awaited) == 1


def test_cached_functions_overwrite_what_is_no_string(
    store: RedisKVStore, raw: Any, caplog: Any
) -> None:
    """A name of the wrong type is a miss for cached functions, single and batch: computed, overwritten."""
    one = cached(store, namespace="one")(lambda x: [x])
    many = cached_many(store, namespace="many")(lambda ids: {i: -i for i in ids})
    raw.rpush("kv:one:" + one.cache_key(1), "theirs")
    assert one(1) == [1]
    assert "computed and overwritten" in caplog.text
    assert raw.type("kv:one:" + one.cache_key(1)) == b"string"
    assert one(1) == [1]
    assert one.cache_info().hits == 1
    assert many([1, 2]) == {1: -1, 2: -2}
    name = raw.keys("kv:many:*")[0]
    raw.delete(name)
    raw.rpush(name, "theirs")
    assert many([1, 2]) == {1: -1, 2: -2}
    assert raw.type(name) == b"string"


@pytest.mark.parametrize("prefix", ["kv", "k*", "[kv]", "?", "k\\v", "kv:n", "^[^k]", "%"])
def test_foreign_keys_among_ours(
    server: BreakableServer, raw: Any, prefix: str, seed: int, rounds: Any, count: Any
) -> None:
    """Names with glob characters and our prefix inside them are never listed, counted or deleted."""
    chance = random.Random(seed)
    namespaces = ["n", "*", "[n]", "n?", "\\", "a*b", "[^n]"]
    parts = [prefix, *namespaces, "kv", "k", ":", "::", "*", "?", "[", "]", "^", "\\", "%", "%3A"]
    with RedisKVStore(port=server.port, socket_timeout=20, prefix=prefix) as store:
        for name in namespaces:
            store.set_many({"key": name, "*": name, "k[e]y": name}, name)
        store.set("key", "default")
        ours = set(raw.keys())
        start = store._layout._start
        foreign = {start, *(start + name for name in ours), *(b"x" + name for name in ours)}
        foreign |= {name.upper() for name in ours} | {b" " + name for name in ours}
        while len(foreign) < rounds(150, 3000):
            foreign.add("".join(chance.choice(parts) for _ in range(chance.randint(1, 6))).encode())
        # What starts with the prefix and a colon would be ours, if chance has made it so.
        foreign = {name for name in foreign if not name.startswith(start + b":")}
        raw.mset(dict.fromkeys(foreign, b"precious"))
        count("foreign keys", len(foreign))
        assert sorted(store.list_namespaces()) == sorted(namespaces)
        for name in namespaces:
            assert sorted(store.keys(name)) == ["*", "k[e]y", "key"]
            assert store.keys(name, "k[[]*") == ["k[e]y"]
            assert sorted(store.iter_keys(name, "*")) == ["*", "k[e]y", "key"]
        assert store.keys() == ["key"]
        for name in ("x", "kv", "**", "n*", "[*]", "?", "k", "%", "3A"):
            assert store.clear_namespace(name) == 0
        for name in namespaces:
            assert store.clear_namespace(name) == 3
        assert store.clear_namespace(None) == 1
        count("foreign keys lost", len(foreign - set(raw.keys())))
        assert set(raw.keys()) == foreign


# ---------------------------------------------------------------------- somebody else's FLUSHDB


def test_flushed_by_another(
    store: RedisKVStore, raw: Any, rounds: Any, seed: int, count: Any
) -> None:
    """Where somebody empties the database all the time, entries are absent or right, and nothing raises."""
    stop = threading.Event()
    wrong: List[Any] = []
    done = [0]

    def work(me: int) -> None:
        f = cached(store, namespace=f"f{me}")(lambda x: (me, x))
        number = 0
        try:
            while not stop.is_set():
                number += 1
                key, value = f"k{me}", (me, number)
                store.set(key, value, "n", 100)
                if store.get(key, "n", default=value) != value:
                    wrong.append("get")
                if store.get_many([key, "no"], "n").get(key, value) != value:
                    wrong.append("get_many")
                store.touch(key, "n")
                if f(number % 7) != (me, number % 7):
                    wrong.append("cached")
                set(store.iter_keys("n"))
                store.clear_namespace(f"n{me}")
                store.list_namespaces()
                if store.pop(key, "n", default=value) != value:
                    wrong.append("pop")
                done[0] += 1
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(rounds(50, 2000)):
        before, deadline = done[0], time.monotonic() + 30
        while done[0] <= before and not wrong and time.monotonic() < deadline:
            time.sleep(0.0005)
        raw.flushdb()
        count("FLUSHDBs")
    stop.set()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)
    raw.flushdb()
    assert store.add("key", 1) is True
    assert (store.keys(), store.list_namespaces()) == (["key"], [])


def test_flushed_under_a_lock_and_tags(store: RedisKVStore, raw: Any, caplog: Any) -> None:
    """A flush takes a lock and the tags of results along: a warning, a miss, and no wrong answer."""
    computed: List[int] = []

    @cached(store, namespace="tagged", tags=["t"], stale=100, ttl=100)
    def f(x: int) -> int:
        computed.append(x)
        return x

    assert [f(1), f(1)] == [1, 1]
    raw.flushdb()
    assert [f(1), f(1)] == [1, 1]
    assert computed == [1, 1]
    with store.lock("job", ttl=60):
        raw.flushdb()
        with store.lock("job", timeout=0):
            pass
    assert "was lost" in caplog.text
