"""The ways into a store, and the ways around it: what honest callers have, and what attackers have."""

from __future__ import annotations

import asyncio
import os
import pickle
import sqlite3
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, List, Optional, Set

from kv_store_adapter import DiskKVStore, KVStoreProtocol, MemoryKVStore, RedisKVStore, cached
from kv_store_adapter.disk.folder import _HEADER

#: The three backends, and disk once more with every value in a file of its own.
BACKENDS = ["memory", "disk", "files", "redis"]


class Ground:
    """Stores of one backend, and what lies below them.

    A Redis store has one connection only: an operation that did not give it back would fail the
    next one.
    """

    def __init__(self, kind: str, folder: Path, server: Any) -> None:
        self.kind = kind
        self._folder = folder
        self._server = server
        self._stores: List[Any] = []
        self._loop = asyncio.new_event_loop()

    def open(self, serializer: Any = pickle, **options: Any) -> Any:
        store: KVStoreProtocol
        if self.kind == "memory":
            store = MemoryKVStore(serializer=serializer)
        elif self.kind == "redis":
            options = {"max_connections": 1, "socket_timeout": 20, **options}
            store = RedisKVStore(port=self._server.port, serializer=serializer, **options)
        else:
            options.setdefault("spill_threshold", 0 if self.kind == "files" else 1 << 20)
            path = self._folder / f"store{len(self._stores)}"
            store = DiskKVStore(path, serializer=serializer, **options)
        self._stores.append(store)
        return store

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        """What comes of something awaitable, on the one event loop of this ground."""
        return self._loop.run_until_complete(asyncio.wait_for(awaitable, 60))

    def files(self) -> Set[str]:
        """All value files and folders of namespaces: what a refused write may not add to."""
        found = set()
        for root, folders, names in os.walk(self._folder):
            if f"{os.sep}namespaces" in root:
                found.update(os.path.join(root, name) for name in [*folders, *names])
        return found

    # ------------------------------------------------------------------ as the attacker

    def raw(self, store: Any, key: str, namespace: Optional[str] = "n") -> bytes:
        """The bytes that are kept for an entry."""
        if self.kind == "memory":
            return bytes(store._tables[namespace][key][0])
        if self.kind == "redis":
            return bytes(store._client.get(store._layout.name(key, namespace)))
        value, file = self._row(store, key, namespace)
        return bytes(value) if file is None else self._path(store, file).read_bytes()[_HEADER:]

    def plant(self, store: Any, key: str, data: bytes, namespace: Optional[str] = "n") -> None:
        """Put bytes in the place of an entry's, going round the store; make one if there is none."""
        if not store.exists(key, namespace):
            store.set(key, "old", namespace)
        if self.kind == "memory":
            table = store._tables[namespace]
            table[key] = (data, *table[key][1:])
        elif self.kind == "redis":
            store._client.set(store._layout.name(key, namespace), data, keepttl=True)
        else:
            _, file = self._row(store, key, namespace)
            if file is not None:
                path = self._path(store, file)
                path.write_bytes(path.read_bytes()[:_HEADER] + data)
            value = data if file is None else None
            self.sql(
                store,
                "UPDATE entries SET value = ?, size = ? WHERE key = ? AND "
                "ns = (SELECT id FROM namespaces WHERE name = ?)",
                (value, len(data), key, namespace or ""),
            )

    @staticmethod
    def sql(store: Any, statement: str, parameters: Any = ()) -> List[Any]:
        """Run a statement on a disk store's database, as another program would."""
        other = _another_program(store)
        try:
            return other.execute(statement, parameters).fetchall()
        finally:
            other.close()

    @staticmethod
    def script(store: Any, statements: str) -> None:
        """Run several statements on a disk store's database, as another program would."""
        other = _another_program(store)
        try:
            other.executescript(statements)
        finally:
            other.close()

    def _row(self, store: Any, key: str, namespace: Optional[str]) -> Any:
        return self.sql(
            store,
            "SELECT value, file FROM entries WHERE key = ? AND "
            "ns = (SELECT id FROM namespaces WHERE name = ?)",
            (key, namespace or ""),
        )[0]

    @staticmethod
    def _path(store: Any, file: str) -> Path:
        return Path(store.path, "namespaces", file)

    def close(self) -> None:
        for store in self._stores:
            self.wait(store.aio.close())
        self._loop.close()


