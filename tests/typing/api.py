"""Never run, only type-checked: what mypy --strict and pyright know of the public names.

A line with ``type: ignore`` must be an error: mypy is told to warn of those that are not needed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import (
    Any,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Dict,
    Iterator,
    List,
    MutableMapping,
    Optional,
    Tuple,
)

from typing_extensions import assert_type

from kv_store_adapter import (
    NO_EXPIRY,
    CacheInfo,
    CompressedSerializer,
    DiskKVStore,
    JSONSerializer,
    KeyNotFoundError,
    KVMapping,
    KVStoreError,
    KVStoreProtocol,
    MemoryKVStore,
    NamespaceView,
    RedisKVStore,
    SignedSerializer,
    UnkeyableArgumentError,
    cached,
    cached_many,
    caching_disabled,
    open_store,
    register_key_encoder,
)
from kv_store_adapter.aio import AsyncKVStore

store: KVStoreProtocol = MemoryKVStore()


# ---------------------------------------------------------------------- a function


@cached(store, ttl=60)
def add(a: int, b: int = 2, *, loud: bool = False) -> str:
    """Add."""
    return str(a + b)


assert_type(add(1), str)
assert_type(add(1, b=2, loud=True), str)
assert_type(add.cache_key(1, 2), str)
assert_type(add.invalidate(a=1), bool)
assert_type(add.refresh(1), str)
assert_type(add.peek(1), str)
assert_type(add.bypass(1), str)
assert_type(add.cache_clear(), None)
assert_type(add.cache_info(), CacheInfo)
assert_type(add.cache_info().hits, int)
assert_type(add.cache_info().currsize, Optional[int])
assert_type(add.cache_parameters(), Dict[str, Any])
assert_type(add.__wrapped__(1), str)
assert_type(add.__name__, str)
taken: Callable[[int], str] = add

add()  # type: ignore[call-arg]
add("1")  # type: ignore[arg-type]
add(1, 2, True)  # type: ignore[call-arg]
add(1, quiet=True)  # type: ignore[call-arg]
add.cache_key("1")  # type: ignore[arg-type]
add.invalidate()  # type: ignore[call-arg]
add.refresh(1, loud=1)  # type: ignore[arg-type]
add.peek(b=1)  # type: ignore[call-arg]
add.bypass(1, 2, True)  # type: ignore[call-arg]
add.forget(1)  # type: ignore[attr-defined]
wrong: int = add(1)  # type: ignore[assignment]


# ---------------------------------------------------------------------- a coroutine function


@cached(store, ttl=timedelta(minutes=1))
async def fetch(url: str, *, tries: int = 3) -> bytes:
    """Fetch."""
    return url.encode() * tries


async def awaits() -> None:
    """What is awaited, and what isn't."""
    assert_type(await fetch("u"), bytes)
    assert_type(fetch.cache_key("u", tries=1), str)
    assert_type(await fetch.invalidate("u"), bool)
    assert_type(await fetch.refresh("u"), bytes)
    assert_type(await fetch.peek(url="u"), bytes)
    assert_type(await fetch.bypass("u"), bytes)
    assert_type(fetch.cache_clear(), Awaitable[None])
    assert_type(fetch.cache_info(), CacheInfo)
    assert_type(await fetch.__wrapped__("u"), bytes)
    await fetch(1)  # type: ignore[arg-type]
    await fetch.peek()  # type: ignore[call-arg]
    await fetch.cache_info()  # type: ignore[misc]
    text: str = await fetch("u")  # type: ignore[assignment]
    assert text


coroutine: Callable[[str], Coroutine[Any, Any, bytes]] = fetch


# ---------------------------------------------------------------------- methods


class Repo:
    """Methods of every kind, in either order with classmethod and staticmethod."""

    @cached(store, ignore=("self",))
    def load(self, user_id: int, *, full: bool = False) -> List[str]:
        """Load."""
        return [str(user_id)] if full else []

    @cached(store, key="user:{user_id}")
    async def fetch(self, user_id: int) -> Tuple[int, ...]:
        """Fetch."""
        return (user_id,)

    @cached(store)
    @classmethod
    def make(cls, name: str) -> float:
        """Make."""
        return float(len(name))

    @cached(store)
    @staticmethod
    def twice(n: int) -> int:
        """Double it."""
        return n * 2

    @staticmethod
    @cached(store)
    def thrice(n: int) -> int:
        """Three times."""
        return n * 3

    @staticmethod
    @cached(store)
    def now() -> float:
        """Now."""
        return 0.0

    @cached(store)
    @classmethod
    async def amake(cls, name: str) -> float:
        """Make."""
        return float(len(name))

    @cached(store)
    @staticmethod
    async def atwice(n: int) -> int:
        """Double it."""
        return n * 2

    @classmethod
    @cached(store)
    def build(cls, name: str) -> bytes:
        """Build."""
        return name.encode()


