"""What `RedisKVStore` promises beyond the contract."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Iterator, List
from unittest import mock

import fakeredis
import pytest
import redis

from kv_store_adapter import (
    JSONSerializer,
    KeyNotFoundError,
    KVStoreError,
    LockTimeoutError,
    RedisKVStore,
    SerializationError,
    StoreUnavailableError,
)
from kv_store_adapter.redis.conversation import Ask, WrongTypeError
from kv_store_adapter.redis.store import translate
from server import Server, free_port
from signals import needs_timers, run_among_signals, signals_spare_with

server_test = pytest.mark.server


@pytest.fixture(params=["fake", *(pytest.param(n, marks=server_test) for n in ("redis", "valkey"))])
def client(request: Any) -> Iterator[Any]:
    """A client of redis-py's kind: fakeredis, and redis-py and valkey-py on a real server."""
    if request.param == "fake":
        yield fakeredis.FakeRedis(server=fakeredis.FakeServer())
        return
    server: Server = request.getfixturevalue("redis_server")
    # valkey-py, where it is installed, has the same classes by the same names, related to none.
    driver = redis if request.param == "redis" else pytest.importorskip("valkey")
    with driver.Redis(port=server.port, socket_timeout=20) as client:
        yield client


@pytest.fixture
def store(client: Any) -> RedisKVStore:
    """A store on each of the clients."""
    return RedisKVStore(client=client)


# ---------------------------------------------------------------------- what is on the server


def test_the_layout_is_as_documented(store: RedisKVStore, client: Any) -> None:
    """One plain string an entry, under prefix:namespace:key, with the server's own expiry."""
    store.set("config", 1)
    store.set("settings", 1, "user:1", 1000)
    store.set("a:b%", 1, "50%")
    assert sorted(client.keys()) == [b"kv:50%25:a:b%", b"kv::config", b"kv:user%3A1:settings"]
    assert client.type("kv::config") == b"string"
    assert 900_000 < client.pttl("kv:user%3A1:settings") <= 1_000_000
    assert client.pttl("kv::config") == -1
    assert pickle.loads(client.get("kv::config")) == 1


def test_a_serializer_is_used(client: Any) -> None:
    """With JSON other programs read and write the values."""
    store = RedisKVStore(client=client, serializer=JSONSerializer())
    store.set("key", {"a": [1, None]}, "n")
    assert client.get("kv:n:key") == b'{"a":[1,null]}'
    client.set("kv:n:other", b'["from elsewhere"]')
    assert store.get("other", "n") == ["from elsewhere"]


FOREIGN = [
    *("kv", "kv:", "kv::"[:-1], "kv:novalue", "kvx:n:a", "xkv::a", "KV::a", " kv::a", "x:kv:n:a"),
    *("kv:%zz:a", "kv:a%b:c", "kv:%3a:a", "kv:100%:a", "kv%lock:n:a", "kv%25:n:a", "other", ""),
]


def test_foreign_keys_are_never_listed_or_deleted(store: RedisKVStore, client: Any) -> None:
    """Names that only look like ours, which we would not have written, are not listed or deleted."""
    foreign: List[bytes] = [name.encode() for name in FOREIGN]
    foreign += [b"kv:\xff\xfe:a", b"kv:n:\xff\xfe", b"kv::\xff", b"\xff"]
    for name in foreign:
        client.set(name, b"precious")
    store.set("key", 1, "n")
    store.set("key", 1)
    assert store.keys("n") == ["key"] == list(store.iter_keys("n"))
    assert store.keys() == ["key"]
    assert store.list_namespaces() == ["n"]
    assert store.clear_namespace("n") == 1
    assert store.clear_namespace(None) == 1
    for name in ("a", "%zz", "lock", "x", "kv", "novalue", "50%"):
        assert store.clear_namespace(name) == 0
    assert all(client.get(name) == b"precious" for name in foreign)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        *(("kv", "kv:n"), ("a", "ab"), ("a*", "ab"), ("a?", "ab"), ("[ab]", "a"), ("a", "a:")),
        *(("%", "%25"), ("a\\", "a"), ("kv", "KV"), ("é", "e\u0301"), (":", "::")),
    ],
)
def test_prefixes_are_apart(client: Any, mine: str, theirs: str) -> None:
    """Stores of different prefixes on one server see, list and clear nothing of each other."""
    one, other = (RedisKVStore(client=client, prefix=prefix) for prefix in (mine, theirs))
    for store, value in ((one, 1), (other, 2)):
        store.set_many({"key": value, ":": value, "n:key": value, "a*": value})
        store.set_many({"key": value, ":": value, "a*": value}, "n")
    for store, value in ((one, 1), (other, 2)):
        assert set(store.get_many(store.keys()).values()) == {value}
        assert (len(store.keys()), len(store.keys("n"))) == (4, 3)
        assert store.list_namespaces() == ["n"]
    assert one.clear_namespace(None) == 4
    assert one.clear_namespace("n") == 3
    assert (len(other.keys()), len(other.keys("n"))) == (4, 3)


