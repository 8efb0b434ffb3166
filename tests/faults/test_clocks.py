"""Clocks that jump: an hour, to 1970, to 2100, forward and back. And ttls of parts of a second."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import cached_child
import pytest
import time_machine
from cached_child import said, start, wait_for
from checked_store import Checked

from kv_store_adapter import (
    DiskKVStore,
    KeyNotFoundError,
    KVStoreProtocol,
    MemoryKVStore,
    RedisKVStore,
    cached,
)
from kv_store_adapter.serializers import JSONSerializer

NOW = 1_800_000_000.0
HOUR = 3600.0
IN_1970, IN_2100 = 86_400.0, 4_102_444_800.0

# From what is asked to what is observed: whole milliseconds, rounded up.
SMALL_TTLS = {0.0004: 1, 0.001: 1, 0.9999: 1000, 1.1: 1100, 1.9: 1900}


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    cached_child.kill_all()


@pytest.fixture(params=["memory", "bounded", "serialising", "disk", "view"])
def local(request: Any, tmp_path: Path) -> Iterator[KVStoreProtocol]:
    """The stores whose clock is this process's."""
    made: Dict[str, Any] = {
        "memory": MemoryKVStore,
        "bounded": lambda: MemoryKVStore(maxsize=100_000),
        "serialising": lambda: MemoryKVStore(serializer=JSONSerializer()),
        "disk": lambda: DiskKVStore(tmp_path / "store", spill_threshold=200),
        "view": lambda: DiskKVStore(tmp_path / "store").namespace("view"),
    }
    with made[request.param]() as store:
        yield store


@pytest.fixture
def clock() -> Iterator[time_machine.Coordinates]:
    with time_machine.travel(NOW, tick=False) as travelled:
        yield travelled


class Clock:
    """A clock that is moved in steps, by time or by jumps."""

    def __init__(self, coordinates: time_machine.Coordinates, chance: random.Random) -> None:
        self._coordinates, self._chance = coordinates, chance
        self.jumps = 0

    def jump(self) -> None:
        now = time.time()
        to = self._chance.choice(
            [now + HOUR, now - HOUR, IN_1970, IN_2100, NOW, NOW + HOUR, NOW - HOUR]
        )
        if to > 0:
            self._coordinates.move_to(to)
            self.jumps += 1

    def pass_by(self) -> None:
        self._coordinates.shift(self._chance.choice([0.0005, 0.001, 0.4, 1.0, 7.0, 61.0]))


def test_random_operations_while_the_clock_jumps(
    local: KVStoreProtocol, clock: time_machine.Coordinates, rounds: Any, seed: int, count: Any
) -> None:
    """Whatever the clock does nothing raises, and what is there is what its ttl by the clock says."""
    chance = random.Random(seed)
    hands, checked = Clock(clock, chance), Checked(local, chance)
    number = rounds(1000, 30_000)
    for _ in range(number):
        move = chance.random()
        if move < 0.3:
            checked.before_the_clock_moves()
            hands.jump() if move < 0.03 else hands.pass_by()
        checked.step()
    count("clock jumps", hands.jumps)
    count("operations checked while the clock jumps", 2 * number)


DELETES: Dict[str, Callable[[KVStoreProtocol], Any]] = {
    "delete": lambda store: store.delete("key", "n"),
    "delete_many": lambda store: store.delete_many(["key"], "n"),
    "clear_namespace": lambda store: store.clear_namespace("n"),
    "set and delete": lambda store: store.set("key", 2, "n", 1) or store.delete("key", "n"),
}


@pytest.mark.parametrize("how", DELETES)
def test_what_was_deleted_stays_deleted(
    how: str, local: KVStoreProtocol, clock: time_machine.Coordinates
) -> None:
    """What was deleted does not come back when the clock goes back to before its end."""
    local.set("key", 1, "n", 60)
    clock.shift(100)
    assert not DELETES[how](local) or how == "set and delete"
    clock.move_to(NOW + 10)
    assert local.get("key", "n", default="gone") == "gone"


