"""Hit ratios of the eviction policies. Nothing is timed: the same requests, and how many were hits."""

from __future__ import annotations

import random
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

from contest import OURS, Figures, Run, Section

ratio = Section(
    "eviction",
    "Hit ratio of the eviction, in percent",
    "30,000 objects and 300,000 requests (quick: 10,000 and 100,000), a miss is stored; room for "
    "0.1, 1 and 10 % of the objects; the same seed for everybody",
    rounds=(1, 1),
)
ratio.lead("LRU")

SECTIONS = [ratio]

_ROOM = (0.001, 0.01, 0.1)


def _zipf(objects: int, requests: int, skew: float, chance: random.Random) -> List[int]:
    weights = list(accumulate(1 / rank**skew for rank in range(1, objects + 1)))
    return chance.choices(range(objects), cum_weights=weights, k=requests)


def _with_scans(objects: int, requests: int, chance: random.Random) -> List[int]:
    """A fifth of the requests are runs through objects that nobody asks for twice."""
    popular = iter(_zipf(objects, requests, 0.8, chance))
    trace: List[int] = []
    fresh = objects
    length = max(1, objects // 50)
    while len(trace) < requests:
        trace.extend(number for number, _ in zip(popular, range(4 * length)))
        trace.extend(range(fresh, fresh + length))
        fresh += length
    return trace[:requests]


def _shifting(objects: int, requests: int, times: int, chance: random.Random) -> List[int]:
    """What is popular moves on: so many times a trace, by a fortieth of all objects."""
    step, move = requests // times, objects // 40
    ranks = _zipf(objects, requests, 1.0, chance)
    return [(rank + at // step * move) % objects for at, rank in enumerate(ranks)]


def _traces(run: Run) -> Iterator[Any]:
    objects, requests = run.pick((10_000, 100_000), (30_000, 300_000))
    chance = random.Random(3)
    for name, trace in (
        ("Zipf 1.0", _zipf(objects, requests, 1.0, chance)),
        ("Zipf 0.8 and scans", _with_scans(objects, requests, chance)),
        ("shifting 10 times", _shifting(objects, requests, 10, chance)),
        ("shifting 40 times", _shifting(objects, requests, 40, chance)),
    ):
        yield name, objects, [str(number) for number in trace]
    if run.trace:
        keys = Path(run.trace).read_text("utf-8", "replace").split()
        yield Path(run.trace).stem, len(set(keys)), keys


def _hit_ratios(run: Run, simulate: Callable[[List[str], int], int]) -> Figures:
    found: Dict[str, float] = {}
    for name, objects, trace in _traces(run):
        for share in _ROOM:
            room = max(1, int(objects * share))
            found[f"{name}, {share:.1%}"] = 100 * simulate(trace, room) / len(trace)
    return found


@ratio.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import MemoryKVStore

    def simulate(trace: List[str], room: int) -> int:
        store, hits = MemoryKVStore(maxsize=room), 0
        for key in trace:
            if store.get(key, default=None) is None:
                store.set(key, True)
            else:
                hits += 1
        assert len(store.keys()) <= room
        return hits

    return _hit_ratios(run, simulate)


@ratio.contestant("LRU")
def _(run: Run) -> Figures:
    def simulate(trace: List[str], room: int) -> int:
        queue: OrderedDict[str, None] = OrderedDict()
        hits = 0
        for key in trace:
            if key in queue:
                hits += 1
                queue.move_to_end(key)
            else:
                queue[key] = None
                if len(queue) > room:
                    queue.popitem(last=False)
        return hits

    return _hit_ratios(run, simulate)


@ratio.contestant("theine (W-TinyLFU)", "theine")
def _(run: Run) -> Figures:
    from theine import Cache

    def simulate(trace: List[str], room: int) -> int:
        cache, hits = Cache(room), 0
        for key in trace:
            if cache.get(key)[1]:
                hits += 1
            else:
                cache.set(key, True)
        return hits

    return _hit_ratios(run, simulate)