@pytest.mark.parametrize(("prefix", "error"), [("", ValueError), (5, TypeError), (None, TypeError)])
def test_a_prefix_is_text(client: Any, prefix: Any, error: Any) -> None:
    """A prefix is a str, and not empty."""
    with pytest.raises(error, match="prefix"):
        RedisKVStore(client=client, prefix=prefix)


def test_wrong_type_agrees_everywhere(store: RedisKVStore, client: Any) -> None:
    """A name that holds no string is there, can't be read by any operation, and can be replaced."""

    def plant() -> None:
        client.delete("kv:n:key")
        client.rpush("kv:n:key", "theirs")

    plant()
    store.set("sound", 1, "n")
    for read in (
        lambda: store.get("key", "n"),
        lambda: store.get("key", "n", default=None),
        lambda: store.get_many(["sound", "key"], "n"),
        lambda: store.pop("key", "n", default=None),
        lambda: store.reader("n")("key"),
        lambda: asyncio.run(store.aio.get("key", "n")),
        lambda: asyncio.run(store.aio.get_many(["sound", "key"], "n")),
    ):
        with pytest.raises(SerializationError, match="no string"):
            read()
        assert client.lrange("kv:n:key", 0, -1) == [b"theirs"]
    assert store.get_many(["sound"], "n") == {"sound": 1}
    assert store.exists("key", "n") and store.ttl("key", "n") is None
    assert sorted(store.keys("n")) == ["key", "sound"]
    assert store.add("key", 1, "n") is False
    store.set("key", 2, "n")
    assert store.get("key", "n") == 2
    plant()
    assert store.delete("key", "n") is True
    plant()
    assert store.clear_namespace("n") == 2


def test_what_can_t_be_read_is_left(store: RedisKVStore, client: Any) -> None:
    """A value that can't be read is left where it is, with its ttl, by get, pop and get_many."""
    client.set("kv:n:key", b"no pickle", px=1_000_000)
    for call in (store.get, store.pop):
        with pytest.raises(SerializationError):
            call("key", "n")
    with pytest.raises(SerializationError):
        store.get_many(["key"], "n")
    assert client.get("kv:n:key") == b"no pickle"
    assert 900_000 < client.pttl("kv:n:key") <= 1_000_000


@server_test
def test_no_command_that_stalls_or_takes_too_much(redis_server: Server) -> None:
    """Whatever the store does, the server never hears KEYS, FLUSHDB or DEL."""
    with redis.Redis(port=redis_server.port) as raw, RedisKVStore(port=redis_server.port) as store:
        raw.execute_command("CONFIG", "RESETSTAT")
        store.set_many({f"k{number}": number for number in range(3000)}, "n", 1000)
        assert len(store.keys("n", "k*")) == len(list(store.iter_keys("n"))) == 3000
        assert store.get_many(["k1", "x"], "n") == {"k1": 1}
        store.touch("k1", "n")
        store.pop("k1", "n")
        store.list_namespaces()
        assert store.delete_many(["k2", "k3"], "n") == 2
        assert store.delete("k4", "n")
        assert store.clear_namespace("n") == 2996
        heard = {name.replace("cmdstat_", "") for name in raw.info("commandstats")}
        assert not heard & {"keys", "flushdb", "flushall", "del", "randomkey"}
        assert {"scan", "unlink", "mget", "getdel"} <= heard


