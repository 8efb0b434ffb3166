"""Redis stores: what our protocol adds to plain redis-py, and what others add."""

from __future__ import annotations

import asyncio
import os
import pickle
from statistics import median
from time import perf_counter
from typing import Any, Callable, Dict, List, Mapping, Optional

from contest import OURS, Figures, Run, Section
from timing import repeated, timed

TTL = 3600
_PLAIN = "redis-py and pickle"
_SERVER = "one server on loopback; fresh and empty for every process; redis-py's hiredis parser if installed"

single = Section(
    "redis",
    "Redis: get and set of 1 KiB",
    f"100 keys in turn, all of them hits; ttl of an hour; {_SERVER}",
    rounds=(3, 9),
    server=True,
)
single.bar("get", _PLAIN, 1.05, 0.9)
single.bar("set", _PLAIN, 1.05, 0.9)

batches = Section(
    "redis-batch",
    "Redis: get_many and set_many of 100 values of 1 KiB",
    f"MGET and a pipeline of SETs on the other side, and a dict of what was found; ttl of an hour; {_SERVER}",
    rounds=(3, 9),
    server=True,
)
batches.bar("get_many", _PLAIN, 1.15)
batches.bar("set_many", _PLAIN, 1.15)

scans = Section(
    "redis-scan",
    "Redis: list and clear 100,000 keys among as many foreign ones",
    "quick: 20,000; scan_iter(count=1000), keys as text, and UNLINK of 1,000 on the other side; "
    + _SERVER,
    rounds=(3, 3),
    server=True,
)
scans.bar("list", _PLAIN, 1.15)
scans.bar("clear", _PLAIN, 1.15)

SECTIONS = [single, batches, scans]


def _client(run: Run) -> Any:
    import redis

    client = redis.Redis(port=run.port)
    # The server is the benchmark's own.
    client.flushall()
    return client


def _store(run: Run) -> Any:
    from kv_store_adapter import RedisKVStore

    _client(run).close()
    return RedisKVStore(port=run.port)


# ---------------------------------------------------------------- single operations


def _operations(
    run: Run, set_one: str, get: str, names: Mapping[str, Any], *, loop: Any = None
) -> Figures:
    keys = [f"user:{number:08}" for number in range(100)]
    names = {**names, "value": os.urandom(1024), "ttl": TTL}
    asyncio.set_event_loop(loop)
    timed(set_one, keys, names)
    timed(f"assert {get} == value", keys, names)
    over, passes = keys * run.pick(5, 15), run.pick(2, 3)
    return {
        "get": repeated(get, over, names, passes=passes),
        "set": repeated(set_one, over, names, passes=passes),
    }


@single.contestant(OURS, "redis")
def _(run: Run) -> Figures:
    names = {"store": _store(run)}
    return _operations(run, "store.set(key, value, ttl=ttl)", "store.get(key)", names)


@single.contestant(_PLAIN, "redis")
def _(run: Run) -> Figures:
    names = {
        "client": _client(run),
        "dumps": pickle.dumps,
        "loads": pickle.loads,
        "protocol": pickle.HIGHEST_PROTOCOL,
        "px": TTL * 1000,
    }
    set_one = "client.set(key, dumps(value, protocol), px=px)"
    return _operations(run, set_one, "loads(client.get(key))", names)


@single.contestant("dogpile.cache", "redis", "dogpile.cache")
def _(run: Run) -> Figures:
    from dogpile.cache import make_region

    _client(run).close()
    arguments = {"port": run.port, "redis_expiration_time": TTL}
    region = make_region().configure("dogpile.cache.redis", arguments=arguments)
    return _operations(run, "region.set(key, value)", "region.get(key)", {"region": region})


@single.contestant("ours, aio", "redis")
def _(run: Run) -> Figures:
    loop = asyncio.new_event_loop()
    names = {"store": _store(run).aio}
    set_one, get = "await store.set(key, value, ttl=ttl)", "await store.get(key)"
    return _operations(run, set_one, get, names, loop=loop)


@single.contestant("cashews, async", "redis", "cashews")
def _(run: Run) -> Figures:
    from cashews import Cache

    _client(run).close()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    cache = Cache()
    cache.setup(f"redis://127.0.0.1:{run.port}/0", client_side=False)
    set_one, get = "await cache.set(key, value, expire=ttl)", "await cache.get(key)"
    return _operations(run, set_one, get, {"cache": cache}, loop=loop)