repo = Repo()
assert_type(repo.load(7), List[str])
assert_type(repo.load(user_id=7, full=True), List[str])
assert_type(repo.load.cache_key(7), str)
assert_type(repo.load.invalidate(7), bool)
assert_type(repo.load.refresh(7, full=True), List[str])
assert_type(repo.load.peek(7), List[str])
assert_type(repo.load.bypass(7), List[str])
assert_type(repo.load.cache_info(), CacheInfo)
assert_type(Repo.load(repo, 7), List[str])
assert_type(Repo.load.cache_key(repo, 7), str)
assert_type(Repo.load.invalidate(repo, user_id=7), bool)
repo.load()  # type: ignore[call-arg]
repo.load("7")  # type: ignore[arg-type]
repo.load.cache_key(repo, 7)  # type: ignore[call-arg, arg-type]
repo.load.invalidate(7, some=True)  # type: ignore[call-arg]
Repo.load()  # type: ignore[call-overload]
Repo.load.peek("7")  # type: ignore[call-overload]

assert_type(Repo.make("a"), float)
assert_type(repo.make(name="a"), float)
assert_type(Repo.make.cache_key("a"), str)
assert_type(Repo.make.refresh("a"), float)
Repo.make(1)  # type: ignore[call-overload]
Repo.make.peek()  # type: ignore[call-overload]

# A static method asked for on an instance is known to pyright only: mypy takes it for a method.
assert_type(Repo.twice(1), int)
assert_type(Repo.twice(n=1), int)
assert_type(Repo.twice.cache_key(1), str)
assert_type(Repo.twice.invalidate(1), bool)
Repo.twice("1")  # type: ignore[call-overload]
Repo.twice.peek("1")  # type: ignore[call-overload]

assert_type(Repo.thrice(1), int)
assert_type(Repo.now(), float)
Repo.thrice("1")  # type: ignore[call-overload]

assert_type(Repo.build("a"), bytes)
assert_type(repo.build("a"), bytes)


async def awaits_methods() -> None:
    """Coroutine functions in classes."""
    assert_type(await repo.fetch(7), Tuple[int, ...])
    assert_type(await repo.fetch.peek(7), Tuple[int, ...])
    assert_type(await repo.fetch.invalidate(user_id=7), bool)
    assert_type(repo.fetch.cache_key(7), str)
    assert_type(await Repo.fetch(repo, 7), Tuple[int, ...])
    assert_type(await Repo.amake("a"), float)
    assert_type(await repo.amake.refresh("a"), float)
    assert_type(await Repo.atwice(1), int)
    assert_type(await Repo.atwice.peek(1), int)
    await repo.fetch("7")  # type: ignore[arg-type]
    await Repo.fetch.refresh("7")  # type: ignore[call-overload]
    await Repo.amake(1)  # type: ignore[call-overload]
    await Repo.atwice.peek("1")  # type: ignore[call-overload]


# ---------------------------------------------------------------------- many


@cached_many(store, ttl=60)
def load_many(ids: List[int], *, lang: str = "en") -> Dict[int, str]:
    """Load."""
    return dict.fromkeys(ids, lang)


@cached_many(store, ids="ids")
async def fetch_many(ids: List[int]) -> Dict[int, bytes]:
    """Fetch."""
    return dict.fromkeys(ids, b"")


assert_type(load_many([1], lang="de"), Dict[int, str])
assert_type(load_many.invalidate([1]), bool)
assert_type(load_many.peek([1]), Dict[int, str])
load_many(1)  # type: ignore[arg-type]
load_many(["1"])  # type: ignore[list-item]


async def awaits_many() -> None:
    """The coroutine twin."""
    assert_type(await fetch_many([1]), Dict[int, bytes])
    assert_type(await fetch_many.refresh([1]), Dict[int, bytes])


# ---------------------------------------------------------------------- options


