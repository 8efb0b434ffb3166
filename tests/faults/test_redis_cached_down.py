"""Functions cached in a Redis that stops, dies, or hangs: always an answer, one wait, then hits again."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, Callable, Dict, Iterator, List

import pytest
import redis
from breakable import BreakableServer, in_threads
from proxy import HOLD, LOSE_ANSWER, Proxy

from kv_store_adapter import RedisKVStore, StoreUnavailableError, cached, cached_many
from server import free_port

pytestmark = pytest.mark.server

# Seconds that the store waits for an answer. A hundred calls that wait each would take 50 s; what
# is allowed is a fifth of that, because the machine may be busy.
PATIENCE = 0.5
CALLS = 100
AT_MOST = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[BreakableServer]:
    with BreakableServer() as server:
        yield server


@pytest.fixture
def store(server: BreakableServer) -> Iterator[RedisKVStore]:
    with redis.Redis(port=server.port) as raw:
        raw.flushall()
    with RedisKVStore(port=server.port, socket_timeout=PATIENCE) as store:
        yield store


OPTIONS: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "locked": {"lock": "store"},
    "tagged": {"tags": ["t"]},
    "stale": {"ttl": 1000, "stale": 1000},
    "all": {"lock": "store", "tags": ["t"], "ttl": 1000, "stale": 1000},
}


def doubles(store: RedisKVStore, **options: Any) -> Any:
    @cached(store, namespace="doubles", **options)
    def double(x: int) -> int:
        return 2 * x

    return double


def async_doubles(store: RedisKVStore, **options: Any) -> Any:
    @cached(store, namespace="doubles", **options)
    async def double(x: int) -> int:
        return 2 * x

    return double


def hits_again(double: Callable[[int], int], info: Callable[[], Any]) -> None:
    """Wait until the breaker has let one call try, and what is cached is served again."""
    deadline = time.monotonic() + 60
    while True:
        before = info().hits
        assert double(5) == 10
        if info().hits > before:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stopped_server_costs_one_wait(
    server: BreakableServer, store: RedisKVStore, count: Any
) -> None:
    """A hundred calls on a stopped server are answered for the price of a wait; later they hit again."""
    # A store each, so that none is spared the wait by the one before it.
    stores = [RedisKVStore(port=server.port, socket_timeout=PATIENCE) for _ in OPTIONS]
    functions = [doubles(each, **said) for each, said in zip(stores, OPTIONS.values())]
    for double in functions:
        assert [double(x) for x in range(10)] == [2 * x for x in range(10)]
    with server.paused():
        for double, options in zip(functions, OPTIONS):
            began = time.monotonic()
            assert [double(x) for x in range(CALLS)] == [2 * x for x in range(CALLS)]
            assert time.monotonic() - began < AT_MOST, options
            count("calls answered without a store", CALLS)
    for double, each in zip(functions, stores):
        hits_again(double, double.cache_info)
        each.close()


def test_many_on_a_stopped_server(server: BreakableServer, store: RedisKVStore, count: Any) -> None:
    """Batches on a stopped server are answered for the price of a wait."""
    many = cached_many(store, namespace="many")(lambda ids: {i: -i for i in ids})
    assert many([1, 2]) == {1: -1, 2: -2}
    with server.paused():
        began = time.monotonic()
        for x in range(CALLS):
            assert many([x, x + 1]) == {x: -x, x + 1: -x - 1}
        assert time.monotonic() - began < AT_MOST
        count("calls answered without a store", CALLS)


def test_threads_on_a_stopped_server(
    server: BreakableServer, store: RedisKVStore, count: Any
) -> None:
    """Threads that call at once wait at once, and once: each gets all its answers in time."""
    double = doubles(store)
    with server.paused():
        began = time.monotonic()
        came = in_threads(20, lambda me: [double(me * 1000 + x) for x in range(CALLS)])
        assert time.monotonic() - began < AT_MOST
    assert came == [[2 * (me * 1000 + x) for x in range(CALLS)] for me in range(20)]
    count("calls answered without a store", 20 * CALLS)


def test_one_key_on_a_stopped_server(server: BreakableServer, store: RedisKVStore) -> None:
    """Twenty threads with one cold key on a stopped server each get the answer in a wait or two."""
    double = doubles(store, lock="store", lock_timeout=5)
    with server.paused():
        began = time.monotonic()
        assert in_threads(20, lambda _: double(21)) == [42] * 20
        assert time.monotonic() - began < AT_MOST


def test_tasks_one_by_one_on_a_stopped_server(
    server: BreakableServer, store: RedisKVStore, count: Any
) -> None:
    """Coroutine functions on a stopped server are answered for the price of a wait, and hit again."""
    double = async_doubles(store)

    async def main() -> None:
        assert [await double(x) for x in range(10)] == [2 * x for x in range(10)]
        with server.paused():
            began = time.monotonic()
            assert [await double(x) for x in range(CALLS)] == [2 * x for x in range(CALLS)]
            assert time.monotonic() - began < AT_MOST
        deadline = time.monotonic() + 60
        hits = double.cache_info().hits
        while double.cache_info().hits == hits:
            assert await double(5) == 10
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        await store.aio.close()

    asyncio.run(main())
    count("calls answered without a store", CALLS)


def test_tasks_at_once_on_a_stopped_server(
    server: BreakableServer, store: RedisKVStore, count: Any
) -> None:
    """Hundreds of awaited calls at once on a stopped server cost one wait together."""
    double = async_doubles(store)

    async def main() -> float:
        with server.paused():
            began = time.monotonic()
            came = await asyncio.gather(*(double(x) for x in range(400)))
            took = time.monotonic() - began
        assert came == [2 * x for x in range(400)]
        count("calls answered without a store", 400)
        await store.aio.close()
        return took

    # 32 connections at a time, one after the other, would be thirteen waits.
    assert asyncio.run(main()) < 10 * PATIENCE


def test_a_crash_in_the_middle(
    server: BreakableServer, store: RedisKVStore, rounds: Any, count: Any
) -> None:
    """Through crashes and restarts every call is answered, right, and later from the store again."""
    stop = threading.Event()
    double = doubles(store)
    wrong: List[Any] = []
    answered = [0] * 4

    def work(me: int) -> None:
        x = 0
        while not stop.is_set():
            x += 1
            try:
                if double(x % 50) != 2 * (x % 50):
                    wrong.append(x)
            except Exception as error:
                wrong.append(error)
            answered[me] += 1

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(rounds(3, 20)):
            before = list(answered)
            server.kill()
            server.start_again()
            count("servers killed")
            deadline = time.monotonic() + 60
            while any(now < was + 20 for now, was in zip(answered, before)):
                assert time.monotonic() < deadline, (answered, before)
                time.sleep(0.005)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)
    hits_again(double, double.cache_info)
    count("calls answered among crashes", sum(answered))
    count("wrong answers", 0)


@pytest.mark.parametrize("options", ["plain", "locked", "all"])
def test_it_stops_while_the_function_runs(
    server: BreakableServer, store: RedisKVStore, options: str
) -> None:
    """A server that stops between the look and the keeping costs a few waits and no answer."""
    asked: List[int] = []

    @cached(store, namespace="stopping", **OPTIONS[options])
    def double(x: int) -> int:
        if not asked:
            server.pause()
        asked.append(x)
        return 2 * x

    try:
        began = time.monotonic()
        assert [double(x) for x in range(CALLS)] == [2 * x for x in range(CALLS)]
        assert time.monotonic() - began < AT_MOST
    finally:
        server.go_on()
    assert double.cache_info().errors > 0
    hits_again(double, double.cache_info)


def test_an_answer_that_is_lost_is_no_lost_call(
    server: BreakableServer, store: RedisKVStore, count: Any
) -> None:
    """Whichever answer is lost or held back, the call gets its result, and the next one does too."""
    with Proxy(server.port) as proxy:
        for options in (OPTIONS["plain"], OPTIONS["all"]):
            for word in ("GET", "SET", "NX", "MGET", "EVALSHA"):
                for fault in (LOSE_ANSWER, HOLD):
                    # A prefix each, so that there is something to compute each time.
                    there = RedisKVStore(
                        port=proxy.port, socket_timeout=PATIENCE, prefix=f"{word} {fault}"
                    )
                    double = doubles(there, **options)
                    proxy.arm(word, fault)
                    assert [double(x) for x in (1, 2, 1)] == [2, 4, 2]
                    proxy.arm(word, fault, 0)
                    there.close()
        assert proxy.faults > 10
        count("answers lost", proxy.faults)


def test_raise_means_raise(server: BreakableServer, store: RedisKVStore) -> None:
    """Under on_error="raise" a dead store costs one wait too: an open breaker raises at once."""
    double = doubles(store, on_error="raise")
    assert double(1) == 2
    with server.paused():
        began = time.monotonic()
        for x in range(CALLS):
            with pytest.raises(StoreUnavailableError):
                double(x)
        assert time.monotonic() - began < AT_MOST
    hits_again_raising(double)


def hits_again_raising(double: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            assert double(1) == 2
            return
        except StoreUnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_two_functions_share_the_wait(server: BreakableServer, store: RedisKVStore) -> None:
    """Ten functions in one dead store cost one wait together, not one each."""
    functions = [cached(store, namespace=f"f{n}")(lambda x, n=n: (n, x)) for n in range(10)]
    with server.paused():
        began = time.monotonic()
        for x in range(20):
            assert [f(x) for f in functions] == [(n, x) for n in range(10)]
        assert time.monotonic() - began < AT_MOST


def test_a_store_that_comes_up_late(count: Any) -> None:
    """A function whose server is not there yet answers, and finds the store once it is."""
    store = RedisKVStore(port=free_port())
    double = doubles(store)
    assert [double(x) for x in range(CALLS)] == [2 * x for x in range(CALLS)]
    store.close()
    with BreakableServer() as server:
        server.kill()
        with RedisKVStore(port=server.port) as late:
            double = doubles(late)
            assert [double(x) for x in range(CALLS)] == [2 * x for x in range(CALLS)]
            server.start_again()
            hits_again(double, double.cache_info)
    count("calls answered without a store", 2 * CALLS)
