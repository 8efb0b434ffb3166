"""The README runs: its code, its commands, and every sample the project was asked for with."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any, Dict, List

import pytest

from kv_store_adapter import KVStoreProtocol, __version__
from kv_store_adapter.disk import DiskKVStore
from kv_store_adapter.exceptions import KeyNotFoundError
from kv_store_adapter.memory import MemoryKVStore
from kv_store_adapter.redis import RedisKVStore

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

# What a clone has and an installed package has not.
needs_checkout = pytest.mark.skipif(not README.exists(), reason="not a checkout")


def code_blocks(path: Path, language: str) -> List[Any]:
    """The fenced blocks of one language, with their place in the file for tracebacks."""
    text = path.read_text("utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in found]


def checked(block: str) -> str:
    """Turn each ``expression  # -> value`` into an assertion."""
    return re.sub(
        r"^( *)(\S.*?) +# -> (.+)$",
        lambda line: f"{line[1]}assert ({line[2]}) == ({line[3]}), {line[0].strip()!r}",
        block,
        flags=re.MULTILINE,
    )


@pytest.fixture
def fake_server(monkeypatch: pytest.MonkeyPatch) -> List[Dict[str, Any]]:
    """In place of `redis.Redis`, clients of servers in this process; what each was made with."""
    import fakeredis
    import redis

    made = []

    class Fake(fakeredis.FakeRedis):
        def __init__(self, **options: Any) -> None:
            made.append(options)
            # Some versions of it want a user for a password.
            super().__init__(**{**options, "password": None})

    monkeypatch.setattr(redis, "Redis", Fake)
    Fake(host="localhost", port=6379).flushall()
    return made


# ---------------------------------------------------------------------- the README itself


@needs_checkout
@pytest.mark.usefixtures("fake_server")
def test_python_blocks_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every Python block of the README runs, in order, and gives what its comments say."""
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks(README, "python")
    scope: Dict[str, Any] = {"__name__": "readme"}
    for line, block in blocks:
        # As many empty lines as come before it, so that a failure names the README's own line.
        exec(compile("\n" * line + checked(block), str(README), "exec"), scope)
    assert "There is no key 'user:1' in the default namespace." in capsys.readouterr().out
    assert sum(block.count("# ->") for _, block in blocks) > 20


@needs_checkout
@pytest.mark.parametrize(("name", "end"), [("demo", "examples/demo.py"), ("tests", "pytest")])
def test_the_two_commands_are_one_line_each(name: str, end: str) -> None:
    """Each command is one line that begins with Python alone and installs into .venv."""
    found = re.findall(
        rf"<!-- command: {name} -->\n```bash\n(.*?)```", README.read_text("utf-8"), re.DOTALL
    )
    assert len(found) == 1
    assert found[0].count("\n") == 1
    made, installed, run = found[0].strip().split(" && ")
    assert made == "python3 -m venv .venv"
    assert installed == ".venv/bin/pip install -q -e '.[dev]'"
    assert run.startswith(".venv/bin/")
    assert end in run


@needs_checkout
def test_links_and_paths_exist() -> None:
    """Every file that the README names is there."""
    text = README.read_text("utf-8")
    named = {
        *re.findall(r"\]\(([^)#:]+)\)", text),
        *re.findall(r"(?:tests|examples)/\w+\.py", text),
    }
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


# ---------------------------------------------------------------------- the samples asked for


def quick_start(store: KVStoreProtocol) -> None:
    """Set, get, ttl, namespaces and patterns, as the first sample has them."""
    store.set("user:1", {"name": "Ada", "age": 36})
    assert store.get("user:1") == {"name": "Ada", "age": 36}
    store.set("session:x", {"user_id": 1}, ttl=timedelta(hours=1))
    assert round(store.ttl("session:x") or 0) == 3600
    store.set("config", "live", namespace="app")
    store.set("config", "trial", namespace="test")
    assert store.get("config", namespace="app") == "live"
    store.set("user:1", "Ada")
    store.set("user:2", "Grace")
    store.set("admin:1", "Edsger")
    assert sorted(store.keys(pattern="user:*")) == ["user:1", "user:2"]


def test_quick_start_on_memory() -> None:
    """The first sample works on MemoryKVStore()."""
    quick_start(MemoryKVStore())


def test_quick_start_on_disk(tmp_path: Path) -> None:
    """The first sample works on DiskKVStore with a path as text."""
    quick_start(DiskKVStore(str(tmp_path / "path" / "to" / "data")))


@pytest.mark.usefixtures("fake_server")
def test_quick_start_on_redis() -> None:
    """The first sample works on RedisKVStore with host and port."""
    quick_start(RedisKVStore(host="localhost", port=6379))


def test_namespaces_sample() -> None:
    """Data in several namespaces is apart, listed, and cleared with a count."""
    store = MemoryKVStore()
    store.set("settings", {"theme": "dark"}, namespace="user:1")
    store.set("settings", {"theme": "light"}, namespace="user:2")
    store.set("cache", "some value", namespace="temp")
    assert store.get("settings", namespace="user:1") == {"theme": "dark"}
    assert store.keys(namespace="temp") == ["cache"]
    assert store.list_namespaces() == ["user:1", "user:2", "temp"]
    assert store.clear_namespace("temp") == 1


def test_expiry_sample() -> None:
    """A ttl in seconds or as a timedelta can be asked for, and ends the entry."""
    import time_machine

    store = MemoryKVStore()
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        store.set("session", {"user": "ada"}, ttl=30)
        store.set("cache", "data", ttl=timedelta(minutes=15))
        assert f"{store.ttl('session'):.2f}" == "30.00"
        clock.shift(31)
        assert store.exists("session") is False
        assert store.exists("cache") is True


def test_errors_sample() -> None:
    """A missing key is a KeyNotFoundError that reads as a sentence; exists() is the safe way."""
    store = MemoryKVStore()
    with pytest.raises(KeyNotFoundError) as caught:
        store.get("no such key")
    assert "no such key" in f"Key not found: {caught.value}"
    assert not store.exists("key")


def test_persistence_sample(tmp_path: Path) -> None:
    """What one DiskKVStore wrote, another one on the same path reads."""
    first = DiskKVStore(str(tmp_path / "data"))
    first.set("persistent_key", "persistent value")
    second = DiskKVStore(str(tmp_path / "data"))
    assert second.get("persistent_key") == "persistent value"


def test_redis_configuration_sample(fake_server: List[Dict[str, Any]]) -> None:
    """RedisKVStore takes nothing at all, or any of redis.Redis's parameters, and hands them on."""
    RedisKVStore().set("key", "value")
    assert RedisKVStore().get("key") == "value"
    options = {"host": "redis.example.com", "port": 6379, "db": 1, "password": "secret"}
    store = RedisKVStore(**options, socket_timeout=10)
    assert fake_server[-1].items() >= {**options, "socket_timeout": 10}.items()
    store.set("key", "elsewhere")
    assert store.get("key") == "elsewhere"
    assert RedisKVStore().get("key") == "value"


