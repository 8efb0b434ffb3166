"""Answers that get lost between Redis and us: nothing is said twice that must not, nothing is a lie."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

import pytest
import redis
from breakable import BreakableServer
from proxy import GARBLE, HALF_ANSWER, HOLD, LOSE_ANSWER, LOSE_REQUEST, Proxy

from kv_store_adapter import (
    KVStoreError,
    RedisKVStore,
    SerializationError,
    StoreUnavailableError,
)

pytestmark = pytest.mark.server

# Seconds for an answer that is held back. Whatever else is asked then has to be answered within it,
# on a machine that may be busy.
PATIENCE = 0.6
CUTS = [LOSE_REQUEST, LOSE_ANSWER, HALF_ANSWER]


class Case(NamedTuple):
    word: str  # the command that meets the fault
    call: Callable[[Any], Any]
    answer: Any  # what it returns where "there" is 5 and "new" is absent


HARMLESS: Dict[str, Case] = {
    "get": Case("GET", lambda s: s.get("there"), 5),
    "exists": Case("EXISTS", lambda s: s.exists("there"), True),
    "ttl": Case("PTTL", lambda s: s.ttl("there"), None),
    "keys": Case("SCAN", lambda s: s.keys(), ["there"]),
    "get_many": Case("MGET", lambda s: s.get_many(["there"]), {"there": 5}),
    "list_namespaces": Case("SCAN", lambda s: s.list_namespaces(), []),
}
HARMLESS_WRITES: Dict[str, Case] = {
    "set": Case("SET", lambda s: s.set("there", 6), None),
    "set with a ttl": Case("SET", lambda s: s.set("there", 6, ttl=50), None),
    "touch": Case("PEXPIRE", lambda s: s.touch("there", ttl=50), True),
    "touch for ever": Case("PERSIST", lambda s: s.touch("there"), True),
    "set_many": Case("MSET", lambda s: s.set_many({"there": 6, "x": 7}), None),
    "set_many with a ttl": Case("SET", lambda s: s.set_many({"x": 6, "y": 7}, ttl=50), None),
}
ONCE_ONLY: Dict[str, Case] = {
    "add": Case("NX", lambda s: s.add("new", 1), True),
    "delete": Case("UNLINK", lambda s: s.delete("there"), True),
    "pop": Case("GETDEL", lambda s: s.pop("there"), 5),
    "delete_many": Case("UNLINK", lambda s: s.delete_many(["there"]), 1),
    "clear_namespace": Case("UNLINK", lambda s: s.clear_namespace(None), 1),
}


@pytest.fixture(scope="module")
def server() -> Iterator[BreakableServer]:
    with BreakableServer() as server:
        yield server


@pytest.fixture
def proxy(server: BreakableServer) -> Iterator[Proxy]:
    with redis.Redis(port=server.port) as raw:
        raw.flushall()
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def direct(server: BreakableServer) -> Iterator[RedisKVStore]:
    """A store that goes round the proxy."""
    with RedisKVStore(port=server.port, socket_timeout=20) as store:
        yield store


def prepared(direct: RedisKVStore) -> None:
    direct.clear_namespace(None)
    direct.set("there", 5)


def came_of(
    store: RedisKVStore,
    call: Callable[[Any], Any],
    arm: Callable[[], None] = lambda: None,
    *,
    awaited: bool,
) -> Any:
    """What a call on a connection that is up returns or raises, once the proxy is armed."""

    async def await_it() -> Any:
        await store.aio.exists("warm")
        arm()
        return await call(store.aio)

    try:
        if awaited:
            return asyncio.run(await_it())
        store.exists("warm")
        arm()
        return call(store)
    except KVStoreError as error:
        return error


both = pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])


@both
@pytest.mark.parametrize("name", [*HARMLESS, *HARMLESS_WRITES])
def test_what_is_harmless_is_said_again(
    proxy: Proxy, direct: RedisKVStore, name: str, awaited: bool, count: Any
) -> None:
    """After a cut connection, reads and writes that may be repeated give their answer: twice at most."""
    word, call, answer = {**HARMLESS, **HARMLESS_WRITES}[name]
    for fault in CUTS:
        prepared(direct)
        with RedisKVStore(port=proxy.port, socket_timeout=20) as store:
            assert (
                came_of(store, call, partial(proxy.arm, word, fault), awaited=awaited) == answer
            ), fault
        assert proxy.passed[word] <= (4 if "many with" in name else 2), fault
        count("answers lost")
    assert proxy.faults == len(CUTS)


@both
@pytest.mark.parametrize("name", [*HARMLESS, *HARMLESS_WRITES])
def test_a_server_that_is_gone_is_asked_twice_at_most(
    proxy: Proxy, direct: RedisKVStore, name: str, awaited: bool, count: Any
) -> None:
    """Where every connection is cut, an operation gives up after the second and says what is in doubt."""
    word, call, _ = {**HARMLESS, **HARMLESS_WRITES}[name]
    for fault in CUTS:
        prepared(direct)
        with RedisKVStore(port=proxy.port, socket_timeout=20) as store:
            proxy.faults = 0
            came = came_of(store, call, partial(proxy.arm, word, fault, 1000), awaited=awaited)
            proxy.arm(word, fault, 0)
        assert type(came) is StoreUnavailableError
        assert proxy.faults == 2, fault
        assert ("may have been applied" in str(came)) == (name in HARMLESS_WRITES)
        count("answers lost", 2)


@both
def test_a_doubt_outlives_the_second_attempt(
    server: BreakableServer, direct: RedisKVStore, awaited: bool, count: Any
) -> None:
    """A write that was applied, and whose repetition found no server, still says that it may have been."""
    for name, (word, call, _) in HARMLESS_WRITES.items():
        prepared(direct)
        with Proxy(server.port) as proxy:

            def arm(proxy: Proxy = proxy, word: str = word) -> None:
                proxy.arm(word, LOSE_ANSWER)
                proxy.refuse_new()

            with RedisKVStore(port=proxy.port, socket_timeout=20) as store:
                came = came_of(store, call, arm, awaited=awaited)
            assert proxy.passed[word] > 0
        assert type(came) is StoreUnavailableError, (name, came)
        assert "may have been applied" in str(came), name
        count("answers lost")


@both
@pytest.mark.parametrize("name", ONCE_ONLY)
def test_what_is_not_harmless_is_said_once(
    proxy: Proxy, direct: RedisKVStore, name: str, awaited: bool, count: Any
) -> None:
    """add, pop and deletions whose answer was lost are not repeated; they say that they may be applied."""
    word, call, _ = ONCE_ONLY[name]
    for fault in [*CUTS, HOLD]:
        prepared(direct)
        patience = PATIENCE if fault is HOLD else 20
        with RedisKVStore(port=proxy.port, socket_timeout=patience) as store:
            came = came_of(store, call, partial(proxy.arm, word, fault), awaited=awaited)
        assert type(came) is StoreUnavailableError, (fault, came)
        assert "may have been applied" in str(came)
        assert proxy.passed[word] == (0 if fault is LOSE_REQUEST else 1), fault
        # And the doubt is a true one.
        applied = direct.exists("new") if name == "add" else not direct.exists("there")
        assert applied == (fault is not LOSE_REQUEST)
        count("answers lost")


@both
def test_no_answer_in_time_is_not_asked_for_again(
    proxy: Proxy, direct: RedisKVStore, awaited: bool, count: Any
) -> None:
    """An operation that waited for its whole time-out is not repeated; a write says what is in doubt."""
    for name, (word, call, _) in {**HARMLESS, **HARMLESS_WRITES}.items():
        prepared(direct)
        with RedisKVStore(port=proxy.port, socket_timeout=PATIENCE) as store:
            came = came_of(store, call, partial(proxy.arm, word, HOLD, 2), awaited=awaited)
            proxy.arm(word, HOLD, 0)
            assert type(came) is StoreUnavailableError, name
            assert ("may have been applied" in str(came)) == (name in HARMLESS_WRITES), name
            # The connection that it was lost on is not used again.
            assert came_of(store, lambda s: s.exists("no"), awaited=awaited) is False
        count("answers lost")
    assert proxy.faults == len(HARMLESS) + len(HARMLESS_WRITES)


@both
def test_a_garbled_answer_to_a_read(
    proxy: Proxy, direct: RedisKVStore, awaited: bool, count: Any
) -> None:
    """Something else in place of an answer is a typed error; the next one is right."""
    for name, (word, call, answer) in HARMLESS.items():
        prepared(direct)
        with RedisKVStore(port=proxy.port, socket_timeout=20) as store:
            assert (
                type(came_of(store, call, partial(proxy.arm, word, GARBLE), awaited=awaited))
                is StoreUnavailableError
            ), name
            assert came_of(store, call, awaited=awaited) == answer
        count("answers garbled")


@both
def test_a_garbled_answer_to_a_write(
    proxy: Proxy, direct: RedisKVStore, awaited: bool, count: Any
) -> None:
    """A write whose answer came garbled says that it may have been applied, because it was."""
    silent = []
    for name, (word, call, _) in {**HARMLESS_WRITES, **ONCE_ONLY}.items():
        prepared(direct)
        with RedisKVStore(port=proxy.port, socket_timeout=20) as store:
            came = came_of(store, call, partial(proxy.arm, word, GARBLE), awaited=awaited)
            assert type(came) is StoreUnavailableError, name
            if "may have been applied" not in str(came):
                silent.append(name)
        count("answers garbled")
    assert silent == []


@pytest.mark.parametrize(
    ("name", "made"),
    [
        *((name, made) for name in ONCE_ONLY for made in ("client=", "retry=", "retry= aio")),
        *(("lock", made) for made in ("client=", "retry=")),
    ],
)
def test_a_client_that_repeats_makes_no_lie(
    proxy: Proxy, direct: RedisKVStore, name: str, made: str, count: Any
) -> None:
    """With a client that repeats by itself no answer is a lie: it is right, or an error that says the doubt.

    redis-py repeats three times unless told otherwise. An `add` that is repeated finds its own
    value, a `pop` and a `delete` find nothing, a lock finds itself locked.
    """
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    retry = Retry(NoBackoff(), 3)
    cases = {**ONCE_ONLY, "lock": Case("NX", _locked, True)}
    word, call, answer = cases[name]
    for fault in [LOSE_ANSWER, HALF_ANSWER]:
        prepared(direct)
        client = redis.Redis(port=proxy.port, retry=retry, socket_timeout=20)
        with client:
            store = (
                RedisKVStore(client=client)
                if made == "client="
                else RedisKVStore(port=proxy.port, retry=retry, socket_timeout=20)
            )
            came = came_of(
                store, call, partial(proxy.arm, word, fault), awaited=made == "retry= aio"
            )
        count("answers lost")
        if isinstance(came, StoreUnavailableError):
            assert name == "lock" or "may have been applied" in str(came)
        else:
            assert came == answer, (fault, came)


def _locked(store: RedisKVStore) -> bool:
    # Another name each time: a lease that was lost stays for its time.
    with store.lock(f"job {random.random()}", ttl=5, timeout=0.5):
        return True


def test_a_lock_whose_answer_was_lost_ends(proxy: Proxy, direct: RedisKVStore, count: Any) -> None:
    """A lock that was got, but whose answer was lost, is a typed error and free after its lease."""
    with RedisKVStore(port=proxy.port, socket_timeout=20) as store:
        store.exists("warm")
        proxy.arm("NX", LOSE_ANSWER)
        with pytest.raises(StoreUnavailableError):
            store.lock("job", ttl=0.5).__enter__()
        count("answers lost")
        with direct.lock("job", timeout=30):
            pass


@both
def test_pop_puts_back_what_it_cannot_read(
    server: BreakableServer, proxy: Proxy, awaited: bool, count: Any
) -> None:
    """What pop can't read is back with its ttl where the server answers, the second time at the latest."""
    with redis.Redis(port=server.port) as raw:
        for fault in (None, LOSE_REQUEST, LOSE_ANSWER, HALF_ANSWER):
            raw.set("kv::there", b"another version's", px=100_000)
            with RedisKVStore(port=proxy.port, socket_timeout=20) as store:
                arm = partial(proxy.arm, "NX", fault or "", 0 if fault is None else 1)
                came = came_of(store, lambda s: s.pop("there"), arm, awaited=awaited)
            assert type(came) is SerializationError, (fault, came)
            assert raw.get("kv::there") == b"another version's"
            assert 0 < raw.pttl("kv::there") <= 100_000
            count("entries that can't be read, popped")


