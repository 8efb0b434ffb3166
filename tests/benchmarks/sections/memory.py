"""Memory stores: single operations, threads, a bounded store, and what an entry weighs."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from datetime import timedelta
from itertools import accumulate
from statistics import median
from time import perf_counter, time
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from contest import OURS, Figures, Run, Section
from timing import cycles, loop, repeated, timed

TTL = 3600
_CACHETOOLS, _CACHEBOX = "cachetools TTLCache + lock", "cachebox VTTLCache"

single = Section(
    "memory",
    "Memory: set, get, overwrite, delete",
    "10,000 keys in random order; ttl of an hour; every contestant is thread-safe but the bare dict",
    rounds=(3, 9),
)
single.bar("get", _CACHETOOLS, 0.35)
single.bar("set new", _CACHETOOLS, 0.45)
single.bar("overwrite", _CACHETOOLS, 0.45)
single.bar("delete", _CACHETOOLS, 0.5)
single.bar("get", _CACHEBOX, 2.0, 1.3)

threads = Section(
    "threads",
    "Memory: 4 threads, 90 % get and 10 % set",
    "10,000 keys, all of them there; ttl of an hour; time of all threads together, an operation",
    rounds=(3, 5),
)
threads.bar("an operation", _CACHETOOLS, 0.35)

bounded = Section(
    "bounded",
    "Memory with a maximum: 80 % get and 20 % set, with evictions",
    "10,000 entries at most, 50,000 keys by Zipf 0.9; no ttl",
    rounds=(3, 9),
)
bounded.bar("an operation", "cachetools LRUCache + lock", 0.6)

footprint = Section(
    "footprint",
    "Memory: bytes an entry takes",
    "resident memory of the process before and after; a million entries (quick: 200,000) with ttl; "
    "the keys are there before, the value is one object",
    rounds=(1, 1),
)
footprint.bar("bytes an entry", "cachetools TTLCache", 0.75)

SECTIONS = [single, threads, bounded, footprint]


def _keys(count: int) -> List[str]:
    keys = [f"user:{number:08}" for number in range(count)]
    random.Random(1).shuffle(keys)
    return keys


# ---------------------------------------------------------------- single operations


def _operations(run: Run, phases: Mapping[str, str], names: Dict[str, Any]) -> Figures:
    names = {**names, "value": "a small value", "ttl": TTL}
    return cycles(phases, _keys(10_000), names, passes=run.pick(3, 7))


def _phases(set_one: str, get: str, delete: str, check: str) -> Dict[str, str]:
    return {
        "set new": set_one,
        "_hits": check,
        "get": get,
        "overwrite": set_one,
        "_still hits": check,
        "delete": delete,
    }


_OURS = _phases(
    "store.set(key, value, ttl=ttl)",
    "store.get(key)",
    "store.delete(key)",
    "assert store.get(key) is value and store.ttl(key) > 3000",
)


@single.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import MemoryKVStore

    store = MemoryKVStore()
    found = _operations(run, _OURS, {"store": store})
    assert not store.keys(), "delete left something"
    return found


@single.contestant("ours, reader(namespace)")
def _(run: Run) -> Figures:
    from kv_store_adapter import MemoryKVStore

    store, keys = MemoryKVStore(), _keys(10_000)
    store.set_many(dict.fromkeys(keys, "a small value"), "users", TTL)
    return {"get": repeated("read(key)", keys, {"read": store.reader("users")})}


@single.contestant(_CACHETOOLS, "cachetools")
def _(run: Run) -> Figures:
    from cachetools import TTLCache

    phases = _phases(
        "with lock:\n    cache[key] = value",
        "with lock:\n    cache[key]",
        "with lock:\n    del cache[key]",
        "assert cache[key] is value",
    )
    names = {"cache": TTLCache(1_000_000, TTL), "lock": threading.Lock()}
    return _operations(run, phases, names)


@single.contestant(_CACHEBOX, "cachebox")
def _(run: Run) -> Figures:
    from cachebox import VTTLCache

    phases = _phases(
        "cache.insert(key, value, ttl=ttl)",
        "cache.get(key)",
        "del cache[key]",
        "assert cache.get(key) is value",
    )
    return _operations(run, phases, {"cache": VTTLCache(0)})


@single.contestant("moka", "moka_py")
def _(run: Run) -> Figures:
    from moka_py import Moka

    phases = _phases(
        "cache.set(key, value)",
        "cache.get(key)",
        "cache.remove(key)",
        "assert cache.get(key) is value",
    )
    return _operations(run, phases, {"cache": Moka(1_000_000, ttl=TTL)})


@single.contestant("theine", "theine")
def _(run: Run) -> Figures:
    from theine import Cache

    phases = _phases(
        "cache.set(key, value, span)",
        "cache.get(key)",
        "cache.delete(key)",
        "assert cache.get(key)[0] is value",
    )
    return _operations(run, phases, {"cache": Cache(100_000), "span": timedelta(seconds=TTL)})


@single.contestant("cachelib SimpleCache", "cachelib")
def _(run: Run) -> Figures:
    from cachelib import SimpleCache

    phases = _phases(
        "cache.set(key, value, ttl)",
        "cache.get(key)",
        "cache.delete(key)",
        "assert cache.get(key) == value",
    )
    # Keeps pickles; not said to be thread-safe.
    return _operations(run, phases, {"cache": SimpleCache(threshold=1_000_000)})


@single.contestant("bare dict, ttl checked")
def _(run: Run) -> Figures:
    phases = _phases(
        "table[key] = (value, time() + ttl)",
        "assert table[key][1] > time()",
        "del table[key]",
        "assert table[key][0] is value",
    )
    return _operations(run, phases, {"table": {}, "time": time})


# ---------------------------------------------------------------- threads and bounds


def _mix(
    keys: Sequence[str], reads: float, count: int, chance: random.Random
) -> List[Tuple[str, bool]]:
    return [(key, chance.random() < reads) for key in chance.choices(keys, k=count)]


def _together(run: Run, read: str, write: str, names: Dict[str, Any]) -> Figures:
    """4 threads over the same cache; the wall time of all, by the number of operations."""
    keys, count = _keys(10_000), run.pick(10_000, 40_000)
    names = {**names, "value": "a small value", "ttl": TTL}
    timed(write, keys, names)
    statement = f"if read:\n    {read}\nelse:\n" + "\n".join(
        "    " + line for line in write.splitlines()
    )
    mixes = [_mix(keys, 0.9, count, random.Random(seed)) for seed in range(4)]
    gate, ended = threading.Barrier(5), []

    def work(mix: List[Tuple[str, bool]]) -> None:
        loop(statement, mix[:100], names, "key, read")
        gate.wait()
        loop(statement, mix, names, "key, read")
        ended.append(perf_counter())

    workers = [threading.Thread(target=work, args=(mix,)) for mix in mixes]
    for worker in workers:
        worker.start()
    gc.collect()
    gate.wait()
    start = perf_counter()
    for worker in workers:
        worker.join()
    return {"an operation": (max(ended) - start) / (4 * count)}


@threads.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import MemoryKVStore

    read, write = "store.get(key)", "store.set(key, value, ttl=ttl)"
    return _together(run, read, write, {"store": MemoryKVStore()})


@threads.contestant(_CACHETOOLS, "cachetools")
def _(run: Run) -> Figures:
    from cachetools import TTLCache

    names = {"cache": TTLCache(1_000_000, TTL), "lock": threading.Lock()}
    return _together(run, "with lock: cache[key]", "with lock:\n    cache[key] = value", names)


@threads.contestant(_CACHEBOX, "cachebox")
def _(run: Run) -> Figures:
    from cachebox import VTTLCache

    read, write = "cache.get(key)", "cache.insert(key, value, ttl=ttl)"
    return _together(run, read, write, {"cache": VTTLCache(0)})


def _evicting(run: Run, read: str, write: str, names: Dict[str, Any]) -> Figures:
    chance = random.Random(2)
    weights = list(accumulate(1 / rank**0.9 for rank in range(1, 50_001)))
    count = run.pick(60_000, 200_000)
    drawn = chance.choices(_keys(50_000), cum_weights=weights, k=count)
    mix = [(key, chance.random() < 0.8) for key in drawn]
    names = {**names, "value": "a small value"}
    # Full before it counts.
    timed(write, drawn[::-1], names)
    statement = f"if read:\n    {read}\nelse:\n    {write}"
    # The median of twenty parts: a moment in which the machine does something else counts once.
    part = count // 20
    parts = [mix[start : start + part] for start in range(0, count, part)]
    gc.collect()
    return {
        "an operation": median(loop(statement, few, names, "key, read") for few in parts) / part
    }


@bounded.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import MemoryKVStore

    store = MemoryKVStore(maxsize=10_000)
    read, write = "store.get(key, default=None)", "store.set(key, value)"
    found = _evicting(run, read, write, {"store": store})
    assert len(store.keys()) == 10_000, "it is not full"
    return found


@bounded.contestant("cachetools LRUCache + lock", "cachetools")
def _(run: Run) -> Figures:
    from cachetools import LRUCache

    names = {"cache": LRUCache(10_000), "lock": threading.Lock()}
    return _evicting(run, "with lock: cache.get(key)", "with lock: cache[key] = value", names)


@bounded.contestant("cachebox LRUCache", "cachebox")
def _(run: Run) -> Figures:
    from cachebox import LRUCache

    return _evicting(run, "cache.get(key)", "cache[key] = value", {"cache": LRUCache(10_000)})


@bounded.contestant("theine (W-TinyLFU)", "theine")
def _(run: Run) -> Figures:
    from theine import Cache

    return _evicting(run, "cache.get(key)", "cache.set(key, value)", {"cache": Cache(10_000)})


# ---------------------------------------------------------------- weight


def _resident() -> int:
    gc.collect()
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    import resource  # the highest it ever was, which is good enough while it only grows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _weight(run: Run, statement: str, names: Dict[str, Any]) -> Figures:
    keys = _keys(run.pick(200_000, 1_000_000))
    before = _resident()
    timed(statement, keys, {**names, "value": "a small value", "ttl": TTL})
    return {"bytes an entry": (_resident() - before) / len(keys)}


@footprint.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import MemoryKVStore

    return _weight(run, "store.set(key, value, ttl=ttl)", {"store": MemoryKVStore()})


@footprint.contestant("cachetools TTLCache", "cachetools")
def _(run: Run) -> Figures:
    from cachetools import TTLCache

    return _weight(run, "cache[key] = value", {"cache": TTLCache(2_000_000, TTL)})


@footprint.contestant(_CACHEBOX, "cachebox")
def _(run: Run) -> Figures:
    from cachebox import VTTLCache

    return _weight(run, "cache.insert(key, value, ttl=ttl)", {"cache": VTTLCache(0)})


@footprint.contestant("bare dict of (value, deadline)")
def _(run: Run) -> Figures:
    return _weight(run, "table[key] = (value, time() + ttl)", {"table": {}, "time": time})
