"""No secret in any repr, log, error or pickle.

The one place that holds a password is the pickle of a `RedisKVStore` itself: a worker process could
not connect otherwise (rule 8). docs/security.md says so.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import logging
import pickle
import traceback
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List
from urllib.parse import quote

import pytest
from ways import BACKENDS, Ground, reads

from kv_store_adapter import (
    CompressedSerializer,
    KVStoreError,
    MemoryKVStore,
    RedisKVStore,
    SignedSerializer,
    cached,
    cached_many,
    open_store,
)
from server import NO_SERVER, Server, find_server, free_port

PASSWORD = "hu5h/hu%5h w0rd"
SECRET = b"hu5h secret of so many bytes"
#: What may be shown nowhere, however it is spelt.
HIDDEN = [
    PASSWORD,
    quote(PASSWORD),
    quote(PASSWORD, safe=""),
    "hu5h",
    SECRET.decode(),
    SECRET.hex(),
]


def hides(text: Any) -> None:
    text = text if isinstance(text, str) else repr(text)
    for hidden in HIDDEN:
        assert hidden not in text


@pytest.fixture
def heard() -> Iterator[Any]:
    """All that any logger says at any level, and all warnings, of this test."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    loggers = [logging.getLogger(n) for n in ("kv_store_adapter", "redis", "asyncio", "hiredis")]
    levels = [logger.level for logger in loggers]
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield stream
        gc.collect()  # what is told of connections that nobody closed
    root.removeHandler(handler)
    root.setLevel(level)
    for logger, old in zip(loggers, levels):
        logger.setLevel(old)
    hides(stream.getvalue())
    for warning in caught:
        hides(str(warning.message))


def looked_at(store: Any) -> List[Any]:
    """A store and all that it gives, in every way of showing it."""
    view = store.namespace("n")
    function = cached(store, namespace="shown", ttl=5)(lambda x: x)
    things = [
        *(store, view, view.namespace("m"), store.as_mapping(), view.as_mapping(), store.aio),
        *(view.aio, store.lock("key"), store.aio.lock("key"), store._lease("key", None, 1000)),
        *(function, function.cache_parameters(), function.cache_info(), store.reader("n")),
    ]
    for thing in things:
        for show in (repr, str, "{}".format, "{!r}".format, "%s".__mod__):
            hides(show((thing,) if show == "%s".__mod__ else thing))
    return things


