"""The conformance suite on every store, every view, and both colours."""

from __future__ import annotations

import pickle
import shutil
import tempfile
import threading
import time
import weakref
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pytest

from kv_store_adapter import (
    NO_EXPIRY,
    DiskKVStore,
    InvalidTTLError,
    KeyNotFoundError,
    KVStoreProtocol,
    LockTimeoutError,
    MemoryKVStore,
    NamespaceView,
    RedisKVStore,
    StoreClosedError,
)
from kv_store_adapter.protocol import TAGS_NAMESPACE
from kv_store_adapter.rules import check_key, check_namespace, check_ttl
from kv_store_adapter.testing import AsyncKVStoreContract, KVStoreContract, state_machine
from kv_store_adapter.testing.samples import calls_with_key
from server import Server


class EightMethods(KVStoreProtocol):
    """A third party's store: eight methods, and nothing else of ours overridden."""

    def __init__(self) -> None:
        self._entries: Dict[Tuple[Optional[str], str], Tuple[Any, Optional[float]]] = {}
        self._lock = threading.Lock()

    def _find(self, key: str, namespace: Optional[str]) -> Tuple[Any, Optional[float]]:
        place = check_namespace(namespace), check_key(key)
        value, ends = self._entries.get(place, (None, 0.0))
        if ends is not None and ends <= time.time():
            raise KeyNotFoundError(key, namespace)
        return value, ends

    def get(self, key: str, namespace: Optional[str] = None) -> Any:
        return self._find(key, namespace)[0]

    def set(self, key: str, value: Any, namespace: Optional[str] = None, ttl: Any = None) -> None:
        place, life = (check_namespace(namespace), check_key(key)), check_ttl(ttl)
        with self._lock:
            self._entries[place] = value, None if life is None else time.time() + life / 1000

    def delete(self, key: str, namespace: Optional[str] = None) -> bool:
        with self._lock:
            there = self.exists(key, namespace)
            self._entries.pop((check_namespace(namespace), check_key(key)), None)
            return there

    def ttl(self, key: str, namespace: Optional[str] = None) -> Optional[float]:
        ends = self._find(key, namespace)[1]
        return None if ends is None else round(ends - time.time(), 3)

    def exists(self, key: str, namespace: Optional[str] = None) -> bool:
        try:
            self._find(key, namespace)
        except KeyNotFoundError:
            return False
        return True

    def keys(self, namespace: Optional[str] = None, pattern: str = "*") -> List[str]:
        check_namespace(namespace)
        if not isinstance(pattern, str):
            raise TypeError("A pattern is a str.")
        return [k for k in self._live(namespace) if fnmatchcase(k, pattern)]

    def _live(self, namespace: Optional[str]) -> List[str]:
        entries = list(self._entries)
        return [key for name, key in entries if name == namespace and self.exists(key, name)]

    def clear_namespace(self, namespace: Optional[str]) -> int:
        check_namespace(namespace)
        with self._lock:
            live = len(self._live(namespace))
            for place in [place for place in self._entries if place[0] == namespace]:
                del self._entries[place]
            return live

    def list_namespaces(self) -> List[str]:
        names = {name for name, _ in list(self._entries) if name is not None}
        return [name for name in names if self._live(name)]


# ---------------------------------------------------------------------- the backends


class OnMemory:
    @pytest.fixture
    def backend(self) -> MemoryKVStore:
        return MemoryKVStore()


class OnBoundedMemory:
    @pytest.fixture
    def backend(self) -> MemoryKVStore:
        return MemoryKVStore(maxsize=100_000)


class OnSerializedMemory:
    @pytest.fixture
    def backend(self) -> MemoryKVStore:
        return MemoryKVStore(serializer=pickle)


class OnDisk:
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[DiskKVStore]:
        with DiskKVStore(tmp_path / "store") as store:
            yield store


