"""Many callers of `@cached` at once, and what may become of them: killed, stopped, cancelled, lost."""

from __future__ import annotations

import asyncio
import collections
import itertools
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Iterator, List

import cached_child
import pytest
from cached_child import end, said, start, wait_for

from kv_store_adapter import KVStoreProtocol, MemoryKVStore, cached
from kv_store_adapter.thread_lease import _thread_locks

# Nobody waits longer than this, whatever is done to the others: the machine may be very busy.
BOUND = 45.0


@pytest.fixture(params=["disk", "redis"])
def where(request: Any, tmp_path: Path) -> str:
    """A place that several processes reach: a folder's path, or a server's url."""
    if request.param == "disk":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("redis_server").url)


@pytest.fixture(params=["memory", "disk", "redis"])
def place(request: Any, tmp_path: Path) -> KVStoreProtocol:
    """Each kind of store, of this process."""
    if request.param == "memory":
        return MemoryKVStore()
    if request.param == "disk":
        return cached_child.open_store(str(tmp_path / "store"))
    return cached_child.open_store(request.getfixturevalue("redis_server").url)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    cached_child.kill_all()


def nothing_is_left(*functions: Any) -> None:
    """No flight, no lock, no lease to renew."""
    wait_for(lambda: not any(len(f._self_cached.flow.board) for f in functions))
    wait_for(lambda: not _thread_locks)


# ---------------------------------------------------------------------- processes


def test_processes_and_threads_compute_each_key_once(
    where: str, tmp_path: Path, rounds: Any, seed: int, count: Any
) -> None:
    """Threads of several processes that ask for hundreds of cold keys compute each of them once."""
    keys, output, go = rounds(30, 500), tmp_path / "said", tmp_path / "go"
    children = [
        start(
            "stampede",
            where,
            output,
            options={},
            seed=seed + n,
            keys=keys,
            threads=4,
            go=str(go),
        )
        for n in range(3)
    ]
    wait_for(lambda: sum("ready" in line for line in said(output)) == 3)
    go.touch()
    assert [child.wait(150) for child in children] == [0, 0, 0]
    lines = said(output)
    assert not [line for line in lines if "wrong" in line]
    times = collections.Counter(line["computed"] for line in lines if "computed" in line)
    assert times == dict.fromkeys(range(keys), 1)
    count("calls of cold keys by several processes", sum(line.get("calls", 0) for line in lines))
    count("values computed twice", sum(times.values()) - keys)


def test_holders_killed_and_stopped_at_random(
    where: str, tmp_path: Path, rounds: Any, seed: int, count: Any
) -> None:
    """Whoever is killed or stopped, wherever: the others go on, with right values, and in time."""
    chance, output = random.Random(seed), tmp_path / "said"
    options = {"lock_ttl": 0.5, "lock_timeout": 5}
    spared = start("storm", where, tmp_path / "spared", options=options)
    others = [start("storm", where, output, options=options) for _ in range(2)]
    born = itertools.count(3)

    def ready(number: int) -> None:
        wait_for(lambda: sum("ready" in line for line in said(output)) == number)

    ready(2)
    wait_for(lambda: said(tmp_path / "spared"))
    until = time.monotonic() + rounds(1.5, 30)
    while time.monotonic() < until:
        time.sleep(chance.uniform(0.02, 0.25))
        index = chance.randrange(2)
        if chance.random() < 0.6:
            others[index].send_signal(signal.SIGSTOP)
            count("SIGSTOPs")
            time.sleep(chance.uniform(0.0, 1.2))
            others[index].send_signal(signal.SIGCONT)
        else:
            others[index].kill()
            others[index].wait(30)
            count("SIGKILLs")
            others[index] = start("storm", where, output, options=options)
            ready(next(born))
    assert [end(child) for child in (*others, spared)] == [0, 0, 0]
    calls = [line for line in said(tmp_path / "spared") if "key" in line]
    assert len(calls) > rounds(5, 300)
    assert all(line["right"] for line in [*calls, *said(output)] if "key" in line)
    assert max(line["seconds"] for line in calls) < BOUND
    count("calls beside killed and stopped processes", len(calls))


