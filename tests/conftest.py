"""Fixtures of all tests: a real server for the session, and a clean one for each test."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from kv_store_adapter.disk import recent
from server import NO_SERVER, Server, find_server

# Few examples by default, so that the whole suite stays quick; no deadline, because the machine may
# be busy; no database, because the tests write nowhere but in temporary folders.
_EXAMPLES = int(os.environ.get("KV_EXAMPLES", "30"))
settings.register_profile(
    "ours",
    max_examples=_EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("ours")
# Few tests read often enough for it to be worth while: here it is always, so all of them see it.
recent._WORTH = 0
if sys.prefix != sys.base_prefix:
    # Its tables of Unicode: into .venv, not into the folder one happens to be in.
    set_hypothesis_home_dir(Path(sys.prefix, ".hypothesis"))


def _start(*options: str) -> Server:
    binary = find_server()
    if binary is None:
        if os.environ.get("KV_REQUIRE_SERVER") == "1":
            pytest.fail(NO_SERVER, pytrace=False)
        pytest.skip(NO_SERVER)
    return Server(binary, *options)


@pytest.fixture
def deep_stack() -> Iterator[None]:
    """For tests that go to the end of the stack: nothing is collected there.

    A collection's callbacks would find no room there either, and pytest fails a test for that.
    """
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def _session_server() -> Iterator[Server]:
    server = _start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_session_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A real Redis or Valkey server without a key in it, and stores that wait for it.

    A machine that stands still for a second is no outage; what an outage costs has tests of its own.
    """
    import redis

    from kv_store_adapter.redis import store

    monkeypatch.setattr(store, "PATIENCE", 20.0)
    with redis.Redis(port=_session_server.port) as client:
        client.flushall()
    return _session_server


@pytest.fixture(scope="session")
def locked_server() -> Iterator[Server]:
    """A real server that wants the password ``open sesame``."""
    server = _start("--requirepass", "open sesame")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[Server]:
    """A real cluster: one node that has all the slots."""
    import redis

    server = _start("--cluster-enabled", "yes")
    with redis.Redis(port=server.port) as node:
        node.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        for _ in range(500):
            info = node.execute_command("CLUSTER", "INFO")
            # A dictionary, bytes or text, as the version of redis-py has it.
            if "cluster_state:ok" in str(info) or "'cluster_state': 'ok'" in str(info):
                break
            time.sleep(0.02)
    yield server
    server.stop()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One loud line where the real server was missing."""
    if find_server() is None:
        terminalreporter.write_sep("!", NO_SERVER, red=True, bold=True)
