"""One computation per cold key: among threads, tasks and processes; never a hang."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import time_machine

from kv_store_adapter import (
    DiskKVStore,
    KVStoreProtocol,
    LockTimeoutError,
    MemoryKVStore,
    PickleSerializer,
    RedisKVStore,
    cached,
)
from kv_store_adapter.caching import drivers, flights
from signals import needs_timers, run_among_signals


def together(number: int, work: Callable[[int], Any]) -> List[Any]:
    """Run `work` in so many threads that start at one moment."""
    barrier = threading.Barrier(number)

    def run(index: int) -> Any:
        barrier.wait(30)
        return work(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number), timeout=60))


def test_threads_share_one_computation(store: KVStoreProtocol) -> None:
    """Sixteen threads on a cold key run the body once and share its result."""
    calls: List[int] = []
    entered = threading.Event()

    @cached(store)
    def f(x: int) -> List[int]:
        calls.append(x)
        entered.wait(0.05)
        return [x]

    assert together(16, lambda index: f(1)) == [[1]] * 16
    assert calls == [1]
    info = f.cache_info()
    assert info.hits + info.misses == 16


def test_different_keys_run_at_the_same_time(store: KVStoreProtocol) -> None:
    """Thirty-two threads on thirty-two cold keys are all inside the body at one time."""
    inside = threading.Barrier(32)

    @cached(store)
    def f(x: int) -> int:
        inside.wait(30)
        return x

    assert together(32, f) == list(range(32))


def test_waiters_share_the_exception(store: KVStoreProtocol) -> None:
    """Nobody queues to repeat a failure: all who waited get the one exception."""
    calls: List[int] = []
    waiting = threading.Event()

    @cached(store)
    def f(x: int) -> int:
        calls.append(x)
        waiting.wait(0.2)
        raise LookupError("not today")

    def attempt(index: int) -> str:
        with pytest.raises(LookupError) as info:
            f(1)
        return str(info.value)

    assert together(8, attempt) == ["not today"] * 8
    assert len(calls) < 8


def test_recursion_computes(store: KVStoreProtocol) -> None:
    """A function that calls itself, with other or with the same arguments, computes."""
    depth: List[int] = []

    @cached(store)
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    @cached(store, lock="store")
    def itself(n: int) -> int:
        depth.append(n)
        return n if len(depth) > 3 else itself(n)

    assert fibonacci(30) == 832040
    assert itself(7) == 7


def test_a_circle_between_threads_does_not_hang(store: KVStoreProtocol) -> None:
    """Two threads inside of a and b that call b and a compute instead of waiting for ever."""
    meet = threading.Barrier(2)
    first = threading.local()

    def meet_once() -> None:
        if not getattr(first, "met", False):
            first.met = True
            meet.wait(30)

    @cached(store)
    def a(x: int) -> int:
        meet_once()
        return 1 if getattr(first, "deep", False) else b_of(x)

    @cached(store)
    def b(x: int) -> int:
        meet_once()
        return 2 if getattr(first, "deep", False) else a_of(x)

    def a_of(x: int) -> int:
        first.deep = True
        return a(x)

    def b_of(x: int) -> int:
        first.deep = True
        return b(x)

    results = together(2, lambda index: (a, b)[index](1))
    assert all(result in (1, 2) for result in results)


def test_a_finished_key_is_not_computed_again(store: KVStoreProtocol) -> None:
    """Who saw a miss just before another landed looks again instead of computing."""
    calls: List[int] = []

    @cached(store)
    def f(x: int) -> int:
        calls.append(x)
        return x

    for index in range(30):
        together(4, lambda _, key=index: f(key))
    assert sorted(calls) == list(range(30))


def test_a_miss_of_before_a_landing_is_looked_at_again() -> None:
    """Who looked before another computed this key finds it then, whatever landed earlier."""
    calls: List[int] = []
    late, looked, go_on = threading.local(), threading.Event(), threading.Event()

    class Slow(MemoryKVStore):
        waits = True  # so that every look goes by way of this reader

        def reader(self, namespace: Any = None) -> Any:
            read = super().reader(namespace)

            def ask(key: str) -> Any:
                found = read(key)
                if getattr(late, "once", False):
                    late.once = False
                    looked.set()
                    go_on.wait(30)
                return found

            return ask

    @cached(Slow())
    def f(x: int) -> int:
        calls.append(x)
        return x

    def come_late() -> int:
        late.once = True
        return f(3)

    f(1), f(2)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(come_late)
        assert looked.wait(30)
        assert f(3) == 3
        go_on.set()
        assert other.result(30) == 3
    assert calls == [1, 2, 3]


def test_who_waits_too_long_computes(caplog: pytest.LogCaptureFixture) -> None:
    """After lock_timeout a waiter computes for itself, with a warning."""
    hanging, release = threading.Event(), threading.Event()
    calls: List[int] = []

    @cached(MemoryKVStore(), lock_timeout=0.05, namespace="hang")
    def f(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            hanging.set()
            release.wait(30)
        return x

    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(f, 1)
        assert hanging.wait(30)
        assert f(1) == 1
        release.set()
        assert stuck.result(30) == 1
    assert calls == [1, 1]
    (record,) = caplog.records
    assert record.getMessage().partition("<locals>.")[2] == (
        "f(): another call computes key "
        f"{f.cache_key(1)!r} in namespace 'hang' for more than 0.05 s; computing it here, too."
    )
    assert len(f._self_cached.flow.board) == 0


def test_invalidated_meanwhile_is_not_kept(store: KVStoreProtocol) -> None:
    """What was computed from before an invalidate() goes to its callers, not into the store."""
    inside, go_on = threading.Event(), threading.Event()

    @cached(store)
    def f(x: int) -> str:
        if not inside.is_set():
            inside.set()
            go_on.wait(30)
            return "old"
        return "new"

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(f, 1)
        assert inside.wait(30)
        f.invalidate(1)
        assert f(1) == "new"
        go_on.set()
        assert slow.result(30) == "old"
    assert f(1) == "new"


def test_bookkeeping_empties_itself(store: KVStoreProtocol) -> None:
    """When all calls are over no flight and no lock is left behind."""

    @cached(store, lock="store")
    def f(x: int) -> int:
        if x % 3 == 0:
            raise ValueError(x)
        return x

    def attempt(index: int) -> None:
        try:
            f(index % 5)
        except ValueError:
            pass

    together(8, attempt)
    from kv_store_adapter.thread_lease import _thread_locks

    assert len(f._self_cached.flow.board) == 0
    assert not _thread_locks
    assert flights.chain.get() == ()


def test_the_lock_is_the_stores_own(store: KVStoreProtocol) -> None:
    """While the body runs, nobody else gets the store's lock on that key; afterwards anybody does."""

    def is_held(key: str) -> bool:
        try:
            with store.lock(key, "n", timeout=0.0):
                return False
        except LockTimeoutError:
            return True

    @cached(store, lock="store", namespace="n", key="f{x}")
    def f(x: int) -> List[bool]:
        return [is_held(f"f{x}"), is_held("f")]

    @cached(store, lock="store", namespace="n", key="g{x}")
    async def g(x: int) -> List[bool]:
        return [is_held(f"g{x}"), is_held("g")]

    assert f(1) == asyncio.run(g(1)) == [True, False]
    assert f.refresh(2) == [False, False]
    assert [is_held("f1"), is_held("g1")] == [False, False]


