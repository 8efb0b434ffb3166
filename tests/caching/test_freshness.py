"""ttl from the result, jitter, cache_if, stale values, early refresh, tags."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Iterator, List, Tuple

import pytest
import time_machine

from kv_store_adapter import (
    NO_EXPIRY,
    DiskKVStore,
    InvalidTTLError,
    KVStoreProtocol,
    LockTimeoutError,
    MemoryKVStore,
    StoreUnavailableError,
    cached,
    cached_many,
)
from kv_store_adapter.caching.freshness import Envelope, Freshness

NOW = 1_700_000_000


@pytest.fixture
def clock() -> Iterator[time_machine.Coordinates]:
    with time_machine.travel(NOW, tick=False) as travelled:
        yield travelled


@pytest.fixture(params=["memory", "disk", "view"])
def local(request: Any, tmp_path: Any) -> KVStoreProtocol:
    """The stores whose clock can be travelled."""
    if request.param == "disk":
        return DiskKVStore(tmp_path / "store")
    return MemoryKVStore() if request.param == "memory" else MemoryKVStore().namespace("v")


class Counting:
    """A function that counts, announces its refreshes, and can fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False
        self.done = threading.Semaphore(0)

    def __call__(self) -> int:
        self.calls += 1
        try:
            if self.fails:
                raise ConnectionError("upstream is down")
            return self.calls
        finally:
            self.done.release()


def settle(function: Any) -> None:
    """Wait until nothing is computed in the background."""
    board = function._self_cached.flow.board
    for _ in range(2000):
        if not len(board):
            return
        threading.Event().wait(0.005)
    raise AssertionError("a refresh does not end")


def test_ttl_of_the_result(local: KVStoreProtocol, clock: time_machine.Coordinates) -> None:
    """ttl= may be a function of the result and the bound arguments."""
    seen: List[Tuple[Any, ...]] = []

    def lifetime(result: int, a: int, b: int) -> timedelta:
        seen.append((result, a, b))
        return timedelta(seconds=result)

    @cached(local, ttl=lifetime)
    def f(a: int, b: int = 2) -> int:
        return a + b

    f(8)
    assert seen == [(10, 8, 2)]
    clock.shift(9.9)
    assert f.peek(8) == 10
    clock.shift(0.2)
    with pytest.raises(KeyError):
        f.peek(8)


def test_a_bad_ttl_of_the_result_raises() -> None:
    """A ttl= function that gives no ttl is the declaration's mistake, and is told."""
    f = cached(MemoryKVStore(), ttl=lambda result, x: 0, namespace="n")(lambda x: x)
    with pytest.raises(InvalidTTLError, match=r"ttl= of .*<lambda>\(\) gave 0 .*cache_if="):
        f(1)
    g = cached(MemoryKVStore(), ttl=lambda result, x: "1", namespace="n")(lambda x: x)
    with pytest.raises(TypeError, match=r"ttl= of .*<lambda>\(\) gave '1'"):
        g(1)
    h = cached(MemoryKVStore(), ttl=lambda *_: 3_155_760_000, stale=60, namespace="n")(lambda x: x)
    with pytest.raises(InvalidTTLError, match=r"ttl= of .* at most 100 years together"):
        h(1)


@pytest.mark.parametrize("extra", [{}, {"tags": "t"}])
def test_no_expiry_holds_in_a_view_with_a_default(local: KVStoreProtocol, extra: Any) -> None:
    """In a view, ttl=None is the view's default, and NO_EXPIRY is no expiry: of @cached as well."""
    view = local.namespace("view", ttl=100)

    def lives(ttl: Any) -> Any:
        f = cached(view, ttl=ttl, namespace="n", **extra)(lambda x: x)
        f(1)
        left = view.ttl(f.cache_key(1), "n")
        f.cache_clear()
        return None if left is None else round(left)

    assert lives(None) == lives(lambda result, x: None) == 100
    assert lives(NO_EXPIRY) is None
    assert lives(lambda result, x: NO_EXPIRY) is None
    assert lives(lambda result, x: 7) == 7

    @cached_many(view, ttl=NO_EXPIRY, namespace="many")
    def many(ids: List[int]) -> Any:
        return {each: each for each in ids}

    many([1])
    assert view.ttl(many.cache_key([1]), "many") is None


