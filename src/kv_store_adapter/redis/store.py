"""`RedisKVStore`: the conversation, spoken plainly, and everything about the connection."""

from __future__ import annotations

import contextlib
import inspect
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Generator,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Tuple,
)
from urllib.parse import parse_qsl, urlsplit

from .. import forking
from ..exceptions import KeyNotFoundError, KVStoreError, StoreClosedError
from ..interruption import interruption
from ..protocol import KVStoreProtocol
from ..rules import MISSING, TTL, check_namespace, matcher
from ..serializers import Codec
from .connection import steady
from .conversation import Ask, Conversation
from .errors import (
    MISREAD,
    first_error,
    is_final,
    may_have_arrived,
    no_place_left,
    place_of,
    repeats,
    translate,
    unrepeating,
)
from .layout import Layout

if TYPE_CHECKING:
    from ..aio import AsyncKVStore
    from ..leases import Lease
    from ..serializers import SerializerLike

__all__ = ["RedisKVStore"]

#: Seconds for connecting and for each answer, unless the caller says otherwise. redis-py by itself
#: waits without end for an answer, and tries for 3 to 4 s to reach a server that is down.
PATIENCE = 1.0

# Who passes one of these decides about repeating, and gets redis-py's behaviour.
_RETRY_OPTIONS = ("retry", "retry_on_error", "retry_on_timeout")