def test_the_lease_is_as_long_as_was_told() -> None:
    """lock_ttl= is the lease of the store's lock, plainly and with await."""
    seen: List[Any] = []

    class Watched(MemoryKVStore):
        def _lease(self, key: str, namespace: Any, ttl_ms: int) -> Any:
            seen.append((key, namespace, ttl_ms))
            return super()._lease(key, namespace, ttl_ms)

    f = cached(Watched(), namespace="a", lock="store", lock_ttl=timedelta(seconds=4))(lambda: 1)

    @cached(Watched(), namespace="b", lock="store", lock_ttl=0.5, key="g")
    async def g() -> int:
        return 2

    assert [f(), asyncio.run(g())] == [1, 2]
    assert seen == [(f.cache_key(), "a", 4000), ("g", "b", 500)]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_lock_held_by_somebody_else_is_waited_for(
    is_async: bool, store: KVStoreProtocol, caplog: pytest.LogCaptureFixture
) -> None:
    """lock_timeout= is how long; then the call computes without the lock, with a warning."""
    options: Any = {"lock": "store", "lock_timeout": 0.05, "namespace": "n"}

    @cached(store, key="{x}", **options)
    def f(x: int) -> int:
        return x

    @cached(store, key="async {x}", **options)
    async def g(x: int) -> int:
        return x

    def call(x: int) -> int:
        return asyncio.run(g(x)) if is_async else f(x)

    started = time.monotonic()
    locked = "async 1" if is_async else "1"
    with store.lock(locked, "n"):
        assert call(1) == 1
        (record,) = caplog.records
        assert record.getMessage().partition("<locals>.")[2] == (
            f"{'g' if is_async else 'f'}(): the lock on key '{locked}' in namespace 'n' could not be had; computing without it."
        )
        caplog.clear()
        assert [call(1), call(2)] == [1, 2]  # a hit needs none, and nobody holds another key's
    assert time.monotonic() - started < 20
    assert caplog.records == []