@server_test
def test_round_trips(redis_server: Server) -> None:
    """Single operations are one command, batches a few: nobody waits a round trip a key."""
    with redis.Redis(port=redis_server.port) as raw, RedisKVStore(port=redis_server.port) as store:
        store.set("warm", 1)
        items = {f"k{number}": number for number in range(400)}
        for call in (
            lambda: store.set("key", 1, "n", 10),
            lambda: store.get("key", "n"),
            lambda: store.add("key", 1, "n", 10),
            lambda: store.delete("key", "n"),
            lambda: store.touch("key", "n", 10),
            lambda: store.set_many(items, "n"),
            lambda: store.delete_many(items, "n"),
        ):
            before = raw.info("stats")["total_commands_processed"]
            call()
            # One is this very INFO's.
            assert raw.info("stats")["total_commands_processed"] - before == 2


# ---------------------------------------------------------------------- the client


def test_a_patched_redis_is_honoured() -> None:
    """redis.Redis is looked up when the store is made, so a test that patches it is honoured."""
    fake_server = fakeredis.FakeServer()

    def fake(**options: Any) -> Any:
        return fakeredis.FakeRedis(server=fake_server, **options)

    with mock.patch("redis.Redis", side_effect=fake):
        store = RedisKVStore(host="nowhere.invalid", port=1)
    store.set("key", [1], "n", 10)
    assert store.get("key", "n") == [1]
    assert asyncio.run(store.aio.get("key", "n")) == [1]
    with mock.patch("redis.Redis", fakeredis.FakeRedis):
        assert RedisKVStore(host="nowhere.invalid").keys() == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: RedisKVStore(decode_responses=True),
        lambda: RedisKVStore(client=redis.Redis(decode_responses=True)),
        lambda: RedisKVStore(client=fakeredis.FakeRedis(decode_responses=True)),
        lambda: RedisKVStore.from_url("redis://localhost?decode_responses=True"),
    ],
)
def test_decoding_clients_are_refused(make: Callable[[], Any]) -> None:
    """A client that hands out text is refused when the store is made, with what to do."""
    with pytest.raises(ValueError, match="decode_responses"):
        make()


def test_a_client_comes_alone() -> None:
    """client= and connection parameters together are a contradiction."""
    for options in ({"host": "x"}, {"port": 1}, {"password": "x"}, {"socket_timeout": 1}):
        with pytest.raises(TypeError, match="client="):
            RedisKVStore(client=fakeredis.FakeRedis(), **options)  # type: ignore[arg-type]


def test_what_was_passed_in_is_not_closed(client: Any) -> None:
    """close() leaves the caller's client open."""
    store = RedisKVStore(client=client)
    with mock.patch.object(client, "close") as closing:
        store.close()
        store.close()
    assert not closing.called
    assert client.ping()


def test_every_parameter_of_redis_is_taken() -> None:
    """Parameters go through to redis.Redis, the caller's own patience included."""
    settings = RedisKVStore("h", 7, 3, "p", username="u", socket_timeout=9)._client
    kwargs = settings.connection_pool.connection_kwargs
    expected = {"host": "h", "port": 7, "db": 3, "password": "p", "username": "u"}
    assert {name: kwargs[name] for name in expected} == expected
    assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"]) == (9, 1.0)
    with pytest.raises(TypeError):
        RedisKVStore(no_such_parameter=1)


@server_test
def test_from_url_talks_to_the_server(redis_server: Server) -> None:
    """from_url takes prefix= and the database from the url."""
    url = f"redis://127.0.0.1:{redis_server.port}/3?prefix=a%3Ab&socket_timeout=20"
    with RedisKVStore.from_url(url) as store, redis.Redis(port=redis_server.port, db=3) as raw:
        store.set("key", 1, "n")
        assert raw.keys() == [b"a%3Ab:n:key"]
        assert pickle.loads(pickle.dumps(store)).get("key", "n") == 1


def test_a_store_on_a_client_says_why_it_does_not_pickle() -> None:
    """A store made with client= doesn't pickle, and says what to do."""
    with pytest.raises(TypeError, match="client="):
        pickle.dumps(RedisKVStore(client=fakeredis.FakeRedis()))


