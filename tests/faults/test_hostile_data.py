"""Hostile data: bytes that an attacker put into the store, and what comes of reading them.

The attacker writes into the memory store's tables, SQLite, a value's file or Redis, and knows
everything but the secret. What tests/test_serializers.py holds already (a bit changed, other keys,
planted pickles, by hand) is held here through every backend and every way of reading.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import itertools
import json
import os
import pickle
import random
import tracemalloc
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from ways import BACKENDS, Ground, reads, under_key

from kv_store_adapter import (
    CompressedSerializer,
    JSONSerializer,
    PickleSerializer,
    RestrictedPickleSerializer,
    SerializationError,
    SignedSerializer,
    cached,
)

SECRET, OLDER = b"0123456789abcdef", b"older: fedcba9876543210"
MARK, DIGEST = 4, 32


@pytest.fixture(params=BACKENDS)
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None
    made = Ground(request.param, tmp_path, server)
    yield made
    made.close()


def refused(ground: Ground, store: Any, data: bytes, key: str = "key") -> None:
    """What is planted is a SerializationError by every way of reading, and stays where it is."""
    ground.plant(store, key, data)
    for way, read in reads(ground, store).items():
        with pytest.raises(SerializationError) as caught:
            read(key)
        assert type(caught.value) is SerializationError, way
    assert ground.raw(store, key) == data
    assert store.exists(key, "n") and store.keys("n") == [key]


def signed_makers() -> Dict[str, Callable[[], Any]]:
    return {
        "pickle": lambda: SignedSerializer(SECRET),
        "json": lambda: SignedSerializer(SECRET, JSONSerializer()),
        "two secrets": lambda: SignedSerializer(SECRET, accept=[OLDER]),
        "compressed inside": lambda: SignedSerializer(SECRET, CompressedSerializer(threshold=0)),
        "compressed outside": lambda: CompressedSerializer(SignedSerializer(SECRET), threshold=0),
    }


# ---------------------------------------------------------------------- signatures


@pytest.mark.parametrize("kind", signed_makers())
def test_no_changed_byte_is_decoded(
    ground: Ground, kind: str, rounds: Any, seed: int, count: Any
) -> None:
    """A signed entry with any one byte changed, left out or put in is refused by every backend."""
    chance = random.Random(seed)
    store = ground.open(signed_makers()[kind]())
    store.set("key", ["value", 1], "n")
    data = ground.raw(store, "key")
    tried = 0
    # Every other byte where planting is cheap, else every bit.
    every = list(range(1, 256)) if ground.kind == "memory" else [1 << bit for bit in range(8)]
    for place in range(len(data)):
        flips = rounds([1 << chance.randrange(8)], every)
        forged = [data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :] for flip in flips]
        forged += [data[:place], data[:place] + data[place + 1 :]]
        forged.append(data[:place] + bytes([chance.randrange(256)]) + data[place:])
        for bad in forged:
            if bad == data:
                continue
            ground.plant(store, "key", bad)
            tried += 1
            try:
                value = store.get("key", "n")
            except SerializationError:
                continue
            # Where the signature is inside, zlib has bits of its own that mean nothing.
            assert kind == "compressed outside" and value == ["value", 1], bad
    ground.plant(store, "key", data)
    assert store.get("key", "n") == ["value", 1]
    refused(ground, store, data[:-1])
    count("forged bytes that a signature refused", tried)


def test_no_signed_entry_can_be_moved(ground: Ground, rounds: Any, seed: int, count: Any) -> None:
    """A signed entry is read under its own key, namespace and version, and nowhere else."""
    store = ground.open(SignedSerializer(SECRET))
    results = {
        version: cached(store, namespace="n", key=None, version=version, on_error="raise")
        for version in (1, "1", 2)
    }
    functions = {version: make(_one_more(version)) for version, make in results.items()}
    for function in functions.values():
        function(0)
    places: List[Any] = [("key", "n"), ("key", None), ("key", "a"), ("key", "a:n"), ("", "nkey")]
    places += [("ke", "yn"), ("keyn", None), ("nkey", None), ("a:key", "n"), ("n:key", None)]
    places += [("KEY", "n"), ("key ", "n"), ("key", "n "), ("key\0", "n"), ("k\u00e9", "n")]
    places += [("ke\u0301", "n"), ("key", "\0"), ("\0", "n"), ("1:key", "n"), ("key", "%")]
    for key, name in places:
        store.set(key, [key, name], name)
    places += [(function.cache_key(0), "n") for function in functions.values()]
    stored = {place: ground.raw(store, *place) for place in places}
    assert len(set(stored.values())) == len(places)
    moves = list(itertools.permutations(places, 2))
    for here, there in random.Random(seed).sample(moves, rounds(100, len(moves))):
        ground.plant(store, there[0], stored[here], there[1])
        with pytest.raises(SerializationError, match="does not fit"):
            store.get(*there)
        ground.plant(store, there[0], stored[there], there[1])
        store.get(*there)
        count("signed entries that were moved and refused")
    # Under @cached a result of another version is a miss, and computed anew.
    one, two = functions[1], functions[2]
    ground.plant(store, two.cache_key(0), stored[one.cache_key(0), "n"])
    assert two(0) == [2, 0]
    assert two.peek(0) == [2, 0]


def _one_more(version: Any) -> Any:
    def result(x: int) -> List[Any]:
        return [version, x]

    return result


def _forgeries(data: bytes, gadget: bytes) -> Iterator[bytes]:
    """What somebody without the secret might try who edits what names the algorithm."""
    digest, body = data[MARK : MARK + DIGEST], data[MARK + DIGEST :]
    for mark in (
        b"kvs0",
        b"kvs2",
        b"KVS1",
        b"kvs\0",
        b"none",
        b"\0\0\0\0",
        b"",
        b"kvs1kvs1",
        b"kvs",
    ):
        yield mark + digest + body
    for length in (0, 1, 16, 20, 31, 33, 64):
        yield b"kvs1" + digest[:length].ljust(length, b"\0") + body
    for fake in (
        b"\0" * DIGEST,
        b"\xff" * DIGEST,
        digest[::-1],
        body[:DIGEST].ljust(DIGEST, b"\0"),
    ):
        yield b"kvs1" + fake + body
        yield b"kvs1" + fake + gadget
    for algorithm in ("sha256", "sha512", "sha1", "md5", "sha3_256", "blake2b"):
        for payload in (body, gadget, b""):
            plain = hashlib.new(algorithm, payload).digest()
            keyless = hmac.new(b"", payload, algorithm).digest()
            marked = hmac.new(b"kvs1", payload, algorithm).digest()
            for forged in (plain, keyless, marked):
                yield b"kvs1" + forged + payload
                yield b"kvs1" + forged[:DIGEST].ljust(DIGEST, b"\0") + payload
    yield from (gadget, body, b"", b"kvs1", data[:MARK] + digest, data + gadget, data + data)
    yield from (b"kvs1" + digest + gadget, gadget + data, b"\0" + data, b"\1" + zlib.compress(data))
    yield json.dumps({"alg": "none", "value": 1}).encode()


def test_no_edited_algorithm_is_believed(ground: Ground, tmp_path: Path, count: Any) -> None:
    """Whatever the entry says of its algorithm, mark or digest: the reader's alone counts."""
    target = tmp_path / "ran"
    store = ground.open(SignedSerializer(SECRET, accept=[OLDER]))
    store.set("key", "value", "n")
    data = ground.raw(store, "key")
    forged = list(_forgeries(data, gadgets(target)["reduce"]))
    for bad in forged:
        ground.plant(store, "key", bad)
        with pytest.raises(SerializationError):
            store.get("key", "n")
    refused(ground, store, forged[-1])
    assert not target.exists()
    count("edited algorithms that were not believed", len(forged))
    # What the older secret signed is read, and only until it is not accepted any more.
    older = ground.open(SignedSerializer(OLDER))
    older.set("key", "older", "n")
    ground.plant(store, "key", ground.raw(older, "key"))
    assert store.get("key", "n") == "older"
    strict = ground.open(SignedSerializer(SECRET))
    strict.set("key", "old", "n")
    refused(ground, strict, SignedSerializer(OLDER).dumps_at("older", "key", "n"))