def test_who_holds_a_lock_waits_for_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Two locks could go round in a circle: the inner call computes at once, without a warning."""
    store = MemoryKVStore()

    @cached(store, lock="store", lock_timeout=600, namespace="n", key="inner")
    def inner() -> str:
        return "computed"

    @cached(store, lock="store", lock_timeout=600, namespace="n", key="outer")
    def outer() -> str:
        return inner()

    with store.lock("inner", "n"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(outer).result(30) == "computed"
    assert caplog.records == []
    assert inner() == "computed"


def test_who_waited_for_the_lock_finds_the_others_result(store: KVStoreProtocol) -> None:
    """Another process computes under the lock: we wait for it and take what it stored."""
    calls: List[int] = []
    tried = threading.Event()
    kind: Any = type(store)

    @cached(store, lock="store", lock_timeout=60, namespace="n", key="f{x}")
    def f(x: int) -> int:
        calls.append(x)
        return x

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        with store.lock("f1", "n"):
            lock = kind.lock

            def watched(*args: Any, **kwargs: Any) -> Any:
                tried.set()
                return lock(*args, **kwargs)

            patch.setattr(kind, "lock", watched)
            waiter = pool.submit(f, 1)
            assert tried.wait(30)
            store.set("f1", 7, "n")
        assert waiter.result(60) == 7
    assert calls == []


def test_refreshing_one_result_reaches_no_other() -> None:
    """refresh() overtakes what is computed for its own call only."""

    @cached(MemoryKVStore())
    def f(x: int) -> int:
        if x == 1:
            f.refresh(2)
        return x

    assert f(1) == 1
    assert [f.peek(1), f.peek(2)] == [1, 2]
    assert len(f._self_cached.flow.board) == 0


def test_refreshing_waits_for_what_it_needs() -> None:
    """The body of a refresh() shares what another call computes meanwhile, as any body does."""
    store, inside, go_on = MemoryKVStore(), threading.Event(), threading.Event()

    @cached(store)
    def slow() -> List[int]:
        inside.set()
        go_on.wait(30)
        return [1]

    @cached(store)
    def needs_it() -> List[int]:
        return slow()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(slow)
        assert inside.wait(30)
        second = pool.submit(needs_it.refresh)
        for _ in range(6000):
            if slow.cache_info().waits:
                break
            threading.Event().wait(0.005)
        go_on.set()
        assert second.result(30) is first.result(30)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_serializer_may_call_the_function(is_async: bool) -> None:
    """A call that reaches itself while its result is written computes instead of waiting."""
    depth: List[int] = []

    class Calling(PickleSerializer):
        def dumps(self, value: Any) -> bytes:
            depth.append(value)
            if len(depth) < 3:
                assert again(1) == 1
            return super().dumps(value)

    store = MemoryKVStore(serializer=Calling())
    if is_async:

        @cached(store, lock_timeout=600, on_error="raise")
        async def g(x: int) -> int:
            return x

        def again(x: int) -> int:
            # On a thread of its own, because this one's loop is running; in the same context.
            with ThreadPoolExecutor(1) as pool:
                context = contextvars.copy_context()
                return pool.submit(context.run, asyncio.run, g(x)).result(60)

        assert asyncio.run(g(1)) == 1
    else:

        @cached(store, lock_timeout=600, on_error="raise")
        def f(x: int) -> int:
            return x

        again = f
        assert f(1) == 1
    assert len(depth) == 3


def test_refreshes_beyond_the_places_are_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where as many refreshes run as may, the old value is served at once, and refreshed later."""
    places = threading.BoundedSemaphore(1)
    monkeypatch.setattr(drivers, "_refreshing", places)
    refreshed = threading.Event()
    daemons: List[bool] = []

    @cached(MemoryKVStore(), ttl=10, stale=600)
    def f() -> str:
        if daemons == []:
            daemons.append(threading.current_thread().daemon)
            return "old"
        daemons.append(threading.current_thread().daemon)
        refreshed.set()
        return "new"

    with time_machine.travel(1_700_000_000, tick=False) as clock, ThreadPoolExecutor(1) as pool:
        assert f() == "old"
        clock.shift(11)
        assert places.acquire(blocking=False)
        try:
            assert pool.submit(f).result(30) == "old"
            assert not refreshed.is_set()
            assert len(f._self_cached.flow.board) == 0
        finally:
            places.release()
        assert f() == "old"
        assert refreshed.wait(30)
        # The place is given back, for the next one; it is a daemon's, which keeps no program alive.
        assert places.acquire(timeout=30)
        places.release()
        assert f() == "new"
    assert daemons == [threading.current_thread().daemon, True]


