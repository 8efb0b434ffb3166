"""Every example runs as a script, from any folder, and checks itself."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Tuple

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
pytestmark = pytest.mark.skipif(not SCRIPTS, reason="not a checkout")


def run(script: str, *arguments: str, cwd: Path) -> Tuple[int, str, str]:
    """Run an example as a user would, but in an empty folder; exit code, output, errors."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=cwd,
        env={**os.environ, "HOME": str(cwd), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def passes(printed: str) -> Any:
    """(warmth, hits, misses) of both passes of the demo."""
    return re.findall(r"run +\((\w+)\) +[\d.]+ s +(\d+) hits +(\d+) misses", printed)


@pytest.mark.parametrize("name", [each.name for each in SCRIPTS if each.name != "demo.py"])
def test_it_runs(name: str, tmp_path: Path) -> None:
    """An example succeeds with nothing but the package, and leaves nothing behind."""
    code, printed, errors = run(name, cwd=tmp_path)
    assert (code, errors) == (0, ""), printed + errors
    assert printed
    assert list(tmp_path.iterdir()) == []
    if name == "own_backend.py":
        # A third party's eight methods pass every test of the contract.
        found = re.search(r"^(\d+) passed in", printed, re.MULTILINE)
        assert found, printed
        assert int(found[1]) > 50


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda each: str(each.name))
def test_it_is_short(script: Path) -> None:
    """An example can be read in a minute: under 60 lines, and the demo about 150."""
    limit = 151 if script.name == "demo.py" else 60
    assert len(script.read_text("utf-8").splitlines()) < limit


def test_demo_on_disk_is_warm_the_second_time(tmp_path: Path) -> None:
    """The demo is cold once; its second pass, and all of a second invocation, are hits."""
    store = ["--store", (tmp_path / "store").as_uri().replace("file:", "disk:", 1)]
    code, printed, errors = run("demo.py", *store, cwd=tmp_path)
    assert (code, errors) == (0, ""), printed + errors
    (first, none, all_missed), (second, all_hit, no_miss) = passes(printed)
    assert (first, none, second, no_miss) == ("cold", "0", "warm", "0")
    assert all_hit == all_missed
    assert int(all_hit) > 300
    assert re.search(r"^inspect +\d{4} +\d+ +\d+  _signature_from_callable", printed, re.MULTILINE)
    for way in ("with store.namespace", "store.as_mapping", "store.keys", "store.clear_namespace"):
        assert way in printed

    code, again, errors = run("demo.py", *store, cwd=tmp_path)
    assert (code, errors) == (0, ""), again + errors
    assert passes(again) == [("warm", all_hit, "0")] * 2


def test_demo_on_a_real_server(tmp_path: Path, redis_server: Any) -> None:
    """The same demo on Redis, by its url alone, with the same counts."""
    code, printed, errors = run("demo.py", "--store", redis_server.url, cwd=tmp_path)
    assert (code, errors) == (0, ""), printed + errors
    assert [warmth for warmth, _, _ in passes(printed)] == ["cold", "warm"]
    assert "RedisKVStore" in printed


def test_demo_without_a_server_says_so(tmp_path: Path) -> None:
    """A server that is not there is one line without a traceback, or the password."""
    url = "redis://:open-sesame@127.0.0.1:1/0"
    code, printed, errors = run("demo.py", "--store", url, cwd=tmp_path)
    assert code == 1
    assert errors.startswith("StoreUnavailableError: ")
    assert errors.count("\n") == 1
    assert "open-sesame" not in printed + errors


def test_demo_without_a_place_says_so(tmp_path: Path) -> None:
    """A url that names no backend is one line without a traceback."""
    code, _, errors = run("demo.py", "--store", "ftp://somewhere", cwd=tmp_path)
    assert code == 1
    assert errors.startswith("ValueError: ")
    assert errors.count("\n") == 1


def test_demo_stays_inside_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By default the demo's results are in the virtual environment, else in the user's cache."""
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert spec and spec.loader
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)

    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    assert demo.place() == tmp_path / "venv" / "demo-store"
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.place() == tmp_path / "kv-store-adapter-demo"