def test_jitter_stays_in_its_range(clock: time_machine.Coordinates) -> None:
    """With jitter= the ttl is drawn evenly from [ttl * (1 - jitter), ttl]."""
    store = MemoryKVStore()
    f = cached(store, ttl=100, jitter=0.5, namespace="n")(lambda x: x)
    for x in range(400):
        f(x)
    lives = sorted(store.ttl(key, "n") for key in store.keys("n"))
    assert 50 <= lives[0] < 55
    assert 95 < lives[-1] <= 100
    assert 70 < sum(lives) / len(lives) < 80


def test_cache_if_decides(local: KVStoreProtocol) -> None:
    """What cache_if= says no to is returned and not remembered."""
    counting = Counting()

    @cached(local, cache_if=lambda result: result > 1, ttl=9)
    def f() -> int:
        return counting()

    assert [f(), f(), f()] == [1, 2, 2]


def test_stale_is_served_while_refreshed(
    local: KVStoreProtocol, clock: time_machine.Coordinates
) -> None:
    """After the ttl the old value is served at once, and one caller refreshes it behind."""
    counting = Counting()

    @cached(local, ttl=10, stale=60)
    def f() -> int:
        return counting()

    assert f() == 1
    clock.shift(11)
    assert f() == 1
    assert counting.done.acquire(timeout=30)
    assert counting.done.acquire(timeout=30)
    settle(f)
    assert f() == 2
    info = f.cache_info()
    assert (info.hits, info.misses, info.stale) == (1, 1, 1)


def test_stale_is_served_if_the_refresh_fails(
    local: KVStoreProtocol, clock: time_machine.Coordinates, caplog: pytest.LogCaptureFixture
) -> None:
    """A refresh that fails costs a warning, not the old value; past stale= it raises."""
    counting = Counting()

    @cached(local, ttl=10, stale=60)
    def f() -> int:
        return counting()

    assert f() == 1
    assert counting.done.acquire(timeout=30)
    counting.fails = True
    clock.shift(11)
    for _ in range(3):
        assert f() == 1
        # The refresh, on a thread that may be slow to start.
        assert counting.done.acquire(timeout=30)
        settle(f)
    for _ in range(2000):  # the refresh may only just have begun
        if f.cache_info().errors:
            break
        threading.Event().wait(0.005)
    settle(f)
    assert "refreshing" in caplog.text
    assert "upstream is down" in caplog.text
    assert f.cache_info().errors == 3
    clock.shift(60)
    with pytest.raises(ConnectionError):
        f()


def test_refresh_keeps_the_old_value_if_it_fails(local: KVStoreProtocol) -> None:
    """refresh() computes and replaces; if it fails it raises and the old value stays."""
    counting = Counting()

    @cached(local, ttl=10)
    def f() -> int:
        return counting()

    assert [f(), f.refresh(), f()] == [1, 2, 2]
    counting.fails = True
    with pytest.raises(ConnectionError):
        f.refresh()
    assert f() == 2


def test_early_refresh_grows_towards_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """XFetch: never early with a lucky draw, sure to be early near the end with an unlucky one."""
    freshness = Freshness(100, 0.0, None, 1.0)
    envelope = Envelope("value", NOW + 100, 2.0, {})
    draws = "kv_store_adapter.caching.freshness.random.random"
    with time_machine.travel(NOW, tick=False) as clock:
        monkeypatch.setattr(draws, lambda: 0.5)
        assert freshness.judge(envelope) == "fresh"
        clock.shift(98.7)
        assert freshness.judge(envelope) == "early"  # 2 * ln 2 = 1.39 s before the end
        monkeypatch.setattr(draws, lambda: 0.0)
        assert freshness.judge(envelope) == "fresh"
        clock.shift(1.4)
        assert freshness.judge(envelope) is None


