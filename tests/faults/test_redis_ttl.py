"""Times to live on Redis: to the millisecond, from the call to the server's own clock."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any, Callable, Dict, Iterator

import pytest
import redis
from breakable import BreakableServer

from kv_store_adapter import KeyNotFoundError, RedisKVStore

pytestmark = [pytest.mark.server, pytest.mark.sleeps]

#: Seconds, and the milliseconds that they are on the server: rounded up, never to zero.
TTLS = {0.0004: 1, 0.001: 1, 0.0011: 2, 0.9999: 1000, 1.1: 1100, 1.9: 1900, 1.0: 1000, 0.07: 70}

WAYS: Dict[str, Callable[[Any, float], Any]] = {
    "set": lambda store, ttl: store.set("key", 1, "n", ttl),
    "set by timedelta": lambda store, ttl: store.set("key", 1, "n", timedelta(seconds=ttl)),
    "add": lambda store, ttl: store.add("key", 1, "n", ttl),
    "set_many": lambda store, ttl: store.set_many({"key": 1}, "n", ttl),
    "a view": lambda store, ttl: store.namespace("n", ttl=ttl).set("key", 1),
    "a mapping": lambda store, ttl: store.as_mapping("n", ttl=ttl).update(key=1),
    "aio": lambda store, ttl: asyncio.run(store.aio.set("key", 1, "n", ttl)),
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


@pytest.fixture
def store(server: BreakableServer, raw: Any) -> Iterator[RedisKVStore]:
    with RedisKVStore(port=server.port, socket_timeout=20) as store:
        yield store


def server_ms(raw: Any) -> float:
    seconds, micros = raw.time()
    return float(seconds * 1000 + micros / 1000)


@pytest.mark.parametrize("way", WAYS)
def test_the_server_is_told_the_millisecond(
    store: RedisKVStore, raw: Any, way: str, count: Any
) -> None:
    """Whichever way a ttl goes in, the server's clock for it is the ttl, rounded up to a millisecond."""
    for ttl, milliseconds in TTLS.items():
        if ttl < 0.01:
            continue  # over before one could ask: the next test sees these
        raw.delete("kv:n:key")
        before = server_ms(raw)
        WAYS[way](store, ttl)
        left, after = raw.pttl("kv:n:key"), server_ms(raw)
        assert left != -1, "no expiry at all"
        if after - before < milliseconds - 2:  # else the machine was so busy that it may be gone
            assert milliseconds - (after - before) - 1 <= left <= milliseconds
            assert (store.ttl("key", "n") or 0) * 1000 <= milliseconds
            count("ttl observed")


@pytest.mark.parametrize("ttl", TTLS)
def test_it_ends_on_the_millisecond(
    store: RedisKVStore, raw: Any, ttl: float, rounds: Any, count: Any
) -> None:
    """An entry is there until its ttl is over, and gone a millisecond later, by the server's clock."""
    for _ in range(rounds(1 if ttl > 0.5 else 10, 5 if ttl > 0.5 else 100)):
        began_here = time.monotonic()
        began = server_ms(raw)
        store.set("key", 1, "n", ttl)
        kept = server_ms(raw)
        last = None
        while True:
            asked = server_ms(raw)
            if not store.exists("key", "n"):
                break
            last = asked
            if asked < kept + (ttl - 0.01) * 1000:
                time.sleep(0.002)
        gone = server_ms(raw)
        # Redis counts in whole milliseconds, from the one in which it heard of it, and an entry
        # lives through the last of them: so two clock ticks of play, none of them ours.
        assert gone >= began + ttl * 1000 - 1
        assert last is None or last <= kept + TTLS[ttl] + 2
        assert time.monotonic() - began_here >= ttl
        with pytest.raises(KeyNotFoundError):
            store.ttl("key", "n")
        count("ttl observed")


def test_touch_to_the_millisecond(store: RedisKVStore, raw: Any, count: Any) -> None:
    """touch gives the same milliseconds as set, rounded up too, and set drops them again."""
    for ttl, milliseconds in TTLS.items():
        store.set("key", 1, "n")
        before = server_ms(raw)
        assert store.touch("key", "n", ttl) is True
        left, after = raw.pttl("kv:n:key"), server_ms(raw)
        assert left != -1, "no expiry at all"
        if after - before < milliseconds - 2:
            assert milliseconds - (after - before) - 1 <= left <= milliseconds
            count("ttl observed")
        store.set("key", 2, "n")
        assert raw.pttl("kv:n:key") == -1
        assert store.ttl("key", "n") is None