def test_protocol_sample() -> None:
    """The eight abstract methods have the names, order and parameters that were asked for."""
    asked = {
        "get": ["key", "namespace=None"],
        "set": ["key", "value", "namespace=None", "ttl=None"],
        "delete": ["key", "namespace=None"],
        "ttl": ["key", "namespace=None"],
        "exists": ["key", "namespace=None"],
        "keys": ["namespace=None", "pattern='*'"],
        "clear_namespace": ["namespace"],
        "list_namespaces": [],
    }
    there = {}
    for name, method in vars(KVStoreProtocol).items():
        if getattr(method, "__isabstractmethod__", False):
            parameters = list(inspect.signature(method).parameters.values())[1:]
            there[name] = [
                each.name if each.default is each.empty else f"{each.name}={each.default!r}"
                for each in parameters
            ]
    assert list(there.items()) == list(asked.items())


# ---------------------------------------------------------------------- the commands asked for


def run_pytest(*arguments: str, **environment: str) -> str:
    """Run pytest in the checkout as a user would, and return what it printed."""
    # What the pytest around this one has left for its own children is not for this one.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@needs_checkout
def test_one_backend_alone() -> None:
    """`pytest tests/test_memory_store.py` passes by itself."""
    assert " passed" in run_pytest("tests/test_memory_store.py", "-q")


@needs_checkout
def test_with_coverage() -> None:
    """`pytest tests/test_disk_store.py --cov=kv_store_adapter` passes and reports coverage."""
    with tempfile.TemporaryDirectory() as folder:
        # On 3.8 the children of tests are measured too, one of which is nobody.
        os.chmod(folder, 0o777)
        printed = run_pytest(
            "tests/test_disk_store.py",
            "-q",
            # All of it runs beside this test; here it is the options that matter.
            "-k",
            "folder",
            "--cov=kv_store_adapter",
            COVERAGE_FILE=str(Path(folder, "coverage")),
        )
    assert " passed" in printed
    assert re.search(r"^TOTAL .* \d+%$", printed, re.MULTILINE)


@needs_checkout
def test_all_tests_are_found() -> None:
    """`pytest` alone takes the same folder as `pytest tests/`, and finds this very test in it."""
    found = run_pytest("--collect-only", "-q", "-k", "test_all_tests_are_found")
    assert "tests/test_readme.py::test_all_tests_are_found" in found
    for backend in ("memory", "disk", "redis"):
        assert (ROOT / "tests" / f"test_{backend}_store.py").exists()


def test_the_extras_are_there() -> None:
    """`pip install kv-store-adapter`, `[redis]` and `[dev]` name what each needs."""
    from importlib.metadata import metadata, requires, version

    about = metadata("kv-store-adapter")
    assert {"redis", "dev"} <= set(about.get_all("Provides-Extra") or ())
    assert version("kv-store-adapter") == __version__
    needs = requires("kv-store-adapter") or []
    always = sorted(re.split(r"[^\w-]", each)[0] for each in needs if "extra ==" not in each)
    assert always == ["typing-extensions", "wrapt"]
    for extra in ("redis", "dev"):
        mine = {
            re.split(r"[^\w-]", each)[0] for each in needs if re.search(f"['\"]{extra}['\"]", each)
        }
        assert {"redis", "hiredis"} <= mine
