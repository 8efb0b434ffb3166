"""SIGKILL: nothing that was said to be stored is lost, and nothing half done is ever seen."""

from __future__ import annotations

import collections
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import disk_children
import pytest
import time_machine
from described import LARGE, SMALL, counter_of, described

from kv_store_adapter import DiskKVStore

# Opening waits for nobody who is dead; the store's own patience would be 10 s.
AT_ONCE = 5.0

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here"),
]


def opened_at_once(path: Path) -> DiskKVStore:
    began = time.monotonic()
    store = DiskKVStore(path)
    assert time.monotonic() - began < AT_ONCE, "a dead process held the store up"
    return store


def contents(store: DiskKVStore, namespace: Optional[str]) -> Dict[str, Any]:
    """All that is in a namespace, each value looked at."""
    found = store.get_many(store.keys(namespace), namespace)
    for key, value in found.items():
        counter_of(value, key, namespace)
    return found


def brief(found: Dict[str, Any]) -> Dict[str, Any]:
    """Key, counter and size: what tells two states apart, short enough to be read."""
    return {key: value[2:4] for key, value in sorted(found.items())}


def assert_nothing_left(path: Path) -> None:
    """An hour later: no file, folder or row that no entry accounts for, and no damage."""
    with time_machine.travel(time.time() + 3600), opened_at_once(path) as store:
        store.purge()
        fetch = store._database.fetch
        named = {
            path / "namespaces" / file for (file,) in fetch("SELECT file FROM entries") if file
        }
        places = {path / "namespaces" / name for (name,) in fetch("SELECT folder FROM namespaces")}
        assert set(path.glob("namespaces/*/*.value")) == named
        assert set(path.glob("namespaces/*")) == places
        assert {f.name for f in path.glob("namespaces/*/*")} <= {f.name for f in named} | {
            "namespace.json"
        }
        assert fetch("SELECT * FROM garbage") == fetch("SELECT * FROM dropped") == []
        assert fetch("SELECT * FROM entries WHERE ns NOT IN (SELECT id FROM namespaces)") == []
        assert store.check() == []


# ---------------------------------------------------------------------- at random


def test_writers_killed_at_random_lose_nothing(
    tmp_path: Path, rounds: Any, seed: int, count: Any
) -> None:
    """Whatever moment writers are killed at: what a call returned from is there, the call it was in happened wholly or not at all, for each key, and the store opens at once."""
    chance = random.Random(seed)
    path = tmp_path / "store"
    states: Dict[str, Any] = {name: {} for name in ("a", "b")}
    with DiskKVStore(path) as living:  # somebody who stays, as in a server with many workers
        for round_ in range(rounds(8, 200)):
            writers = {}
            for name in states:
                story = chance.randrange(2**31)
                writers[name] = (story, disk_children.start("writer", path, story, name))
            after = {name: chance.randrange(1, 60) for name in states}
            told = dict.fromkeys(states, 0)
            for name, (_, process) in writers.items():
                assert process.stdout is not None
                while told[name] < after[name]:
                    told[name] = int(process.stdout.readline())
            time.sleep(chance.random() * 0.02)  # to any place inside of a change
            for _, process in writers.values():
                process.kill()
            count("SIGKILLs", len(writers))
            for name, (_, process) in writers.items():
                # Not communicate(): it would pass over what was read ahead.
                out = process.stdout.read()  # type: ignore[union-attr]
                assert process.wait(60) == -signal.SIGKILL
                process.stdin.close()  # type: ignore[union-attr]
                process.stdout.close()  # type: ignore[union-attr]
                told[name] = int((out.split() or [told[name]])[-1])
            count("changes by killed writers", sum(told.values()))
            # Every other time somebody who comes after the death looks, else who lived through it.
            store = living if round_ % 2 else opened_at_once(path)
            for name, (story, _) in writers.items():
                before = states[name]
                story_told = disk_children.changes(story, name)
                for _ in range(told[name]):
                    before = disk_children.apply(next(story_told), before)
                last = next(story_told)
                after_it = disk_children.apply(last, before)
                found = contents(store, name)
                if last[0] == "set_many":  # atomic for each key
                    for key in {*before, *after_it, *found}:
                        assert found.get(key) in (before.get(key), after_it.get(key)), key
                else:
                    assert brief(found) in (brief(before), brief(after_it)), (last[0], name)
                states[name] = found
                count("entries read whole after a kill", len(found))
                # And it can be written to as before.
                store.set("after", described("after", round_, SMALL, "after"), "after")
            if store is not living:
                store.close()
    count("entries lost", 0)
    assert_nothing_left(path)


# ---------------------------------------------------------------------- at exact system calls

# All that changes something, on disk or for other processes.
CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,ftruncate,truncate,fallocate,fsync,fdatasync,"
    "mkdir,mkdirat,rmdir,unlink,unlinkat,rename,renameat,renameat2,chmod,fchmod,fchmodat,fcntl"
)


