"""The same operations, awaitable: what ``store.aio`` is."""

from __future__ import annotations

import asyncio
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Union,
)

from . import forking
from .exceptions import KeyNotFoundError
from .leases import AsyncHeld
from .namespace import NamespaceView, root_of
from .protocol import TAGS_NAMESPACE, KVStoreProtocol, check_lease
from .rules import MISSING, TTL, NoExpiry, check_key, check_namespace, check_timeout

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncKVStore", "AsyncView", "InlineAsyncStore"]

#: How many calls of one store run at once. As many as a disk store has connections.
THREADS = 8

# How many keys an async iteration fetches at a time.
_PAGE = 1000

_executors: weakref.WeakKeyDictionary[KVStoreProtocol, ThreadPoolExecutor] = (
    weakref.WeakKeyDictionary()
)
forking.after_in_child(_executors.clear)


def executor_of(store: KVStoreProtocol) -> ThreadPoolExecutor:
    """The threads that work for `store`; they end with it."""
    executor = _executors.get(store)
    if executor is None:
        executor = ThreadPoolExecutor(THREADS, thread_name_prefix="kv-store-adapter")
        executor = _executors.setdefault(store, executor)
    return executor


class AsyncKVStore:
    """Every operation of a store, awaitable; each means what the plain one of its name means.

    This one calls the plain store in a small pool of threads, so it is right for any backend that
    waits for something. Nothing runs on the event loop's thread.

    Notes:
        Cancelling an ``await`` ends the waiting, not the operation: a write may still be applied.
    """

    def __init__(self, store: KVStoreProtocol) -> None:
        self._store = store

    @property
    def store(self) -> KVStoreProtocol:
        """The plain store or view behind this one."""
        return self._store

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._store!r}>"

    async def _run(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Do one operation of the store. What the subclasses are about."""
        return await self._call(partial(getattr(self._store, operation), *args, **kwargs))

    async def _call(self, function: Callable[[], Any]) -> Any:
        """Run a plain function that may wait."""
        loop = asyncio.get_running_loop()
        root = root_of(self._store)
        try:
            return await loop.run_in_executor(executor_of(root), function)
        except RuntimeError:
            if _executors.pop(root, None) is None:
                raise
        # The threads were let go by a close() at this very moment: the store says so itself.
        return await loop.run_in_executor(executor_of(root), function)

    # ------------------------------------------------------------------ the eight

    async def get(
        self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING
    ) -> Any:
        """Return the value of `key`, or `default` where one is given and the key is absent."""
        try:
            return await self._run("get", key, namespace=namespace)
        except KeyNotFoundError:
            if default is MISSING:
                raise
            return default

    async def set(
        self,
        key: str,
        value: Any,
        namespace: Optional[str] = None,
        ttl: Union[TTL, NoExpiry, None] = None,
    ) -> None:
        """Store `value` under `key`, in place of what was there and of its ttl."""
        await self._run("set", key, value, namespace=namespace, ttl=ttl)

    async def delete(self, key: str, namespace: Optional[str] = None) -> bool:
        """Delete `key` and return whether it was there."""
        return bool(await self._run("delete", key, namespace=namespace))

    async def ttl(self, key: str, namespace: Optional[str] = None) -> Optional[float]:
        """Return the seconds that `key` has left to live; ``None``: no expiry."""
        left: Optional[float] = await self._run("ttl", key, namespace=namespace)
        return left

    async def exists(self, key: str, namespace: Optional[str] = None) -> bool:
        """Return whether `key` is there."""
        return bool(await self._run("exists", key, namespace=namespace))

    async def keys(self, namespace: Optional[str] = None, pattern: str = "*") -> List[str]:
        """Return the keys of a namespace that match `pattern`."""
        return list(await self._run("keys", namespace=namespace, pattern=pattern))

    async def clear_namespace(self, namespace: Optional[str]) -> int:
        """Delete everything in `namespace` and return how many live keys went."""
        return int(await self._run("clear_namespace", namespace=namespace))

    async def list_namespaces(self) -> List[str]:
        """Return the named namespaces that hold a live key."""
        return list(await self._run("list_namespaces"))

    # ------------------------------------------------------------------ what follows from it

    async def add(
        self,
        key: str,
        value: Any,
        namespace: Optional[str] = None,
        ttl: Union[TTL, NoExpiry, None] = None,
    ) -> bool:
        """Store `value` only if `key` is absent; return whether it was stored."""
        return bool(await self._run("add", key, value, namespace=namespace, ttl=ttl))

    async def pop(
        self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING
    ) -> Any:
        """Delete `key` and return its value."""
        return await self._run("pop", key, namespace=namespace, default=default)

    async def touch(
        self, key: str, namespace: Optional[str] = None, ttl: Union[TTL, NoExpiry, None] = None
    ) -> bool:
        """Give `key` a new ttl and keep its value; return whether it was there."""
        return bool(await self._run("touch", key, namespace=namespace, ttl=ttl))

    async def get_many(
        self, keys: Iterable[str], namespace: Optional[str] = None
    ) -> Dict[str, Any]:
        """Return the values of those `keys` that are there."""
        return dict(await self._run("get_many", keys, namespace=namespace))

    async def set_many(
        self,
        mapping: Mapping[str, Any],
        namespace: Optional[str] = None,
        ttl: Union[TTL, NoExpiry, None] = None,
    ) -> None:
        """Store every item of `mapping` with the same ttl."""
        await self._run("set_many", mapping, namespace=namespace, ttl=ttl)

    async def delete_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> int:
        """Delete `keys` and return how many of them were there."""
        return int(await self._run("delete_many", keys, namespace=namespace))

    async def iter_keys(
        self, namespace: Optional[str] = None, pattern: str = "*"
    ) -> AsyncIterator[str]:
        """Like `keys`, a key at a time: ``async for key in store.aio.iter_keys():``."""
        keys = await self._run("iter_keys", namespace=namespace, pattern=pattern)
        while True:
            page = await self._call(lambda: list(islice(keys, _PAGE)))
            for key in page:
                yield key
            if len(page) < _PAGE:
                return

    async def invalidate_tag(self, tag: str) -> None:
        """Make every cached result that carries `tag` a miss, for all processes at once."""
        await self.delete(tag, TAGS_NAMESPACE)

    # ------------------------------------------------------------------ other ways in

    def namespace(
        self,
        name: str,
        *,
        ttl: Union[TTL, NoExpiry, None] = None,
        clear_on_exit: bool = False,
    ) -> AsyncView:
        """Return this store scoped to the namespace `name`; for ``async with``, too."""
        return AsyncView(NamespaceView(self._store, name, ttl=ttl, clear_on_exit=clear_on_exit))

    def lock(
        self,
        key: str,
        namespace: Optional[str] = None,
        *,
        ttl: TTL = 10.0,
        timeout: Optional[float] = 30.0,
    ) -> AsyncHeld:
        """Return an async context manager that only one caller at a time is inside of.

        As wide as the backend reaches, for tasks, threads and processes alike; see the plain
        store's `lock`.
        """
        milliseconds = check_lease(ttl)
        key, namespace = check_key(key), check_namespace(namespace)
        lease = partial(self._store._lease, key, namespace, milliseconds)
        return AsyncHeld(lease, key, namespace, check_timeout(timeout), self._call)

    async def close(self) -> None:
        """Close the store, and what this side of it holds open."""
        await self._call(self._store.close)
        executor = _executors.pop(self._store, None)
        if executor is not None:
            executor.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class InlineAsyncStore(AsyncKVStore):
    """For a store that never waits: its operations answer on the event loop's own thread."""

    async def _call(self, function: Callable[[], Any]) -> Any:
        return function()


class AsyncView(AsyncKVStore):
    """A namespace view, awaitable: translates names and ttl, and asks the store below."""

    _store: NamespaceView

    def __init__(self, view: NamespaceView) -> None:
        super().__init__(view)
        self._below = view.store.aio

    async def _run(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        view = self._store
        kwargs["namespace"] = view._full(kwargs["namespace"])
        if "ttl" in kwargs:
            kwargs["ttl"] = view._lifetime(kwargs["ttl"])
        return await self._below._run(operation, *args, **kwargs)

    async def _call(self, function: Callable[[], Any]) -> Any:
        return await self._below._call(function)

    async def iter_keys(
        self, namespace: Optional[str] = None, pattern: str = "*"
    ) -> AsyncIterator[str]:
        """Like `keys`, a key at a time, as the store below does it."""
        async for key in self._below.iter_keys(self._store._full(namespace), pattern):
            yield key

    async def list_namespaces(self) -> List[str]:
        """Return the namespaces nested in this one, by their names in here."""
        names = await self._below.list_namespaces()
        return self._store._relative(names)

    async def close(self) -> None:
        """End this view. The store below stays open."""
        self._store.close()

    async def __aenter__(self) -> Self:
        self._store.__enter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        view = self._store
        if view._clear_on_exit and not view._closed:
            await self._below.clear_namespace(view.name)
