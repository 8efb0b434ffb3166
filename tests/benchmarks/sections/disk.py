"""Disk stores: single operations by size, listing and opening, two writers, batches, cached hits."""

from __future__ import annotations

import multiprocessing
import os
import random
from datetime import timedelta
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, Callable, Dict, List, Mapping, Tuple

from contest import OURS, Figures, Run, Section
from timing import loop, repeated, timed

TTL = 3600
_DISKCACHE = "diskcache.Cache"

# Bytes of a value, keys in a quick and in a full run, and their bars.
_SIZES: Dict[str, Tuple[int, Tuple[int, int], Dict[str, float]]] = {
    "100B": (100, (1000, 4000), {"get": 0.75, "set new": 0.4, "overwrite": 0.4, "delete": 0.5}),
    "1KiB": (1024, (1000, 4000), {"get": 0.75, "set new": 0.4, "overwrite": 0.4, "delete": 0.5}),
    "100KiB": (100 * 1024, (50, 200), {"get": 0.8, "set new": 0.5, "overwrite": 0.5}),
    "1MiB": (1024 * 1024, (12, 40), {"get": 0.8, "set new": 0.5, "overwrite": 0.5}),
}
_TITLES = {"100B": "100 bytes", "1KiB": "1 KiB", "100KiB": "100 KiB", "1MiB": "1 MiB"}
_READ = (
    "what is got was got before, and nothing was stored in between: ours remembers values of up to "
    "16 KiB, and asks whether anybody has written"
)
_DURABILITY = "both safe from kill -9, not from a power cut (SQLite's synchronous=NORMAL)"

listing = Section(
    "disk-listing",
    "Disk: list 100,000 keys, and open a store that holds them",
    "quick: 20,000 keys; opening counts to the end of the first get",
    rounds=(3, 5),
)
listing.bar("list", _DISKCACHE, 0.6)
listing.bar("open", _DISKCACHE, 0.3)

writers = Section(
    "disk-writers",
    "Disk: two processes set 1 KiB values at the same time",
    f"wall time of both, a set; ttl of an hour; {_DURABILITY}",
    rounds=(3, 5),
)
writers.bar("a set", _DISKCACHE, 0.4)

batches = Section(
    "disk-batch",
    "Disk: set_many of 1,000 values of 1 KiB",
    f"an entry; ttl of an hour; {_DURABILITY}",
    rounds=(3, 5),
)
batches.within("set_many", "single sets", 0.15)

hits = Section(
    "disk-hits",
    "Disk: a hit of a decorated function",
    "100 arguments in turn, all of them hits; ttl of an hour; the result is a dict of two items",
    rounds=(3, 5),
)
hits.bar("hit", "diskcache memoize", 0.8)
hits.bar("hit", "joblib.Memory", 0.15)


# ---------------------------------------------------------------- single operations


def _operations(
    run: Run, size: str, phases: Mapping[str, str], names: Mapping[str, Any]
) -> Figures:
    """Each phase once over all keys, in an order of its own, after a few keys to warm up."""
    length, (quick, full), _ = _SIZES[size]
    chance, found = random.Random(4), {}
    keys = [f"user:{number:08}" for number in range(run.pick(quick, full))]
    names = {**names, "value": os.urandom(length), "other": os.urandom(length), "ttl": TTL}
    for over in ([f"warm {n}" for n in range(5)], keys):
        for name, statement in phases.items():
            chance.shuffle(over)
            # What is only read may be read again.
            passes = 3 if name == "get" and over is keys else 1
            found[name] = median(timed(statement, over, names) for _ in range(passes))
    return {name: spent for name, spent in found.items() if not name.startswith("_")}


def _phases(set_one: str, get: str, delete: str) -> Dict[str, str]:
    return {
        "set new": set_one,
        "_hits": f"assert {get} == value",
        "get": get,
        "overwrite": set_one.replace("value", "other"),
        "_new hits": f"assert {get} == other",
        "delete": delete,
    }


def _ours(size: str, run: Run, **options: Any) -> Figures:
    from kv_store_adapter import DiskKVStore

    phases = _phases("store.set(key, value, ttl=ttl)", "store.get(key)", "store.delete(key)")
    with DiskKVStore(run.path("store"), **options) as store:
        return _operations(run, size, phases, {"store": store})


