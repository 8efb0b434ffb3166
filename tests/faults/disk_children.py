"""Processes that the tests of the disk store start, and mostly kill.

    python disk_children.py NAME ARGUMENT...

runs one of the functions below. What they say goes to standard output, a line at a time.
"""

from __future__ import annotations

import collections
import json
import os
import random
import subprocess
import sys
import time
from typing import Any, Dict, Iterator, List, Tuple

from described import LARGE, SMALL, counter_of, described

from kv_store_adapter import DiskKVStore, StoreUnavailableError, cached

# A user who is not root and owns nothing.
OTHER = 54321

Change = Tuple[str, Any]
State = Dict[str, Any]


def start(name: str, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """Start one of these functions in a process of its own, with pipes to it."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", __file__, name, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def say(line: Any) -> None:
    """Tell the test, in one system call."""
    os.write(1, f"{line}\n".encode())


def go() -> None:
    """Say that all is ready and wait for the test's word."""
    say("ready")
    sys.stdin.readline()


# ---------------------------------------------------------------------- killed at random


def changes(seed: int, namespace: str) -> Iterator[Change]:
    """The endless story of one writer: the same for the writer and for the test that checks it."""
    chance = random.Random(seed)
    counter = seed % 1000 * 1_000_000
    while True:
        counter += 1
        key = f"k{chance.randrange(12)}"
        size = LARGE if chance.random() < 0.3 else SMALL
        kind = chance.choices(
            ("set", "add", "delete", "pop", "set_many", "clear"), (40, 10, 10, 5, 5, 3)
        )[0]
        if kind in {"delete", "pop"}:
            yield kind, key
        elif kind == "clear":
            yield kind, None
        elif kind == "set_many":
            sizes = {f"k{each}": chance.choice((SMALL, SMALL, LARGE)) for each in range(0, 12, 3)}
            yield kind, {k: described(k, counter, s, namespace) for k, s in sizes.items()}
        else:
            yield kind, {key: described(key, counter, size, namespace)}


def apply(change: Change, state: State) -> State:
    """What `state` is after `change`."""
    kind, what = change
    if kind == "clear":
        return {}
    if kind in {"delete", "pop"}:
        return {key: value for key, value in state.items() if key != what}
    return {**what, **state} if kind == "add" else {**state, **what}


def carry_out(store: Any, change: Change, namespace: str) -> None:
    """The same on a store."""
    kind, what = change
    if kind == "clear":
        store.clear_namespace(namespace)
    elif kind == "delete":
        store.delete(what, namespace)
    elif kind == "pop":
        store.pop(what, namespace, default=None)
    elif kind == "set_many":
        store.set_many(what, namespace)
    else:
        ((key, value),) = what.items()
        (store.add if kind == "add" else store.set)(key, value, namespace)


def writer(path: str, seed: str, namespace: str) -> None:
    """Carry out one change after the other until killed; say so after each."""
    with DiskKVStore(path) as store:
        for number, change in enumerate(changes(int(seed), namespace)):
            carry_out(store, change, namespace)
            say(number + 1)


# ---------------------------------------------------------------------- killed at a system call


def deed(path: str, name: str) -> None:
    """Wait for the word, then do one thing."""
    store = None if name == "open" else DiskKVStore(path)
    if store is not None:
        store.get("other")  # a connection is open, as in any process that runs
    go()
    if store is None:
        store = DiskKVStore(path)
    elif name == "set":
        store.set("key", described("key", 2))
    elif name == "spill":
        store.set("key", described("key", 2, LARGE))
    elif name == "spill in a new namespace":
        store.set("key", described("key", 2, LARGE, "new"), "new")
    elif name == "clear":
        store.clear_namespace("cleared")
    say("done")


# ---------------------------------------------------------------------- on a full disk


def tidy(path: str) -> None:
    """Read, delete and clear."""
    with DiskKVStore(path) as store:
        say(counter_of(store.get("small"), "small"))
        say(store.delete("k1", "n"))
        say(store.clear_namespace("n"))
        say(store.clear_namespace(None))


def limited(path: str, limit: str) -> None:
    """Live with a limit on the size of files."""
    import resource

    with DiskKVStore(path) as store:
        for key, size in (("small", SMALL), ("large", LARGE)):
            store.set(key, described(key, 1, size))
        store.set_many({f"k{n}": described(f"k{n}", 1, SMALL, "n") for n in range(20)}, "n")
        store._database.rest()  # so that the log of writes starts anew, below the limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
        last = fill_up(store, int(limit))
        assert counter_of(store.get("large"), "large") == 1
        for number, size in last.items():
            key = f"f{number}"
            assert counter_of(store.get(key), key) == 1, size

        @cached(store)
        def square(number: int) -> Any:
            return number * number, b"x" * int(limit)

        assert [square(n)[0] for n in (3, 4, 3)] == [9, 16, 9]
        assert store.delete("large") is True
        assert [store.delete(f"k{n}", "n") for n in range(10)] == [True] * 10
        assert store.clear_namespace("n") == 10
        assert store.clear_namespace(None) == len(last) + 1
        store.set("small", described("small", 2))
        assert counter_of(store.pop("small"), "small") == 2
    say("whole")


def fill_up(store: DiskKVStore, limit: int) -> Dict[int, int]:
    """Store until it fails and fails again, in files and in the index; what was stored."""
    stored: Dict[int, int] = {}
    for turn, size in enumerate((limit, 20_000, SMALL)):
        failed = 0
        for number in range(turn * 10_000, turn * 10_000 + 10_000):
            try:
                store.set(f"f{number}", described(f"f{number}", 1, size))
            except StoreUnavailableError:
                assert not store.exists(f"f{number}")
                assert counter_of(store.get("small"), "small") == 1
                failed += 1
            else:
                stored[number] = size
            if failed == 5:
                break
        else:
            raise AssertionError(f"the limit never was reached with values of {size} bytes")
    return stored


# ---------------------------------------------------------------------- as another user


def as_other(path: str, name: str) -> None:
    """Carry out one of the stories below as a user who is not root."""
    from kv_store_adapter.disk import repair  # noqa: F401  # while it can be read

    os.setgid(OTHER)
    os.setuid(OTHER)
    globals()[name](path)


def outcome(call: Any) -> str:
    """What a call returned, or the name of what it raised."""
    try:
        return repr(call())
    except Exception as error:
        return type(error).__name__


def with_entries_of_root(path: str) -> None:
    """Meet value files, and a folder, that this user may not read."""
    with DiskKVStore(path) as store:
        say(outcome(lambda: counter_of(store.get("theirs", "n"), "theirs", "n")))
        say(outcome(lambda: store.get_many(["theirs"], "n")))
        say(outcome(lambda: counter_of(store.get("mine", "n"), "mine", "n")))
        say(outcome(lambda: counter_of(store.get("small", "n"), "small", "n")))
        say(outcome(lambda: store.get("key", "locked")))
        say(outcome(lambda: store.set("new", described("new", 1, LARGE, "locked"), "locked")))
        say(outcome(lambda: sorted(store.keys("n"))))
        say(outcome(lambda: store.set("theirs", described("theirs", 2, LARGE, "n"), "n")))
        say(outcome(lambda: counter_of(store.get("theirs", "n"), "theirs", "n")))
        say(outcome(lambda: store.clear_namespace("locked")))


def purge(path: str) -> None:
    """Purge, in a process that can be killed when that has no end."""
    with DiskKVStore(path) as store:
        say(outcome(store.purge))


def all_of_it(path: str) -> None:
    """Open, and do a little of everything."""
    store = None
    try:
        store = DiskKVStore(path)
    except Exception as error:
        say(type(error).__name__)
        return
    with store:
        say("opened")
        say(outcome(lambda: counter_of(store.get("small", "n"), "small", "n")))
        say(outcome(lambda: store.set("small", 1, "n")))
        say(outcome(lambda: store.set("large", "x" * LARGE, "n")))
        say(outcome(lambda: store.set("new", 1, "new")))
        say(outcome(lambda: store.delete("small", "n")))
        say(outcome(lambda: store.clear_namespace("n")))


# ---------------------------------------------------------------------- many at once


def crowd(path: str, me: str, seed: str, seconds: str) -> None:
    """Open, write, clear, list, expire and close, among others that do the same."""
    chance = random.Random(int(seed))
    go()
    end = time.monotonic() + float(seconds)
    counter, tally = 0, collections.Counter()
    while time.monotonic() < end:
        with DiskKVStore(path, size_limit=None) as store:
            tally["times opened"] += 1
            for _ in range(chance.randrange(20, 120)):
                counter += 1
                tally["operations"] += 1
                crowd_step(store, me, counter, chance, tally)
    say(json.dumps(tally))


def crowd_step(
    store: Any, me: str, counter: int, chance: random.Random, tally: Dict[str, int]
) -> None:
    """One operation, and a look at what it gave."""
    key = f"k{chance.randrange(15)}"
    size = LARGE if chance.random() < 0.1 else chance.randrange(10, 2000)
    kind = chance.randrange(12)
    if kind <= 3:
        ttl = chance.choice((None, 0.01, 1.0))
        store.set(key, described(key, int(me) * 10**9 + counter, size, "shared"), "shared", ttl)
        # Its own: nobody else clears it, so it must be what was written last.
        store.set(me, described(me, counter, size, "own"), "own")
        assert counter_of(store.get(me, "own"), me, "own") == counter
    elif kind <= 6:
        found = store.get(key, "shared", default=None)
        if found is not None:
            counter_of(found, key, "shared")
            tally["reads checked"] += 1
    elif kind == 7:
        for name, value in store.get_many([f"k{n}" for n in range(15)], "shared").items():
            counter_of(value, name, "shared")
            tally["reads checked"] += 1
    elif kind == 8:
        assert set(store.keys("steady")) >= {f"s{n}" for n in range(50)}
        assert set(store.iter_keys("steady")) >= {f"s{n}" for n in range(50)}
        assert "steady" in store.list_namespaces()
        extra = f"{me}-{counter}"
        store.set(extra, described(extra, 1, size, "steady"), "steady", 0.05)
        assert set(store.keys("shared")) <= {f"k{n}" for n in range(15)}
        tally["listings checked"] += 3
    elif kind == 9:
        store.delete(key, "shared")
    elif kind == 10:
        if chance.random() < 0.3:
            store.clear_namespace("shared")
        else:
            store.purge()
    else:
        number = counter // 5
        if store.add(f"race{number}", me, "race"):
            say(f"won {number}")


def main(arguments: List[str]) -> None:
    globals()[arguments[0]](*arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
