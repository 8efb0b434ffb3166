"""A Redis server of one's own that can be paused, killed and started again on the same port."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List

import pytest

from server import NO_SERVER, Server, find_server

#: Every operation of a store on its server, with keys that are there or not, as it comes.
EVERY_OPERATION: Dict[str, Callable[[Any], Any]] = {
    "get": lambda store: store.get("key"),
    "get with a default": lambda store: store.get("key", default=None),
    "set": lambda store: store.set("key", 1),
    "set with a ttl": lambda store: store.set("key", 1, "n", 50),
    "delete": lambda store: store.delete("key"),
    "ttl": lambda store: store.ttl("key"),
    "exists": lambda store: store.exists("key"),
    "keys": lambda store: store.keys("n", "k*"),
    "clear_namespace": lambda store: store.clear_namespace("n"),
    "list_namespaces": lambda store: store.list_namespaces(),
    "add": lambda store: store.add("key", 1),
    "pop": lambda store: store.pop("key"),
    "touch": lambda store: store.touch("key", ttl=50),
    "touch for ever": lambda store: store.touch("key"),
    "get_many": lambda store: store.get_many(["a", "b"]),
    "set_many": lambda store: store.set_many({"a": 1, "b": 2}),
    "set_many with a ttl": lambda store: store.set_many({"a": 1, "b": 2}, ttl=50),
    "delete_many": lambda store: store.delete_many(["a", "b"]),
}

#: Those of them that change something.
WRITES = [name for name in EVERY_OPERATION if name.startswith(("set", "add", "touch", "delete"))]
WRITES += ["pop"]


def in_threads(number: int, work: Callable[[int], Any]) -> List[Any]:
    """What `work` returned or raised in each of so many threads that start together."""
    came: Dict[int, Any] = {}
    barrier = threading.Barrier(number)

    def run(me: int) -> None:
        barrier.wait(60)
        try:
            came[me] = work(me)
        except Exception as error:
            came[me] = error

    threads = [threading.Thread(target=run, args=(me,)) for me in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    assert len(came) == number, f"{number - len(came)} threads hang"
    return [came[me] for me in range(number)]


def outcomes(call: Callable[[Any], Any], arguments: Iterable[Any]) -> List[Any]:
    """What `call` returned or raised for each of these, all at the same time."""
    listed = list(arguments)
    return in_threads(len(listed), lambda me: call(listed[me]))


class BreakableServer(Server):
    """A real server; only the process that it started itself is ever signalled."""

    def __init__(self, *options: str) -> None:
        binary = find_server()
        if binary is None:
            if os.environ.get("KV_REQUIRE_SERVER") == "1":
                pytest.fail(NO_SERVER, pytrace=False)
            pytest.skip(NO_SERVER)
        self._binary, self._first_options = binary, options
        super().__init__(binary, *options)

    @property
    def folder(self) -> Path:
        return Path(self._folder)

    def pause(self) -> None:
        """Connections are still accepted, by the kernel, and nothing is ever answered."""
        os.kill(self._process.pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.go_on()

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def start_again(self, *options: str, until_loaded: bool = True) -> None:
        """Start on the port and in the folder of before, with other options."""
        with open(Path(self._folder, "log"), "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._binary, "--port", str(self.port), "--bind", "127.0.0.1"),
                    *("--save", "", "--appendonly", "no", "--dir", self._folder),
                    *(options or self._first_options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if until_loaded and not self._answers():
            raise RuntimeError(Path(self._folder, "log").read_text("utf-8", "replace")[-2000:])

    def stop(self, *, keep: bool = False) -> None:
        if self._process.poll() is None:
            self.go_on()  # what is paused does not hear that it is to end
            super().stop(keep=keep)
        elif not keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
