"""A store in trouble: a warning and a plain call, never the answer; one wait, then a breaker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any, Dict, Iterator, List

import pytest

from kv_store_adapter import (
    KVStoreProtocol,
    MemoryKVStore,
    RedisKVStore,
    SerializationError,
    StoreUnavailableError,
    cached,
    cached_many,
)
from kv_store_adapter.caching import health
from kv_store_adapter.protocol import TAGS_NAMESPACE


class Broken(MemoryKVStore):
    """A store that fails when told to, and counts how often it is asked."""

    waits = True

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.down:
            raise StoreUnavailableError("the server is down")

    def reader(self, namespace: Any = None) -> Any:
        read = super().reader(namespace)

        def ask(key: str) -> Any:
            self._ask()
            return read(key)

        return ask

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self._ask()
        return super().get(*args, **kwargs)

    def get_many(self, *args: Any, **kwargs: Any) -> Any:
        self._ask()
        return super().get_many(*args, **kwargs)

    def set(self, *args: Any, **kwargs: Any) -> None:
        self._ask()
        super().set(*args, **kwargs)

    def set_many(self, *args: Any, **kwargs: Any) -> None:
        self._ask()
        super().set_many(*args, **kwargs)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> List[float]:
    """The breaker's clock, which a test moves by hand."""
    now = [1000.0]
    monkeypatch.setattr(health.time, "monotonic", lambda: now[0])
    return now