@single.contestant("py-key-value, async", "redis", "key_value.aio")
def _(run: Run) -> Figures:
    from key_value.aio.stores.redis import RedisStore

    _client(run).close()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # Its values are dicts that go to JSON: as much text as the others have bytes.
    names = {"store": RedisStore(port=run.port), "item": {"text": os.urandom(512).hex()}}
    set_one, get = "await store.put(key, item, ttl=ttl)", "(await store.get(key) and value)"
    return _operations(run, set_one, get, names, loop=loop)


# ---------------------------------------------------------------- batches


def _in_batches(run: Run, set_many: str, get_many: str, names: Mapping[str, Any]) -> Figures:
    values = {f"user:{number:08}": os.urandom(1024) for number in range(100)}
    names = {**names, "values": values, "keys": list(values), "ttl": TTL}
    over = range(run.pick(30, 100))
    timed(set_many, over[:1], names)
    timed(f"assert {get_many} == values", over[:1], names)
    return {
        "get_many": repeated(get_many, over, names, passes=3),
        "set_many": repeated(set_many, over, names, passes=3),
    }


@batches.contestant(OURS, "redis")
def _(run: Run) -> Figures:
    names = {"store": _store(run)}
    return _in_batches(run, "store.set_many(values, ttl=ttl)", "store.get_many(keys)", names)


@batches.contestant(_PLAIN, "redis")
def _(run: Run) -> Figures:
    client = _client(run)

    def set_many(values: Dict[str, bytes]) -> None:
        with client.pipeline(transaction=False) as pipeline:
            for key, value in values.items():
                pipeline.set(key, pickle.dumps(value, pickle.HIGHEST_PROTOCOL), px=TTL * 1000)
            pipeline.execute()

    def get_many(keys: List[str]) -> Dict[str, Any]:
        found = zip(keys, client.mget(keys))
        return {key: pickle.loads(data) for key, data in found if data is not None}

    names = {"set_many": set_many, "get_many": get_many}
    return _in_batches(run, "set_many(values)", "get_many(keys)", names)


# ---------------------------------------------------------------- scans

# Foreign keys, made by the server itself.
_FOREIGN = "for n = 1, ARGV[1] do redis.call('SET', 'foreign:' .. n, 'x') end"


def _scanned(
    run: Run,
    fill: Callable[[Dict[str, bytes]], None],
    listed: Callable[[], List[str]],
    clear: Callable[[], Optional[int]],
    client: Any,
) -> Figures:
    count = run.pick(20_000, 100_000)
    values = {f"user:{number:08}": b"x" for number in range(count)}
    client.eval(_FOREIGN, 0, count)
    fill(values)
    times = []
    for _ in range(4):
        start = perf_counter()
        found = listed()
        times.append(perf_counter() - start)
        assert len(found) == count and found[0] in values, "not all keys came"
    start = perf_counter()
    clear()
    spent = perf_counter() - start
    assert client.dbsize() == count, "foreign keys went, or own ones stayed"
    # The first listing is the warm-up.
    return {"list": median(times[1:]), "clear": spent}


@scans.contestant(OURS, "redis")
def _(run: Run) -> Figures:
    store = _store(run)
    return _scanned(
        run,
        lambda values: store.set_many(values, "bench", TTL),
        lambda: store.keys("bench"),
        lambda: store.clear_namespace("bench"),
        _client(run),
    )


@scans.contestant(_PLAIN, "redis")
def _(run: Run) -> Figures:
    client, prefix = _client(run), "kv:bench:"

    def fill(values: Dict[str, bytes]) -> None:
        with client.pipeline(transaction=False) as pipeline:
            for number, (key, value) in enumerate(values.items()):
                pipeline.set(prefix + key, pickle.dumps(value), px=TTL * 1000)
                if number % 1000 == 999:
                    pipeline.execute()
            pipeline.execute()

    def listed() -> List[str]:
        found = client.scan_iter(match=prefix + "*", count=1000)
        return [key[len(prefix) :].decode() for key in found]

    def clear() -> None:
        batch = []
        for key in client.scan_iter(match=prefix + "*", count=1000):
            batch.append(key)
            if len(batch) == 1000:
                client.unlink(*batch)
                batch = []
        if batch:
            client.unlink(*batch)

    return _scanned(run, fill, listed, clear, client)