def test_early_is_earlier_the_larger_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the early= refreshes twice as long before the end, and so does twice the work."""
    monkeypatch.setattr("kv_store_adapter.caching.freshness.random.random", lambda: 0.5)

    def judged(early: float, took: float) -> Any:
        return Freshness(100, 0.0, None, early).judge(Envelope("value", NOW + 100, took, {}))

    with time_machine.travel(NOW + 98, tick=False):  # ln 2 = 0.69, times both
        assert [judged(1, 2), judged(1, 4), judged(2, 2)] == ["fresh", "early", "early"]
        assert [judged(0.5, 4), judged(3, 1), judged(100, 0)] == ["fresh", "early", "fresh"]


def test_early_goes_by_how_long_computing_took(
    clock: time_machine.Coordinates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes two seconds to compute is refreshed about two seconds before its end."""
    seconds = iter((1000.0, 1002.0, 2000.0, 2002.0))
    monkeypatch.setattr("kv_store_adapter.caching.flow.time.perf_counter", lambda: next(seconds))
    monkeypatch.setattr("kv_store_adapter.caching.freshness.random.random", lambda: 0.5)
    counting = Counting()
    f = cached(MemoryKVStore(), ttl=100, early=1, namespace="n")(lambda: counting())
    assert f() == 1
    clock.shift(98.5)
    assert f() == 1
    settle(f)
    assert counting.calls == 1
    clock.shift(0.25)  # 2 * ln 2 = 1.39 s before the end
    assert f() == 1
    assert counting.done.acquire(timeout=30)
    assert counting.done.acquire(timeout=30)
    settle(f)
    assert counting.calls == 2
    info = f.cache_info()
    assert (info.hits, info.misses, info.stale) == (2, 1, 0)