def _another_program(store: Any) -> sqlite3.Connection:
    other = sqlite3.connect(os.path.join(store.path, "kv-store.sqlite3"), isolation_level=None)
    # Thousands of plantings would each wait for the disk; no power cut is tried here.
    other.execute("PRAGMA synchronous=OFF")
    return other


def under_key(store: Any, key: str = "key", **options: Any) -> Any:
    """`@cached` for functions without arguments, with their results under one plain key."""
    # A function of its own each time: two functions may not share a template.
    return cached(store, namespace="n", key=lambda: key, **options)


def reads(ground: Ground, store: Any) -> Dict[str, Callable[[str], Any]]:
    """Every way to read one key of the namespace "n"; each takes the key."""
    view, mapping = store.namespace("n"), store.as_mapping("n")
    wait = ground.wait
    return {
        "get": lambda key: store.get(key, "n"),
        "get with a default": lambda key: store.get(key, "n", default=None),
        "get_many": lambda key: store.get_many([key], "n")[key],
        "reader": lambda key: store.reader("n")(key),
        "view": view.get,
        "view get_many": lambda key: view.get_many([key])[key],
        "mapping": lambda key: mapping[key],
        "mapping get": mapping.get,
        "mapping setdefault": lambda key: mapping.setdefault(key, "mine"),
        "mapping items": lambda key: dict(mapping.items())[key],
        "mapping values": lambda key: next(iter(mapping.values())),
        "aio": lambda key: wait(store.aio.get(key, "n")),
        "aio get_many": lambda key: wait(store.aio.get_many([key], "n")),
        "aio view": lambda key: wait(view.aio.get(key)),
        "peek": lambda key: cached(store, namespace="n", key=lambda key: key)(lambda key: 0).peek(
            key
        ),
        "pop": lambda key: store.pop(key, "n"),
        "view pop": view.pop,
        "mapping pop": mapping.pop,
        "mapping popitem": lambda key: mapping.popitem(),
        "aio pop": lambda key: wait(store.aio.pop(key, "n")),
    }


def writes(ground: Ground, store: Any) -> Dict[str, Callable[[Any], Any]]:
    """Every way to write a value to "key" (or "absent") in the namespace "n"; each takes the value."""
    view, mapping = store.namespace("n"), store.as_mapping("n")
    wait = ground.wait
    many = lambda value: {"first": 1, "key": value, "last": 2}

    def strictly(value: Any) -> Any:
        return under_key(store, on_error="raise")(lambda: value).refresh()

    def strictly_awaited(value: Any) -> Any:
        @under_key(store, on_error="raise")
        async def result() -> Any:
            return value

        return wait(result.refresh())

    return {
        "set": lambda value: store.set("key", value, "n", 5),
        "add": lambda value: store.add("absent", value, "n"),
        "set_many": lambda value: store.set_many(many(value), "n"),
        "view set": lambda value: view.set("key", value, ttl=5),
        "view add": lambda value: view.add("absent", value),
        "view set_many": lambda value: view.set_many(many(value)),
        "mapping": lambda value: mapping.__setitem__("key", value),
        "mapping setdefault": lambda value: mapping.setdefault("absent", value),
        "mapping update": lambda value: mapping.update(many(value)),
        "cached": strictly,
        "cached coroutine": strictly_awaited,
        "aio set": lambda value: wait(store.aio.set("key", value, "n", 5)),
        "aio add": lambda value: wait(store.aio.add("absent", value, "n")),
        "aio set_many": lambda value: wait(store.aio.set_many(many(value), "n")),
        "aio view set": lambda value: wait(view.aio.set("key", value)),
    }