def _diskcache(size: str, run: Run) -> Figures:
    import diskcache

    phases = _phases("cache.set(key, value, expire=ttl)", "cache.get(key)", "cache.delete(key)")
    with diskcache.Cache(run.path("cache")) as cache:
        return _operations(run, size, phases, {"cache": cache})


def _cachelib(size: str, run: Run) -> Figures:
    from cachelib import FileSystemCache

    phases = _phases("cache.set(key, value, ttl)", "cache.get(key)", "cache.delete(key)")
    cache = FileSystemCache(run.path("cache"), threshold=0)
    return _operations(run, size, phases, {"cache": cache})


def _section(size: str) -> Section:
    length = _SIZES[size][0]
    section = Section(
        f"disk-{size}",
        f"Disk: values of {_TITLES[size]}",
        f"random bytes, in random order, ttl of an hour; {_DURABILITY}; {_READ}",
        rounds=(3, 9 if length > 10_000 else 5),  # few operations, so more rounds
    )
    section.contestant(OURS)(partial(_ours, size))
    if length < 10_000:  # larger ones are not remembered
        section.contestant("ours, remember=0")(partial(_ours, size, remember=0))
    section.contestant(_DISKCACHE, "diskcache")(partial(_diskcache, size))
    section.contestant("cachelib FileSystemCache", "cachelib")(partial(_cachelib, size))
    for figure, limit in _SIZES[size][2].items():
        section.bar(figure, _DISKCACHE, limit)
    return section


# ---------------------------------------------------------------- listing and opening


def _many(run: Run) -> List[str]:
    return [f"user:{number:08}" for number in range(run.pick(20_000, 100_000))]


def _fill_ours(run: Run) -> None:
    from kv_store_adapter import DiskKVStore

    with DiskKVStore(run.shared) as store:
        store.set_many(dict.fromkeys(_many(run), b"x" * 100), ttl=24 * TTL)


@listing.contestant(OURS, prepare=_fill_ours)
def _(run: Run) -> Figures:
    from kv_store_adapter import DiskKVStore

    def use() -> DiskKVStore:
        store = DiskKVStore(run.shared)
        assert store.get("user:00000017")
        return store

    return _list_and_open(run, use, lambda store: store.keys())


def _fill_diskcache(run: Run) -> None:
    import diskcache

    with diskcache.Cache(run.shared) as cache, cache.transact():
        for key in _many(run):
            cache.set(key, b"x" * 100, expire=24 * TTL)


@listing.contestant(_DISKCACHE, "diskcache", prepare=_fill_diskcache)
def _(run: Run) -> Figures:
    import diskcache

    def use() -> diskcache.Cache:
        cache = diskcache.Cache(run.shared)
        assert cache.get("user:00000017")
        return cache

    return _list_and_open(run, use, list)


def _list_and_open(run: Run, use: Callable[[], Any], keys: Callable[[Any], List[str]]) -> Figures:
    opening, listed = [], []
    for _ in range(6):
        start = perf_counter()
        store = use()
        opening.append(perf_counter() - start)
        start = perf_counter()
        found = keys(store)
        listed.append(perf_counter() - start)
        assert len(found) == len(_many(run)), "not all keys came"
        store.close()
    # The first of each is the warm-up.
    return {"list": median(listed[1:]), "open": median(opening[1:])}


# ---------------------------------------------------------------- two writers


def _write_ours(folder: str, number: int, count: int, gate: Any, ended: Any) -> None:
    from kv_store_adapter import DiskKVStore

    with DiskKVStore(folder) as store:
        _write("store.set(key, value, ttl=3600)", {"store": store}, number, count, gate, ended)


def _write_diskcache(folder: str, number: int, count: int, gate: Any, ended: Any) -> None:
    import diskcache

    with diskcache.Cache(folder) as cache:
        # It raises when it has waited for 60 s, and is told to go on.
        statement = "cache.set(key, value, expire=3600, retry=True)"
        _write(statement, {"cache": cache}, number, count, gate, ended)