# ---------------------------------------------------------------------- planted pickles


def gadgets(target: Path) -> Dict[str, bytes]:
    """Pickles that make the folder `target` when they run, by every opcode that can call."""
    path = str(target).encode()
    text = b"X" + len(path).to_bytes(4, "little") + path
    system = b"cos\nmkdir\n"

    class Planted:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(target),)

    class Late:
        """A harmless object whose state is the gadget."""

        def __reduce__(self) -> Any:
            return dict, (), {"x": Planted()}

    found = {
        "reduce": b"\x80\x02" + system + text + b"\x85R.",
        "global of protocol 0": system + b"(S" + repr(str(target)).encode() + b"\ntR.",
        "inst": b"(S" + repr(str(target)).encode() + b"\nios\nmkdir\n.",
        "obj": b"(" + system + text + b"o.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + text + b"\x85R.",
        "by a dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x0c_sys.modules\x930"
        b"\x8c\x07pathlib\x8c\x0aPath.mkdir\x93cpathlib\nPath\n" + text + b"\x85R\x85R.",
        "new": b"\x80\x02cpathlib\nPath\n"
        + text
        + b"\x85\x81"
        + b"cpathlib\nPath\n"
        + text
        # Not the path counts, but that its class was made: what follows makes the folder.
        + b"\x85R0"
        + system
        + text
        + b"\x85R.",
        "build": b"\x80\x02]}(X\x01\x00\x00\x00x" + system + text + b"\x85Rub.",
        "popped": b"\x80\x02" + system + text + b"\x85R0N.",
        "in a memo": b"\x80\x02" + system + text + b"\x85Rq\x000Nh\x000.",
        "in a dictionary": b"\x80\x02}X\x01\x00\x00\x00a" + system + text + b"\x85Rs.",
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found[f"nested, protocol {protocol}"] = pickle.dumps([1, {"x": (Planted(),)}], protocol)
        found[f"late, protocol {protocol}"] = pickle.dumps({"a": Late()}, protocol)
    return found


SAFE: Dict[str, Callable[[], Any]] = {
    "json": JSONSerializer,
    "lenient json": lambda: JSONSerializer(strict=False),
    "compressed json": lambda: CompressedSerializer(JSONSerializer()),
    "restricted": RestrictedPickleSerializer,
    "compressed restricted": lambda: CompressedSerializer(RestrictedPickleSerializer()),
    "signed": lambda: SignedSerializer(SECRET),
    "signed json": lambda: SignedSerializer(SECRET, JSONSerializer()),
    "compressed signed": lambda: CompressedSerializer(SignedSerializer(SECRET)),
}


def _wrapped(gadget: bytes) -> List[bytes]:
    """A gadget as it is, and dressed as each of our formats."""
    signature = hmac.new(b"0" * 16, gadget, "sha256").digest()
    return [gadget, b"\0" + gadget, b"\1" + zlib.compress(gadget), b"kvs1" + signature + gadget]


def test_the_gadgets_work(ground: Ground, tmp_path: Path) -> None:
    """Under plain pickle each gadget runs, as docs/security.md says: the tests below are real."""
    store = ground.open(PickleSerializer())
    for name, gadget in gadgets(tmp_path / "ran").items():
        ground.plant(store, "key", gadget)
        try:
            store.get("key", "n")
        except SerializationError:
            pass
        assert (tmp_path / "ran").is_dir(), name
        (tmp_path / "ran").rmdir()


@pytest.mark.parametrize("kind", SAFE)
def test_no_planted_pickle_runs(ground: Ground, kind: str, tmp_path: Path, count: Any) -> None:
    """A planted pickle runs under no serializer but plain pickle, however it is read."""
    target = tmp_path / "ran"
    store = ground.open(SAFE[kind]())
    store.set("key", "old", "n", 1000)
    every = list(gadgets(target).values())
    for gadget in every:
        for dressed in _wrapped(gadget):
            ground.plant(store, "key", dressed)
            for call in (store.get, store.pop):
                with pytest.raises(SerializationError):
                    call("key", "n")
        assert not target.exists()
    refused(ground, store, every[0])
    # @cached, its older values included, takes it for a miss and overwrites it.
    for options in ({}, {"ttl": 50, "stale": 5}, {"tags": ["t"]}, {"lock": "store"}):
        if options.get("lock") and ground.kind == "redis":
            continue  # needs a second connection, and these stores have one
        function = under_key(store, **options)(lambda: "mine")
        ground.plant(store, function.cache_key(), every[0])
        assert function() == "mine" == function.peek()
    assert not target.exists()
    count("planted pickles that did not run", len(every) * 4)


# ---------------------------------------------------------------------- compressed bombs


@pytest.mark.parametrize("inner", ["json", "restricted", "compressed", "signed outside"])
def test_bombs_stop_at_the_cap(ground: Ground, inner: str, count: Any) -> None:
    """Compressed bytes that would unpack to more than limit= are refused, and never unpacked."""
    cap = 1 << 20
    make: Dict[str, Callable[[], Any]] = {
        "json": lambda: CompressedSerializer(JSONSerializer(), limit=cap),
        "restricted": lambda: CompressedSerializer(RestrictedPickleSerializer(), limit=cap),
        "compressed": lambda: CompressedSerializer(CompressedSerializer(limit=cap), limit=cap),
        # Somebody who has the secret, or an honest writer with a higher limit.
        "signed outside": lambda: SignedSerializer(SECRET, CompressedSerializer(limit=cap)),
    }
    store = ground.open(make[inner]())
    store.set("key", "old", "n")
    bomb = _bomb(100 * cap)
    bombs = [bomb, b"\1" + zlib.compress(b"0" * (cap + 1)), bomb[: len(bomb) // 2]]
    if inner == "compressed":
        bombs.append(b"\1" + zlib.compress(bomb))
    for each in bombs:
        data = each
        if inner == "signed outside":
            as_it_is = SignedSerializer(SECRET, _Named(CompressedSerializer().name))
            data = as_it_is.dumps_at(each, "key", "n")
        ground.plant(store, "key", data)
        tracemalloc.start()
        try:
            with pytest.raises(SerializationError, match="limit|torn"):
                store.get("key", "n")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The bomb itself and what was unpacked, with its buffer: not the hundred megabytes.
        assert peak < 8 * cap
        count("compressed bombs that stopped at the cap")
    store.set("key", "new", "n")
    assert store.get("key", "n") == "new"


@functools.lru_cache(maxsize=1)
def _bomb(size: int) -> bytes:
    return b"\1" + zlib.compress(b"1" * size, 1)


class _Named:
    """Bytes as they are, under another serializer's name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def dumps(self, value: bytes) -> bytes:
        return value

    def loads(self, data: bytes) -> bytes:
        return data