# ---------------------------------------------------------------------- a server in trouble


def test_errors_of_any_client_are_ours() -> None:
    """What valkey-py raises becomes ours as well."""
    valkey = pytest.importorskip("valkey")
    with valkey.Redis(port=free_port()) as client:
        store = RedisKVStore(client=client)
        with pytest.raises(StoreUnavailableError, match="can't be reached|no answer"):
            store.get("key")


def _refused(store: RedisKVStore, seconds: float = 2.5) -> List[StoreUnavailableError]:
    """What a few operations raise, each within about a second."""
    errors = []
    calls: Any = {
        "get": lambda: store.get("key"),
        "set": lambda: store.set("key", 1),
        "keys": store.keys,
        "get_many": lambda: store.get_many(["a", "b"]),
        "aio": lambda: asyncio.run(store.aio.get("key")),
        "lock": lambda: store.lock("key", timeout=0).__enter__(),
    }
    for name, call in calls.items():
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError) as caught:
            call()
        assert time.monotonic() - began < seconds, name
        assert caught.value.__cause__ is not None
        assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
        errors.append(caught.value)
    return errors


def test_a_server_that_is_down() -> None:
    """Nobody listens: one clear error, at once, that names the place."""
    port = free_port()
    for error in _refused(RedisKVStore(port=port)):
        assert f"localhost:{port}/0" in str(error)
        assert "Is the server up" in str(error)


def test_a_host_that_does_not_exist() -> None:
    """A name that no name server knows is the same clear error."""
    with pytest.raises(StoreUnavailableError, match=r"nowhere\.invalid"):
        RedisKVStore(host="nowhere.invalid").get("key")


@contextlib.contextmanager
def _something_else(answer: Any) -> Iterator[int]:
    """A socket that accepts, and sends `answer` to whatever it hears; None: never a word."""
    open_sockets: List[socket.socket] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                open_sockets.append(connection)
                if answer == b"":
                    connection.close()
                elif answer is not None:
                    with contextlib.suppress(OSError):
                        connection.recv(1000)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # Wakes accept(), which close() alone does not.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for each in open_sockets:
                each.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\xff garbage \r\n" * 10,
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
    ids=["http", "garbage", "ssh", "hangs up"],
)
def test_something_that_is_no_redis(answer: bytes) -> None:
    """What answers like no Redis is one clear error, soon, never the driver's."""
    with _something_else(answer) as port:
        _refused(RedisKVStore(port=port))


def test_something_that_never_answers() -> None:
    """What accepts and never answers costs about a second an operation, not more."""
    with _something_else(None) as port, RedisKVStore(port=port) as store:
        for call in (lambda: store.get("key"), lambda: store.set("key", 1)):
            took = []
            for _ in range(3):
                began = time.monotonic()
                with pytest.raises(StoreUnavailableError, match="can't be reached"):
                    call()
                took.append(time.monotonic() - began)
                if took[-1] < 2.5:
                    break  # the machine may stand still for a moment, but not three times
            assert 0.5 < min(took) < 2.5


@server_test
def test_a_wrong_password(locked_server: Server) -> None:
    """No password, or a wrong one, says so, and no message or repr holds the password."""
    for password in (None, "hunter2"):
        with RedisKVStore(port=locked_server.port, password=password) as store:
            for error in _refused(store):
                assert "password" in str(error)
                assert "hunter2" not in str(error)
                assert "hunter2" not in repr(error.__cause__)
            assert "hunter2" not in repr(store)
            assert "hunter2" not in repr(store.namespace("a"))
            assert "hunter2" not in repr(store.as_mapping("a"))
    with RedisKVStore(port=locked_server.port, password="open sesame", socket_timeout=20) as store:
        store.set("key", 1)
        assert store.get("key") == 1
        assert "sesame" not in repr(store)
    url = f"redis://:open%20sesame@127.0.0.1:{locked_server.port}"
    with RedisKVStore.from_url(url) as store:
        assert store.get("key") == 1
        assert "sesame" not in repr(store)