@both
def test_pop_that_can_not_put_back_says_so(
    server: BreakableServer, proxy: Proxy, awaited: bool
) -> None:
    """Where the connection is cut again before what can't be read is back, the error is no silence."""
    with redis.Redis(port=server.port) as raw:
        raw.set("kv::there", b"another version's")
    with RedisKVStore(port=proxy.port, socket_timeout=20) as store:
        arm = partial(proxy.arm, "NX", LOSE_REQUEST, 2)
        came = came_of(store, lambda s: s.pop("there"), arm, awaited=awaited)
    assert type(came) is StoreUnavailableError
    assert "may have been applied" in str(came)


@pytest.mark.parametrize(("name", "arrive"), [("set", 1), ("delete", 1), ("clear", 2)])
def test_a_batch_that_arrived_in_part(
    direct: RedisKVStore, name: str, arrive: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server goes after the first step of an operation arrived, the error tells the doubt."""
    many = {f"k{number}": number for number in range(501)}
    direct.set_many(many)
    asked: List[Any] = []
    ask = direct._client.execute_command

    def refused(*command: Any) -> Any:
        asked.append(command)
        if len(asked) > arrive:
            raise redis.ConnectionError("refused") from ConnectionRefusedError(111)
        return ask(*command)

    monkeypatch.setattr(direct._client, "execute_command", refused)
    with pytest.raises(StoreUnavailableError, match="may have been applied"):
        if name == "set":
            direct.set_many(many)
        elif name == "delete":
            direct.delete_many(many)
        else:
            direct.clear_namespace(None)
    assert len(asked) > arrive


@both
def test_torn_and_late_answers_are_whole(
    proxy: Proxy, direct: RedisKVStore, awaited: bool, count: Any
) -> None:
    """Answers that come late and in pieces, a large one among them, are the right answers."""
    proxy.torn = True
    proxy.delay = lambda: 0.001
    large = {"large": b"x" * 300_000}
    for name, (word, call, answer) in {**HARMLESS, **HARMLESS_WRITES, **ONCE_ONLY}.items():
        prepared(direct)
        with RedisKVStore(port=proxy.port, socket_timeout=20) as store:
            assert came_of(store, call, awaited=awaited) == answer, (name, word)
        count("answers torn")
    direct.set("large", large)
    with RedisKVStore(port=proxy.port, socket_timeout=20) as store:
        assert came_of(store, lambda s: s.get("large"), awaited=awaited) == large