def strace(process: subprocess.Popen[str], log: Path, *options: str) -> subprocess.Popen[str]:
    """Trace a process that waits; returns once it is traced."""
    known = subprocess.run(
        ["strace", "-e", f"trace=?{CALLS.replace(',', ',?')}", "true"],
        capture_output=True,
        check=False,
    )
    if known.returncode:
        pytest.skip(f"strace can't trace here: {known.stderr.decode().strip()[-200:]}")
    tracer = subprocess.Popen(
        [
            "strace",
            "-f",
            "-o",
            str(log),
            "-e",
            f"trace=?{CALLS.replace(',', ',?')}",
            *options,
            "-p",
            str(process.pid),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        process.kill()
        process.communicate()
        pytest.skip(f"strace can't attach to a process here: {line.strip()}")
    return tracer


def run_deed(path: Path, name: str, log: Path, *options: str) -> Tuple[int, bool]:
    """Let a traced process do one thing: how it ended, and whether it said that it was done."""
    process = disk_children.start("deed", path, name)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    tracer = strace(process, log, *options)
    out, _ = process.communicate("go\n", timeout=60)
    tracer.communicate(timeout=60)
    return process.returncode, out == "done\n"


def calls_of(log: Path) -> List[Tuple[str, int]]:
    """Each traced call as its name and which of that name it was: where to kill."""
    names = re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE)
    seen: Any = collections.Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append((name, seen[name]))
    return found


def prepare(path: Path) -> None:
    """A store in which every deed has something to do."""
    with DiskKVStore(path) as store:
        store.set("key", described("key", 1, LARGE))
        store.set("other", described("other", 1))
        store.set("other large", described("other large", 1, LARGE))
        store.set_many(
            {f"k{n}": described(f"k{n}", 1, SMALL, "cleared") for n in range(20)}, "cleared"
        )
        for n in range(20, 23):
            store.set(f"k{n}", described(f"k{n}", 1, LARGE, "cleared"), "cleared")


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace on this machine")
@pytest.mark.parametrize("deed", ["set", "spill", "spill in a new namespace", "clear", "open"])
def test_killed_at_any_system_call(
    tmp_path: Path, deed: str, rounds: Any, seed: int, count: Any
) -> None:
    """Killed before any system call of set, spill, clear_namespace or the first opening: all of it or nothing has happened, all else is there, the store opens at once and leftovers go."""
    ready = tmp_path / "ready"
    if deed != "open":
        prepare(ready)
    log = tmp_path / "log"

    def fresh(name: str) -> Path:
        path = tmp_path / name
        if ready.exists():
            shutil.copytree(ready, path)
        return path

    assert run_deed(fresh("counted"), deed, log) == (0, True)
    calls = calls_of(log)
    assert len(calls) > 5, log.read_text()
    chosen = random.Random(seed).sample(calls, min(len(calls), rounds(4, 80)))
    # The whole of it once more, killed in between: a call after the last one there is no kill.
    for number, (call, nth) in enumerate(chosen):
        path = fresh(f"store{number}")
        inject = f"inject={call}:signal=SIGKILL:when={nth}"
        status, done = run_deed(path, deed, log, "-e", inject)
        if status == 0:  # it took fewer calls this time
            count("kills that came too late")
        else:
            assert status == -signal.SIGKILL
            count("SIGKILLs at a system call")
        with opened_at_once(path) as store:
            if deed != "open":
                check_after(store, deed, done, f"{call} {nth}")
            for size in (SMALL, LARGE):
                store.set("key", described("key", 3, size))
                assert counter_of(store.get("key"), "key") == 3
            store.set("key", described("key", 3, LARGE, "new"), "new")
            assert store.clear_namespace("new") >= 1
        assert_nothing_left(path)
        shutil.rmtree(path)
    count("entries lost", 0)


def check_after(store: DiskKVStore, deed: str, done: bool, at: str) -> None:
    """After a deed that was interrupted: before or after, and nothing else touched."""
    default = contents(store, None)
    assert {key: value[2] for key, value in default.items() if key != "key"} == {
        "other": 1,
        "other large": 1,
    }, at
    if deed in {"set", "spill"}:
        assert default["key"][2] in ({2} if done else {1, 2}), at
    else:
        assert default["key"][2] == 1, at
    if deed == "spill in a new namespace":
        new = {key: value[2] for key, value in contents(store, "new").items()}
        assert new == {"key": 2} or (new == {} and not done), at
        assert ("new" in store.list_namespaces()) == bool(new), at
    cleared = contents(store, "cleared")
    if deed == "clear":
        assert len(cleared) == 0 or (len(cleared) == 23 and not done), at
    else:
        assert len(cleared) == 23, at