@server_test
def test_a_dropped_connection_is_opened_again(redis_server: Server) -> None:
    """When the server dropped the connections, the next operations go on as if nothing was."""
    with redis.Redis(port=redis_server.port) as raw, RedisKVStore(port=redis_server.port) as store:
        store.set("key", 1)
        for call, answer in (
            (lambda: store.get("key"), 1),
            (lambda: store.set("key", 1), None),
            (lambda: store.get_many(["key", "x"]), {"key": 1}),
            (store.keys, ["key"]),
        ):
            raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert call() == answer


@server_test
def test_connections_that_interruptions_cost_come_back(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that lost all its places between two steps of redis-py's is replaced."""
    with RedisKVStore(port=redis_server.port, max_connections=2, prefix="places") as store:

        def lose_places() -> None:
            pool = store._client.connection_pool
            pool.disconnect()
            pool._available_connections.clear()
            pool._created_connections = 2

        store.set("key", 1)
        lose_places()
        # Nobody was interrupted: there are too many callers.
        with pytest.raises(StoreUnavailableError, match="Too many connections") as caught:
            store.set("key", 2)
        assert "may have been applied" not in str(caught.value)
        for _ in range(2):
            old = store._client
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(old, "execute_command", _interrupted)
                store.get("key")
            lose_places()
            store.set("key", 3)
            # Other threads may be waiting for an answer on its connections.
            assert store._client is not old
            assert old.auto_close_connection_pool is False
            assert store.get("key") == 3
            assert store.add("key", 4) is False
            assert store.get_many(["key"]) == {"key": 3}
        lose_places()
        with pytest.raises(StoreUnavailableError, match="Too many connections"):
            store.get("key")


def test_what_is_put_back_expires_as_before() -> None:
    """A value that pop() could not read gets its ttl back, to the last millisecond."""
    store = RedisKVStore()
    for left, options in {-1: (), 0: ("PX", b"1"), 1: ("PX", b"1"), 1500: ("PX", b"1500")}.items():
        talk = store._talk.pop("a")
        next(talk)
        (back,) = talk.send([left, b"no pickle"]).commands
        assert back == ("SET", b"kv::a", b"no pickle", *options, "NX")
        with pytest.raises(SerializationError):
            talk.send([True])


def _interrupted(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


def test_a_server_that_takes_no_writes(redis_server: Server) -> None:
    """A server that is out of memory refuses writes with an error of ours; reads go on."""
    with redis.Redis(port=redis_server.port) as raw, RedisKVStore(port=redis_server.port) as store:
        store.set("key", 1)
        raw.config_set("maxmemory", "1")
        try:
            with pytest.raises(StoreUnavailableError, match="refused the command"):
                store.set("key", 2)
            assert store.get("key") == 1
        finally:
            raw.config_set("maxmemory", "0")


@pytest.mark.parametrize(
    "kind",
    [
        value
        for value in vars(redis.exceptions).values()
        if inspect.isclass(value) and issubclass(value, Exception)
    ]
    + [OSError, ValueError, RuntimeError, UnicodeDecodeError, IndexError],
    ids=lambda kind: kind.__name__,
)
def test_every_error_of_the_driver_is_mapped(kind: Any) -> None:
    """Whatever the driver raises becomes one of ours, with the driver's as its cause."""
    error = kind.__new__(kind)
    error.args = ("what happened",)
    store = RedisKVStore(password="hunter2")
    ours = translate(error, Ask(("SET", b"k", b"v"), writes=True), store._client)
    assert type(ours) is StoreUnavailableError
    assert ours.__cause__ is error
    assert "hunter2" not in str(ours)


def test_a_lost_answer_to_a_write_leaves_a_doubt() -> None:
    """After a write whose answer was lost the message says that it may have been applied."""
    client = RedisKVStore()._client
    lost = redis.TimeoutError("Timeout reading from socket")
    assert "may have been applied" in str(translate(lost, Ask(("SET",), writes=True), client))
    assert "may have been" not in str(translate(lost, Ask(("GET",)), client))
    wrong = redis.ResponseError("WRONGTYPE Operation against a key")
    assert type(translate(wrong, None, client)) is WrongTypeError
    missing = KeyNotFoundError("key")
    assert translate(missing, None, client) is missing
    assert issubclass(WrongTypeError, KVStoreError)


# ---------------------------------------------------------------------- processes and event loops


def _write_there(store: RedisKVStore, me: int) -> Any:
    store.set(f"k{me}", me, "n")
    return os.getpid(), store.add("once", me), store.get("here")


@server_test
def test_it_travels_to_worker_processes(redis_server: Server) -> None:
    """A pickled store connects again in a spawned worker; of all exactly one adds."""
    options: Any = {"port": redis_server.port, "prefix": "app", "socket_timeout": 20}
    with RedisKVStore(**options) as store:
        store.set("here", [1])
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            done = list(pool.map(_write_there, [store] * 4, range(4)))
        assert all(pid != os.getpid() and value == [1] for pid, _, value in done)
        assert [added for _, added, _ in done].count(True) == 1
        assert sorted(store.keys("n")) == ["k0", "k1", "k2", "k3"]


@server_test
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_go_on_using_it(redis_server: Server) -> None:
    """After a fork, with threads at work, no answer goes to the wrong process."""
    program = """
import os, sys, threading
from kv_store_adapter import RedisKVStore
store = RedisKVStore(port=int(sys.argv[1]), socket_timeout=20)
store.set("before", 1)
stop = threading.Event()
wrong = []
def work(me):
    while not stop.is_set():
        store.set(f"t{me}", me)
        if store.get(f"t{me}") != me:
            wrong.append(me)
threads = [threading.Thread(target=work, args=(me,)) for me in range(3)]
[t.start() for t in threads]
children = []
for me in range(5):
    pid = os.fork()
    if not pid:
        good = True
        for number in range(50):
            store.set(f"c{me}", (me, number))
            good = good and store.get(f"c{me}") == (me, number) and store.get("before") == 1
        os._exit(0 if good else 1)
    children.append(pid)
codes = [os.waitpid(pid, 0)[1] for pid in children]
stop.set()
[t.join() for t in threads]
print(codes, wrong)
"""
    done = subprocess.run(
        # Since 3.12 Python warns of every fork among threads: here it is what is tested.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(redis_server.port)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[0, 0, 0, 0, 0] []", "")


@server_test
def test_every_event_loop_has_connections_of_its_own(redis_server: Server) -> None:
    """The same store's aio works in one event loop after the other, and in two threads at once."""
    with RedisKVStore(port=redis_server.port, socket_timeout=20) as store:
        aio = store.aio

        async def scenario(me: int) -> Any:
            for number in range(20):
                await aio.set(f"k{me}", number)
                assert await aio.get(f"k{me}") == number
            return await aio.get(f"k{me}")

        assert [asyncio.run(scenario(me)) for me in range(3)] == [19] * 3
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda me: asyncio.run(scenario(me)), range(4))) == [19] * 4


def test_an_asyncio_client_is_refused() -> None:
    """A client that must be awaited would store nothing: it is refused with what to do."""
    from redis import asyncio as driver

    async def main() -> None:
        with pytest.raises(TypeError, match=r"Pass a plain redis\.Redis"):
            RedisKVStore(client=driver.Redis())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RedisKVStore("redis://localhost"), ValueError, "from_url"),
        (lambda: RedisKVStore(None), TypeError, "host is a str"),  # type: ignore[arg-type]
        (lambda: RedisKVStore(port="6379"), TypeError, "A port is an int"),  # type: ignore[arg-type]
        (
            lambda: RedisKVStore.from_url("redis://localhost/abc"),
            ValueError,
            "number of a database",
        ),
        (lambda: RedisKVStore.from_url("redis://localhost?bogus=1"), ValueError, "options"),
    ],
)
def test_mistakes_are_told_at_once(make: Any, error: Any, message: str) -> None:
    """A wrong host, port, database or option is told when the store is made, not as an outage."""
    with pytest.raises(error, match=message):
        make()


