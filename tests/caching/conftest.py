"""The stores that every promise of `@cached` is tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import fakeredis
import pytest

from kv_store_adapter import DiskKVStore, KVStoreProtocol, MemoryKVStore, RedisKVStore
from kv_store_adapter.caching import health

KINDS = ["memory", "disk", "fakeredis", "redis", "view"]


def open_kind(kind: str, request: Any) -> KVStoreProtocol:
    if kind == "memory":
        return MemoryKVStore()
    if kind == "view":
        return MemoryKVStore().namespace("outer")
    if kind == "disk":
        tmp_path: Path = request.getfixturevalue("tmp_path")
        return DiskKVStore(tmp_path / "store")
    if kind == "fakeredis":
        return RedisKVStore(client=fakeredis.FakeRedis(server=fakeredis.FakeServer()))
    # A test that meets a busy machine must not fail by the second a dead server may cost.
    port = request.getfixturevalue("redis_server").port
    return RedisKVStore(port=port, socket_timeout=20, socket_connect_timeout=20)


@pytest.fixture(params=KINDS)
def store(request: Any) -> Iterator[KVStoreProtocol]:
    """Each kind of store, empty."""
    with open_kind(request.param, request) as opened:
        yield opened


@pytest.fixture(params=["disk", "redis"])
def shared_store(request: Any) -> Iterator[KVStoreProtocol]:
    """The stores that reach other processes."""
    with open_kind(request.param, request) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _warnings_afresh() -> None:
    """No test's warnings are held back because of another test's."""
    health._last_warned.clear()
