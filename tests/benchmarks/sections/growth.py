"""What stays flat when a store grows: operations, listing, expiry, namespaces, clearing."""

from __future__ import annotations

import gc
import multiprocessing
import random
import time
from statistics import median
from typing import Any, Dict, List

from contest import OURS, Figures, Run, Section
from timing import repeated, timed, worst

TTL = 3600
_FLAT = ("get", "set new", "delete")
_LINEAR = ("keys(), a key", "clear, a key")

in_memory = Section(
    "growth-memory",
    "Growth in memory: an operation at 1,000 to 1,000,000 entries",
    "quick: to 100,000; keys at random; ttl of an hour; the bar is the largest : the smallest store",
    rounds=(1, 2),
)
on_disk = Section(
    "growth-disk",
    "Growth on disk: an operation at 1,000 to 1,000,000 entries",
    "quick: to 30,000; values of 100 bytes, keys at random; remember=0, or the gets from the smallest "
    "store would not be from the disk; the bar is the largest : the smallest store",
    rounds=(1, 2),
)
for section in (in_memory, on_disk):
    for name in _FLAT:
        section.cap(f"{name}, growth", 1.5)
    for name in _LINEAR:
        section.cap(f"{name}, growth", 2.0)

expiry = Section(
    "growth-expiry",
    "The longest set while a million entries expire",
    "quick: 100,000; on disk 200,000 (quick: 10,000); they are over when the sets begin, nobody has "
    "read them, and the sets are of a thousand other keys, over and over",
    rounds=(1, 2),
)
expiry.cap("memory, longest set", 5.0, "ms", 1000)
expiry.cap("disk, longest set", 5.0, "ms", 1000)

namespaces = Section(
    "growth-namespaces",
    "10,000 namespaces on disk, visited at random",
    "quick: 500; ten keys each; the same number of keys in one namespace on the other side; remember=0",
    rounds=(1, 2),
)
namespaces.within("get, many namespaces", "get, one namespace", 1.5)
namespaces.within("set, many namespaces", "set, one namespace", 1.5)
namespaces.cap("list_namespaces, each", 10.0, "us", 1e6)

clearing = Section(
    "growth-clearing",
    "A writer's longest wait while another process clears a namespace of 100,000 entries",
    "quick: 20,000; values of 100 bytes; the writer sets in another namespace without a pause",
    rounds=(1, 2),
)
clearing.cap("longest set", 50.0, "ms", 1000)

SECTIONS = [in_memory, on_disk, expiry, namespaces, clearing]


# ---------------------------------------------------------------- operations