def test_early_values_are_served_and_refreshed(
    local: KVStoreProtocol, clock: time_machine.Coordinates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With early= a hot value is refreshed behind before it expires, and counts as a hit."""
    monkeypatch.setattr("kv_store_adapter.caching.freshness.random.random", lambda: 1 - 2**-53)
    counting = Counting()

    @cached(local, ttl=10, early=1e9)
    def f() -> int:
        return counting()

    assert f() == 1
    assert f() == 1
    assert counting.done.acquire(timeout=30)
    assert counting.done.acquire(timeout=30)
    settle(f)
    assert f.peek() >= 2
    assert f.cache_info().misses == 1


def test_tags_drop_what_carries_them(store: KVStoreProtocol) -> None:
    """invalidate_tag() makes every result with the tag a miss, others stay, for any function."""
    counting = Counting()

    @cached(store, tags=("user:{user}", "all"))
    def f(user: str, page: int = 0) -> int:
        return counting()

    @cached(store, tags="user:{user}")
    def g(user: str) -> int:
        return counting()

    assert [f("ann"), f("ann", 1), f("bob"), g("ann")] == [1, 2, 3, 4]
    assert [f("ann"), f("ann", 1), f("bob"), g("ann")] == [1, 2, 3, 4]
    store.invalidate_tag("user:ann")
    with pytest.raises(KeyError):
        f.peek("ann")
    assert [f("bob"), f("ann"), f("ann", 1), g("ann")] == [3, 5, 6, 7]
    store.invalidate_tag("all")
    assert [f("bob"), g("ann")] == [8, 7]


def test_tags_are_text_as_it_is_filled_in(store: KVStoreProtocol) -> None:
    """What the arguments put into a tag is not escaped: a tag is invalidated by its plain text."""

    @cached(store, tags=("of:{user}", "{user}/{page}"))
    def f(user: str, page: int = 0) -> int:
        calls.append(user)
        return len(calls)

    calls: List[str] = []
    assert [f("a:b%c"), f("a:b%c"), f("{x}")] == [1, 1, 2]
    store.invalidate_tag("of:a:b%c")
    assert [f("a:b%c"), f("{x}")] == [3, 2]
    store.invalidate_tag("a:b%c/0")
    assert [f("a:b%c"), f("{x}")] == [4, 2]
    store.invalidate_tag("of:{x}")
    assert [f("a:b%c"), f("{x}")] == [4, 5]


@pytest.mark.parametrize("broken", [False, True])
def test_who_comes_after_an_invalidated_tag_gets_a_new_result(broken: bool) -> None:
    """A call that joins a computation from before invalidate_tag() does not take its result."""

    class Breaking(MemoryKVStore):
        def get_many(self, *args: Any, **kwargs: Any) -> Any:
            if broken and threading.current_thread() is threading.main_thread():
                raise StoreUnavailableError("no tags now")
            return super().get_many(*args, **kwargs)

    store, data, inside, go_on = Breaking(), ["old"], threading.Event(), threading.Event()

    @cached(store, ttl=60, tags=("t",), namespace="n")
    def f() -> str:
        value = data[0]
        if value == "old":
            inside.set()
            assert go_on.wait(30)
        return value

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(f)
        assert inside.wait(30)
        data[0] = "new"
        store.invalidate_tag("t")
        timer = pool.submit(_when_one_waits, f, go_on)
        # Where the store can't say what its tags are, the result that was waited for will do.
        assert f() == ("old" if broken else "new")
        assert first.result(30) == "old"
        timer.result(30)
    assert f() == "new"
    assert (f.cache_info().errors > 0) is broken


def test_one_computes_anew_after_an_invalidated_tag() -> None:
    """However many joined a computation from before invalidate_tag(), they share one new result."""
    store, calls, go_on = MemoryKVStore(), [], threading.Event()

    @cached(store, ttl=60, tags=("t",), namespace="n")
    def f() -> int:
        calls.append(1)
        number = len(calls)
        if number == 1:
            assert go_on.wait(30)
        else:
            while f.cache_info().waits < 17:  # the other eight wait once more
                threading.Event().wait(0.005)
            store.invalidate_tag("t")  # too late for those who were there before this began
        return number

    with ThreadPoolExecutor(10) as pool:
        found = [pool.submit(f)]
        while not calls:
            threading.Event().wait(0.005)
        store.invalidate_tag("t")
        found += [pool.submit(f) for _ in range(9)]
        while f.cache_info().waits < 9:
            threading.Event().wait(0.005)
        go_on.set()
        assert [each.result(30) for each in found] == [1] + [2] * 9
    assert len(calls) == 2


def test_a_third_party_s_store_is_told_none() -> None:
    """`NO_EXPIRY` is a word between us and our views; other stores know a number or None."""

    class ThirdParty(MemoryKVStore):
        def set(self, key: str, value: Any, namespace: Any = None, ttl: Any = None) -> None:
            assert ttl is None
            super().set(key, value, namespace, ttl)

        def set_many(self, mapping: Any, namespace: Any = None, ttl: Any = None) -> None:
            assert ttl is None
            super().set_many(mapping, namespace, ttl)

    store = ThirdParty()
    assert cached(store, ttl=NO_EXPIRY, namespace="a")(lambda: 1)() == 1
    assert cached(store, ttl=lambda *_: NO_EXPIRY, tags="t", namespace="b")(lambda: 1)() == 1
    assert cached_many(store, ttl=NO_EXPIRY, namespace="c")(lambda ids: dict.fromkeys(ids, 1))([1])
    assert [len(store.keys(name)) for name in "abc"] == [1, 1, 1]


def _when_one_waits(function: Any, event: threading.Event) -> None:
    try:
        for _ in range(6000):
            if function.cache_info().waits:
                return
            threading.Event().wait(0.005)
        raise AssertionError("nobody waits")
    finally:
        event.set()


@pytest.mark.parametrize("is_async", [False, True])
def test_tags_need_nothing_but_the_protocol(is_async: bool) -> None:
    """A third party's store is told of a tag what it knows of: no ttl, not one of our own words."""

    class Foreign(MemoryKVStore):
        def add(self, key: str, value: Any, namespace: Any = None, ttl: Any = None) -> bool:
            seen.append((key, namespace, ttl))
            return super().add(key, value, namespace, ttl)

    def echo(x: int) -> int:
        return x

    async def echo_later(x: int) -> int:
        return x

    seen: List[Any] = []
    f: Any = cached(Foreign(), ttl=9, tags=("t",))(echo_later if is_async else echo)
    assert (asyncio.run(f(1)) if is_async else f(1)) == 1
    assert seen == [("t", "kv-store-adapter.tags", None)]


def test_a_tag_invalidated_meanwhile_counts(store: KVStoreProtocol) -> None:
    """A result that was being computed when its tag was invalidated is not served again."""

    @cached(store, tags=("t",))
    def f() -> int:
        calls.append(1)
        if len(calls) == 1:
            store.invalidate_tag("t")
        return len(calls)

    calls: List[int] = []
    assert [f(), f(), f()] == [1, 2, 2]


def test_envelopes_and_plain_results_never_mix(local: KVStoreProtocol) -> None:
    """One function declared with and without stale= never takes one entry for the other's."""

    def f(x: int) -> List[Any]:
        return [x]

    for _ in range(2):
        assert cached(local, ttl=60)(f)(1) == [1]
        assert cached(local, ttl=60, stale=60)(f)(1) == [1]


def test_freshness_ends_at_the_instant(clock: time_machine.Coordinates) -> None:
    """A result is fresh to before its ttl ends, stale to before stale= ends, then too old."""
    freshness = Freshness(10, 0.0, 60, 0.0)
    envelope = Envelope("value", NOW + 10.0, 2.0, {})
    seen = []
    for seconds in (9.875, 0.125, 59.875, 0.125):
        clock.shift(seconds)
        seen.append(freshness.judge(envelope))
    assert seen == ["fresh", "stale", "stale", None]
    assert freshness.judge(Envelope("value", None, 2.0, {})) == "fresh"


def test_lifetimes_are_ttl_and_stale_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store keeps a result for ttl and stale; what ttl= says is None is kept for ever."""

    def lives(ttl: Any, jitter: float = 0.0, stale: Any = None) -> Any:
        return Freshness(ttl, jitter, stale, 0.0).lifetimes("f", "result", lambda f: f(1, b=2))

    assert lives(None) == (None, None)
    assert lives(10) == lives(timedelta(seconds=10)) == lives(lambda r, a, b: 10) == (10, 10)
    assert lives(10, 0.0, timedelta(minutes=1)) == (10, 70)
    assert lives(lambda r, a, b: None, 0.5, 60) == (None, None)
    assert lives(NO_EXPIRY) == lives(lambda r, a, b: NO_EXPIRY, 0.5, 60) == (None, NO_EXPIRY)
    assert lives(lambda r, a, b: len(r) + a + b, 0.0, 1) == (9, 10)
    monkeypatch.setattr("kv_store_adapter.caching.freshness.random.random", lambda: 0.75)
    assert lives(100, 0.5, 7) == (62.5, 69.5)
    assert lives(lambda r, a, b: 100, 1) == (25, 25)
    assert lives(0.002, 1) == (0.001, 0.001)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ((10, 1.01, None, 0.0), ValueError, "jitter= is a fraction from 0 to 1, not 1.01"),
        ((10, -0.1, None, 0.0), ValueError, "jitter= is not negative and finite, not -0.1"),
        ((10, 0.0, None, float("inf")), ValueError, "early= is not negative and finite, not inf"),
        ((10, 0.0, None, float("nan")), ValueError, "early= is not negative and finite, not nan"),
        ((10, 0.0, None, True), TypeError, "early= is a number, not bool"),
        ((10, "1", None, 0.0), TypeError, "jitter= is a number, not str"),
        ((None, 0.0, 1, 0.0), ValueError, "need a ttl="),
        ((None, 0.0, None, 1.0), ValueError, "need a ttl="),
        ((None, 0.5, None, 0.0), ValueError, "need a ttl="),
        ((NO_EXPIRY, 0.5, None, 0.0), ValueError, "need a ttl="),
        ((NO_EXPIRY, 0.0, 60, 0.0), ValueError, "need a ttl="),
        ((10, 0.0, NO_EXPIRY, 0.0), TypeError, "stale= is a number"),
        ((3_155_760_000, 0.0, 1, 0.0), InvalidTTLError, "at most 100 years"),
        ((3_155_759_999, 0.0, 2, 0.0), InvalidTTLError, "at most 100 years"),
    ],
)
def test_bad_lifetimes_are_refused(options: Any, error: Any, message: str) -> None:
    """A fraction, a number, a ttl to go with it, and no more than a hundred years together."""
    with pytest.raises(error, match=message):
        Freshness(*options)


def test_lifetimes_to_the_edge_are_taken() -> None:
    """A jitter of one, no earliness, and a hundred years with stale= are all fine."""
    assert Freshness(10, 1, None, 0).needs_envelope is False
    assert Freshness(3_155_759_999, 0.0, 1, 0.0).needs_envelope is True
    assert Freshness(10, 0.0, None, 0.1).needs_envelope is True
    assert Freshness(None, 0, None, 0).needs_envelope is False
    assert Freshness(lambda result: 10, 0.5, 1, 1).needs_envelope is True


def test_an_envelope_is_told_from_what_looks_like_one() -> None:
    """What was packed is unpacked the same; anything else that was stored is none."""
    envelope = Envelope([1], NOW + 0.5, 2, {"tag": "token"})
    packed = envelope.pack()
    assert Envelope.unpack(packed) == envelope
    assert Envelope.unpack(Envelope(None, None, 0.5, {}).pack()) == Envelope(None, None, 0.5, {})
    assert Envelope.unpack(tuple(packed)) is None
    assert Envelope.unpack(packed[:-1]) is None
    assert Envelope.unpack([*packed, 1]) is None
    for place, wrong in ((0, "kvc2"), (1, "soon"), (2, None), (2, "2"), (3, []), (3, None)):
        changed = list(packed)
        changed[place] = wrong
        assert Envelope.unpack(changed) is None


class Refreshing:
    """A function in a store whose refreshes can be held up, and say what they meet."""

    def __init__(self, **options: Any) -> None:
        self.store = MemoryKVStore()
        self.calls = 0
        self.inside = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.locked: List[bool] = []
        self.fails = False
        self.cached = cached(
            self.store, ttl=10, stale=60, key="f{x}", namespace="n", lock_timeout=30, **options
        )(self.body)

    def body(self, x: int) -> int:
        self.calls += 1
        mine = self.calls
        self.locked.append(self.is_locked(f"~f{x}"))
        if mine > 1:
            self.inside.release()
            assert self.go_on.wait(30)
        if self.fails:
            raise ConnectionError("upstream is down")
        return mine

    def is_locked(self, key: str) -> bool:
        try:
            with self.store.lock(key, "n", timeout=0.0):
                return False
        except LockTimeoutError:
            return True


@pytest.mark.parametrize("lock", [None, "store"])
def test_one_caller_refreshes_and_the_others_are_served(
    lock: Any, clock: time_machine.Coordinates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one refresh runs, under the store's lock if so told, everybody gets the old value."""
    died: List[Any] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    f = Refreshing(lock=lock)
    assert f.cached(1) == 1
    clock.shift(11)
    assert f.cached(1) == 1
    assert f.inside.acquire(timeout=30)
    assert [f.cached(1) for _ in range(5)] == [1] * 5
    f.go_on.set()
    settle(f.cached)
    assert [f.cached(1), f.calls] == [2, 2]
    assert f.locked == [lock is not None] * 2
    for _ in range(2000):  # the lock is given back when the result is there already
        if not f.is_locked("~f1"):
            break
        threading.Event().wait(0.005)
    assert not f.is_locked("~f1")
    info = f.cached.cache_info()
    assert (info.hits, info.misses, info.stale, info.errors, info.waits) == (1, 1, 6, 0, 0)
    assert died == []


def test_who_comes_too_late_for_the_old_value_waits_for_the_refresh(
    clock: time_machine.Coordinates,
) -> None:
    """Past stale= a caller shares what the refresh that is under way gives, or raises."""
    for fails in (False, True):
        f = Refreshing()
        assert f.cached(1) == 1
        clock.shift(11)
        assert f.cached(1) == 1
        assert f.inside.acquire(timeout=30)
        clock.shift(60)
        f.fails = fails
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(f.cached, 1)
            for _ in range(6000):
                if f.cached.cache_info().waits:
                    break
                threading.Event().wait(0.005)
            f.go_on.set()
            if fails:
                with pytest.raises(ConnectionError, match="upstream is down"):
                    late.result(30)
            else:
                assert late.result(30) == 2
        assert f.calls == 2


def test_another_process_that_has_the_lock_refreshes(
    clock: time_machine.Coordinates, caplog: pytest.LogCaptureFixture
) -> None:
    """With lock="store" a refresh never waits for the lock; what another one stored is taken."""
    f = Refreshing(lock="store")
    f.go_on.set()
    assert f.cached(1) == 1
    clock.shift(11)
    with f.store.lock("~f1", "n"):
        assert f.cached(1) == 1
        settle(f.cached)
    assert f.calls == 1
    # Another process refreshed it after we looked: found under the lock.
    lock, took = f.store.lock, threading.Event()

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        if not took.is_set():
            took.set()
            f.store.set("~f1", Envelope(7, NOW + 30.0, 0.0, {}).pack(), "n")
        return lock(*args, **kwargs)

    f.store.lock = overtaken  # type: ignore[method-assign]
    assert f.cached(1) == 1
    assert took.wait(30)
    settle(f.cached)
    assert [f.cached(1), f.calls] == [7, 1]
    assert caplog.records == []


def test_who_waits_for_a_refresh_gets_what_another_process_stored(
    clock: time_machine.Coordinates,
) -> None:
    """A refresh that finds the result fresh, under the lock, gives it to those who wait for it."""
    f = Refreshing(lock="store")
    lock, locking, go_on = f.store.lock, threading.Event(), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        locking.set()
        assert go_on.wait(30)
        return lock(*args, **kwargs)

    assert f.cached(1) == 1
    clock.shift(11)
    f.store.lock = slow  # type: ignore[method-assign]
    assert f.cached(1) == 1
    assert locking.wait(30)
    clock.shift(60)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(f.cached, 1)
        for _ in range(6000):
            if f.cached.cache_info().waits:
                break
            threading.Event().wait(0.005)
        f.store.set("~f1", Envelope(7, NOW + 90.0, 0.0, {}).pack(), "n")
        go_on.set()
        assert waiter.result(30) == 7
    assert f.calls == 1


@pytest.mark.parametrize("lock", [None, "store"])
def test_a_refresh_may_need_what_is_being_computed(
    lock: Any, clock: time_machine.Coordinates
) -> None:
    """A refresh waits for another function's result; holding a store's lock it computes instead."""
    store, inside, go_on = MemoryKVStore(), threading.Event(), threading.Event()
    calls: List[str] = []
    version = ["old"]

    @cached(store, namespace="g")
    def g() -> str:
        calls.append(version[0])
        if calls.count("new") == 1:
            inside.set()
            go_on.wait(30)
        return version[0]

    @cached(store, ttl=10, stale=60, lock=lock, namespace="f")
    def f(x: int) -> str:
        return f"{g()} {x}"

    assert f(1) == "old 1"
    g.cache_clear()
    version[:] = ["new"]
    clock.shift(11)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(g)
        assert inside.wait(30)
        assert f(1) == "old 1"
        if lock is None:
            for _ in range(6000):
                if g.cache_info().waits:
                    break
                threading.Event().wait(0.005)
            assert g.cache_info().waits == 1
            go_on.set()
        settle(f)  # with the lock it is through while the other one still computes
        go_on.set()
        assert slow.result(30) == "new"
    assert f(1) == "new 1"
    assert calls == ["old", "new"] if lock is None else ["old", "new", "new"]
    assert f.cache_info().errors == 0


@pytest.mark.parametrize("what", ["body", "cache_if", "ttl"])
def test_whatever_fails_in_a_refresh_is_told(
    what: str, clock: time_machine.Coordinates, caplog: pytest.LogCaptureFixture
) -> None:
    """In the background nobody else would hear of it: a warning names function, call and error."""
    fails = False

    def fail(where: str) -> None:
        if fails and what == where:
            raise ConnectionError("upstream is down")

    def lifetime(*args: Any) -> int:
        fail("ttl")
        return 10

    def keep(result: Any) -> bool:
        fail("cache_if")
        return True

    @cached(MemoryKVStore(), ttl=lifetime, cache_if=keep, stale=60, key="f{x}", namespace="n")
    def f(x: int) -> int:
        fail("body")
        return x

    assert f(1) == 1
    clock.shift(11)
    fails = True
    assert f(1) == 1
    for _ in range(6000):
        if f.cache_info().errors:
            break
        threading.Event().wait(0.005)
    settle(f)
    assert f.cache_info().errors == 1
    (record,) = caplog.records
    assert record.getMessage() == (
        "test_whatever_fails_in_a_refresh_is_told.<locals>.f(): refreshing key '~f1' in namespace "
        "'n' failed, the old value stays for now: ConnectionError: upstream is down"
    )
    fails = False
    assert f(1) == 1
    settle(f)
    assert f.cache_info().stale == 2
