"""A process of the tests of `@cached`: ``python cached_child.py MODE STORE CONFIG``.

It says what happened in lines of JSON on standard output. An orphan ends soon: the parent holds the
other end of its standard input.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Callable, Dict, List

from kv_store_adapter import DiskKVStore, KVStoreProtocol, RedisKVStore, cached


def open_store(where: str) -> KVStoreProtocol:
    """A disk store by its path, or a Redis store by its url, with patience for a busy machine."""
    if where.startswith("redis://"):
        return RedisKVStore.from_url(where, socket_timeout=20, socket_connect_timeout=20)
    return DiskKVStore(where, timeout=20)


_started: List[Any] = []


def start(mode: str, where: str, output: Path, **config: Any) -> subprocess.Popen[bytes]:
    """Start a process that writes what happens to the end of the file `output`."""
    with open(output, "ab") as stdout, open(f"{output}.log", "ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, __file__, mode, where, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
        )
    _started.append(process)
    return process


def kill_all() -> None:
    """After a test that failed: what it started, stopped ones as well."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


def said(output: Path) -> List[Dict[str, Any]]:
    """The whole lines that processes wrote so far."""
    text = output.read_bytes().decode() if output.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def end(process: subprocess.Popen[bytes], seconds: float = 60) -> int:
    """Ask a process to end, and wait for it."""
    assert process.stdin is not None
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Look until `condition` holds."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def say(**what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")  # one write: lines of processes do not mix


def answer(key: int) -> str:
    """What the function of `storm` is worth: long ones go into files of their own."""
    return f"{key}:" + "v" * (40_000 if key % 5 == 0 else 10)


def storm(store: KVStoreProtocol, config: Dict[str, Any], over: threading.Event) -> None:
    """Call for a key that is the same in all processes, and cold again every twentieth second."""

    @cached(store, lock="store", namespace="storm", **config["options"])
    def f(key: int) -> str:
        say(computed=key)
        time.sleep(0.005)
        return answer(key)

    say(ready=os.getpid())
    while not over.is_set():
        key = int(time.monotonic() * 20)
        began = time.monotonic()
        right = f(key) == answer(key)
        say(key=key, right=right, seconds=time.monotonic() - began, pid=os.getpid())
        time.sleep(0.002)


def hold(store: KVStoreProtocol, config: Dict[str, Any], over: threading.Event) -> None:
    """Hang in the body until told to end."""

    @cached(store, lock="store", namespace="hold", key="{key}", **config["options"])
    def f(key: int) -> str:
        say(inside=key)
        over.wait()
        return "from the holder"

    say(got=f(1))


def stampede(store: KVStoreProtocol, config: Dict[str, Any], over: threading.Event) -> None:
    """Several threads ask for many cold keys, each in an order of its own."""

    @cached(store, lock="store", namespace="stampede", **config["options"])
    def f(key: int) -> str:
        say(computed=key)
        return answer(key)

    def work(me: int) -> None:
        mine = random.Random(config["seed"] + me)
        for key in mine.sample(range(config["keys"]), config["keys"]):
            said_so = f(key)
            if said_so != answer(key):
                say(wrong=key)

    say(ready=os.getpid())
    wait_for(lambda: Path(config["go"]).exists())
    threads = [threading.Thread(target=work, args=(n,)) for n in range(config["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(calls=config["threads"] * config["keys"])


_depth: ContextVar[int] = ContextVar("_depth", default=0)


def call_graph(store: KVStoreProtocol, options: Dict[str, Any], calls: List[int]) -> Any:
    """Five functions that call each other at random, in circles, to a depth of four."""
    functions: List[Any] = []

    def make(me: int) -> Any:
        @cached(store, namespace=f"graph{me}", key="{x}", **options)
        def function(x: int) -> int:
            calls.append(x)
            if _depth.get() < 4:
                token = _depth.set(_depth.get() + 1)
                try:
                    for _ in range(2):
                        other, y = random.randrange(5), random.randrange(40)
                        assert functions[other](y) == 1000 * other + y
                finally:
                    _depth.reset(token)
            return 1000 * me + x

        return function

    functions += [make(me) for me in range(5)]
    return functions


def graph(store: KVStoreProtocol, config: Dict[str, Any], over: threading.Event) -> None:
    """Threads that call nested cached functions, all processes the same ones."""
    calls: List[int] = []
    functions = call_graph(store, {"lock": "store", **config["options"]}, calls)
    slowest = [0.0]

    def work(me: int) -> None:
        for _ in range(config["pairs"]):
            number, x = random.randrange(5), random.randrange(40)
            began = time.monotonic()
            if functions[number](x) != 1000 * number + x:
                say(wrong=[number, x])
            slowest[0] = max(slowest[0], time.monotonic() - began)
            if random.random() < 0.3:
                functions[random.randrange(5)].invalidate(x)

    random.seed(config["seed"])
    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = sum(len(f._self_cached.flow.board) for f in functions)
    say(done=True, computed=len(calls), pairs=3 * config["pairs"], slowest=slowest[0], left=left)


def another_clock(store: KVStoreProtocol, config: Dict[str, Any], over: threading.Event) -> None:
    """Call in a process whose clock jumps every now and then, as told."""
    mine, true = random.Random(config["seed"]), time.time
    offset = [0.0]
    time.time = lambda: true() + offset[0]

    @cached(store, lock="store", namespace="clocks", **config["options"])
    def f(key: int) -> str:
        return answer(key)

    say(ready=os.getpid())
    began, calls, slowest = time.monotonic(), 0, 0.0
    while time.monotonic() - began < config["seconds"]:
        if calls % 10 == 0:
            offset[0] = mine.choice(config["offsets"])
        key = mine.randrange(30)
        before = time.monotonic()
        if f(key) != answer(key):
            say(wrong=key)
        slowest = max(slowest, time.monotonic() - before)
        calls += 1
        if calls % 7 == 0:
            f.invalidate(mine.randrange(30))
    say(calls=calls, slowest=slowest, errors=f.cache_info().errors)


def main() -> None:
    mode, where, config = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    over = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=watch, daemon=True).start()
    modes: Dict[str, Any] = {
        "storm": storm,
        "hold": hold,
        "stampede": stampede,
        "graph": graph,
        "another_clock": another_clock,
    }
    with open_store(where) as store:
        modes[mode](store, config, over)


if __name__ == "__main__":
    main()