class RedisKVStore(KVStoreProtocol, forking.Forkable):
    """A store on a Redis (6.2 or later) or Valkey server, shared by everybody who reaches it.

    Each entry is one Redis string under ``prefix:namespace:key`` (see
    `kv_store_adapter.redis.layout`) with the server's own expiry, so ``redis-cli``, eviction and
    ``TTL`` work as usual. Nothing outside the prefix is ever read, listed or deleted.

    Args:
        host: The server. Nothing is connected before the first operation.
        port: Its port.
        db: The number of the database.
        password: The password; it is in no message, repr or log of ours.
        prefix: What the Redis keys of this store start with.
        serializer: An object with ``dumps`` and ``loads``; pickle by default. Reading a pickle
            trusts whoever can write to the server.
        client: A client of redis-py's kind instead (Redis, RedisCluster, Sentinel's
            ``master_for()``, valkey, fakeredis). It stays the caller's: `close` leaves it open.
        options: Every other parameter of `redis.Redis`. Unless they are given, ``socket_timeout``
            and ``socket_connect_timeout`` are 1 s and nothing is tried again but what is harmless,
            so that a dead server costs about a second.

    Raises:
        StoreUnavailableError: By operations, when the server can't be reached, refuses, or is no
            Redis. After a write whose answer was lost the message says so.

    Notes:
        *Atomic*: every single-key operation; batches for each key.
        Thread-safe, fork-safe, and pickles, unless made with ``client=``. A pickle holds the
        password, or it could not connect: keep it as safe as the password.

    Example::

        store = RedisKVStore(host="localhost", port=6379)
        store.set("greeting", "hello", ttl=60)
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 6379,
        db: int = 0,
        password: Optional[str] = None,
        *,
        prefix: str = "kv",
        serializer: Optional[SerializerLike] = None,
        client: Any = None,
        **options: Any,
    ) -> None:
        if not isinstance(port, int):
            raise TypeError(f"A port is an int, not {type(port).__name__}.")
        if not isinstance(host, str):
            raise TypeError(f"A host is a str, not {type(host).__name__}.")
        if "://" in host:
            raise ValueError("That is a url, not a host: use RedisKVStore.from_url(...).")
        if client is not None:
            given = (host, port, db, password) != ("localhost", 6379, 0, None)
            if given or options:
                raise TypeError("client= brings its own connection: pass it alone, or no client.")
            self._start(None, None, prefix, serializer, client)
            return
        options.update(host=host, port=port, db=db, password=password)
        self._start(None, options, prefix, serializer, None)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> RedisKVStore:
        """Open the server that a url names: ``redis://user:password@host:6379/0?prefix=app``.

        Args:
            url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as redis-py takes them, with
                ``prefix=`` besides.
            options: ``prefix``, ``serializer``, and every parameter of `redis.Redis`.
        """
        store = cls.__new__(cls)
        try:
            database = urlsplit(url).path.strip("/")
        except ValueError:
            # Python quotes the url, and with it the password.
            raise ValueError(
                "The url of the Redis server can't be read: look at its brackets, and for "
                "characters that only look like : or / or %."
            ) from None
        if not url.lower().startswith("unix:") and database and not database.isdigit():
            # Not quoted: where a password holds an unescaped slash, this is its end.
            raise ValueError(
                "The path of a Redis url is the number of a database, as in redis://host:6379/0. "
                "A slash inside of a password is written %2F."
            )
        place, _, query = url.partition("#")[0].partition("?")
        pairs = parse_qsl(query, keep_blank_values=True)
        prefix = dict(pairs).get("prefix", "kv")
        # Put together by hand: urlunsplit() makes unix:/path of unix:///path. Ours is taken out.
        rest = [part for part in query.split("&") if part.partition("=")[0] != "prefix"]
        plain = "?".join([place, *filter(None, ["&".join(rest)])])
        named = {name for name, _ in pairs}
        options.setdefault("prefix", prefix)
        prefix, serializer = options.pop("prefix"), options.pop("serializer", None)
        store._start(plain, options, prefix, serializer, None, named)
        return store

    def _start(
        self,
        url: Optional[str],
        options: Optional[Dict[str, Any]],
        prefix: str,
        serializer: Optional[SerializerLike],
        client: Any,
        named: Iterable[str] = (),
    ) -> None:
        # The name is looked up now, not when this module is imported: a test may have put
        # fakeredis in its place.
        try:
            import redis
        except ImportError as error:
            raise ImportError(
                "RedisKVStore needs redis-py, which comes with the extra [redis]: "
                "pip install '.[redis]' from a clone, or pip install redis hiredis."
            ) from error
        self._layout = Layout(prefix)
        self._codec = Codec(serializer)
        self._serializer = serializer
        self._url = url
        # What the caller said, for unpickling and for the async client.
        self._options = options
        self._owned = client is None
        if options is not None:
            given = {*options, *named}
            options = _with_patience(options, given)
            make = redis.Redis if url is None else redis.Redis.from_url
            self._make = partial(make, *() if url is None else (url,), **options)
            try:
                client = self._connected_later()
                if url is not None and type(client).__module__ == "redis.client":
                    # Made and thrown away, unconnected: an option that there is none of is told
                    # here, not as an outage at the first operation.
                    pool = client.connection_pool
                    pool.connection_class(**pool.connection_kwargs)
            except (TypeError, ValueError) as error:
                if url is None:
                    raise
                # redis-py may quote the url, and with it the password.
                raise ValueError(
                    f"The url of the Redis server can't be used ({type(error).__name__}): check "
                    "its scheme, host, port and options."
                ) from None
        self._settings = options
        self._client: Any = client
        refuse_decoding(client)
        # A cluster's client repeats as well, but has no single connection to say something on once.
        self._repeats = hasattr(client, "connection_pool") and repeats(client)
        self._closed = False
        self._interrupted = False
        self._talk = Conversation(self._layout, self._codec, self._nodes)
        self._aio: Any = None
        if self._owned:
            forking.register(self)

    def _after_fork_in_child(self) -> None:
        # Another thread may have been taking a connection: redis-py 8 would wait for ever for the
        # lock of the pool, which nobody in the child will give back; also when it is collected,
        # unless it has nothing to give back or to close.
        self._client.auto_close_connection_pool = False
        self._client.connection = None
        if not self._closed:
            self._client = self._connected_later()

    def _connected_later(self) -> Any:
        client = self._make()
        pool: Any = getattr(client, "connection_pool", None)
        kind = getattr(pool, "connection_class", None)
        if hasattr(kind, "_connect") and not hasattr(kind, "steady"):
            # In a pool of the caller's there may be others that listen, who are owed nothing.
            counts = "connection_pool" not in (self._options or {})
            pool.connection_class = steady(kind, counts)
        return client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {place_of(self._client)} prefix={self._layout.prefix!r}>"

    def __reduce__(self) -> Tuple[Any, ...]:
        if self._options is None:
            raise TypeError(
                "A RedisKVStore made with client= does not pickle, because the client does not. "
                "Make it with host= and port= or from_url(), or make one in each process."
            )
        return _open_again, (
            type(self),
            self._url,
            self._options,
            self._layout.prefix,
            self._serializer,
        )

    def _nodes(self) -> List[Any]:
        """The primary nodes of a cluster; ``[None]`` for a single server."""
        primaries = getattr(self._client, "get_primaries", None)
        if primaries is None:
            return [None]
        return list(primaries())

    # ------------------------------------------------------------------ speaking

    def _speak(self, talk: Generator[Ask, List[Any], Any]) -> Any:
        if self._closed:
            raise StoreClosedError("This RedisKVStore is closed. Make a new one.")
        try:
            ask = next(talk)
            while True:
                try:
                    replies = self._ask(ask)
                except Exception as error:  # redis-py's, hiredis's or the system's: all become ours
                    self._let_through(error)
                    ask = talk.throw(translate(error, ask, self._client))
                else:
                    try:
                        following = talk.send(replies)
                    except StopIteration as done:
                        return done.value
                    except MISREAD as error:
                        self._let_through(error)
                        if isinstance(error, KVStoreError):
                            raise
                        self._drop_idle_connections()
                        raise translate(error, ask, self._client) from error
                    following.said = ask.said or ask.writes
                    ask = following
        except StopIteration as done:
            return done.value

    def _ask(self, ask: Ask) -> List[Any]:
        import redis

        try:
            try:
                return self._ask_once(ask)
            except redis.ConnectionError as error:
                self._let_through(error)
                # The server went away and may be back, or the connection was old. Once more, at
                # once, where that is harmless; not after a time-out, which would double the wait.
                if not (no_place_left(error) and self._has_places_again()):
                    if not ask.harmless or isinstance(error, redis.TimeoutError) or is_final(error):
                        raise
                    ask.said |= ask.writes and may_have_arrived(error, self._client)
            # Out here, so that the second error does not have the first one as its context.
            return self._ask_once(ask)
        except (redis.RedisError, OSError):
            raise
        except BaseException:
            # Of a signal's handler: a connection that it met is out of step, and must not go to the
            # next caller. For clients that were given to us; ours know it themselves.
            self._interrupted = True
            self._drop_idle_connections()
            raise

    def _let_through(self, error: Exception) -> None:
        """Raise what a signal's handler raised, if `error` came of it."""
        came = interruption(error)
        if came is not None:
            self._interrupted = True
            self._drop_idle_connections()
            raise came

    def _has_places_again(self) -> bool:
        """Whether there is a new pool, after interruptions had cost the old one its places.

        redis-py takes and gives back a connection in several steps; between two of them a signal's
        handler may raise, and nobody has the connection then. Whoever has one of the old pool's
        still gives it back there.
        """
        if not (self._owned and self._interrupted):
            return False
        self._interrupted = False
        # Other threads may be using its connections, which would be closed with it.
        self._client.auto_close_connection_pool = False
        self._client = self._connected_later()
        return True

    def _drop_idle_connections(self) -> None:
        # As far as the driver's version can; another error must not take the place of the first.
        alone: Any = getattr(self._client, "connection", None)
        with contextlib.suppress(Exception):
            alone.disconnect()
        pool: Any = getattr(self._client, "connection_pool", None)
        with contextlib.suppress(Exception):
            pool.disconnect(inuse_connections=False)

    def _ask_no_more_than_once(self, ask: Ask) -> List[Any]:
        """What must not be said twice, to a client that would say it again by itself."""
        with self._client.client() as alone:
            connection = alone.connection
            patient, connection.retry = connection.retry, unrepeating(connection.retry)
            try:
                return [alone.execute_command(*command) for command in ask.commands]
            finally:
                connection.retry = patient

    def _ask_once(self, ask: Ask) -> List[Any]:
        if self._repeats and not ask.harmless:
            return self._ask_no_more_than_once(ask)
        options = {} if ask.node is None else {"target_nodes": ask.node}
        if len(ask.commands) == 1:
            return [self._client.execute_command(*ask.commands[0], **options)]
        with self._client.pipeline(transaction=False) as pipeline:
            for command in ask.commands:
                pipeline.execute_command(*command)
            replies = pipeline.execute(raise_on_error=False)
        return first_error(replies)

    # ------------------------------------------------------------------ the operations

    def get(self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING) -> Any:
        """Return a fresh copy of the value of `key`; one GET.

        Args:
            key: The key.
            namespace: ``None`` is the default namespace.
            default: What to return when the key is absent.

        Raises:
            KeyNotFoundError: The key is absent and no `default` was given.
            SerializationError: The entry can't be read. It is left where it is.
        """
        value = self._speak(self._talk.read(key, namespace))
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyNotFoundError(key, namespace)
        return default

    def reader(self, namespace: Optional[str] = None) -> Callable[[str], Any]:
        """Return a function that looks up a key of `namespace`: its value, or `MISSING`."""
        namespace = check_namespace(namespace)
        return lambda key: self._speak(self._talk.read(key, namespace))

    def set(
        self, key: str, value: Any, namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> None:
        """Store `value` under `key`, in place of what was there and of its ttl; one SET."""
        self._speak(self._talk.set(key, value, namespace, ttl))

    def delete(self, key: str, namespace: Optional[str] = None) -> bool:
        """Delete `key` and return whether it was there; one UNLINK."""
        return bool(self._speak(self._talk.delete(key, namespace)))

    def ttl(self, key: str, namespace: Optional[str] = None) -> Optional[float]:
        """Return the seconds that `key` has left; ``None``: no expiry; one PTTL."""
        left: Optional[float] = self._speak(self._talk.ttl(key, namespace))
        return left

    def exists(self, key: str, namespace: Optional[str] = None) -> bool:
        """Return whether `key` is there; one EXISTS."""
        return bool(self._speak(self._talk.exists(key, namespace)))

    def keys(self, namespace: Optional[str] = None, pattern: str = "*") -> List[str]:
        """Return the keys that match `pattern`: SCAN to the end, never KEYS."""
        return list(self._speak(self._talk.keys(namespace, pattern)))

    def clear_namespace(self, namespace: Optional[str]) -> int:
        """Delete everything in `namespace` and return how many live keys went: SCAN and UNLINK."""
        return int(self._speak(self._talk.clear_namespace(namespace)))

    def list_namespaces(self) -> List[str]:
        """Return the named namespaces that hold a live key. Walks all keys of the database."""
        return list(self._speak(self._talk.list_namespaces()))

    def add(
        self, key: str, value: Any, namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> bool:
        """Store `value` only if `key` is absent; return whether it was stored; one SET NX."""
        return bool(self._speak(self._talk.add(key, value, namespace, ttl)))

    def pop(self, key: str, namespace: Optional[str] = None, *, default: Any = MISSING) -> Any:
        """Delete `key` and return its value; one GETDEL. Of many callers exactly one gets it.

        A value that can't be read is put back with its ttl, which is a second round trip. Should
        the server refuse that or go away in between, the value is lost.
        """
        return self._speak(self._talk.pop(key, namespace, default=default))

    def touch(self, key: str, namespace: Optional[str] = None, ttl: Optional[TTL] = None) -> bool:
        """Give `key` a new ttl; return whether it was there; one PEXPIRE or PERSIST."""
        return bool(self._speak(self._talk.touch(key, namespace, ttl)))

    def get_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> Dict[str, Any]:
        """Return the values of those `keys` that are there; an MGET for 500 of them.

        For those that it does not find an EXISTS follows: MGET says nil for what is no string, too.
        """
        found: Dict[str, Any] = self._speak(self._talk.get_many(keys, namespace))
        return found

    def set_many(
        self, mapping: Mapping[str, Any], namespace: Optional[str] = None, ttl: Optional[TTL] = None
    ) -> None:
        """Store every item of `mapping` with the same ttl; a round trip for 500 of them."""
        self._speak(self._talk.set_many(mapping, namespace, ttl))

    def delete_many(self, keys: Iterable[str], namespace: Optional[str] = None) -> int:
        """Delete `keys` and return how many of them were there; an UNLINK for 500 of them."""
        return int(self._speak(self._talk.delete_many(keys, namespace)))

    def iter_keys(self, namespace: Optional[str] = None, pattern: str = "*") -> Iterator[str]:
        """Like `keys`, a step of SCAN at a time."""
        matches = matcher(pattern)
        namespace = check_namespace(namespace)

        def pages() -> Iterator[str]:
            seen = set()  # SCAN may return a key more than once
            for node in self._nodes():
                cursor: Any = 0
                while True:
                    cursor, page = self._speak(self._talk.page(cursor, namespace, pattern, node))
                    for key in page:
                        if key not in seen and (matches is None or matches(key)):
                            seen.add(key)
                            yield key
                    if not cursor:
                        break

        return pages()

    def _lease(self, key: str, namespace: Optional[str], ttl_ms: int) -> Lease:
        from .lease import RedisLease

        if self._closed:
            raise StoreClosedError("This RedisKVStore is closed. Make a new one.")
        return RedisLease(self._client, self._layout.lock(key, namespace), ttl_ms)

    @property
    def aio(self) -> AsyncKVStore:
        """The same operations, awaitable, on redis.asyncio with the same settings.

        With ``client=`` (a cluster, Sentinel, fakeredis) they run in threads on that client.
        """
        import redis

        from ..aio import AsyncKVStore

        genuine = (
            type(self._client) is redis.Redis and type(self._client).__module__ == "redis.client"
        )
        if self._options is None or not genuine:
            return AsyncKVStore(self)
        if self._aio is None:
            from .aio import RedisAsyncStore

            self._aio = RedisAsyncStore(self)
        aio: AsyncKVStore = self._aio
        return aio

    def close(self) -> None:
        """Close the connections, unless the client is the caller's."""
        if not self._closed:
            self._closed = True
            if self._owned:
                self._client.close()


def _open_again(
    kind: Any, url: Optional[str], options: Dict[str, Any], prefix: str, serializer: Any
) -> Any:
    if url is None:
        return kind(prefix=prefix, serializer=serializer, **options)
    return kind.from_url(url, prefix=prefix, serializer=serializer, **options)


def _with_patience(options: Dict[str, Any], given: Iterable[str]) -> Dict[str, Any]:
    """The caller's options, with ours where the caller said nothing."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    given = set(given)
    ours: Dict[str, Any] = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
    if not given.intersection(_RETRY_OPTIONS):
        ours["retry"] = Retry(NoBackoff(), 0)
    return {**{name: value for name, value in ours.items() if name not in given}, **options}


def refuse_decoding(client: Any) -> None:
    """Refuse a client that would hand out text (values are bytes), or that must be awaited."""
    if inspect.iscoroutinefunction(getattr(client, "execute_command", None)):
        raise TypeError(
            "That is an asyncio client. Pass a plain redis.Redis: store.aio does the awaiting, "
            "with the same settings."
        )
    pool = getattr(client, "connection_pool", None)
    settings = getattr(pool, "connection_kwargs", None)
    if settings is None and hasattr(client, "get_connection_kwargs"):
        settings = client.get_connection_kwargs()
    if isinstance(settings, dict) and settings.get("decode_responses"):
        raise ValueError(
            "The Redis client has decode_responses=True, which would break every value that is "
            "not text. Make the client without it; text still comes back as str."
        )