def test_a_store_that_is_down_costs_one_wait(
    clock: List[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Calls go on computing; the store is asked once, then after 1, 2, 4 ... 30 s."""
    store = Broken()

    @cached(store)
    def f(x: int) -> int:
        return x

    store.down = True
    assert [f(x) for x in range(100)] == list(range(100))
    assert store.asked == 1
    assert caplog.text.count("the server is down") == 1
    for pause in (1, 2, 4, 8, 16, 30, 30):
        clock[0] += pause - 0.01
        f(1)
        asked = store.asked
        clock[0] += 0.02
        f(1)
        f(1)
        assert store.asked == asked + 1
    store.down = False
    clock[0] += 31
    f(1)
    assert f(1) == 1
    assert f.cache_info().hits == 1
    assert f.cache_info().errors > 100


def test_on_error_raise(clock: List[float]) -> None:
    """on_error="raise" passes the store's error on, and an open breaker raises at once."""
    store = Broken()

    @cached(store, on_error="raise")
    def f(x: int) -> int:
        return x

    f(1)
    store.down = True
    for _ in range(5):
        with pytest.raises(StoreUnavailableError):
            f(1)
    assert store.asked == 3


def test_coroutines_compute_without_their_store(clock: List[float]) -> None:
    """A coroutine function goes on answering while its store is down."""
    store = Broken()

    @cached(store)
    async def f(x: int) -> int:
        return x

    async def main() -> List[int]:
        store.down = True
        return [await f(x) for x in range(20)]

    assert asyncio.run(main()) == list(range(20))
    assert store.asked == 1


def test_many_computes_without_its_store(clock: List[float]) -> None:
    """cached_many goes on answering while its store is down."""
    store = Broken()

    @cached_many(store)
    def f(ids: List[int]) -> Any:
        return {i: -i for i in ids}

    store.down = True
    assert [f([1, 2]), f([2, 3])] == [{1: -1, 2: -2}, {2: -2, 3: -3}]
    assert store.asked == 1


def test_a_dead_server_costs_about_a_second() -> None:
    """With nothing listening, fifty calls cost one refused connection each second, not fifty."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = RedisKVStore(port=port)
    f = cached(store, namespace="dead")(lambda x: x)
    started = time.monotonic()
    assert [f(x) for x in range(50)] == list(range(50))
    assert time.monotonic() - started < 3


def test_what_cant_be_serialised_is_answered(
    shared_store: KVStoreProtocol, caplog: pytest.LogCaptureFixture
) -> None:
    """A result that does not serialise is returned with a warning; "raise" raises."""

    @cached(shared_store, namespace="unserialisable")
    def f(x: int) -> Any:
        return lambda: x

    @cached(shared_store, namespace="strict", on_error="raise")
    def g(x: int) -> Any:
        return lambda: x

    assert f(1)() == 1
    assert f(1)() == 1
    assert "can't be serialised" in caplog.text
    assert f.cache_info().errors == 2
    with pytest.raises(SerializationError):
        g(1)


@pytest.mark.parametrize("on_error", ["compute", "raise"])
def test_an_unreadable_entry_is_a_miss(
    on_error: str, shared_store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An entry that can't be read is computed anew and overwritten, with one warning."""

    @cached(shared_store, namespace="unreadable", on_error=on_error)
    def f(x: int) -> int:
        return x

    class Gone:
        pass

    Gone.__qualname__ = "Gone"
    globals()["Gone"] = Gone
    shared_store.set(f.cache_key(1), Gone(), "unreadable")
    del globals()["Gone"]
    with pytest.raises(SerializationError):
        shared_store.get(f.cache_key(1), "unreadable")
    assert f(1) == 1
    assert caplog.text.count("computed and overwritten") == 1
    assert shared_store.get(f.cache_key(1), "unreadable") == 1


def test_a_closed_store_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """A function whose store was closed under it goes on computing, with a warning."""
    store = MemoryKVStore()
    f = cached(store, namespace="closed")(lambda x: x)
    f(1)
    store.close()
    assert f(1) == 1
    assert "closed" in caplog.text


def test_warnings_are_limited_and_counted(
    clock: List[float], caplog: pytest.LogCaptureFixture
) -> None:
    """One warning a minute of a kind; the next one says how many there were between."""
    caplog.set_level(logging.WARNING, "kv_store_adapter")
    for _ in range(10):
        health.warn("f", "kind", "trouble with %s", "x")
    assert len(caplog.records) == 1
    clock[0] += 61
    health.warn("f", "kind", "trouble with %s", "x")
    assert "9 more like this" in caplog.records[-1].getMessage()


def test_failures_at_one_time_are_one_failure(clock: List[float]) -> None:
    """Many callers whose reads fail together open the breaker for one second, not for thirty."""
    breaker = health.Breaker()
    assert all(breaker.allows() for _ in range(8))
    for _ in range(8):
        breaker.failed()
    assert not breaker.allows()
    clock[0] += 1.01
    assert breaker.allows()
    assert not breaker.allows()
    breaker.failed()
    clock[0] += 1.01
    assert not breaker.allows()
    clock[0] += 1
    assert breaker.allows()
    breaker.worked()
    assert breaker.allows()
    assert breaker.allows()


def test_the_breaker_doubles_to_half_a_minute(clock: List[float]) -> None:
    """Each failed try doubles the pause, from one second to thirty; one that works ends it."""
    breaker = health.Breaker()
    for pause in (1, 2, 4, 8, 16, 30, 30):
        breaker.failed()
        assert breaker.open
        clock[0] += pause - 0.125
        assert not breaker.allows()
        clock[0] += 0.125
        assert breaker.allows()
        # Others wait for the one that tries: as long again at most.
        assert not breaker.allows()
    breaker.worked()
    assert not breaker.open
    breaker.failed()
    clock[0] += 1
    assert breaker.allows()


def test_a_try_that_is_never_heard_of_again_is_followed_by_another(clock: List[float]) -> None:
    """If whoever tried vanished, the next one tries after the same pause."""
    breaker = health.Breaker()
    breaker.failed()
    for _ in range(3):
        clock[0] += 1
        assert breaker.allows()
        assert not breaker.allows()


def test_warnings_of_a_minute_are_of_one_function_and_kind(
    clock: List[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Another function or kind warns at once; after a minute the count starts again."""
    caplog.set_level(logging.WARNING, "kv_store_adapter")
    for function, kind in (("f", "a"), ("f", "b"), ("g", "a"), ("f", "a")):
        health.warn(function, kind, "trouble with %s", "x")
    assert [record.getMessage() for record in caplog.records] == [
        "f(): trouble with x",
        "f(): trouble with x",
        "g(): trouble with x",
    ]
    clock[0] += 59.875
    health.warn("f", "a", "trouble with %s", "x")
    clock[0] += 0.125
    health.warn("f", "a", "trouble with %s", "x")
    assert caplog.records[-1].getMessage().endswith("x (2 more like this since the last warning)")
    clock[0] += 60
    health.warn("f", "a", "trouble with %s", "x")
    assert caplog.records[-1].getMessage() == "f(): trouble with x"


def test_a_first_warning_comes_however_young_the_clock_is(
    clock: List[float], caplog: pytest.LogCaptureFixture
) -> None:
    """The minute of quiet begins with a warning, not with the machine: its clock starts at zero."""
    clock[0] = 5.0
    health.warn("f", "kind", "trouble with %s", "x")
    health.warn("f", "kind", "trouble with %s", "x")
    assert [record.getMessage() for record in caplog.records] == ["f(): trouble with x"]


def test_all_functions_of_a_store_share_its_breaker(clock: List[float]) -> None:
    """What one function found out about a store and its views costs the others nothing."""
    store, other = Broken(), Broken()
    f = cached(store, namespace="f")(lambda x: x)
    g = cached(store.namespace("view"), namespace="g")(lambda x: x)
    many = cached_many(store, namespace="many")(lambda ids: dict.fromkeys(ids, 7))
    elsewhere = cached(other, namespace="f")(lambda x: x)
    store.down = True
    assert [f(1), g(1), many([1]), f(2)] == [1, 1, {1: 7}, 2]
    assert store.asked == 1
    elsewhere(1)
    assert elsewhere(1) == 1
    assert elsewhere.cache_info().hits == 1


@pytest.mark.parametrize("fails", ["reading", "writing"])
def test_warnings_of_many_name_an_entry(fails: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who reads the log learns which function, doing what, with which of its entries."""

    class Failing(MemoryKVStore):
        def get_many(self, *args: Any, **kwargs: Any) -> Any:
            if fails == "reading":
                raise StoreUnavailableError("no reading")
            return super().get_many(*args, **kwargs)

        def set_many(self, *args: Any, **kwargs: Any) -> None:
            if fails == "writing":
                raise StoreUnavailableError("no writing")
            super().set_many(*args, **kwargs)

    @cached_many(Failing(), namespace="n")
    def load(ids: List[int]) -> Any:
        return dict.fromkeys(ids, 1)

    assert load([7, 8]) == {7: 1, 8: 1}
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(
        "test_warnings_of_many_name_an_entry.<locals>.load(): the store could"
    )
    assert f"not {fails[:4]}" in message
    assert "load(ids=7)'" in message
    assert f"StoreUnavailableError: no {fails}" in message


class Faulty(MemoryKVStore):
    """A store each of whose operations raises what a test says."""

    def __init__(self, waits: bool = True) -> None:
        super().__init__()
        self.waits = waits
        self.errors: Dict[str, Exception] = {}
        self.asked: List[str] = []

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.errors:
            raise self.errors[what]

    def reader(self, namespace: Any = None) -> Any:
        read = super().reader(namespace)

        def ask(key: str) -> Any:
            self._ask("read")
            return read(key)

        return ask

    def finder(self, namespace: Any = None) -> Any:
        return KVStoreProtocol.finder(self, namespace)  # by way of the reader, not a dictionary's

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self._ask("read")
        return super().get(*args, **kwargs)

    def set(self, *args: Any, **kwargs: Any) -> None:
        self._ask("write")
        super().set(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> bool:
        self._ask("drop")
        return super().delete(*args, **kwargs)

    def get_many(self, keys: Any, namespace: Any = None) -> Any:
        self._ask("tags" if namespace == TAGS_NAMESPACE else "read")
        return super().get_many(keys, namespace)


def test_a_full_disk_can_still_be_read(clock: List[float]) -> None:
    """A store that can't be written to serves its hits, and is asked to write after each pause."""
    store = Faulty()
    f = cached(store, namespace="n")(lambda x: x)
    f(1)
    store.errors["write"] = StoreUnavailableError("the disk is full")
    store.asked.clear()
    assert [f(2), f(3), f(1), f(1)] == [2, 3, 1, 1]
    assert store.asked == ["read", "write", "read", "read", "read"]
    assert f.cache_info()[:2] == (2, 3)
    clock[0] += 1
    del store.errors["write"]
    assert [f(2), f(2), f(3), f(3)] == [2, 2, 3, 3]
    assert f.cache_info()[:2] == (4, 5)


@pytest.mark.parametrize("is_async", [False, True])
def test_an_entry_that_cant_be_dropped_costs_no_answer(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A result invalidated while it was written, in a store that fails now: answered, or raised."""

    def echo(x: int) -> int:
        return x

    async def echo_later(x: int) -> int:
        return x

    class Overtaken(Faulty):
        def set(self, *args: Any, **kwargs: Any) -> None:
            f._self_cached.flow.board.doom(None)  # as an invalidate() does at first
            super().set(*args, **kwargs)

    for on_error in ("compute", "raise"):
        store = Overtaken()
        store.errors["drop"] = StoreUnavailableError("the server is down")
        make = cached(store, namespace="n", on_error=on_error, key="f{x}")
        f: Any = make(echo_later if is_async else echo)

        def call() -> int:
            return asyncio.run(f(1)) if is_async else f(1)  # noqa: B023  # in this round

        if on_error == "raise":
            with pytest.raises(StoreUnavailableError, match="the server is down"):
                call()
        else:
            assert call() == 1
            assert f.cache_info().errors == 1
            (record,) = caplog.records
            message = record.getMessage().partition("(): ")[2]
            assert message == (
                "the store could not write key 'f1' in namespace 'n'; the call was answered "
                "without it. StoreUnavailableError: the server is down"
            )
        assert store.asked == ["read", "write", "drop"]


def test_tags_that_cant_be_read_keep_nothing_and_serve_nothing(
    clock: List[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a tag still holds can't be told: the call computes, and what it gives is not kept."""
    store = Faulty()

    @cached(store, namespace="n", tags=("t",), key="f{x}")
    def f(x: int) -> int:
        calls.append(x)
        return len(calls)

    @cached(store, namespace="m", tags=("t",), on_error="raise")
    def strict() -> int:
        return 1

    calls: List[int] = []
    assert [f(1), f(1)] == [1, 1]
    store.errors["tags"] = OSError("no tags")
    store.asked.clear()
    assert [f(1), f(2)] == [2, 3]
    assert store.asked == ["read", "tags", "tags", "read", "tags"]
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "(): the store could not read key '~f1' in namespace 'n'; the call was answered without "
        "it. OSError: no tags"
    )
    assert f.cache_info().errors == 3  # on looking and on computing; there was nothing to look at
    with pytest.raises(OSError, match="no tags"):
        strict()
    health._last_warned.clear()
    assert f(3) == 4
    assert "not read key '~f3' in" in caplog.records[-1].getMessage()
    store.errors.clear()
    assert [f(1), f(2), f(2)] == [1, 5, 5]
    assert strict() == 1
    store.errors["tags"] = OSError("no tags")
    with pytest.raises(OSError, match="no tags"):
        strict()


def test_another_error_is_another_warning(
    clock: List[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Each kind of trouble is told once a minute: reading apart from writing, each error apart."""
    store = Faulty()
    f = cached(store, namespace="n", key="f{x}")(lambda x: x)
    for doing, error in (
        ("read", OSError("one")),
        ("read", RuntimeError("two")),
        ("write", OSError("three")),
        ("read", OSError("four")),
    ):
        store.errors = {doing: error}
        assert f(1) == 1
        store.delete("f1", "n")
    place = "key 'f1' in namespace 'n'; the call was answered without it."
    assert [record.getMessage().partition("<locals>.")[2] for record in caplog.records] == [
        f"<lambda>(): the store could not read {place} OSError: one",
        f"<lambda>(): the store could not read {place} RuntimeError: two",
        f"<lambda>(): the store could not write {place} OSError: three",
    ]
    assert f.cache_info().errors == 4
    clock[0] += 60
    store.errors = {"read": OSError("five")}
    assert f(1) == 1
    assert "OSError: five (1 more like this" in caplog.records[-1].getMessage()


class Locking(Faulty):
    """A store whose locks can fail: to be taken, or to be given back."""

    @contextlib.contextmanager
    def lock(self, *args: Any, **kwargs: Any) -> Iterator[None]:  # type: ignore[override]
        self._ask("lock")
        with super().lock(*args, **kwargs):
            yield
        self._ask("unlock")


def test_a_lock_that_cant_be_taken_costs_no_answer(
    clock: List[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Computed without it, with a warning; it counts as a write: asked once, then after a pause."""
    store = Locking()
    f = cached(store, namespace="n", key="f{x}", lock="store")(lambda x: x)
    f(1)
    store.errors["lock"] = StoreUnavailableError("the disk is full")
    store.asked.clear()
    assert [f(2), f(1), f(3), f(1)] == [2, 1, 3, 1]
    assert store.asked == ["read", "lock", "read", "read", "read"]
    assert (
        caplog.records[0]
        .getMessage()
        .endswith(
            "(): the store could not lock key 'f2' in namespace 'n'; the call was answered without "
            "it. StoreUnavailableError: the disk is full"
        )
    )
    assert f.cache_info()[:2] == (2, 3)
    clock[0] += 1
    store.errors.clear()
    assert [f(2), f(2), f(3), f(3)] == [2, 2, 3, 3]
    assert f.cache_info()[:2] == (4, 5)


def test_where_nothing_can_be_read_nothing_is_locked(clock: List[float]) -> None:
    """A store that is down is asked neither for its lock nor to write."""
    store = Locking()
    f = cached(store, namespace="n", lock="store")(lambda x: x)
    store.errors["read"] = StoreUnavailableError("the server is down")
    assert [f(1), f(2), f(3)] == [1, 2, 3]
    assert store.asked == ["read"]
    strict = cached(store, namespace="m", lock="store", on_error="raise")(lambda x: x)
    with pytest.raises(StoreUnavailableError, match="asked again"):
        strict(1)


def test_a_lock_that_cant_be_given_back_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """The result is there and is kept; the warning names the lock and the error."""
    store = Locking()
    store.errors["unlock"] = OSError("gone")
    for on_error in ("compute", "raise"):
        f = cached(store, namespace="n", key=on_error, lock="store", on_error=on_error)(lambda: 7)
        assert [f(), f()] == [7, 7]
        assert f.cache_info()[:2] == (1, 1)
        assert f.cache_info().errors == 1
    assert caplog.records[0].getMessage().partition("<locals>.")[2] == (
        "<lambda>(): the lock on key 'compute' in namespace 'n' could not be given back: OSError: gone"
    )


@pytest.mark.parametrize("is_async", [False, True])
def test_a_store_that_answers_at_once_may_fail_as_well(
    is_async: bool, clock: List[float], caplog: pytest.LogCaptureFixture
) -> None:
    """A store in memory that raises is asked once a call; then its breaker holds here, too."""
    store = Faulty(waits=False)

    def echo(x: int) -> int:
        return x

    async def echo_later(x: int) -> int:
        return x

    def call(x: int) -> int:
        return asyncio.run(f(x)) if is_async else f(x)

    f: Any = cached(store, namespace="n", key="f{x}")(echo_later if is_async else echo)
    assert [call(1), call(1)] == [1, 1]
    store.asked.clear()
    store.errors["read"] = OSError("on the way")
    assert call(1) == 1
    assert store.asked == ["read", "write"]
    (record,) = caplog.records
    assert record.getMessage().partition("(): ")[2] == (
        "the store could not read key 'f1' in namespace 'n'; the call was answered without it. "
        "OSError: on the way"
    )
    assert f.cache_info()[:2] == (1, 2)
    assert f.cache_info().errors == 1
    store.errors["read"] = StoreUnavailableError("down")
    store.asked.clear()
    assert [call(1), call(1), call(2)] == [1, 1, 2]
    assert store.asked == ["read"]
    clock[0] += 1
    store.errors.clear()
    assert [call(1), call(1)] == [1, 1]
    assert f.cache_info()[:2] == (3, 5)


def test_what_was_invalidated_meanwhile_is_not_written() -> None:
    """Not even for a moment: another process might take it."""
    store = Faulty()

    @cached(store, namespace="n", tags=("t",))
    def f(x: int) -> int:
        f.invalidate(x)
        return x

    assert f(1) == 1
    assert "write" not in store.asked