def test_cached_results_while_the_clock_jumps(
    local: KVStoreProtocol, clock: time_machine.Coordinates, rounds: Any, seed: int, count: Any
) -> None:
    """No result is served that is older than its ttl (and stale) plus what the clock went back."""
    chance = random.Random(seed)
    hands = Clock(clock, chance)
    # The true time, that no clock shows, and how far the clock went back in all until then.
    true, back = [0.0], [0.0]

    def of(ttl: float, stale: Optional[float], **more: Any) -> Any:
        @cached(local, namespace=f"ttl {ttl} {stale} {sorted(more)}", ttl=ttl, stale=stale, **more)
        def f(key: int) -> List[float]:
            return [true[0], back[0], float(key)]

        return f

    functions = [(of(ttl, None), ttl) for ttl in (0.5, 60, 2 * HOUR)]
    functions += [(of(ttl, stale), ttl + stale) for ttl, stale in ((60, 600), (2 * HOUR, 60))]
    functions.append((of(60, None, jitter=0.5), 60))
    functions.append((of(60, None, early=1.0), 60))
    functions.append((of(60, None, lock="store"), 60))
    calls = rounds(300, 8000)
    for _ in range(calls):
        before = time.time()
        if chance.random() < 0.05:
            hands.jump()
            back[0] += max(0.0, before - time.time())
        else:
            hands.pass_by()
            true[0] += time.time() - before
        function, longest = chance.choice(functions)
        key = chance.randrange(3)
        when, back_then, of_key = function(key)
        assert of_key == key
        assert true[0] - when <= longest + 0.0011 + (back[0] - back_then)
    for function, _ in functions:
        wait_for(lambda board=function._self_cached.flow.board: not len(board))
    count("clock jumps", hands.jumps)
    count("results checked while the clock jumps", calls)


@pytest.mark.parametrize("to", [IN_1970, NOW - HOUR, NOW + HOUR, IN_2100])
def test_locks_while_the_clock_jumps(
    to: float, local: KVStoreProtocol, clock: time_machine.Coordinates
) -> None:
    """A lock that is held while the clock jumps is given back, and waits for it have an end."""
    with local.lock("key", ttl=30, timeout=5):
        clock.move_to(to)
    began = time.perf_counter()
    with local.lock("key", ttl=30, timeout=5):
        clock.move_to(NOW)
    assert time.perf_counter() - began < 30

    @cached(local, lock="store", lock_timeout=1.0, namespace="jump", lock_ttl=5.0)
    def f(key: int) -> int:
        clock.move_to(to if time.time() == NOW else NOW)
        return key

    assert [f(key) for key in range(6)] == list(range(6))
    assert [f(key) for key in range(6)] == list(range(6))


@pytest.mark.parametrize("to", [IN_1970, NOW - HOUR, NOW + HOUR, IN_2100])
def test_a_dead_holders_lock_after_a_jump(
    to: float, clock: time_machine.Coordinates, tmp_path: Path
) -> None:
    """A lock whose holder died before the clock jumped holds nobody up for longer than lock_timeout."""
    store = DiskKVStore(tmp_path / "store")
    f = cached(store, lock="store", lock_timeout=1.0, lock_ttl=5.0, namespace="dead")(lambda x: x)
    # As a killed process leaves it: taken, and neither renewed nor given back.
    assert store._lease(f.cache_key(1), "dead", 5000).acquire(0)
    clock.move_to(to)
    began = time.perf_counter()
    assert f(1) == f(1) == 1
    assert time.perf_counter() - began < 30
    # By its lease, or by the hour that the clock went back, it is over.
    clock.shift(HOUR + 6)
    with store.lock(f.cache_key(1), "dead", timeout=5):
        pass


def test_processes_whose_clocks_disagree(
    tmp_path: Path, rounds: Any, seed: int, count: Any, redis_server: Any
) -> None:
    """Processes whose clocks are hours and decades apart, and jump, share a store and are answered."""
    for where in (str(tmp_path / "store"), redis_server.url):
        output = tmp_path / f"said{len(where)}"
        now = time.time()
        offsets = [0, HOUR, -HOUR, IN_1970 - now, IN_2100 - now]
        children = [
            start(
                "another_clock",
                where,
                output,
                options={"ttl": 0.5, "lock_timeout": 1.0, "lock_ttl": 2.0, **more},
                offsets=offsets[me:] or [0],
                seconds=rounds(1, 8),
                seed=seed + me,
            )
            for me, more in enumerate([{}, {"stale": 1.0}, {}, {"tags": ["t"]}])
        ]
        assert [child.wait(120) for child in children] == [0] * 4
        lines = said(output)
        assert not [line for line in lines if "wrong" in line]
        ends = [line for line in lines if "calls" in line]
        assert len(ends) == 4
        assert max(line["slowest"] for line in ends) < 30
        assert sum(line["errors"] for line in ends) == 0
        count("calls of processes whose clocks disagree", sum(line["calls"] for line in ends))


