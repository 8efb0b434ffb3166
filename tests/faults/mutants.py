"""A child of test_mutated_payloads.py: reads mutated payloads with little memory, and tells.

In a process of its own, because a mutated pickle may ask for any amount of memory, and one that is
not restricted may run anything. Arguments: seed, number of payloads, port of a Redis server,
a folder to work in.
"""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import json
import os
import pickle
import random
import struct
import sys
import time
import traceback
import uuid
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List

from ways import Ground

from kv_store_adapter import (
    CompressedSerializer,
    JSONSerializer,
    KVStoreError,
    PickleSerializer,
    RestrictedPickleSerializer,
    SignedSerializer,
    cached,
)
from kv_store_adapter.serializers import Codec

SECRET = b"0123456789abcdef"

#: Values with every opcode that plain data and the classes of the restricted list give.
VALUES: List[Any] = [
    *(
        None,
        True,
        0,
        -1,
        255,
        65536,
        1 << 40,
        -(1 << 70),
        1.5,
        "",
        "text",
        "é🙂\0" * 50,
        b"x" * 300,
    ),
    *([], [1, [2, [3]]], {}, {"a": {"b": [1, None]}}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    *({1, 2}, frozenset("ab"), bytearray(b"y" * 20), 2j, range(5), slice(1, 2)),
    *(dt.datetime(2024, 2, 29, 12, tzinfo=dt.timezone.utc), dt.date(2024, 1, 1), dt.time(1, 2)),
    *(dt.timedelta(1, 2, 3), decimal.Decimal("1.10"), fractions.Fraction(1, 3), uuid.UUID(int=7)),
    *(collections.OrderedDict(a=1), collections.deque([1, 2], 5), ["same"] * 20),
    ["kvc1", 1.5e9, 0.25, {"tag": "token"}, {"value": [1, 2, 3]}],
]
PLAIN: List[Any] = [None, True, 12, -1.5e300, 'é"\\🙂', [1, [2]], {"a": {"b": [None]}}, VALUES[-1]]

CODECS: Dict[str, Callable[[], Any]] = {
    "pickle": PickleSerializer,
    "restricted": RestrictedPickleSerializer,
    "json": JSONSerializer,
    "lenient json": lambda: JSONSerializer(strict=False),
    "compressed": lambda: CompressedSerializer(threshold=0, limit=1 << 20),
    "compressed json": lambda: CompressedSerializer(JSONSerializer(), limit=1 << 20),
    "compressed twice": lambda: CompressedSerializer(CompressedSerializer(limit=1 << 20)),
    "signed": lambda: SignedSerializer(SECRET),
    "signed json": lambda: SignedSerializer(SECRET, JSONSerializer()),
    "signed, compressed": lambda: SignedSerializer(SECRET, CompressedSerializer(threshold=0)),
    "compressed, signed": lambda: CompressedSerializer(SignedSerializer(SECRET), threshold=0),
    "module pickle": lambda: pickle,
}


class Inside:
    """Bytes as they are, under another name: what is mutated inside of a good signature."""

    def __init__(self, name: str) -> None:
        self.name = name

    def dumps(self, value: bytes) -> bytes:
        return value

    def loads(self, data: bytes) -> bytes:
        return data


def originals(kind: str, codec: Codec) -> List[bytes]:
    values = PLAIN if "json" in kind else VALUES
    found = [codec.encode(value, "key", "n") for value in values]
    if kind in ("pickle", "restricted", "module pickle"):
        found += [pickle.dumps(value, p) for value in VALUES for p in range(6) if p in PROTOCOLS]
    return found


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
_LENGTHS = (0, 1, 127, 128, 255, 256, 65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def mutate(data: bytes, chance: random.Random, others: List[bytes]) -> bytes:
    """One to four changes: bits, bytes, lengths, pieces of itself and of others."""
    mutant = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        place = chance.randrange(len(mutant) + 1)
        end = min(len(mutant), place + chance.choice((1, 1, 2, 4, 8, 20)))
        what = chance.randrange(9)
        if what == 0 and place < len(mutant):
            mutant[place] ^= 1 << chance.randrange(8)
        elif what == 1:
            mutant[place:end] = bytes(chance.randrange(256) for _ in range(end - place))
        elif what == 2:
            del mutant[place:end]
        elif what == 3:
            del mutant[place:]
        elif what == 4:
            mutant[place:place] = mutant[place:end] * chance.choice((1, 2, 50))
        elif what == 5:
            mutant[place : place + 4] = struct.pack("<I", chance.choice(_LENGTHS))
        elif what == 6:
            mutant[place : place + 8] = struct.pack("<Q", chance.choice(_LENGTHS) << 20)
        elif what == 7:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            mutant[place:end] = other[start : start + chance.randrange(60)]
        else:
            mutant[place:place] = bytes([chance.randrange(256)])
    return bytes(mutant)


def dressed(kind: str, data: bytes, chance: random.Random) -> bytes:
    """Half of the time what was mutated is put inside: recompressed, or signed again."""
    if chance.random() < 0.5:
        return data
    if kind.startswith("compressed"):
        return b"\1" + zlib.compress(data, 1)
    if kind.startswith("signed"):
        name = CODECS[kind]()._inner.name
        return SignedSerializer(SECRET, Inside(name)).dumps_at(data, "key", "n")
    return data


def limited() -> None:
    """A pickle may ask for 64 GB: here it is refused two."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(seed: int, number: int, port: int, folder: str) -> None:
    os.chdir(folder)
    chance = random.Random(seed)
    counts: Dict[str, int] = collections.Counter()
    escaped: List[str] = []
    longest = 0.0

    def tried(what: str, data: bytes, call: Callable[[], Any]) -> None:
        nonlocal longest
        started = time.perf_counter()
        try:
            call()
            counts["read as a value"] += 1
        except KVStoreError:
            counts["refused"] += 1
        except BaseException as error:  # what this is about
            where = traceback.extract_tb(error.__traceback__)[-1]
            escaped.append(f"{what}: {error!r:.200} at {where.name}:{where.lineno}: {data!r:.400}")
        longest = max(longest, time.perf_counter() - started)

    pools = {kind: originals(kind, Codec(make())) for kind, make in CODECS.items()}
    everything = [data for pool in pools.values() for data in pool]
    codecs = {kind: Codec(make()) for kind, make in CODECS.items()}
    limited()
    for turn in range(number):
        kind = list(CODECS)[turn % len(CODECS)]
        data = dressed(kind, mutate(chance.choice(pools[kind]), chance, everything), chance)
        tried(kind, data, partial(codecs[kind].decode, data, "key", "n"))
        counts["payloads"] += 1

    for kind in ("restricted", "json", "signed"):
        for backend in ("memory", "disk", "files", "redis"):
            ground = Ground(backend, Path.cwd() / f"{kind}-{backend}", SimpleNamespace(port=port))
            counts["payloads through stores"] += number // 60
            through_store(ground, kind, pools[kind], everything, number // 60, chance, tried)
            ground.close()
    told = {"counts": counts, "escaped": escaped[:10], "longest": longest}
    sys.stdout.write(json.dumps(told) + "\n")


def through_store(
    ground: Ground, kind: str, pool: Any, others: Any, number: int, chance: Any, tried: Any
) -> None:
    """Plant mutants in one store, and read each by one of the ways in turn."""
    store = ground.open(CODECS[kind]())
    mapping, aio = store.as_mapping("n"), store.aio
    function = cached(store, namespace="n", key=lambda: "key", ttl=50, stale=5)(lambda: "mine")
    ways: List[Callable[[], Any]] = [
        lambda: store.get("key", "n"),
        lambda: store.get_many(["key"], "n"),
        lambda: store.pop("key", "n"),
        lambda: dict(mapping.items()),
        lambda: ground.wait(aio.get("key", "n")),
        function,
    ]
    for turn in range(number):
        data = mutate(chance.choice(pool), chance, others)
        ground.plant(store, "key", data)
        if turn % len(ways) == len(ways) - 1:
            ground.plant(store, function.cache_key(), data)
        tried(f"{kind} on {ground.kind}", data, ways[turn % len(ways)])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