class OnDiskInFiles:
    """Every value in a file of its own, with a checksum."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[DiskKVStore]:
        with DiskKVStore(tmp_path / "store", spill_threshold=0, verify=True) as store:
            yield store


class OnFakeredis:
    @pytest.fixture
    def backend(self) -> RedisKVStore:
        return _fresh_fakeredis()


class OnRealRedis:
    # A server has its own clock: here time really passes, once a class.
    life = 0.1

    @contextmanager
    def travel(self, seconds: float) -> Iterator[None]:
        time.sleep(seconds)
        yield

    @pytest.mark.sleeps
    def test_expired_is_absent(self, store: KVStoreProtocol) -> None:
        """What has expired is absent for every operation and every count; the rest is there."""
        super().test_expired_is_absent(store)  # type: ignore[misc]  # the suite's, by the MRO

    @pytest.fixture
    def backend(self, redis_server: Server) -> Iterator[RedisKVStore]:
        # A test that meets a busy machine must not fail by the second that a dead server may cost.
        with RedisKVStore(port=redis_server.port, socket_timeout=20) as store:
            yield store


class OnThirdParty:
    @pytest.fixture
    def backend(self) -> EightMethods:
        return EightMethods()


BACKENDS = {
    "Memory": OnMemory,
    "BoundedMemory": OnBoundedMemory,
    "SerializedMemory": OnSerializedMemory,
    "Disk": OnDisk,
    "DiskInFiles": OnDiskInFiles,
    "Fakeredis": OnFakeredis,
    "RealRedis": OnRealRedis,
    "ThirdParty": OnThirdParty,
}

# ---------------------------------------------------------------------- two ways to look at them


class Plain:
    @pytest.fixture
    def store(self, backend: KVStoreProtocol) -> KVStoreProtocol:
        return backend


class Viewed:
    NAME = "out:er*"
    longest_namespace = 64 * 1024 - len(NAME) - 1

    @pytest.fixture
    def store(self, backend: KVStoreProtocol) -> Iterator[NamespaceView]:
        # What lies beside the view must neither be seen nor touched by anything it does.
        beside: List[Optional[str]] = [None, "out", "out:er", "out:er*x", "er*", "out:er"]
        for name in beside:
            backend.set("beside", name, name)
        yield backend.namespace(self.NAME)
        for name in beside:
            assert backend.get("beside", name) == name

    def full_namespace(self, namespace: Optional[str]) -> Optional[str]:
        return self.NAME if namespace is None else f"{self.NAME}:{namespace}"


class OurOwn(KVStoreContract):
    """What our stores and views promise beyond the protocol."""

    def test_get_has_a_default(self, store: Any) -> None:
        """get(default=) gives it for what is absent, None too, and not for a stored None."""
        assert store.get("absent", default=None) is None
        assert store.get("absent", "n", default=3) == 3
        store.set("none", None)
        assert store.get("none", default=3) is None

    def test_a_closed_store_says_so(self, store: KVStoreProtocol) -> None:
        """Every operation after close() is a StoreClosedError."""
        store.set("key", 1, "n")
        reader = store.reader("n")
        store.close()
        for name, call in calls_with_key(store).items():
            if name != "lock":
                with pytest.raises(StoreClosedError):
                    call("key", "n")
        for call_without in (store.keys, store.list_namespaces, lambda: store.clear_namespace("n")):
            with pytest.raises(StoreClosedError):
                call_without()
        with pytest.raises(StoreClosedError):
            list(store.iter_keys())
        with pytest.raises(StoreClosedError):
            reader("key")
        with pytest.raises(StoreClosedError):
            store.get_many([])
        with pytest.raises(StoreClosedError):
            store.set_many({})
        with pytest.raises(StoreClosedError):
            store.delete_many([])
        with pytest.raises(StoreClosedError), store.lock("key", timeout=0):
            raise AssertionError("a closed store gave a lock")


for _name, _backend in BACKENDS.items():
    _plain_suite = KVStoreContract if _backend is OnThirdParty else OurOwn
    _classes: Dict[str, Tuple[type, ...]] = {
        f"Test{_name}": (_backend, Plain, _plain_suite),
        f"Test{_name}View": (_backend, Viewed, OurOwn),
        f"Test{_name}Async": (_backend, Plain, AsyncKVStoreContract),
        f"Test{_name}ViewAsync": (_backend, Viewed, AsyncKVStoreContract),
    }
    if _backend is OnDiskInFiles:
        # As for OnDisk; only what happens on the disk differs.
        _classes = {f"Test{_name}": _classes[f"Test{_name}"]}
    for _class_name, _bases in _classes.items():
        globals()[_class_name] = type(_class_name, _bases, {"__module__": __name__})
        if _backend is OnRealRedis:
            pytest.mark.server(globals()[_class_name])


# ---------------------------------------------------------------------- against a dictionary


def _fresh_disk() -> DiskKVStore:
    folder = tempfile.mkdtemp()
    store = DiskKVStore(Path(folder, "store"), spill_threshold=1000)
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store


def _fresh_fakeredis() -> RedisKVStore:
    fakeredis = pytest.importorskip("fakeredis")
    client = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    # Makes its database. Threads that came at once might make one each, and lose what is in it.
    client.ping()
    return RedisKVStore(client=client)


TestMemoryAgainstADict = state_machine(MemoryKVStore).TestCase
TestBoundedMemoryAgainstADict = state_machine(lambda: MemoryKVStore(maxsize=1000)).TestCase
TestDiskAgainstADict = state_machine(_fresh_disk).TestCase
TestFakeredisAgainstADict = state_machine(_fresh_fakeredis).TestCase
TestThirdPartyAgainstADict = state_machine(EightMethods).TestCase
TestViewAgainstADict = state_machine(lambda: MemoryKVStore().namespace("a")).TestCase


# ---------------------------------------------------------------------- to the millisecond


@pytest.mark.parametrize("ttl", [0.001, 0.0001, 1.1, 30, 0.2505])
@pytest.mark.parametrize("make", [MemoryKVStore, _fresh_disk, _fresh_fakeredis, EightMethods])
def test_expires_not_early_and_at_most_a_millisecond_late(make: Any, ttl: float) -> None:
    """An entry lives for its ttl, rounded up to a millisecond, and at most one millisecond more."""
    import time_machine

    with time_machine.travel(1_800_000_000.3, tick=False) as clock, make() as store:
        store.set("key", 1, ttl=ttl)
        clock.shift(ttl * 0.99)
        assert store.exists("key")
        clock.shift(ttl * 0.01 + 0.00201)
        assert not store.exists("key")


# ---------------------------------------------------------------------- what a third party gets


@pytest.mark.parametrize("make", [MemoryKVStore, _fresh_disk, _fresh_fakeredis, EightMethods])
def test_a_bad_ttl_is_refused_also_where_nothing_would_be_stored(make: Any) -> None:
    """add() of what is there, touch() of what is not, and an empty batch refuse a bad ttl."""
    with make() as store:
        store.set("key", 1)
        for call in (
            lambda: store.add("key", 2, ttl=0),
            lambda: store.touch("absent", ttl=0),
            lambda: store.set_many({}, ttl=0),
        ):
            with pytest.raises(InvalidTTLError):
                call()
        assert store.get("key") == 1
        assert store.ttl("key") is None


def test_a_third_partys_finder_reads_and_its_tags_are_entries() -> None:
    """finder() finds what get() does, None included; invalidate_tag() drops one entry of a tag."""
    store = EightMethods()
    for find, namespace in ((store.finder("n"), "n"), (store.finder(), None)):
        assert find("key") is None
        store.set("key", None, namespace)
        assert find("key") == (None, None)
    assert store.finder("m")("key") is None
    for tag in ("a", "b"):
        store.set(tag, "token", TAGS_NAMESPACE)
        store.set(tag, "token")
    store.invalidate_tag("a")
    assert store.keys(TAGS_NAMESPACE) == ["b"]
    assert store.exists("a")


def test_a_third_partys_locks_are_those_of_one_object() -> None:
    """Two stores that bring no locks of their own never wait for each other."""
    one, other = EightMethods(), EightMethods()
    with one.lock("key", timeout=0), other.lock("key", timeout=0):
        with pytest.raises(LockTimeoutError):
            one.lock("key", timeout=0).__enter__()
    with pytest.raises(TypeError, match="lock's ttl .* not None"):
        one.lock("key", ttl=None)  # type: ignore[arg-type]  # the mistake


def test_a_third_party_never_sees_no_expiry() -> None:
    """A view turns NO_EXPIRY into None, which is what the protocol's ttl knows."""
    given: List[Any] = []

    class Recording(EightMethods):
        def set(self, key: str, value: Any, namespace: Any = None, ttl: Any = None) -> None:
            given.append(ttl)
            super().set(key, value, namespace, ttl)

    view = NamespaceView(Recording(), "a", ttl=50)
    for ttl in (NO_EXPIRY, None, 7):
        view.set("key", 1, ttl=ttl)
        view.add(f"added {ttl}", 1, ttl=ttl)
    assert given == [None, None, 50, 50, 7, 7]


def test_a_view_made_by_hand_is_a_plain_one() -> None:
    """NamespaceView(store, name) has no ttl and clears nothing; a closed one says its name."""
    store = EightMethods()
    with NamespaceView(store, "plain") as view:
        view.set("key", 1)
    assert store.ttl("key", "plain") is None
    view.close()
    with pytest.raises(StoreClosedError, match="view of namespace 'plain' is closed"):
        view.get("key")
    with pytest.raises(TypeError, match="A view has a name"):
        NamespaceView(store, None)  # type: ignore[arg-type]  # the mistake


def test_one_key_is_no_batch() -> None:
    """A str or bytes where many keys are wanted is refused with what to write."""
    store = EightMethods()
    for batch in ("key", b"key"):
        for call in (store.get_many, store.delete_many):
            with pytest.raises(TypeError, match=r"not one key\. Write \[key\]"):
                call(batch)  # type: ignore[operator]  # the mistake