def _count_and_call(where: str, folder: str, start: Any, done: Any) -> None:
    store: KVStoreProtocol
    if where.startswith("redis"):
        store = RedisKVStore.from_url(where, socket_timeout=20)
    else:
        store = DiskKVStore(where)

    @cached(store, lock="store", namespace="one")
    def f(x: int) -> int:
        Path(folder, f"{os.getpid()}-{x}").touch()
        threading.Event().wait(0.3)
        return x * 2

    start.wait(60)
    done.put(f(21))


def test_processes_share_one_computation(shared_store: Any, tmp_path: Path) -> None:
    """Eight processes with lock="store" run the body once, on disk and on Redis."""
    if isinstance(shared_store, DiskKVStore):
        where = shared_store.path
    else:
        port = shared_store._client.connection_pool.connection_kwargs["port"]
        where = f"redis://127.0.0.1:{port}/0"
    folder = tmp_path / "calls"
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(8), context.Queue()
    workers = [
        context.Process(target=_count_and_call, args=(where, str(folder), start, done))
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    assert [done.get(timeout=90) for _ in workers] == [42] * 8
    for worker in workers:
        worker.join(30)
    assert len(list(folder.iterdir())) == 1


def _hold_and_hang(where: str, held: Any) -> None:
    store = DiskKVStore(where)

    @cached(store, lock="store", lock_ttl=1.0, namespace="killed")
    def f(x: int) -> int:
        held.set()
        threading.Event().wait(60)
        return x

    f(1)


def test_a_killed_holder_delays_by_its_lease(tmp_path: Path) -> None:
    """A process that is killed inside the body holds others up for no longer than its lease."""
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold_and_hang, args=(str(tmp_path / "store"), held))
    holder.start()
    assert held.wait(60)
    holder.kill()
    holder.join(30)

    @cached(DiskKVStore(tmp_path / "store"), lock="store", lock_ttl=1.0, namespace="killed")
    def f(x: int) -> int:
        return x

    assert f(1) == 1


def test_ten_thousand_tasks_run_the_body_once(store: KVStoreProtocol) -> None:
    """Ten thousand tasks on one event loop and a cold key run the body once."""
    calls: List[int] = []

    @cached(store)
    async def f(x: int) -> int:
        calls.append(x)
        await asyncio.sleep(0)
        return x

    async def main() -> List[int]:
        return await asyncio.gather(*[f(1) for _ in range(10_000)])

    assert set(asyncio.run(main())) == {1}
    assert calls == [1]