def test_a_holder_that_hangs_costs_one_wait(where: str, tmp_path: Path) -> None:
    """A process that hangs in the body for ever, its lease renewed, holds others up for lock_timeout, once."""
    output = tmp_path / "said"
    holder = start("hold", where, output, options={"lock_ttl": 0.5})
    wait_for(lambda: said(output))
    calls: List[int] = []
    with cached_child.open_store(where) as store:

        @cached(store, lock="store", lock_timeout=1.5, namespace="hold", key="{key}")
        def f(key: int) -> str:
            calls.append(key)
            return "mine"

        began = time.monotonic()
        assert f(1) == "mine"
        assert 1.4 < time.monotonic() - began < BOUND
        assert [f(1), calls] == ["mine", [1]]
    assert end(holder) == 0
    assert said(output)[-1] == {"got": "from the holder"}


def test_a_stopped_holder_costs_its_lease(where: str, tmp_path: Path) -> None:
    """While the holder is stopped its lease runs out and another one computes; woken, it has its answer."""
    output = tmp_path / "said"
    holder = start("hold", where, output, options={"lock_ttl": 1.0})
    wait_for(lambda: said(output))
    holder.send_signal(signal.SIGSTOP)
    with cached_child.open_store(where) as store:

        @cached(store, lock="store", lock_timeout=BOUND * 2, namespace="hold", key="{key}")
        def f(key: int) -> str:
            return "mine"

        began = time.monotonic()
        assert f(1) == "mine"
        assert time.monotonic() - began < BOUND
        holder.send_signal(signal.SIGCONT)
        assert end(holder) == 0
        assert said(output)[-1] == {"got": "from the holder"}
        assert "lost" in Path(f"{output}.log").read_text()
        # Nobody's lock is left, and what was stored is whole.
        assert f(1) in ("mine", "from the holder")
        with store.lock(f.cache_key(1), "hold", timeout=5):
            pass


@pytest.mark.timeout(180)
def test_a_body_longer_than_its_lease_keeps_it(where: str, caplog: Any) -> None:
    """A lease of a fraction of the body's length is renewed: who waits gets the one result."""

    def calls_with(lease: float) -> List[int]:
        calls: List[int] = []
        inside = threading.Event()

        def make(store: KVStoreProtocol) -> Any:
            # A store object of its own is as another process to the lock.
            @cached(store, lock="store", lock_ttl=lease, namespace=f"{lease}", key="{key}")
            def f(key: int) -> str:
                calls.append(key)
                inside.set()
                time.sleep(3 * lease)
                return "one"

            return f

        with closing(cached_child.open_store(where)) as one, closing(
            cached_child.open_store(where)
        ) as two, ThreadPoolExecutor(4) as pool:
            first, second = make(one), make(two)
            results = [pool.submit(first, 1)]
            assert inside.wait(BOUND)
            results += [pool.submit(second, 1) for _ in range(3)]
            assert [result.result(2 * BOUND) for result in results] == ["one"] * 4
            nothing_is_left(first, second)
        return calls

    for lease in (0.7, 2.8, 11.2):
        caplog.clear()
        if calls_with(lease) == [1]:
            return
        # The machine stood still for a whole lease, and that is told: again, with a longer one.
        assert "ran out before it was renewed" in caplog.text
    pytest.fail("No lease was renewed.")


def test_call_graphs_in_several_processes(
    where: str, tmp_path: Path, rounds: Any, seed: int, count: Any
) -> None:
    """Cached functions that call each other at random, in circles, in threads of processes, never hang."""
    output = tmp_path / "said"
    children = [
        start("graph", where, output, options={}, seed=seed + n, pairs=rounds(60, 1500))
        for n in range(3)
    ]
    assert [child.wait(170) for child in children] == [0, 0, 0]
    lines = said(output)
    assert not [line for line in lines if "wrong" in line]
    done = [line for line in lines if "done" in line]
    assert len(done) == 3
    # Half of lock_timeout=60: nobody waited for a circle to be given up.
    assert max(line["slowest"] for line in done) < 30
    assert not any(line["left"] for line in done)
    count("random pairs of nested functions", sum(line["pairs"] for line in done))
    count("nested computations", sum(line["computed"] for line in done))


