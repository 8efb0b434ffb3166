"""The front door: what a newcomer finds there, and what walking in costs."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, Set, Tuple

import pytest

import kv_store_adapter
from kv_store_adapter import KVStoreProtocol

SOURCE = Path(kv_store_adapter.__file__).parent

CONTRACT = {
    *("cached", "KVStoreProtocol", "MemoryKVStore", "DiskKVStore", "RedisKVStore", "NamespaceView"),
    *("KVMapping", "open_store", "NO_EXPIRY", "KVStoreError", "KeyNotFoundError"),
    *("InvalidKeyError", "InvalidTTLError", "SerializationError", "StoreUnavailableError"),
    *("StoreClosedError", "LockTimeoutError"),
}


def _python(program: str, *, blocked: Tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    head = "".join(f"import sys; sys.modules[{name!r}] = None\n" for name in blocked)
    return subprocess.run(
        [sys.executable, "-c", head + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_all_is_what_is_there() -> None:
    """Each name in __all__ is there and in dir(), once; the contract's names are among them."""
    names = kv_store_adapter.__all__
    assert len(names) == len(set(names))
    assert set(names) >= CONTRACT
    for name in names:
        assert getattr(kv_store_adapter, name) is not None
        assert name in dir(kv_store_adapter)
    assert set(names) == set(kv_store_adapter._HOME)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        kv_store_adapter.Nothing  # noqa: B018  # the look-up is the test


def test_a_star_import_is_all() -> None:
    """from kv_store_adapter import * gives __all__ and no more."""
    space: Dict[str, object] = {}
    exec("from kv_store_adapter import *", space)
    assert set(space) - {"__builtins__"} == set(kv_store_adapter.__all__)


def test_type_checkers_see_the_same_names() -> None:
    """What type checkers see imported is what the loader knows, from the same home."""
    tree = ast.parse((SOURCE / "__init__.py").read_text("utf-8"))
    seen = {
        alias.asname: node.module
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == kv_store_adapter._HOME


@pytest.mark.parametrize(
    "path",
    [
        *("memory.MemoryKVStore", "disk.DiskKVStore", "redis.RedisKVStore"),
        *("exceptions.KeyNotFoundError", "protocol.KVStoreProtocol"),
    ],
)
def test_fixed_import_paths(path: str) -> None:
    """The import paths that are promised for ever lead to the names at the front door."""
    module, _, name = path.rpartition(".")
    space: Dict[str, object] = {}
    exec(f"from kv_store_adapter.{module} import {name}", space)
    assert space[name] is getattr(kv_store_adapter, name)


def test_importing_loads_nothing_heavy() -> None:
    """Importing the package loads neither redis, sqlite3 nor asyncio, nor any room of ours."""
    done = _python(
        "import sys; before = set(sys.modules); import kv_store_adapter, json\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = json.loads(done.stdout)
    heavy = {"redis", "sqlite3", "asyncio", "wrapt", "hypothesis", "pytest", "pickle"}
    assert not heavy & {name.partition(".")[0] for name in loaded}
    assert [name for name in loaded if name.startswith("kv_store_adapter")] == ["kv_store_adapter"]


@pytest.mark.parametrize(
    "program",
    [
        "from kv_store_adapter import *; import kv_store_adapter.urls",
        "from kv_store_adapter import MemoryKVStore as M; M().set('a', 1); M().namespace('a')",
        "from kv_store_adapter import RedisKVStore, cached, MemoryKVStore; cached(MemoryKVStore())",
    ],
)
def test_redis_is_not_needed_to_walk_in(program: str) -> None:
    """Without redis installed everything but a RedisKVStore works."""
    done = _python(program, blocked=("redis",))
    assert (done.returncode, done.stderr) == (0, "")


def test_without_redis_the_store_says_what_to_install() -> None:
    """Making a RedisKVStore without redis installed says what to install."""
    done = _python("from kv_store_adapter import RedisKVStore; RedisKVStore()", blocked=("redis",))
    assert "redis" in done.stderr.splitlines()[-1]
    assert done.returncode == 1


def test_travel_without_time_machine_is_an_error() -> None:
    """A user's own test that can't travel fails: skipped, it would look as if it had passed."""
    program = "from kv_store_adapter.testing import travel\nwith travel(seconds=5): print('done')"
    done = _python(program, blocked=("time_machine",))
    assert done.returncode == 1
    assert "ImportError: travel() needs time-machine: pip install time-machine." in done.stderr
    assert done.stdout == ""


def test_the_protocol_has_eight_abstract_methods() -> None:
    """Exactly the eight, in the contract's order and with the contract's signatures."""
    expected = {
        "get": "(self, key, namespace=None)",
        "set": "(self, key, value, namespace=None, ttl=None)",
        "delete": "(self, key, namespace=None)",
        "ttl": "(self, key, namespace=None)",
        "exists": "(self, key, namespace=None)",
        "keys": "(self, namespace=None, pattern='*')",
        "clear_namespace": "(self, namespace)",
        "list_namespaces": "(self)",
    }
    found = {}
    for name, member in vars(KVStoreProtocol).items():
        if getattr(member, "__isabstractmethod__", False):
            signature = inspect.signature(member)
            plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
            found[name] = str(
                signature.replace(parameters=plain, return_annotation=signature.empty)
            )
    assert list(found.items()) == list(expected.items())


# ---------------------------------------------------------------------- imports go down only


def _imports(path: Path) -> Iterator[str]:
    """The rooms of ours that a file imports at its top level or inside functions, not for types."""
    package = ("kv_store_adapter", *path.relative_to(SOURCE).parts[:-1])
    tree = ast.parse(path.read_text("utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.dump(node.test).find("TYPE_CHECKING") >= 0
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


def _rooms(path: Path) -> Set[str]:
    ours = (name.split(".") for name in _imports(path) if name.startswith("kv_store_adapter."))
    return {
        parts[1]
        for parts in ours
        if (SOURCE / parts[1]).exists() or (SOURCE / f"{parts[1]}.py").exists()
    }


FILES = [
    path
    for path in sorted(SOURCE.rglob("*.py"))
    if path.name != "__init__.py" or path.parent != SOURCE
]

BACKENDS = {"memory", "disk", "redis"}
TOOLKIT = {"caching", "keys", "cli"}
GROUND = {"exceptions", "rules", "serializers", "forking", "eviction", "interruption"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    """The toolkit knows only the protocol, backends know nothing of the toolkit or each other."""
    room = path.relative_to(SOURCE).parts[0].replace(".py", "")
    imported = _rooms(path) - {room}
    if room == "exceptions":
        assert imported == set()
    if room in GROUND:
        assert imported <= GROUND
    if room in BACKENDS:
        assert not imported & (TOOLKIT | BACKENDS | {"namespace", "mapping", "urls", "testing"})
    if (
        room
        in TOOLKIT
        | {"namespace", "mapping", "aio", "leases", "renewal", "thread_lease", "protocol"}
        and room != "cli"
    ):
        assert not imported & (BACKENDS | {"testing", "urls", "cli"})
    if room != "testing":
        assert "testing" not in imported


@pytest.mark.parametrize("driver", ["redis", "sqlite3"])
def test_one_room_knows_each_driver(driver: str) -> None:
    """Only the room of a backend imports its driver."""
    home = {"redis": "redis", "sqlite3": "disk"}[driver]
    rooms = {
        path.relative_to(SOURCE).parts[0]
        for path in FILES
        if any(name.partition(".")[0] == driver for name in _imports(path))
    }
    assert rooms == {home}