def _grown(run: Run, store: Any, sizes: List[int], probes: int, value: Any) -> Figures:
    """Fill the store to one size after another, and measure at each."""
    chance = random.Random(5)
    found: Dict[str, float] = {}
    there = 0
    for size in sizes:
        while there < size:
            step = min(20_000, size - there)
            store.set_many({f"user:{n:08}": value for n in range(there, there + step)}, "big", TTL)
            there += step
        names = {"store": store, "value": value, "ttl": TTL}
        some = [f"user:{chance.randrange(size):08}" for _ in range(probes)]
        found[f"get @ {size}"] = repeated("store.get(key, 'big')", some, names, passes=3)
        new = [f"new:{n:08}" for n in chance.sample(range(10**8), probes)]
        sets, deletes = [], []
        for _ in range(3):
            sets.append(timed("store.set(key, value, 'big', ttl)", new, names))
            chance.shuffle(new)
            deletes.append(timed("assert store.delete(key, 'big')", new, names))
        found[f"set new @ {size}"], found[f"delete @ {size}"] = median(sets), median(deletes)
        listing = repeated("len(store.keys('big'))", range(max(1, 10_000 // size)), names, passes=3)
        found[f"keys(), a key @ {size}"] = listing / size
        # Clearing: as many entries in a namespace of their own; a million would take too long.
        if size <= 100_000:
            found[f"clear, a key @ {size}"] = cleared = _cleared(store, size, value)
            found["clear, a key, growth"] = cleared / found[f"clear, a key @ {sizes[0]}"]
    for name in (*_FLAT, "keys(), a key"):
        found[f"{name}, growth"] = found[f"{name} @ {sizes[-1]}"] / found[f"{name} @ {sizes[0]}"]
    return found


def _cleared(store: Any, size: int, value: Any) -> float:
    times = []
    # A small one is over so soon that once says little.
    for _ in range(10 if size < 10_000 else 1):
        for start in range(0, size, 20_000):
            items = {f"user:{n:08}": value for n in range(start, min(size, start + 20_000))}
            store.set_many(items, "other", TTL)
        times.append(
            timed("assert store.clear_namespace('other') == key", [size], {"store": store})
        )
    return median(times) / size


@in_memory.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import MemoryKVStore

    sizes = run.pick([1000, 10_000, 100_000], [1000, 10_000, 100_000, 1_000_000])
    return _grown(run, MemoryKVStore(), sizes, run.pick(5000, 20_000), "a small value")


@in_memory.contestant("bare dict")
def _(run: Run) -> Figures:
    """What the machine's own caches do to random reads of a growing table."""
    chance = random.Random(5)
    found: Dict[str, float] = {}
    sizes = run.pick([1000, 100_000], [1000, 10_000, 100_000, 1_000_000])
    table: Dict[str, Any] = {}
    for size in sizes:
        table.update({f"user:{n:08}": (float(n), n) for n in range(len(table), size)})
        some = [f"user:{chance.randrange(size):08}" for _ in range(20_000)]
        statement = "assert table[key][0] > -1.0"
        found[f"get @ {size}"] = repeated(statement, some, {"table": table}, passes=3)
    found["get, growth"] = found[f"get @ {sizes[-1]}"] / found[f"get @ {sizes[0]}"]
    return found


@on_disk.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import DiskKVStore

    sizes = run.pick([1000, 30_000], [1000, 10_000, 100_000, 1_000_000])
    with DiskKVStore(run.path("store"), remember=0) as store:
        return _grown(run, store, sizes, run.pick(1000, 3000), b"x" * 100)


# ---------------------------------------------------------------- expiry


def _same(count: int) -> List[str]:
    """A thousand keys, over and over: a dictionary that grows makes pauses of its own."""
    return [f"new:{n:03}" for n in range(1000)] * (count // 1000)


def _longest(store: Any, count: int, ttl: float, sets: int, value: Any) -> float:
    """Let `count` entries expire, then the longest of so many sets: every one of them sweeps.

    They expire after `ttl` seconds, or more where the machine is too slow to store them in that.
    """
    batch = min(count, 20_000)
    start = time.time()
    store.set_many({f"try:{n:08}": value for n in range(batch)}, "try", 3600)
    ttl = max(ttl, 4 * (time.time() - start) * count / batch)
    store.clear_namespace("try")
    start = time.time()
    for first in range(0, count, batch):
        items = {f"old:{n:08}": value for n in range(first, min(count, first + batch))}
        store.set_many(items, "old", ttl)
    last = time.time()
    assert last < start + ttl, "they expire before the last is stored"
    names = {"store": store, "value": value}
    timed("store.set(key, value, 'new', 3600)", _same(1000), names)
    keys = _same(sets)
    gc.collect()
    # All of them, and the stretches of time that they are swept by, are over.
    time.sleep(max(0.0, last + ttl * 1.2 - time.time()))
    return worst("store.set(key, value, 'new', 3600)", keys, names)


@expiry.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import DiskKVStore, MemoryKVStore

    count = run.pick(100_000, 1_000_000)
    found = {
        "memory, longest set": _longest(MemoryKVStore(), count, run.pick(2, 8), count // 2, "x")
    }
    count = run.pick(10_000, 200_000)
    with DiskKVStore(run.path("store")) as store:
        longest = _longest(store, count, run.pick(2, 10), run.pick(3000, 50_000), b"x" * 100)
    return {**found, "disk, longest set": longest}


@expiry.contestant("ours, and nothing expires")
def _(run: Run) -> Figures:
    """What moving SQLite's log into the database does to the longest of as many sets."""
    from kv_store_adapter import DiskKVStore

    keys = _same(run.pick(3000, 50_000))
    with DiskKVStore(run.path("store")) as store:
        names = {"store": store, "value": b"x" * 100}
        return {"disk, longest set": worst("store.set(key, value, 'new', 3600)", keys, names)}


@expiry.contestant("bare dict, and nothing expires")
def _(run: Run) -> Figures:
    """What the machine and the garbage collector do to the longest of as many sets."""
    keys = _same(run.pick(50_000, 500_000))
    names = {"table": {}, "now": time.time}
    return {"memory, longest set": worst("table[key] = ('x', now())", keys, names)}


# ---------------------------------------------------------------- namespaces


@namespaces.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import DiskKVStore

    chance, value = random.Random(6), b"x" * 100
    count, probes = run.pick((500, 2000), (10_000, 10_000))
    keys = [f"user:{n}" for n in range(10)]
    names = [f"tenant {n}" for n in range(count)]
    found: Dict[str, float] = {}
    with DiskKVStore(run.path("many"), remember=0) as many, DiskKVStore(
        run.path("one"), remember=0
    ) as one:
        for name in names:
            many.set_many(dict.fromkeys(keys, value), name, TTL)
        for first in range(0, count, 1000):
            batch = {f"{name}/{key}": value for name in names[first : first + 1000] for key in keys}
            one.set_many(batch, "one", TTL)
        visits = [(chance.choice(names), chance.choice(keys)) for _ in range(probes)]
        flat = [f"{name}/{key}" for name, key in visits]
        for operation in ("get", "set"):
            # One after the other in small portions, so that both have the same weather.
            times: Dict[str, List[float]] = {"many": [], "one": []}
            for _ in range(4):
                method = "get(key, {0})" if operation == "get" else "set(key, value, {0}, 3600)"
                scope = {"store": many, "value": value}
                call = f"store.{method.format('name')}"
                times["many"].append(timed(call, visits, scope, "name, key"))
                scope = {"store": one, "value": value}
                call = f"store.{method.format(repr('one'))}"
                times["one"].append(timed(call, flat, scope))
            for kind, spent in times.items():
                title = "one namespace" if kind == "one" else "many namespaces"
                found[f"{operation}, {title}"] = median(spent[1:])
        listed = repeated("assert len(store.list_namespaces()) == key", [count], {"store": many})
    return {**found, "list_namespaces, each": listed / count}


# ---------------------------------------------------------------- clearing


def _clear(folder: str, gate: Any) -> None:
    from kv_store_adapter import DiskKVStore

    with DiskKVStore(folder) as store:
        gate.wait(60)
        store.clear_namespace("full")


@clearing.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import DiskKVStore

    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Barrier(2)
    size = run.pick(20_000, 100_000)
    with DiskKVStore(run.path("store")) as store:
        for start in range(0, size, 20_000):
            items = {f"user:{n:08}": b"x" * 100 for n in range(start, start + 20_000)}
            store.set_many(items, "full", TTL)
        store.set("warm", b"x" * 100, "writer")
        other = spawn.Process(target=_clear, args=(run.path("store"), gate))
        other.start()
        gate.wait(60)
        longest, number = 0.0, 0
        names = {"store": store, "value": b"x" * 100}
        while other.is_alive():
            keys = [f"{number}:{n}" for n in range(200)]
            longest = max(longest, worst("store.set(key, value, 'writer', 3600)", keys, names))
            number += 1
        other.join()
        assert other.exitcode == 0 and not store.keys("full")
    return {"longest set": longest}