def test_a_cluster_means_the_same(cluster_server: Server) -> None:
    """With a RedisCluster client every operation means what it means on one server."""
    client = redis.RedisCluster(host="127.0.0.1", port=cluster_server.port)
    store = RedisKVStore(client=client)
    store.set("a", 1)
    store.set("b", [2], "n:1", ttl=60)
    assert (store.get("a"), store.get("b", "n:1"), store.ttl("a")) == (1, [2], None)
    store.set_many({f"k{i}": i for i in range(1200)}, "many")
    store.set_many({f"t{i}": i for i in range(20)}, "many", ttl=60)
    assert len(store.keys("many")) == len(set(store.iter_keys("many"))) == 1220
    assert store.get_many(["k1", "k1199", "no"], "many") == {"k1": 1, "k1199": 1199}
    assert store.delete_many([f"k{i}" for i in range(100)] + ["no"], "many") == 100
    assert sorted(store.list_namespaces()) == ["many", "n:1"]
    assert (store.add("a", 2), store.add("c", 2), store.pop("c")) == (False, True, 2)
    assert (store.touch("a", ttl=10), store.touch("a"), store.touch("no")) == (True, True, False)
    with store.lock("a"), pytest.raises(LockTimeoutError):
        store.lock("a", timeout=0.01).__enter__()
    client.lpush("kv::list", 1)
    for read in (store.get, lambda key: store.get_many([key])):
        with pytest.raises(SerializationError):
            read("list")
    assert store.clear_namespace("many") == 1120
    assert asyncio.run(store.aio.get("a")) == 1
    client.close()