cached(
    store,
    ttl=lambda result, *args, **kwargs: 5,
    namespace="n",
    key=lambda a: f"{a}",
    ignore=["a"],
    version=1,
    jitter=0.5,
    cache_if=bool,
    stale=10,
    early=1.0,
    tags=("a:{a}",),
    lock="store",
    lock_ttl=timedelta(seconds=5),
    lock_timeout=1.5,
    on_error="raise",
)
cached()  # type: ignore[call-arg]
cached(store, 60)  # type: ignore[call-arg]
cached(store, ttl="60")  # type: ignore[arg-type]
cached(store, key=7)  # type: ignore[arg-type]
cached(store, version=1.5)  # type: ignore[arg-type]
cached({}, ttl=60)  # type: ignore[arg-type]

with caching_disabled(), caching_disabled(store):
    add(1)

register_key_encoder(Repo, lambda one: one.name)
register_key_encoder("Repo", str)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- stores


with MemoryKVStore(maxsize=10) as memory:
    assert_type(memory, MemoryKVStore)
with DiskKVStore("folder", serializer=JSONSerializer()) as disk:
    assert_type(disk, DiskKVStore)
with RedisKVStore(host="localhost", port=6379) as remote:
    assert_type(remote, RedisKVStore)
assert_type(RedisKVStore.from_url("redis://"), RedisKVStore)
assert_type(open_store("memory://"), KVStoreProtocol)
SignedSerializer(b"secret", CompressedSerializer(JSONSerializer()))

for any_store in (store, memory, disk, remote):
    assert_type(any_store.delete("key"), bool)
    assert_type(any_store.ttl("key", "n"), Optional[float])
    assert_type(any_store.exists("key"), bool)
    assert_type(any_store.keys("n", "a*"), List[str])
    assert_type(any_store.clear_namespace(None), int)
    assert_type(any_store.list_namespaces(), List[str])
    assert_type(any_store.add("key", 1, "n", 5), bool)
    assert_type(any_store.touch("key", "n", timedelta(1)), bool)
    assert_type(any_store.get_many(["a"]), Dict[str, Any])
    assert_type(any_store.delete_many(["a"]), int)
    assert_type(any_store.iter_keys(), Iterator[str])
    any_store.set("key", 1, ttl=1.5)
    any_store.set_many({"a": 1}, "n", 5)
    any_store.set("key", 1, ttl="5")  # type: ignore[arg-type]
    any_store.set(1, 1)  # type: ignore[arg-type]
    any_store.get("key", 1)  # type: ignore[arg-type]
    with any_store.lock("key", ttl=5.0, timeout=1.0):
        pass

memory.get("key", default=None)
memory.pop("key", default=None)
try:
    store.get("key")
except KeyNotFoundError as error:
    assert_type(error.namespace, Optional[str])
except UnkeyableArgumentError:
    raise
except KVStoreError:
    pass


# ---------------------------------------------------------------------- views and mappings


with store.namespace("users", ttl=60, clear_on_exit=True) as view:
    assert_type(view, NamespaceView)
    assert_type(view.namespace("admins"), NamespaceView)
    assert_type(view.keys(), List[str])
    view.set("key", 1, ttl=NO_EXPIRY)

    @cached(view)
    def in_view(n: int) -> int:
        """Cached in a view."""
        return n

    assert_type(in_view(1), int)

mapping = view.as_mapping(ttl=5)
assert_type(mapping, KVMapping)
as_mutable: MutableMapping[str, Any] = mapping
mapping["a"] = 1
mapping[1] = 1  # type: ignore[index]
assert_type(list(mapping), List[str])
assert_type("a" in mapping, bool)


# ---------------------------------------------------------------------- aio


async def awaits_stores() -> None:
    """The same operations, awaitable."""
    assert_type(store.aio, AsyncKVStore)
    assert_type(await store.aio.delete("key"), bool)
    assert_type(await store.aio.ttl("key"), Optional[float])
    assert_type(await store.aio.keys(), List[str])
    assert_type(await store.aio.get_many(["a"]), Dict[str, Any])
    assert_type(await store.aio.add("key", 1), bool)
    assert_type(store.aio.iter_keys(), AsyncIterator[str])
    await store.aio.set("key", 1, ttl=5)
    await store.aio.set("key", 1, ttl="5")  # type: ignore[arg-type]
    async for key in view.aio.iter_keys():
        assert_type(key, str)
    async with store.aio.lock("key"):
        pass