# ---------------------------------------------------------------------- threads


@pytest.mark.parametrize("lock", [None, "store"])
def test_call_graphs_in_threads(
    lock: Any, place: KVStoreProtocol, rounds: Any, seed: int, count: Any
) -> None:
    """The same in the threads of one process, on every store, with and without the store's lock."""
    calls: List[int] = []
    functions = cached_child.call_graph(place, {"lock": lock, "lock_timeout": 90}, calls)
    pairs = rounds(50, 1000)

    def work(me: int) -> None:
        for _ in range(pairs):
            number, x = random.randrange(5), random.randrange(40)
            assert functions[number](x) == 1000 * number + x
            if random.random() < 0.3:
                functions[random.randrange(5)].invalidate(x)

    random.seed(seed)
    with place, ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6), timeout=85))
        nothing_is_left(*functions)
    count("random pairs of nested functions", 6 * pairs)
    count("nested computations", len(calls))


class Refused(Exception):
    """A body's own exception."""


def test_bodies_that_raise_at_random(
    place: KVStoreProtocol, rounds: Any, seed: int, count: Any
) -> None:
    """A body's exception is that call's: never another key's, never kept; an exit is nobody else's."""
    chance = random.Random(seed)
    number = rounds(60, 1500)
    mine = threading.local()

    @cached(place, lock="store")
    def f(key: int) -> int:
        time.sleep(0.0005)
        fate = chance.random()
        if fate < 0.25:
            raise Refused(key)
        if fate < 0.35:
            mine.exits = key
            raise SystemExit(key)
        if fate < 0.4:
            raise StopIteration(key)
        return key

    def work(me: int) -> int:
        raised = 0
        for index in range(number):
            key = index // 3  # all are at about the same key, which is cold for some calls
            mine.exits = None
            try:
                assert f(key) == key
                continue
            except (Refused, StopIteration) as error:
                assert error.args == (key,)
            except SystemExit:
                assert mine.exits == key
            raised += 1
        return raised

    with place, ThreadPoolExecutor(6) as pool:
        raised = sum(pool.map(work, range(6), timeout=120))
        assert raised
        nothing_is_left(f)
        assert len(place.keys(f.cache_parameters()["namespace"])) > number // 20
    count("exceptions of bodies", raised)
    count("calls with bodies that raise", 6 * number)


@pytest.mark.parametrize("lock", [None, "store"])
def test_a_circle_through_other_threads_ends(lock: Any, place: KVStoreProtocol) -> None:
    """A body that waits for a pool's thread that wants the same key costs lock_timeout, not for ever."""
    with place, ThreadPoolExecutor(2) as pool:
        depth: List[int] = []

        @cached(place, lock=lock, lock_timeout=0.5)
        def f(key: int) -> str:
            depth.append(key)
            return pool.submit(f, key).result() if len(depth) == 1 else "inner"

        began = time.monotonic()
        assert f(1) == "inner"
        assert 0.4 < time.monotonic() - began < BOUND
        nothing_is_left(f)


def test_a_circle_of_three_functions_computes(place: KVStoreProtocol) -> None:
    """a calls b calls c calls a, from three threads at once and with the store's lock: none waits."""
    meet = threading.Barrier(3)
    state = threading.local()
    functions: List[Any] = []

    def make(me: int) -> Any:
        @cached(place, lock="store", namespace=f"circle{me}")
        def function(x: int) -> int:
            state.depth = getattr(state, "depth", 0) + 1
            if state.depth == 1:
                meet.wait(BOUND)
            return x if state.depth > 6 else functions[(me + 1) % 3](x)

        return function

    functions += [make(me) for me in range(3)]
    with place, ThreadPoolExecutor(3) as pool:
        began = time.monotonic()
        results = [pool.submit(function, 7) for function in functions]
        assert [result.result(BOUND) for result in results] == [7, 7, 7]
        assert time.monotonic() - began < 30  # half of lock_timeout
        nothing_is_left(*functions)


