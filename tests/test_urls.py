"""`open_store`: a backend in one line of configuration."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from kv_store_adapter import DiskKVStore, MemoryKVStore, RedisKVStore, open_store


def test_memory() -> None:
    """memory:// is a memory store, with maxsize= in the query and anything as an argument."""
    assert type(open_store("memory://")) is MemoryKVStore
    assert type(open_store("MEMORY:")) is MemoryKVStore
    bounded = open_store("memory://?maxsize=2")
    bounded.set_many({"a": 1, "b": 2, "c": 3})
    assert len(bounded.keys()) == 2
    copying = open_store("memory://", serializer=pickle)
    value = [1]
    copying.set("key", value)
    assert copying.get("key") is not value


def test_disk_absolute(tmp_path: Path) -> None:
    """disk:///path is the absolute path, percent signs decoded, options from the query."""
    path = tmp_path / "a b%c"
    with open_store(f"disk://{quote(str(path))}?durable=yes&timeout=2.5&verify=1") as store:
        assert isinstance(store, DiskKVStore)
        assert store.path == str(path)
        assert store._options["durable"] is True
        assert store._options["verify"] is True
        assert store._options["timeout"] == 2.5
        store.set("key", 1)
    assert (path / "kv-store.sqlite3").exists()


def test_disk_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """disk:path is relative to the current folder, and stays there when that changes."""
    monkeypatch.chdir(tmp_path)
    with open_store("disk:cache/app") as store:
        os.chdir("/")
        store.set("key", 1)
        assert store.path == str(tmp_path / "cache/app")


@pytest.mark.parametrize(
    ("url", "host", "port", "db", "prefix"),
    [
        ("redis://", "localhost", 6379, 0, "kv"),
        ("redis://example.org", "example.org", 6379, 0, "kv"),
        ("redis://user:secret@example.org:7000/3?prefix=a%3Ab", "example.org", 7000, 3, "a:b"),
        ("redis://example.org?db=5&socket_timeout=3&prefix=x", "example.org", 6379, 5, "x"),
        ("rediss://example.org:7001", "example.org", 7001, 0, "kv"),
    ],
)
def test_redis(url: str, host: str, port: int, db: int, prefix: str) -> None:
    """redis:// and rediss:// are read as redis-py reads them, with prefix= besides."""
    store: Any = open_store(url)
    assert isinstance(store, RedisKVStore)
    settings = store._client.connection_pool.connection_kwargs
    assert settings.get("host", "localhost") == host
    assert settings.get("port", 6379) == port
    assert settings.get("db", 0) == db
    assert store._layout.prefix == prefix
    assert settings["socket_timeout"] == (3 if "socket_timeout" in url else 1.0)
    assert "secret" not in repr(store)
    assert "prefix" not in settings


def test_redis_on_a_socket() -> None:
    """unix:// names a socket."""
    store: Any = open_store("unix:///tmp/redis.sock?db=2", prefix="app")
    assert store._client.connection_pool.connection_kwargs["path"] == "/tmp/redis.sock"
    assert store._layout.prefix == "app"


@pytest.mark.parametrize(
    "url",
    [
        *("", "nothing", "://", "http://example.org", "sqlite:///x", "disk", "memory"),
        *("memory://host", "memory:///path", "disk:", "disk://", "disk://host/path"),
        *(
            "memory://?size=5",
            "memory://?maxsize=many",
            "memory://?maxsize=0",
            "memory://?maxsize=",
        ),
        *("disk:x?durable=perhaps", "disk:x?colour=red", "disk:x?timeout=soon"),
        "redis://localhost:port/0",
    ],
)
def test_what_can_t_be_read_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A url without a backend, a place or a known option is a ValueError, and makes no folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\w"):
        open_store(url)
    assert os.listdir(tmp_path) == []


def test_what_is_no_text_goes_beside_the_url() -> None:
    """Who asks for a serializer in a url is told where it goes."""
    with pytest.raises(ValueError, match=r"no option 'serializer'.* open_store\(url, serializer="):
        open_store("disk:x?serializer=json")


@pytest.mark.parametrize("url", [None, 5, b"memory://", Path("x")])
def test_no_url_but_text(url: Any) -> None:
    """A url is a str."""
    with pytest.raises(TypeError):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://:hunter2@localhost:port/0", "redys://:hunter2@localhost"),
        *("redis://:hunter2@[bad/0", "redis://:hunter2\uff1a@h/0", "redis://:hunter2\uff0f@h/0"),
        *("rediss://u:hunter2\u2105@h/0", "unix://:hunter2\uff1a@/x"),
    ],
)
def test_no_error_holds_a_password(url: str) -> None:
    """A url that can't be used is not quoted: it may hold a password."""
    error: Any = None
    try:
        open_store(url)
    except ValueError as caught:
        error = caught
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
