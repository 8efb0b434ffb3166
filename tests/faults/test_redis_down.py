"""A Redis server that is down, stopped, killed, loading, or locked: a typed error soon, then recovery."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import threading
import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest
import redis
from breakable import EVERY_OPERATION, WRITES, BreakableServer, in_threads, outcomes
from proxy import Impostor
from redis.backoff import NoBackoff
from redis.retry import Retry

from kv_store_adapter import KVStoreError, RedisKVStore, StoreUnavailableError
from kv_store_adapter.redis.aio import RedisAsyncStore
from server import free_port

pytestmark = pytest.mark.server

# Seconds that the stores here wait for an answer; and what an operation may take then. The second
# is generous, because the machine may be busy; redis-py by itself takes much longer still.
PATIENCE, AT_MOST = 0.7, 8.0


@pytest.fixture(scope="module")
def server() -> Iterator[BreakableServer]:
    """A server that each test leaves running."""
    with BreakableServer() as server:
        yield server


@pytest.fixture
def store(server: BreakableServer) -> Iterator[RedisKVStore]:
    with redis.Redis(port=server.port) as raw:
        raw.flushall()
    with RedisKVStore(port=server.port, socket_timeout=PATIENCE) as store:
        yield store


def raised(store: RedisKVStore, name: str, *, awaited: bool = False) -> StoreUnavailableError:
    """The error of one operation, which came soon and as it should."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        if awaited:
            asyncio.run(_await(store, name))
        else:
            EVERY_OPERATION[name](store)
    assert time.monotonic() - began < AT_MOST, name
    assert caught.value.__cause__ is not None
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return caught.value


async def _await(store: RedisKVStore, name: str) -> Any:
    return await EVERY_OPERATION[name](store.aio)


@pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])
def test_a_closed_port(awaited: bool, count: Any) -> None:
    """Where nobody listens every operation, plain and awaited, is a typed error that names the place."""
    port = free_port()
    with RedisKVStore(port=port) as store:
        for name in EVERY_OPERATION:
            assert f"localhost:{port}/0 can't be reached" in str(
                raised(store, name, awaited=awaited)
            )
            count("operations on a closed port")


@pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])
@pytest.mark.parametrize("what", ["closed", "no socket", "silent TLS", "full"])
def test_what_was_never_sent_leaves_no_doubt(tmp_path: Path, what: str, awaited: bool) -> None:
    """A write that found no server does not say that it may have been applied."""
    with contextlib.ExitStack() as stack:
        options: Any = {"socket_connect_timeout": 0.2, "socket_timeout": 0.2}
        if what == "closed":
            store = RedisKVStore(port=free_port(), **options)
        elif what == "no socket":
            store = RedisKVStore.from_url(f"unix://{tmp_path}/none.sock", **options)
        else:
            # Nobody accepts; with a full queue not even the system does.
            deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            place = deaf.getsockname()
            for _ in range(3 if what == "full" else 0):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(place)
            scheme = "redis" if what == "full" else "rediss"
            store = RedisKVStore.from_url(f"{scheme}://127.0.0.1:{place[1]}", **options)
        stack.enter_context(store)
        said = [str(raised(store, name, awaited=awaited)) for name in WRITES]
    assert not [text for text in said if "may have been applied" in text]


@pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])
def test_what_was_sent_leaves_a_doubt_whatever_came_before(
    awaited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That an earlier attempt, or another store, was refused says nothing of a write that was sent."""
    with socket.create_server(("127.0.0.1", 0)) as deaf, RedisKVStore(port=free_port()) as primary:
        port = deaf.getsockname()[1]
        with RedisKVStore(port=port, socket_timeout=0.2) as secondary:
            for name in WRITES:
                try:
                    EVERY_OPERATION[name](primary)
                except StoreUnavailableError:
                    assert "may have been applied" in str(raised(secondary, name, awaited=awaited))

            kind: Any = RedisAsyncStore if awaited else RedisKVStore
            real, refused = kind._ask_once, []

            def refused_once(self: Any, *args: Any) -> Any:
                if not refused:
                    refused.append(1)
                    raise redis.ConnectionError("refused") from ConnectionRefusedError()
                return real(self, *args)

            with monkeypatch.context() as patch:
                patch.setattr(kind, "_ask_once", refused_once)
                assert "may have been applied" in str(raised(secondary, "set", awaited=awaited))


@pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])
def test_a_stopped_server(
    server: BreakableServer, store: RedisKVStore, awaited: bool, count: Any
) -> None:
    """While the server is stopped every operation is a typed error within its time-out, then works."""
    for call in EVERY_OPERATION.values():
        call(_warm(store))
    with server.paused():
        for name, error in zip(
            EVERY_OPERATION,
            outcomes(lambda name: raised(store, name, awaited=awaited), EVERY_OPERATION),
        ):
            assert type(error) is StoreUnavailableError, (name, error)
            assert ("may have been applied" in str(error)) >= (name in WRITES), name
            count("operations on a stopped server")
    for call in EVERY_OPERATION.values():
        call(_warm(store))


def _warm(store: RedisKVStore) -> RedisKVStore:
    """So that pop has something to pop."""
    store.set("key", 1)
    return store


@pytest.mark.parametrize("made", ["own", "client"])
def test_a_shared_pool_recovers(
    server: BreakableServer, store: RedisKVStore, made: str, rounds: Any, count: Any
) -> None:
    """Threads that ran into their time-outs get right answers again afterwards, on no more connections."""
    pool = redis.BlockingConnectionPool(
        max_connections=4, timeout=60, port=server.port, socket_timeout=PATIENCE
    )
    client = redis.Redis(connection_pool=pool) if made == "client" else None
    shared = RedisKVStore(client=client) if client is not None else store
    store.set_many({f"k{me}": [me] for me in range(16)})

    def work(me: int) -> List[bool]:
        return [shared.get(f"k{me}") == [me] for _ in range(50)]

    for _ in range(rounds(2, 10)):
        with server.paused():
            stopped = in_threads(8, lambda me: shared.get(f"k{me + 8}"))
            count("time-outs in threads", len(stopped))
        assert {type(error) for error in stopped} == {StoreUnavailableError}
        answers = in_threads(16, work)
        assert answers == [[True] * 50] * 16
        count("reads checked", 16 * 50)
        with redis.Redis(port=server.port) as raw:
            # One more: this very connection. Those that timed out were given up.
            assert len(raw.client_list()) <= (4 if client is not None else 16) + 2
    if client is not None:
        client.close()
    pool.disconnect()


def test_late_writes_are_no_wrong_answers(
    server: BreakableServer, store: RedisKVStore, rounds: Any, count: Any
) -> None:
    """Answers that come after their time-out reach nobody: each read is of its own key."""
    store.set_many({f"k{me}": f"value of k{me}" for me in range(8)})
    for number in range(rounds(3, 20)):
        with server.paused():
            errors = in_threads(8, lambda me: store.set(f"k{me}", f"value of k{me}"))
            assert all("may have been applied" in str(error) for error in errors), errors
        for me in range(8):
            assert store.get(f"k{me}") == f"value of k{me}"
            assert store.exists(f"no{me}") is False
            assert store.get_many([f"k{me}", "x"]) == {f"k{me}": f"value of k{me}"}
            count("reads checked", 3)
        assert store.add(f"new{number}", 1) is True


def test_tasks_that_queue_wait_once(server: BreakableServer, store: RedisKVStore) -> None:
    """Hundreds of awaited calls on a stopped server cost one wait together, and then work again."""
    store.set_many({f"k{me}": me for me in range(400)})

    async def main() -> Any:
        with server.paused():
            began = time.monotonic()
            came = await asyncio.gather(
                *(store.aio.get(f"k{me}") for me in range(400)), return_exceptions=True
            )
            took = time.monotonic() - began
        again = await asyncio.gather(*(store.aio.get(f"k{me}") for me in range(400)))
        return came, took, again

    came, took, again = asyncio.run(main())
    assert {type(error) for error in came} == {StoreUnavailableError}
    assert not [error for error in came if "may have been applied" in str(error)]
    assert again == list(range(400))
    # Thirteen times 32 connections one after the other would be thirteen waits.
    assert took < 10 * PATIENCE


def test_one_slow_command_takes_no_others_along() -> None:
    """Where others are answered, one awaited call that runs into its time-out fails alone."""
    from kv_store_adapter.redis.aio import _Connected

    async def main() -> List[Any]:
        connected = _Connected(redis.Redis(), 2)
        answered, time_out = asyncio.Event(), asyncio.Event()

        async def ask_of(client: Any, ask: Any) -> List[Any]:
            if ask == "slow":
                await time_out.wait()
                raise redis.TimeoutError
            if ask == "second":
                answered.set()
                await asyncio.sleep(0.01)  # the slow one's time is out now, the rest queue
            return [ask]

        async def end_the_slow_one() -> None:
            await answered.wait()
            time_out.set()

        asks: List[Any] = ["slow", "first", "second", "third", "fourth", "fifth"]
        *came, _ = await asyncio.gather(
            *(connected.ask(ask_of, ask) for ask in asks),
            end_the_slow_one(),
            return_exceptions=True,
        )
        return came

    slow, *others = asyncio.run(main())
    assert type(slow) is redis.TimeoutError
    assert others == [["first"], ["second"], ["third"], ["fourth"], ["fifth"]]


@pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])
def test_killed_and_started_again(
    server: BreakableServer, store: RedisKVStore, awaited: bool, rounds: Any, count: Any
) -> None:
    """After a crash each operation works at the first call, also on connections of before it."""

    def restart() -> None:
        server.kill()
        raised(store, "get")
        server.start_again()

    async def life() -> None:
        stores = {name: RedisKVStore(port=server.port) for name in EVERY_OPERATION}
        for each in stores.values():
            await each.aio.exists("key") if awaited else each.exists("key")
        # In a thread, so that the event loop hears of the connections that end.
        await asyncio.get_running_loop().run_in_executor(None, restart)
        for name, call in EVERY_OPERATION.items():
            store.set("key", 1)
            if awaited:
                await call(stores[name].aio)
            else:
                call(stores[name])
            await stores[name].aio.close()
            count("operations after a crash")

    for _ in range(rounds(2, 15)):
        asyncio.run(life())
        count("servers killed")


def test_killed_at_work(
    server: BreakableServer, store: RedisKVStore, rounds: Any, count: Any
) -> None:
    """While the server dies and returns, threads and tasks see typed errors or right answers, no more."""
    stop = threading.Event()
    wrong: List[Any] = []
    done = [0] * 6

    def check(me: int, value: Any) -> None:
        done[me] += 1
        if value is not None and value[0] != me:
            wrong.append((me, value))

    def work(me: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                store.set(f"k{me}", (me, number), "n")
                check(me, store.get(f"k{me}", "n", default=None))
                check(me, store.get_many([f"k{me}"], "n").get(f"k{me}"))
                check(me, store.pop(f"k{me}", "n", default=None))
            except StoreUnavailableError:
                time.sleep(0.001)

    async def work_awaited(me: int) -> None:
        while not stop.is_set():
            try:
                await store.aio.set(f"k{me}", (me, 0), "n")
                check(me, await store.aio.get(f"k{me}", "n", default=None))
                check(me, await store.aio.pop(f"k{me}", "n", default=None))
            except StoreUnavailableError:
                await asyncio.sleep(0.001)

    async def tasks() -> None:
        await asyncio.gather(*(work_awaited(me) for me in (3, 4, 5)))

    def kill() -> None:
        try:
            for _ in range(rounds(4, 30)):
                before = list(done)
                server.kill()
                server.start_again()
                count("servers killed")
                deadline = time.monotonic() + 60
                while any(now < was + 5 for now, was in zip(done, before)):
                    assert time.monotonic() < deadline, (done, before)
                    time.sleep(0.005)
        finally:
            stop.set()

    jobs: List[Any] = [lambda: work(0), lambda: work(1), lambda: work(2), kill]
    jobs.append(lambda: asyncio.run(tasks()))
    assert outcomes(lambda job: job(), jobs) == [None] * 5
    assert wrong == []
    count("reads checked", sum(done))
    count("wrong answers", 0)


def test_loading(server: BreakableServer, store: RedisKVStore, count: Any) -> None:
    """While the server loads its data every operation says so; afterwards it has the data."""
    store.set_many({f"k{number}": number for number in range(4000)}, "loaded")
    with redis.Redis(port=server.port, socket_timeout=60) as raw:
        raw.save()
    server.kill()
    # Half a millisecond a key, with a look at the clients after each: two seconds of loading.
    server.start_again(
        *("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024"),
        until_loaded=False,
    )
    said = set()
    patient = RedisKVStore(port=server.port, socket_timeout=30)
    deadline = time.monotonic() + 60
    with patient:
        while time.monotonic() < deadline:
            try:
                assert patient.get("k3999", "loaded") == 3999
                break
            except StoreUnavailableError as error:
                said.add(str(error).partition(" is ")[2] or "not up yet")
                count("operations on a loading server")
                time.sleep(0.01)
        assert "still loading its data. Try again in a moment." in said
        assert len(patient.keys("loaded")) == 4000
    (server.folder / "dump.rdb").unlink()


@pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "still loading"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "refused the command"),
        (b"-MISCONF Redis is configured to save RDB snapshots\r\n", "refused the command"),
        (b"-NOAUTH Authentication required.\r\n", "password"),
        (b"-READONLY You can't write against a read only replica.\r\n", "read-only"),
        (b"-BUSY Redis is busy running a script.\r\n", "refused the command"),
        (b"-CLUSTERDOWN The cluster is down\r\n", ""),
        (b"-MOVED 1 127.0.0.1:1\r\n", ""),
        (b"-ERR max number of clients reached\r\n", ""),
    ],
    ids=lambda value: value[1:9].decode().split()[0] if isinstance(value, bytes) else "",
)
def test_refusals(answer: bytes, says: str, awaited: bool, count: Any) -> None:
    """Whatever a server refuses with, every operation is a typed error that says what it was."""
    with Impostor(answer) as impostor, RedisKVStore(port=impostor.port) as store:
        for name in EVERY_OPERATION:
            assert says in str(raised(store, name, awaited=awaited))
            count("refusals")


def test_a_wrong_password_then_the_right_one(count: Any) -> None:
    """A server that changes its password refuses typed, in every operation, and takes the right one."""
    with BreakableServer("--requirepass", "open sesame") as server:
        with RedisKVStore(port=server.port, password="hunter2") as store:
            for name in EVERY_OPERATION:
                for awaited in (False, True):
                    text = str(raised(store, name, awaited=awaited))
                    assert "password" in text
                    assert "hunter2" not in text
                    assert "may have been applied" not in text
                    count("logins refused")
        with RedisKVStore(port=server.port, password="open sesame") as store:
            store.set("key", 1)
            assert store.get("key") == 1
            # Changed under a connection that is up: it goes on; a new connection is refused.
            with redis.Redis(port=server.port, password="open sesame") as raw:
                raw.config_set("requirepass", "another")
                raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                assert "sesame" not in str(raised(store, "get"))
                raw.config_set("requirepass", "open sesame")
            assert store.get("key") == 1


def test_a_lock_held_through_a_crash(server: BreakableServer, store: RedisKVStore) -> None:
    """A lock held through a crash ends its block without an error, and can be taken again."""
    with store.lock("job", timeout=1):
        server.kill()
    server.start_again()
    with store.lock("job", timeout=1):
        assert isinstance(_locked_out(store), KVStoreError)


def _locked_out(store: RedisKVStore) -> Any:
    with pytest.raises(KVStoreError) as caught:
        store.lock("job", timeout=0).__enter__()
    return caught.value


def test_a_client_without_retries_answers_in_time(server: BreakableServer) -> None:
    """A client of the caller's own waits as it was told to, no longer."""
    client = redis.Redis(port=server.port, socket_timeout=PATIENCE, retry=Retry(NoBackoff(), 0))
    store = RedisKVStore(client=client)
    store.set("key", 1)
    with server.paused():
        raised(store, "get")
        raised(store, "add")
    assert store.get("key") == 1
    client.close()
