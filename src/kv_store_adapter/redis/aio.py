"""The conversation, spoken with await on redis.asyncio."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import weakref
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Callable,
    Dict,
    Generator,
    List,
    Optional,
    Tuple,
)

from .. import forking
from ..aio import AsyncKVStore
from ..exceptions import KVStoreError, StoreClosedError
from ..interruption import let_through
from ..rules import check_namespace, matcher
from .conversation import Ask
from .errors import (
    MISREAD,
    first_error,
    is_final,
    may_have_arrived,
    not_asked,
    translate,
    unrepeating,
)

if TYPE_CHECKING:
    from .store import RedisKVStore

__all__ = ["RedisAsyncStore"]

# How many requests of one event loop are under way at once, each on a connection of its own. Ten
# thousand tasks must not open ten thousand connections, nor time out for each other's sake.
_AT_ONCE = 32


class RedisAsyncStore(AsyncKVStore, forking.Forkable):
    """The operations of a `RedisKVStore` on redis.asyncio, with the plain store's settings.

    Connections belong to the event loop that opened them: each loop gets a client of its own, and
    those of loops that are closed are let go.
    """

    _store: RedisKVStore

    def __init__(self, store: RedisKVStore) -> None:
        super().__init__(store)
        self._clients: List[Tuple[weakref.ref[asyncio.AbstractEventLoop], _Connected]] = []
        self._lock = threading.Lock()
        forking.register(self)

    def _after_fork_in_child(self) -> None:
        # Another thread may have held it. Clients are kept: no loop of the child is theirs, and to
        # close their connections is the parent's business.
        self._lock = threading.Lock()

    def _connected(self) -> _Connected:
        loop = asyncio.get_running_loop()
        # Two loops in two threads may come at once.
        with self._lock:
            for known, one in self._clients:
                if known() is loop:
                    return one
            return self._connect(loop)

    def _connect(self, loop: asyncio.AbstractEventLoop) -> _Connected:
        from redis import asyncio as driver

        store = self._store
        settings: Dict[str, Any] = dict(store._settings or {})
        if "retry" in settings:
            settings["retry"] = _async_retry(settings["retry"])
        _without_notifications(settings, driver.Redis)
        make: Any = driver.Redis if store._url is None else driver.Redis.from_url
        client = make(**settings) if store._url is None else make(store._url, **settings)
        # A closed loop can't close its connections any more; the garbage collector does.
        self._clients = [
            (known, old)
            for known, old in self._clients
            if known() is not None and not known().is_closed()  # type: ignore[union-attr]  # looked at before
        ]
        one = _Connected(client, int(settings.get("max_connections") or _AT_ONCE))
        self._clients.append((weakref.ref(loop), one))
        return one

    async def _run(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        return await self._speak(getattr(self._store._talk, operation)(*args, **kwargs))

    async def _speak(self, talk: Generator[Ask, List[Any], Any]) -> Any:
        if self._store._closed:
            raise StoreClosedError("This RedisKVStore is closed. Make a new one.")
        connected = self._connected()
        try:
            ask = next(talk)
            while True:
                try:
                    replies = await connected.ask(self._ask, ask)
                except Exception as error:  # redis-py's, hiredis's or the system's: all become ours
                    let_through(error)
                    ask = talk.throw(translate(error, ask, connected.client))
                else:
                    try:
                        following = talk.send(replies)
                    except StopIteration as done:
                        return done.value
                    except MISREAD as error:
                        let_through(error)
                        if isinstance(error, KVStoreError):
                            raise
                        raise translate(error, ask, connected.client) from error
                    following.said = ask.said or ask.writes
                    ask = following
        except StopIteration as done:
            return done.value

    async def _ask(self, client: Any, ask: Ask) -> List[Any]:
        import redis

        try:
            return await self._ask_once(client, ask)
        except redis.ConnectionError as error:
            let_through(error)
            if not ask.harmless or isinstance(error, redis.TimeoutError) or is_final(error):
                raise
            ask.said |= ask.writes and may_have_arrived(error, client)
        # Out here, so that the second error does not have the first one as its context.
        return await self._ask_once(client, ask)

    @staticmethod
    async def _ask_no_more_than_once(client: Any, ask: Ask) -> List[Any]:
        async with client.client() as alone:
            connection = alone.connection
            patient, connection.retry = connection.retry, unrepeating(connection.retry)
            try:
                return [await alone.execute_command(*command) for command in ask.commands]
            finally:
                connection.retry = patient

    async def _ask_once(self, client: Any, ask: Ask) -> List[Any]:
        if self._store._repeats and not ask.harmless:
            return await self._ask_no_more_than_once(client, ask)
        if len(ask.commands) == 1:
            return [await client.execute_command(*ask.commands[0])]
        async with client.pipeline(transaction=False) as pipeline:
            for command in ask.commands:
                pipeline.execute_command(*command)
            replies = await pipeline.execute(raise_on_error=False)
        return first_error(replies)

    async def iter_keys(
        self, namespace: Optional[str] = None, pattern: str = "*"
    ) -> AsyncIterator[str]:
        """Like `keys`, a step of SCAN at a time."""
        matches = matcher(pattern)
        namespace = check_namespace(namespace)
        seen = set()
        cursor: Any = 0
        while True:
            page: List[str]
            cursor, page = await self._speak(
                self._store._talk.page(cursor, namespace, pattern, None)
            )
            for key in page:
                if key not in seen and (matches is None or matches(key)):
                    seen.add(key)
                    yield key
            if not cursor:
                return

    async def close(self) -> None:
        """Close the store, plain and async."""
        loop = asyncio.get_running_loop()
        for known, one in self._clients:
            if known() is loop:
                # The method was renamed in redis-py 5.
                await getattr(one.client, "aclose", one.client.close)()
        self._clients = []
        await super().close()


class _Connected:
    """What one event loop has: a client, and places for so many requests at once."""

    def __init__(self, client: Any, most: int) -> None:
        self.client = client
        self._places = asyncio.Semaphore(most)
        # When somebody was answered last, and when the server was last found silent.
        self._answered = self._silent = 0.0

    async def ask(self, ask_of: Callable[[Any, Ask], Any], ask: Ask) -> List[Any]:
        """Ask when there is a place; who queued until the others' time was out has waited."""
        import redis

        came = time.monotonic()
        async with self._places:
            asked = time.monotonic()
            if self._silent > max(came, self._answered):
                raise not_asked(self.client)
            try:
                replies: List[Any] = await ask_of(self.client, ask)
            except (redis.TimeoutError, asyncio.TimeoutError):
                # One slow command among others that are answered is no silence.
                if self._answered < asked:
                    self._silent = time.monotonic()
                raise
            self._answered = time.monotonic()
            return replies


def _without_notifications(settings: Dict[str, Any], kind: Any) -> None:
    """Switch off what makes redis.asyncio hand out connections that the server has closed.

    Maintenance notifications are Redis Enterprise's. redis-py has them on from 8.0, and the pool
    then looks no more whether a connection is still up.
    """
    if "maint_notifications_config" in inspect.signature(kind).parameters:
        from redis.maint_notifications import MaintNotificationsConfig

        off = MaintNotificationsConfig(enabled=False)
        settings.setdefault("maint_notifications_config", off)


def _async_retry(retry: Any) -> Any:
    """redis.asyncio has a class of its own for the same settings."""
    from redis.asyncio.retry import Retry

    return Retry(retry._backoff, retry._retries)