def test_our_connections_take_what_the_drivers_take() -> None:
    """What redis-py passes to a connection of its own, it may pass to one of ours."""
    ours = RedisKVStore()._client.connection_pool.connection_class
    for name in ("send_command", "pack_commands", "read_response", "can_read", "disconnect"):
        theirs = inspect.signature(getattr(redis.Connection, name)).parameters.values()
        named = {one.name: None for one in theirs if one.kind is one.KEYWORD_ONLY}
        plain = [None for one in theirs if one.kind is one.POSITIONAL_OR_KEYWORD]
        inspect.signature(getattr(ours, name)).bind(*plain, **named)


@server_test
def test_a_pool_of_the_callers_serves_others_too(redis_server: Server) -> None:
    """Stores that are given a pool leave its listeners alone, however many stores there are."""
    pool = redis.ConnectionPool(port=redis_server.port, socket_timeout=20)
    stores = [RedisKVStore(connection_pool=pool) for _ in range(3)]
    assert len(pool.connection_class.__mro__) == len(redis.Connection.__mro__) + 1
    raw = redis.Redis(connection_pool=pool)
    listener = raw.pubsub()
    listener.subscribe("news")
    assert listener.get_message(timeout=20)["type"] == "subscribe"
    raw.publish("news", "hi")
    assert listener.get_message(timeout=20)["data"] == b"hi"
    stores[0].set("a", 1)
    assert [store.get("a") for store in stores] == [1, 1, 1]
    listener.close()
    raw.close()
    pool.disconnect()


AMONG_SIGNALS = """
    import redis
    from kv_store_adapter import RedisKVStore

    port, kind = int(sys.argv[1]), sys.argv[2]
    if kind == "client":
        store = RedisKVStore(client=redis.Redis(port=port, socket_timeout=20))
    else:
        alone = kind == "alone"
        store = RedisKVStore(port=port, socket_timeout=20, single_connection_client=alone)
    number = 0

    def work():
        global number
        for _ in range(200):
            number += 1
            key = f"k{number % 50}"
            store.set(key, number, ttl=3600)
            assert store.get(key) == number
            assert 3500 < store.ttl(key) <= 3600
            store.set_many({"a": number, "b": -number}, ttl=3600)
            assert store.get_many(["b", "a"]) == {"a": number, "b": -number}

    def after():
        store.set("after", number)
        assert store.get("after") == number

    attack(work, 800, 3e-3, after)
"""


@server_test
@needs_timers
@signals_spare_with
@pytest.mark.parametrize("kind", ["own", "alone", "client"])
def test_a_signal_at_any_moment_gives_nobody_anothers_reply(
    kind: str, redis_server: Server
) -> None:
    """Wherever a signal's handler raises, no later call gets the reply to another command."""
    run_among_signals(AMONG_SIGNALS, str(redis_server.port), kind)