def test_memory_and_disk_are_freed_after_jumps(
    local: KVStoreProtocol, clock: time_machine.Coordinates, tmp_path: Path
) -> None:
    """What has expired, by a jump or by its time, leaves memory and disk by other writes, files included."""
    root = getattr(local, "_store", local)
    for to in (IN_2100, IN_1970, NOW):
        clock.move_to(to)
        for key in range(200):
            local.set(f"{to} {key}", "v" * 300, "n", HOUR)
    clock.move_to(IN_2100 + 2 * HOUR)
    for _ in range(2000):
        local.set("last", "v", "m", HOUR)
    assert local.keys("n") == []
    if isinstance(root, MemoryKVStore):
        assert sum(len(table) for table in root._tables.values()) == 1
        assert root._expiry._alive < 10
    else:
        assert root._database.fetch_one("SELECT count(*) FROM entries") == (1,)
        assert len(list((tmp_path / "store").rglob("*.value"))) < 20


# ---------------------------------------------------------------------- parts of a second


@pytest.mark.parametrize("ttl", SMALL_TTLS)
def test_small_ttls_by_a_travelled_clock(
    ttl: float, local: KVStoreProtocol, clock: time_machine.Coordinates
) -> None:
    """An entry is there until its ttl, rounded up to the millisecond, and gone a millisecond after."""
    milliseconds = SMALL_TTLS[ttl]
    # At moments between two milliseconds, too: no entry ends early by the clock's own fraction.
    for fraction in (0.0, 0.0001, 0.0004999, 0.0005, 0.000999):
        for store_it in (
            lambda: local.set("key", "v" * 300, "n", ttl),
            lambda: local.add("key", "v", "n", ttl),
            lambda: local.set_many({"key": "v"}, "n", ttl),
            lambda: local.set("key", "v", "n") or local.touch("key", "n", ttl),
        ):
            clock.move_to(NOW + fraction)
            store_it()
            left = local.ttl("key", "n")
            assert left is not None
            assert 0 < left <= milliseconds / 1000 + 0.001
            for part in (0.0, 0.5, 1.0):
                # Up to its very ttl, less what a float of today's seconds can't tell.
                clock.move_to(NOW + fraction + max(0.0, ttl - 1e-5) * part)
                assert local.exists("key", "n"), (fraction, part)
                assert local.get("key", "n")
                assert local.keys("n") == ["key"]
            clock.move_to(NOW + fraction + milliseconds / 1000 + 0.00101)
            assert not local.exists("key", "n"), fraction
            assert local.get("key", "n", default=None) is None
            assert local.keys("n") == []
            assert local.list_namespaces() == []
            assert local.clear_namespace("n") == 0
            with pytest.raises(KeyNotFoundError):
                local.ttl("key", "n")


@pytest.mark.parametrize("ttl", SMALL_TTLS)
def test_small_ttls_by_a_servers_clock(ttl: float, redis_server: Any) -> None:
    """On a server an entry ends no earlier than its ttl, and is told to end at that millisecond."""
    import redis

    store = RedisKVStore(port=redis_server.port, socket_timeout=20)
    raw = redis.Redis(port=redis_server.port)
    for number in range(5):
        began = time.monotonic()
        store.set(f"key{number}", "v", "n", ttl)
        left = raw.pttl(next(raw.scan_iter(f"*key{number}"), b"none"))
        assert left <= SMALL_TTLS[ttl]
        gone = threading.Event()
        while store.exists(f"key{number}", "n"):
            assert time.monotonic() - began < 30
            gone.wait(0.0002)
        # 2 ms: the server's clock, of which it has its own, ticks in milliseconds.
        assert time.monotonic() - began >= ttl - 0.002
        if ttl > 0.5:
            break
    store.close()