def _write(
    statement: str, names: Dict[str, Any], number: int, count: int, gate: Any, ended: Any
) -> None:
    keys = [f"{number}:{n}" for n in range(count)]
    names = {**names, "value": os.urandom(1024)}
    timed(statement, keys[:10], names)
    gate.wait(60)
    start = perf_counter()
    loop(statement, keys, names)
    ended.put((start, perf_counter()))


def _two(run: Run, write: Callable[..., None]) -> Figures:
    spawn = multiprocessing.get_context("spawn")
    gate, ended, count = spawn.Barrier(2), spawn.Queue(), run.pick(1500, 6000)
    workers = [
        spawn.Process(target=write, args=(run.path("store"), number, count, gate, ended))
        for number in range(2)
    ]
    for worker in workers:
        worker.start()
    # perf_counter() is one clock for all processes of a machine.
    times = [ended.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    return {
        "a set": (max(end for _, end in times) - min(start for start, _ in times)) / (2 * count)
    }


@writers.contestant(OURS)
def _(run: Run) -> Figures:
    return _two(run, _write_ours)


@writers.contestant(_DISKCACHE, "diskcache")
def _(run: Run) -> Figures:
    return _two(run, _write_diskcache)


# ---------------------------------------------------------------- batches


@batches.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import DiskKVStore

    value = os.urandom(1024)
    single, batch = [], []
    with DiskKVStore(run.path("store")) as store:
        store.set("warm", value)
        for number in range(run.pick(3, 5)):
            keys = [f"{number}:{n}" for n in range(1000)]
            names = {"store": store, "value": value, "ttl": TTL}
            single.append(timed("store.set(key, value, 'single', ttl)", keys, names))
            items = dict.fromkeys(keys, value)
            # One statement, run once, for all the items.
            names = {"store": store, "ttl": TTL}
            batch.append(timed("store.set_many(key, 'batch', ttl)", [items], names) / 1000)
            assert len(store.get_many(keys, "batch")) == 1000
    return {"single sets": median(single), "set_many": median(batch)}


# ---------------------------------------------------------------- cached hits


def plain(n: int) -> Dict[str, Any]:
    """What is remembered. At the module's level, because joblib wants a function by name."""
    return {"number": n, "text": "x" * 100}


def _hits(
    run: Run, remembered: Callable[[int], Any], calls: int, counted: Callable[[], int]
) -> Figures:
    keys = list(range(1000, 1100))
    timed("f(key)", keys, {"f": remembered})
    before = counted()
    over = keys * (run.pick(calls // 4, calls) // 100 or 1)
    found = {"hit": repeated("f(key)", over, {"f": remembered}, passes=3)}
    assert counted() == before, "not all were hits"
    return found


class _Counted:
    """A function, and how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

        def function(n: int) -> Dict[str, Any]:
            self.calls += 1
            return plain(n)

        self.function = function


@hits.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import DiskKVStore, cached

    counted = _Counted()
    with DiskKVStore(run.path("store")) as store:
        remembered = cached(store, ttl=TTL)(counted.function)
        return _hits(run, remembered, 4000, lambda: counted.calls)


@hits.contestant("diskcache memoize", "diskcache")
def _(run: Run) -> Figures:
    import diskcache

    counted = _Counted()
    with diskcache.Cache(run.path("cache")) as cache:
        remembered = cache.memoize(expire=TTL)(counted.function)
        return _hits(run, remembered, 4000, lambda: counted.calls)


@hits.contestant("joblib.Memory", "joblib")
def _(run: Run) -> Figures:
    from joblib import Memory, expires_after

    memory = Memory(run.path("cache"), verbose=0)
    remembered = memory.cache(plain, cache_validation_callback=expires_after(seconds=TTL))

    def missing() -> int:
        return sum(not remembered.check_call_in_cache(n) for n in range(1000, 1100))

    return _hits(run, remembered, 1200, missing)


@hits.contestant("cachier, pickle", "cachier")
def _(run: Run) -> Figures:
    from cachier import cachier

    counted = _Counted()
    keep = cachier(
        backend="pickle",
        cache_dir=run.path("cache"),
        stale_after=timedelta(seconds=TTL),
        separate_files=True,
    )
    return _hits(run, keep(counted.function), 400, lambda: counted.calls)


SECTIONS = [*map(_section, _SIZES), listing, writers, batches, hits]
