"""What was tampered with around a value: the disk's index, and the envelopes of @cached."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from ways import BACKENDS, Ground, under_key

from kv_store_adapter import (
    DiskKVStore,
    InvalidKeyError,
    JSONSerializer,
    KVStoreError,
    cached,
)

# ---------------------------------------------------------------------- envelopes

HUGE = 10**400
ENVELOPES: Dict[str, List[Any]] = {
    "another mark": ["kvc2", None, 0.1, {}, "planted"],
    "too short": ["kvc1", None, 0.1, {}],
    "no time": ["kvc1", "soon", 0.1, {}, "planted"],
    "not a number": ["kvc1", float("nan"), 0.1, {}, "planted"],
    "long ago": ["kvc1", -1e308, 0.1, {}, "planted"],
    "no tags": ["kvc1", None, 0.1, ["t"], "planted"],
    "a tag that is not there": ["kvc1", None, 0.1, {"t": "x"}, "planted"],
    "a token of another kind": ["kvc1", None, 0.1, {"t": [1]}, "planted"],
    "no list": ["kvc1"] * 5,
}
#: Envelopes that make the check itself raise: what @cached should take for a miss.
RAISING: Dict[str, Tuple[List[Any], type]] = {
    "very long ago": (["kvc1", -HUGE, 0.1, {}, "planted"], OverflowError),
    "took for ever": (["kvc1", HUGE, HUGE, {}, "planted"], OverflowError),
    "half a character": (["kvc1", None, 0.1, {"\ud800": "x"}, "planted"], InvalidKeyError),
    "a long tag": (["kvc1", None, 0.1, {"x" * 70_000: "x"}, "planted"], InvalidKeyError),
    "a number as tag": (["kvc1", None, 0.1, {5: "x"}, "planted"], TypeError),
}


@pytest.fixture(params=BACKENDS)
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None
    made = Ground(request.param, tmp_path, server)
    yield made
    made.close()


def _answered(ground: Ground, envelope: List[Any], *answers: str) -> None:
    serializer: Any = JSONSerializer(strict=False)
    data = json.dumps(envelope).encode()
    if envelope[3] == {5: "x"}:  # nothing that JSON has
        serializer, data = pickle, pickle.dumps(envelope)
    store = ground.open(serializer)
    for number, options in enumerate(({"stale": 10}, {"stale": 10, "early": 1.0})):
        function = under_key(store, f"k{number}", ttl=100, **options)(lambda: "mine")
        assert function() == "mine"
        ground.plant(store, function.cache_key(), data)
        assert function() in answers
        assert function.peek() in answers  # and so is what is stored now


@pytest.mark.parametrize("kind", ENVELOPES)
def test_a_planted_envelope_is_a_miss(ground: Ground, kind: str) -> None:
    """An envelope that @cached did not write is computed anew and overwritten; the call answers."""
    _answered(ground, ENVELOPES[kind], "mine")


@pytest.mark.parametrize("kind", RAISING)
def test_no_planted_envelope_costs_the_answer(ground: Ground, kind: str) -> None:
    """An envelope whose numbers or tags nothing can be done with is a miss, not an error."""
    # One that is fresh for ever is served: without a signature values can be planted.
    _answered(ground, RAISING[kind][0], "mine", "planted")


# ---------------------------------------------------------------------- the disk's index

#: What one column of an entry or of a namespace may become.
SOUND: Dict[str, str] = {
    "expires: real": "UPDATE entries SET expires = 1e300",
    "expires: far": "UPDATE entries SET expires = 9223372036854775807",
    "size: text": "UPDATE entries SET size = 'x'",
    "size: huge": "UPDATE entries SET size = 9223372036854775807",
    "value: text": "UPDATE entries SET value = 'abc', file = NULL",
    "value: no text": "UPDATE entries SET value = CAST(x'ff' AS TEXT), file = NULL",
    "value: number": "UPDATE entries SET value = 5, file = NULL",
    "value: gone": "UPDATE entries SET value = NULL, file = NULL",
    "file: empty": "UPDATE entries SET file = ''",
    "file: no text": "UPDATE entries SET file = CAST(x'ff' AS TEXT)",
    "digest: text": "UPDATE entries SET digest = 'x'",
    "key: no text": "UPDATE entries SET key = CAST(x'6bff' AS TEXT)",
    "namespace: no text": "UPDATE namespaces SET name = CAST(x'6eff' AS TEXT)",
    "no entries": "DROP TABLE entries",
    "a view": "DROP TABLE entries; CREATE VIEW entries AS SELECT 1 AS id, 1 AS ns, 'key' AS key, "
    "NULL AS expires, 1 AS size, x'00' AS value, NULL AS file, NULL AS digest",
    "a function": "CREATE TRIGGER t AFTER INSERT ON entries BEGIN SELECT load_extension('x'); END",
}
#: The same, where something of the store's raises what is not of the tree, or gives no text.
UNSOUND: Dict[str, str] = {
    "expires: text": "UPDATE entries SET expires = 'abc'",
    "file: a path": "UPDATE entries SET file = '../../victim/secret'",
    "file: absolute": "UPDATE entries SET file = '/etc/hostname'",
    "file: NUL": "UPDATE entries SET file = 'a' || char(0) || 'b'",
    "file: bytes": "UPDATE entries SET file = x'ff00'",
    "key: bytes": "UPDATE entries SET key = x'6bff'",
    "namespace: bytes": "UPDATE namespaces SET name = x'6eff'",
    "folder: a path": "UPDATE namespaces SET folder = '../../victim'",
    "folder: bytes": "UPDATE namespaces SET folder = x'ff'",
    "garbage: bytes": "INSERT INTO garbage VALUES(x'ff', 0)",
    "dropped: bytes": "INSERT INTO dropped VALUES(77, x'ff', 0)",
    "meta: gone": "DELETE FROM meta",
}


def _locked(store: Any) -> None:
    with store.lock("key", "n", timeout=0):
        pass


OPERATIONS: Dict[str, Callable[[Any], Any]] = {
    "get": lambda store: store.get("key", "n"),
    "get_many": lambda store: store.get_many(["key"], "n"),
    "exists": lambda store: store.exists("key", "n"),
    "ttl": lambda store: store.ttl("key", "n"),
    "keys": lambda store: store.keys("n"),
    "keys by pattern": lambda store: store.keys("n", "*k*"),
    "iter_keys": lambda store: list(store.iter_keys("n", "*k*")),
    "list_namespaces": lambda store: store.list_namespaces(),
    "view": lambda store: store.namespace("n").list_namespaces(),
    "lock": _locked,
    "touch": lambda store: store.touch("key", "n", 5),
    "pop": lambda store: store.pop("key", "n"),
    "set": lambda store: store.set("key", "new", "n"),
    "set a large value": lambda store: store.set("large", "x" * 5000, "n"),
    "delete": lambda store: store.delete("key", "n"),
    "clear_namespace": lambda store: store.clear_namespace("n"),
    "purge": lambda store: store.purge(),
    "check": lambda store: store.check(),
    "open again": lambda store: DiskKVStore(store.path).close(),
    "repair": lambda store: store.check(repair=True),
}


def _tamper(tmp_path: Path, statement: str, values: int, count: Any) -> None:
    """Every operation, each on a store of its own that was tampered with, raises ours or works."""
    # The short run takes a small value only where no file is concerned.
    small = not any(word in statement for word in ("file", "folder", "garbage", "dropped"))
    for value in ("small", "large" * 1000)[:: 1 if small else -1][:values]:
        for number, (name, operation) in enumerate(OPERATIONS.items()):
            around = tmp_path / f"{len(value)}-{number}"
            victim = around / "victim"
            victim.mkdir(parents=True)
            (victim / "secret").write_text("secret")
            with DiskKVStore(around / "store", spill_threshold=1000, timeout=5) as store:
                store.set("key", value, "n")
                Ground.script(store, statement)
                try:
                    result = operation(store)
                except KVStoreError:
                    result = None
                if name in ("get", "pop"):
                    assert result in (None, value), name
                elif isinstance(result, list) and name not in ("check", "repair"):
                    assert all(type(text) is str for text in result), name
                count("operations on an index that was tampered with")
            assert os.listdir(victim) == ["secret"], name
            assert (victim / "secret").read_text() == "secret"
            assert sorted(os.listdir(around)) == ["store", "victim"], name


@pytest.mark.parametrize("what", SOUND)
def test_a_tampered_index_is_a_typed_error(
    tmp_path: Path, what: str, rounds: Any, count: Any
) -> None:
    """Whatever a row of the index became: an error of ours or the right answer, and nothing else."""
    _tamper(tmp_path, SOUND[what], rounds(1, 2), count)


@pytest.mark.parametrize("what", UNSOUND)
def test_a_tampered_index_is_not_believed(
    tmp_path: Path, what: str, rounds: Any, count: Any
) -> None:
    """A row of the index leads to no file outside, to no key that is no text, to no other error."""
    _tamper(tmp_path, UNSOUND[what], rounds(1, 2), count)


def test_a_refusing_trigger_ends(tmp_path: Path) -> None:
    """A database that refuses every insert is a StoreUnavailableError within the time-out."""
    with DiskKVStore(tmp_path / "store") as store:
        store.set("key", "old", "n")
        refuses = "BEGIN SELECT RAISE(ABORT, 'no'); END"
        Ground.sql(store, f"CREATE TRIGGER t BEFORE INSERT ON entries {refuses}")
    program = (
        "import sys, kv_store_adapter as kv\n"
        "store = kv.DiskKVStore(sys.argv[1], timeout=0.5)\n"
        "for write in (store.set, store.add, lambda *a: store.set_many({'other': 1}, 'n')):\n"
        "    try: write('other', 1, 'n')\n"
        "    except kv.StoreUnavailableError: pass\n"
        "    else: raise AssertionError('it was stored')\n"
        "assert store.get('key', 'n') == 'old'\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "store")]
    subprocess.run(command, check=True, timeout=8)


def test_cached_answers_with_a_tampered_index(tmp_path: Path) -> None:
    """A function cached on a disk whose index was tampered with answers all the same."""
    for number, statement in enumerate(SOUND.values()):
        with DiskKVStore(tmp_path / f"store{number}", timeout=5) as store:
            function = cached(store, namespace="n", key=lambda: "key")(lambda: "mine")
            function()
            Ground.script(store, statement)
            assert [function(), function()] == ["mine", "mine"]