def test_cancelling_the_first_lets_another_finish(store: KVStoreProtocol) -> None:
    """When the computing task is cancelled another one takes over; the rest never notice."""
    calls: List[int] = []

    @cached(store)
    async def f(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            await asyncio.sleep(60)
        return x

    async def main() -> List[Any]:
        first = asyncio.ensure_future(f(1))
        while not calls:
            await asyncio.sleep(0.001)
        others = [asyncio.ensure_future(f(1)) for _ in range(20)]
        while f.cache_info().waits < 20:
            await asyncio.sleep(0.001)
        first.cancel()
        return await asyncio.gather(first, *others, return_exceptions=True)

    first, *others = asyncio.run(asyncio.wait_for(main(), 30))
    assert isinstance(first, asyncio.CancelledError)
    assert others == [1] * 20
    assert len(calls) == 2


def test_all_cancelled_leaves_nothing(store: KVStoreProtocol) -> None:
    """When everybody is cancelled nothing is left behind, and the next call computes."""
    calls: List[int] = []

    @cached(store)
    async def f(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            await asyncio.sleep(60)
        return x

    async def main() -> int:
        tasks = [asyncio.ensure_future(f(1)) for _ in range(5)]
        while not calls or f.cache_info().waits < 4:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(f._self_cached.flow.board) == 0
        return await f(1)

    assert asyncio.run(asyncio.wait_for(main(), 30)) == 1


def test_a_child_task_that_needs_the_same_key_computes() -> None:
    """A body that starts a task for its own key does not wait for itself."""
    depth: List[int] = []

    @cached(MemoryKVStore())
    async def f(x: int) -> int:
        depth.append(x)
        if len(depth) == 1:
            return (await asyncio.gather(f(x), f(x)))[0]
        return x

    assert asyncio.run(asyncio.wait_for(f(5), 30)) == 5


def test_tasks_that_need_each_others_parts_compute_each_once() -> None:
    """A recursion that gathers its parts waits all over the place, and is through at once."""
    calls: List[int] = []

    @cached(MemoryKVStore())
    async def fibonacci(n: int) -> int:
        calls.append(n)
        if n < 2:
            return n
        return sum(await asyncio.gather(fibonacci(n - 1), fibonacci(n - 2)))

    assert asyncio.run(asyncio.wait_for(fibonacci(60), 60)) == 1548008755920
    assert sorted(calls) == list(range(61))


def test_tasks_on_two_loops_share_one_computation() -> None:
    """Tasks of event loops in different threads wait for one computation."""
    calls: List[int] = []

    @cached(MemoryKVStore())
    async def f(x: int) -> int:
        calls.append(x)
        await asyncio.sleep(0.2)
        return x

    assert together(4, lambda index: asyncio.run(f(1))) == [1] * 4
    assert calls == [1]


def test_a_refresh_that_was_overtaken_is_not_kept(store: KVStoreProtocol) -> None:
    """What refresh() began before an invalidate() or a later refresh() is not stored after it."""
    truth = ["old"]
    inside, go_on = threading.Event(), threading.Event()

    @cached(store)
    def f() -> str:
        answer = truth[0]
        if answer == "old":
            inside.set()
            go_on.wait(30)
        return answer

    for overtake in (f.invalidate, f.refresh):
        truth[0] = "old"
        inside.clear()
        go_on.clear()
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(f.refresh)
            assert inside.wait(30)
            truth[0] = "new"
            overtake()
            go_on.set()
            assert late.result(30) == "old"
        assert f() == "new"


def test_invalidated_while_it_is_written_is_not_kept() -> None:
    """An invalidate() between the last look and the end of the write is not lost."""
    writing, go_on = threading.Event(), threading.Event()

    class Slow(MemoryKVStore):
        def set(self, *args: Any, **kwargs: Any) -> None:
            writing.set()
            go_on.wait(30)
            super().set(*args, **kwargs)

    @cached(Slow())
    def f() -> str:
        return truth

    truth = "old"
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(f)
        assert writing.wait(30)
        truth = "new"
        f.invalidate()
        go_on.set()
        assert slow.result(30) == "old"
    assert f() == "new"


def test_one_refresh_for_one_staleness(store: KVStoreProtocol) -> None:
    """Hundreds of callers who find one value stale cause one refresh, not one each."""
    calls: List[int] = []

    @cached(store, ttl=lambda result: 0.001 if result == 1 else 600, stale=600)
    async def f() -> int:
        calls.append(1)
        return len(calls)

    async def main() -> None:
        assert await f() == 1
        while f.cache_info().stale == 0:
            assert await f() in (1, 2)
        assert set(await asyncio.gather(*[f() for _ in range(200)])) <= {1, 2}
        while len(f._self_cached.flow.board):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert len(calls) == 2


def test_who_may_wait_for_whom() -> None:
    """The first leads, others wait, and who would wait for itself computes alone."""
    board, other = flights.Board(), flights.Board()
    role, one = board.join(flights.Flight("a"), ())
    assert (role, len(board)) == (flights.LEAD, 1)
    assert board.join(flights.Flight("a"), ()) == (flights.WAIT, one)
    assert board.join(flights.Flight("a"), (one,)) == (flights.ALONE, one)
    role, two = other.join(flights.Flight("b"), ())
    assert role == flights.LEAD
    assert other.join(flights.Flight("b"), (one,)) == (flights.WAIT, two)
    assert one.waits_for == [two]
    # Round in a circle: two inside of which a is called, while a waits for two.
    assert board.join(flights.Flight("a"), (two,)) == (flights.ALONE, one)
    assert two.waits_for == []
    three = other.join(flights.Flight("c"), ())[1]
    assert board.join(flights.Flight("a"), (three,)) == (flights.WAIT, one)
    assert other.join(flights.Flight("c"), (two,)) == (flights.ALONE, three)
    other.stop_waiting(two, (one,))
    assert other.join(flights.Flight("c"), (two,)) == (flights.WAIT, three)
    other.stop_waiting(three, (two,))
    board.stop_waiting(one, (three,))
    assert [flight.waits_for for flight in (one, two, three)] == [[], [], []]
    two.locked = True
    assert board.join(flights.Flight("a"), (two,)) == (flights.ALONE, one)


def test_landing_tells_everybody_once() -> None:
    """Who asked before hears when it lands, who asks after at once; then the key is free."""
    board, told = flights.Board(), []
    flight = board.join(flights.Flight("a"), ())[1]
    board.when_landed(flight, lambda: told.append("before"))
    assert (told, flight.landed, board.landings) == ([], False, 0)
    outcome = flights.Outcome(7)
    board.land(flight, outcome)
    assert (told, flight.landed, board.landings) == (["before"], True, 1)
    assert (flight.landed, flight.outcome, flight.callbacks) == (True, outcome, [])
    board.when_landed(flight, lambda: told.append("after"))
    assert told == ["before", "after"]
    board.land(flight, None)
    assert (told, flight.outcome, board.landings) == (["before", "after"], outcome, 1)
    assert len(board) == 0
    assert board.join(flights.Flight("a"), ())[0] == flights.LEAD


def test_what_is_doomed_makes_way() -> None:
    """Dooming a key reaches all that compute it, and the next caller leads a new computation."""
    board = flights.Board()
    one, other = board.join(flights.Flight("a"), ())[1], board.join(flights.Flight("b"), ())[1]
    alone = board.begin("a")
    assert len(board) == 3
    board.doom("a")
    assert [flight.doomed for flight in (one, other, alone)] == [True, False, True]
    role, anew = board.join(flights.Flight("a"), ())
    assert (role, anew.doomed) == (flights.LEAD, False)
    board.land(one, None)
    assert board.join(flights.Flight("a"), ()) == (flights.WAIT, anew)
    board.end(alone)
    board.doom(None)
    assert [flight.doomed for flight in (other, anew)] == [True, True]
    assert len(board) == 0


AMONG_SIGNALS = """
    import faulthandler, itertools
    from kv_store_adapter import DiskKVStore, MemoryKVStore, cached

    place, options = sys.argv[1:]
    store = DiskKVStore(place, timeout=20) if place else MemoryKVStore()
    numbers = itertools.count()
    asked = [0]

    @cached(store, namespace="f", ttl=60, **eval(options))
    def f(x):
        return -x

    def work():
        for _ in range(2000):
            asked[0] = number = next(numbers)
            assert f(number) == f(number) == -number

    def after():
        got = []

        def ask():
            # What was interrupted, and something new.
            for number in (asked[0], next(numbers)):
                got.append(f(number) == -number)

        other = threading.Thread(target=ask, daemon=True)
        other.start()
        other.join(50)
        if got != [True, True]:
            faulthandler.dump_traceback()
        assert got == [True, True], "a call hangs"
        assert not f._self_cached.flow.board._flights

    attack(work, 150 if place else 1500, 5e-3 if place else 2e-3, after)
"""


@needs_timers
@pytest.mark.skipif(
    sys.version_info < (3, 9),
    reason="CPython 3.8 itself may crash where a handler raises as a generator returns",
)
@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("options", [{}, {"lock": "store"}], ids=["", "lock"])
def test_a_signal_at_any_moment_hangs_nobody(
    where: str, options: Dict[str, Any], tmp_path: Path
) -> None:
    """Wherever a signal's handler raises, the same key is computed by the next caller, at once."""
    run_among_signals(
        AMONG_SIGNALS, str(tmp_path / "store") if where == "disk" else "", repr(options)
    )
