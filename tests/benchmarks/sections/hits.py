"""Hits of a decorated function: what memoising costs when there is nothing to compute."""

from __future__ import annotations

import asyncio
import functools
import threading
from datetime import timedelta
from typing import Any, Callable, Dict, List

from contest import OURS, Figures, Run, Section
from timing import repeated, timed

TTL = 3600
_ONE, _THREE, _AWAITED = "f(int)", "f(str, int, kw=str)", "await f(int)"

plain = Section(
    "hits",
    "A hit of a decorated function",
    "64 arguments in turn, all of them hits (the function's own calls are counted); ttl of an hour, "
    "but for lru_cache, which has none; every contestant is thread-safe, and none copies the result",
    rounds=(3, 9),
)
plain.bar(_ONE, "cachebox TTLCache", 0.7, 0.4)
plain.bar(_ONE, "cachetools TTLCache + lock", 0.3, 0.15)
plain.bar(_ONE, "functools.lru_cache", 6, 3)
plain.bar(_THREE, "cachebox TTLCache", 0.75, 0.45)

awaited = Section(
    "hits-async",
    "A hit of a decorated coroutine function",
    "64 arguments in turn, all of them hits; ttl of an hour; awaited on one event loop",
    rounds=(3, 9),
)
awaited.bar(_AWAITED, "cachebox TTLCache", 0.75, 0.5)
awaited.bar(_AWAITED, "moka", 1.0, 0.5)

SECTIONS = [plain, awaited]

_KINDS = 64


def _arguments(run: Run, calls: int) -> List[int]:
    # Above 256, so that they are ordinary ints, and not ones that Python keeps.
    return list(range(1000, 1000 + _KINDS)) * (run.pick(calls // 4, calls) // _KINDS)


def _hits(
    run: Run, decorate: Callable[[Any], Any], *, calls: int = 51_200, keywords: bool = True
) -> Figures:
    """Measure functions that `decorate` decorates; `calls` is fewer for the slow ones."""
    computed = []

    @decorate
    def one(n: int) -> int:
        computed.append(n)
        return n

    @decorate
    def three(name: str, n: int, *, kind: str) -> int:
        computed.append(name + kind)
        return n

    arguments, names = _arguments(run, calls), {"f": one, "g": three}
    passes = run.pick(3, 7)
    found = {_ONE: repeated("f(key)", arguments, names, passes=passes)}
    assert len(computed) == _KINDS, "not all were hits"
    if keywords:
        found[_THREE] = repeated("g('user', key, kind='name')", arguments, names, passes=passes)
        assert len(computed) == 2 * _KINDS, "not all were hits"
    return found


@plain.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import MemoryKVStore, cached

    return _hits(run, cached(MemoryKVStore(), ttl=TTL))


@plain.contestant("cachebox TTLCache", "cachebox")
def _(run: Run) -> Figures:
    import cachebox

    # No copies, as ours makes none.
    return _hits(run, lambda f: cachebox.cached(cachebox.TTLCache(0, TTL), postprocess=None)(f))


@plain.contestant("cachetools TTLCache + lock", "cachetools")
def _(run: Run) -> Figures:
    from cachetools import TTLCache, cached

    return _hits(run, lambda f: cached(TTLCache(1_000_000, TTL), lock=threading.Lock())(f))


@plain.contestant("functools.lru_cache")
def _(run: Run) -> Figures:
    return _hits(run, functools.lru_cache(maxsize=None))


@plain.contestant("moka", "moka_py")
def _(run: Run) -> Figures:
    import moka_py

    return _hits(run, moka_py.cached(maxsize=1_000_000, ttl=TTL))


@plain.contestant("theine", "theine")
def _(run: Run) -> Figures:
    from theine import Memoize

    return _hits(run, Memoize(100_000, timedelta(seconds=TTL)), calls=12_800)


@plain.contestant("cachier, memory", "cachier")
def _(run: Run) -> Figures:
    from cachier import cachier

    keep = cachier(backend="memory", stale_after=timedelta(seconds=TTL))
    return _hits(run, keep, calls=2_560)


@plain.contestant("dogpile, memory", "dogpile.cache")
def _(run: Run) -> Figures:
    from dogpile.cache import make_region

    region = make_region().configure("dogpile.cache.memory", expiration_time=TTL)
    # Its key generator takes no keyword arguments.
    return _hits(run, region.cache_on_arguments(), calls=2_560, keywords=False)


def _awaited_hits(
    run: Run, decorate: Callable[[Any], Any], *, calls: int = 51_200
) -> Dict[str, float]:
    computed = []
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    @decorate
    async def one(n: int) -> int:
        computed.append(n)
        return n

    try:
        arguments = _arguments(run, calls)
        # The first pass computes; some start an event loop's timers only then.
        timed("await f(key)", arguments[:_KINDS], {"f": one})
        found = {_AWAITED: repeated("await f(key)", arguments, {"f": one}, passes=run.pick(3, 7))}
        assert len(computed) == _KINDS, "not all were hits"
    finally:
        asyncio.set_event_loop(None)
    return found


@awaited.contestant(OURS)
def _(run: Run) -> Figures:
    from kv_store_adapter import MemoryKVStore, cached

    return _awaited_hits(run, cached(MemoryKVStore(), ttl=TTL))


@awaited.contestant("cachebox TTLCache", "cachebox")
def _(run: Run) -> Figures:
    import cachebox

    return _awaited_hits(
        run, lambda f: cachebox.cached(cachebox.TTLCache(0, TTL), postprocess=None)(f)
    )


@awaited.contestant("moka", "moka_py")
def _(run: Run) -> Figures:
    import moka_py

    return _awaited_hits(run, moka_py.cached(maxsize=1_000_000, ttl=TTL))


@awaited.contestant("aiocache, memory", "aiocache")
def _(run: Run) -> Figures:
    import aiocache

    return _awaited_hits(run, aiocache.cached(ttl=TTL), calls=2_560)


@awaited.contestant("cashews, memory", "cashews")
def _(run: Run) -> Figures:
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://?check_interval=10&size=100000")
    return _awaited_hits(run, cache(ttl=TTL, key="one:{n}"), calls=2_560)