def told(call: Callable[[], Any]) -> None:
    """An error with its causes, its traceback and its pickle."""
    try:
        call()
    except Exception as error:
        hides("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        seen: Any = error
        while seen is not None:
            hides(str(seen))
            hides(repr(seen))
            hides(repr(seen.args))
            seen = seen.__cause__
        if isinstance(error, KVStoreError):
            hides(pickle.dumps(error))
            hides(repr(pickle.loads(pickle.dumps(error))))
    else:
        raise AssertionError("this was to fail")


def _makers(server: Server) -> Dict[str, Callable[..., Any]]:
    """Stores that know the password, of a server that is there, is down, or is not to be found."""
    import redis
    import redis.backoff

    down, safe = free_port(), quote(PASSWORD, safe="")
    once, bad = (
        redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        {"port": down, "password": PASSWORD},
    )
    here = server.port
    return {
        "host": lambda: RedisKVStore(port=here, password=PASSWORD),
        "user": lambda: RedisKVStore(port=here, username="u", password=PASSWORD),
        "url": lambda: RedisKVStore.from_url(f"redis://:{safe}@127.0.0.1:{here}"),
        "user in url": lambda: open_store(f"redis://u:{safe}@127.0.0.1:{here}/0"),
        "query": lambda: open_store(f"redis://127.0.0.1:{here}/0?password={safe}"),
        "down": lambda: RedisKVStore(port=down, password=PASSWORD),
        "down by url": lambda: open_store(f"redis://:{safe}@127.0.0.1:{down}/0"),
        "nowhere": lambda: open_store(f"redis://:{safe}@no.such.host.invalid/0"),
        "socket": lambda: open_store(f"unix://:{safe}@/no/such/socket"),
        # It does not speak TLS, and a client of one's own has redis-py's long patience.
        "tls": lambda: open_store(f"rediss://:{safe}@127.0.0.1:{here}/0", socket_timeout=0.1),
        "client": lambda: RedisKVStore(client=redis.Redis(retry=once, **bad)),
    }


@pytest.mark.parametrize(
    "kind",
    [
        *("host", "user", "url", "user in url", "query", "down", "down by url", "nowhere"),
        *("socket", "tls", "client"),
    ],
)
def test_no_password_is_shown(kind: str, locked_server: Server, heard: Any) -> None:
    """A store that knows a password shows it in no repr, error, cause, traceback, warning or log."""
    # The server's password is another one: every operation is refused, or reaches nobody.
    store = _makers(locked_server)[kind]()
    calls: List[Callable[[], Any]] = [
        lambda: store.get("key"),
        lambda: store.set("key", 1),
        lambda: store.set_many({"a": 1, "b": 2}, ttl=5),
        lambda: store.keys(),
        lambda: list(store.iter_keys()),
        lambda: store.clear_namespace("n"),
        lambda: store.lock("key", timeout=0).__enter__(),
        lambda: store.namespace("n").get("key"),
        lambda: store.as_mapping()["key"],
        lambda: asyncio.run(_awaited(store)),
        lambda: cached(store, on_error="raise", key=lambda: "k")(lambda: 1)(),
        lambda: RedisKVStore("redis://:" + PASSWORD + "@h"),
    ]
    for call in calls:
        told(call)
    functions = [cached(store, namespace=f"{kind}{n}", key=lambda: "k")(lambda: 1) for n in (1, 2)]
    assert [function() for function in functions] == [1, 1]
    assert cached_many(store, namespace=f"{kind} many")(lambda ids: dict.fromkeys(ids, 1))([1])
    assert "kv_store_adapter" in logging.Logger.manager.loggerDict and heard.getvalue()
    looked_at(store)
    store.close()
    told(lambda: store.get("key"))


async def _awaited(store: Any) -> None:
    await store.aio.get("key")


def test_what_a_wrong_option_says(heard: Any) -> None:
    """A store that can't be made, for its options or its url, does not quote the password."""
    safe = quote(PASSWORD, safe="")
    urls = ["redis://:{}@host:port/0", "redis://:{}@host/x", "redis://:{}@[host/0", "redis//:{}@h"]
    urls += [
        "redis://:{}@h:99999999/0",
        "redis://:{}@h/0?socket_timeout=soon",
        "://:{}@h",
        "u:{}@h/0",
    ]
    urls += ["redis://:{}@h/0?no_such_option=1", "memory://u:{}@h", "http://:{}@h", "redis://u:{}"]
    urls += ["redis://u:{}/0", "unix:{}", "disk://u:{}@h/x?durable=2"]
    for url in urls:
        for word in (safe, PASSWORD):
            try:
                made = open_store(url.format(word))
            except Exception as error:
                if not isinstance(error, (ValueError, TypeError)):
                    raise
                if not url.startswith(("memory", "disk")):
                    told(lambda url=url, word=word: open_store(url.format(word)))
            else:
                # A url that has the word in its place: as a host or a path it is no password.
                made.close()
    for options in ({"no_such_option": 1}, {"port": "6379"}, {"client": object(), "db": 3}):
        told(lambda options=options: RedisKVStore(password=PASSWORD, **options))


def test_what_a_url_without_a_scheme_says() -> None:
    """A url whose redis:// was forgotten is refused without quoting what may be the password."""
    told(lambda: open_store(f"{PASSWORD}@host:6379/0"))


def test_what_a_login_says(heard: Any) -> None:
    """With the right password, and a user of few rights, nothing that is shown holds it."""
    binary = find_server()
    if binary is None:
        pytest.skip(NO_SERVER)
    server = Server(binary, "--requirepass", PASSWORD)
    try:
        with RedisKVStore(port=server.port, password=PASSWORD) as store:
            store.set("key", "value", "n")
            store._client.execute_command(
                *("ACL", "SETUSER", "few", "on", f">{PASSWORD}", "~kv:*", "+get", "+client"),
            )
            looked_at(store)
            told(lambda: store.get("absent"))
            with RedisKVStore(port=server.port, username="few", password=PASSWORD) as few:
                assert few.get("key", "n") == "value"
                told(lambda: few.set("key", 1, "n"))
                told(lambda: few.keys("n"))
                assert cached(few, namespace="n", key=lambda: "k")(lambda: 1)() == 1
                looked_at(few)
            # The one exception, said in rule 8 and in docs/security.md.
            assert PASSWORD.encode() in pickle.dumps(store)
            hides(repr(pickle.loads(pickle.dumps(store))))
    finally:
        server.stop()


@pytest.fixture(params=BACKENDS)
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None
    made = Ground(request.param, tmp_path, server)
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["signed", "compressed", "accepting"])
def test_no_secret_of_a_signature_is_shown(
    ground: Ground, kind: str, tmp_path: Path, heard: Any
) -> None:
    """The secret of a SignedSerializer is in no repr, error, log or pickle, and not in the store."""
    signed = SignedSerializer(SECRET)
    serializer: Any = signed
    if kind == "compressed":
        serializer = CompressedSerializer(signed)
    elif kind == "accepting":
        serializer = SignedSerializer(b"x" * 16, accept=[SECRET])
    store = ground.open(serializer)
    store.set("key", "value", "n")
    for thing in (serializer, *looked_at(store)):
        hides(repr(thing))
    for data in (b"planted", signed.dumps_at("moved", "other", "n"), b"kvs1" + b"x" * 40):
        ground.plant(store, "key", data)
        for way, read in reads(ground, store).items():
            if way != "get with a default":
                told(lambda read=read: read("key"))
    told(lambda: store.set("key", lambda: None, "n"))
    assert cached(store, namespace="n", key=lambda: "key")(lambda: 1)() == 1
    for unpicklable in (store, store.namespace("n"), store.as_mapping("n"), serializer):
        told(lambda unpicklable=unpicklable: pickle.dumps(unpicklable))
        told(lambda unpicklable=unpicklable: copy.deepcopy(unpicklable))
    # What is written beside the values: the index, its log, metadata.
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET not in path.read_bytes()
    if ground.kind == "redis":
        for name in store._client.scan_iter():
            assert SECRET not in name + (store._client.get(name) or b"")


def test_values_are_shown_nowhere(ground: Ground, heard: Any) -> None:
    """What is stored is in no repr, error or log: it may be a secret, or large."""
    store = ground.open()
    mapping = store.as_mapping("n")
    store.set("key", {"token": PASSWORD}, "n")
    looked_at(store)
    hides(repr([mapping, mapping.items(), mapping.values(), mapping.keys()]))
    told(lambda: store.set("key", [PASSWORD, lambda: None], "n"))
    told(lambda: mapping.update(key=[PASSWORD], other=lambda: None))
    function = cached(store, namespace="n", key=lambda: "k")(lambda: [PASSWORD, lambda: None])
    assert function()[0] == PASSWORD


def test_memory_stores_do_not_pickle() -> None:
    """A memory store, whose values may be secrets, refuses to be pickled, without a word of them."""
    store = MemoryKVStore()
    store.set("key", PASSWORD)
    told(lambda: pickle.dumps(store))