# ---------------------------------------------------------------------- tasks


@pytest.mark.parametrize("lock", [None, "store"])
def test_tasks_cancelled_at_random(
    lock: Any, place: KVStoreProtocol, rounds: Any, seed: int, count: Any
) -> None:
    """Leaders, waiters, or all of a key cancelled, at any moment: who is left gets the right value."""
    chance = random.Random(seed)
    bodies: List[int] = []

    @cached(place, lock=lock, namespace="cancelled", lock_ttl=2.0)
    async def f(key: int) -> str:
        bodies.append(key)
        await asyncio.sleep(chance.choice((0, 0.001, 0.01)))
        return cached_child.answer(key)

    async def one(key: int) -> None:
        tasks = [asyncio.ensure_future(f(key)) for _ in range(8)]
        doomed = tasks if chance.random() < 0.2 else chance.sample(tasks, chance.randrange(8))
        for task in doomed:
            await asyncio.sleep(chance.choice((0, 0, 0.0005, 0.003)))
            task.cancel()
            count("cancellations")
        for task, result in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True)):
            if not (isinstance(result, asyncio.CancelledError) and task in doomed):
                assert result == cached_child.answer(key)
        assert await f(key) == cached_child.answer(key)

    async def main() -> None:
        number = rounds(25, 250)
        for start_at in range(0, number, 5):
            await asyncio.gather(*[one(key) for key in range(start_at, start_at + 5)])
        board = f._self_cached.flow.board
        while len(board):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 150))
    # A lock that a cancelled task left behind would be held now, and be renewed.
    with place:
        for key in set(bodies):
            with place.lock(f.cache_key(key), "cancelled", timeout=10):
                pass
    nothing_is_left(f)


def test_call_graphs_in_tasks(place: KVStoreProtocol, rounds: Any, seed: int, count: Any) -> None:
    """Coroutines that call each other at random, in circles, hundreds at a time, never hang."""
    functions: List[Any] = []
    calls: List[int] = []

    def make(me: int) -> Any:
        @cached(place, namespace=f"tasks{me}", lock_timeout=90)
        async def function(x: int) -> int:
            calls.append(x)
            if cached_child._depth.get() < 3:
                token = cached_child._depth.set(cached_child._depth.get() + 1)
                try:
                    pairs = [(random.randrange(5), random.randrange(20)) for _ in range(2)]
                    got = await asyncio.gather(*[functions[i](y) for i, y in pairs])
                    assert got == [1000 * i + y for i, y in pairs]
                finally:
                    cached_child._depth.reset(token)
            return 1000 * me + x

        return function

    functions += [make(me) for me in range(5)]

    async def main() -> None:
        for _ in range(rounds(3, 30)):
            pairs = [(random.randrange(5), random.randrange(20)) for _ in range(200)]
            got = await asyncio.gather(*[functions[i](y) for i, y in pairs])
            assert got == [1000 * i + y for i, y in pairs]
            count("random pairs of nested functions", len(pairs))
            for function in functions:
                await function.cache_clear()

    random.seed(seed)
    with place:
        asyncio.run(asyncio.wait_for(main(), 85))
        nothing_is_left(*functions)
    count("nested computations", len(calls))


def test_a_loop_that_ends_leaves_no_flight(place: KVStoreProtocol) -> None:
    """An event loop that stops in the middle of a computation holds no later caller up."""

    @cached(place, lock="store", lock_ttl=1.0, lock_timeout=BOUND)
    async def f(key: int) -> int:
        if not inside:
            inside.append(key)
            await asyncio.sleep(BOUND * 2)
        return key

    inside: List[int] = []

    async def leave() -> None:
        task = asyncio.ensure_future(f(1))
        while not inside:
            await asyncio.sleep(0.001)
        assert not task.done()  # asyncio.run cancels it

    with place:
        asyncio.run(leave())
        began = time.monotonic()
        assert asyncio.run(f(1)) == 1
        assert time.monotonic() - began < BOUND
        nothing_is_left(f)
