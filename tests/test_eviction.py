"""Which entry leaves a full memory store."""

from __future__ import annotations

import random
import time
from typing import Dict, List

import pytest
import time_machine

from kv_store_adapter import MemoryKVStore
from kv_store_adapter.eviction import S3FIFO
from kv_store_adapter.expiry import Table
from kv_store_adapter.testing.samples import at_once
from signals import needs_timers, run_among_signals


def _queued(store: MemoryKVStore) -> int:
    assert store._policy is not None
    return len(store._policy)


@pytest.mark.parametrize("maxsize", [1, 2, 3, 10, 100])
def test_never_more_than_maxsize(maxsize: int) -> None:
    """A bounded store holds at most maxsize entries, over all namespaces, after every write."""
    store = MemoryKVStore(maxsize=maxsize)
    for number in range(maxsize * 5):
        store.set(f"k{number}", number, f"n{number % 3}")
        held = sum(len(store.keys(f"n{n}")) for n in range(3))
        assert held == min(number + 1, maxsize) == _queued(store)
        assert store.get(f"k{number}", f"n{number % 3}") == number


def test_a_batch_stays_within_maxsize() -> None:
    """set_many() of more than fits keeps maxsize of them."""
    store = MemoryKVStore(maxsize=50)
    store.set_many({f"k{number}": number for number in range(500)})
    assert len(store.keys()) == 50


@pytest.mark.parametrize(("reads", "survivors"), [(0, 50), (1, 45)])
def test_what_is_used_survives_a_scan(reads: int, survivors: int) -> None:
    """Entries in use survive a scan of forty times as many that are stored and hardly read."""
    store = MemoryKVStore(maxsize=100)
    used = [f"used{number}" for number in range(50)]
    for _ in range(3):
        for key in used:
            if store.get(key, default=None) is None:
                store.set(key, 1)
    for number in range(2000):
        store.set(f"scan{number}", 1)
        for _ in range(reads):
            store.get(f"scan{number}")
        if number % 10 == 0:
            for key in used:
                store.get(key, default=None)
    assert sum(store.exists(key) for key in used) >= survivors


def test_it_beats_lru_on_a_scanned_trace() -> None:
    """On a skewed trace mixed with scans the policy hits more often than LRU would."""
    dice = random.Random(7)
    trace: List[str] = []
    for number in range(20_000):
        trace.append(f"k{int(dice.paretovariate(0.8)) % 2000}")
        if number % 4 == 0:
            trace.append(f"scan{number}")
    store = MemoryKVStore(maxsize=200)
    hits = 0
    for key in trace:
        if store.get(key, default=None) is None:
            store.set(key, 1)
        else:
            hits += 1
    lru: dict[str, None] = {}
    lru_hits = 0
    for key in trace:
        if key in lru:
            lru_hits += 1
            del lru[key]
        elif len(lru) == 200:
            del lru[next(iter(lru))]
        lru[key] = None
    assert hits > lru_hits


def test_what_comes_back_is_kept() -> None:
    """A key that left and comes back soon goes to the main queue: a scan no longer evicts it."""
    store = MemoryKVStore(maxsize=20)
    store.set("back", 1)
    store.set_many({f"scan{number}": 1 for number in range(20)})
    assert not store.exists("back")
    store.set("back", 2)
    store.set_many({f"more{number}": 1 for number in range(200)})
    assert store.get("back") == 2


def _returned(small: int, main: int, *, from_main: bool = False, maxsize: int = 100) -> float:
    """The small queue's share after one came back, with so many more remembered by each queue."""
    policy, table = S3FIFO(maxsize), Table(None)
    back = policy._left_main if from_main else policy._left_small
    back[hash("back") ^ table.salt] = None
    policy._left_small.update((-1 - number, None) for number in range(small))
    policy._left_main.update((-1001 - number, None) for number in range(main))
    policy.admit("back", table)
    assert "back" in policy._main.values()
    assert hash("back") ^ table.salt not in back
    return policy._share


def test_the_queue_that_lost_one_too_early_gets_longer() -> None:
    """Who comes back lengthens the queue it left: by one, or more where that is the rarer thing."""
    assert _returned(0, 0) == 11
    assert _returned(0, 0, from_main=True) == 9
    assert _returned(5, 0) == 11
    assert _returned(0, 5, from_main=True) == 9
    assert _returned(1, 6) == 13
    assert _returned(6, 1, from_main=True) == 7


def test_each_queue_keeps_a_part() -> None:
    """The small queue has from a hundredth to nine tenths of the room, and one entry at least."""
    assert _returned(0, 500) == 90
    assert _returned(500, 0, from_main=True) == 1
    assert _returned(0, 50_000, maxsize=1000) == 900
    assert _returned(50_000, 0, from_main=True, maxsize=1000) == 10
    assert _returned(0, 500, maxsize=1) == 1
    assert _returned(0, 0, maxsize=2, from_main=True) == 1


def test_what_left_is_remembered_for_a_while() -> None:
    """Each queue remembers half as many of those that left as the store holds, and one at least."""
    for maxsize, remembered in ((1, 1), (2, 1), (10, 5), (11, 5)):
        policy, table = S3FIFO(maxsize), Table(None)
        for number in range(maxsize * 4):
            policy.admit(f"k{number}", table)
        assert len(policy._left_small) == remembered
        assert hash(f"k{maxsize * 3 - 1}") ^ table.salt in policy._left_small


def test_a_slot_is_used_again() -> None:
    """Slots of what left or was deleted are given out anew, unmarked, so their number stays small."""
    policy, table = S3FIFO(10), Table(None)
    for number in range(100):
        slot, _, _ = policy.admit(f"k{number}", table)
        assert policy.used[slot] is False
        assert policy._tables[slot] is table
        policy.used[slot] = True
        if number % 3 == 0:
            policy.forget(slot)
            assert policy._tables[slot] is None
    assert len(policy.used) == len(policy._tables) <= 10


def test_equal_keys_of_two_namespaces_are_not_taken_for_one() -> None:
    """That a key left one namespace says nothing about the same key in another one."""
    store = MemoryKVStore(maxsize=20)
    store.set("key", 1, "a")
    store.set_many({f"scan{number}": 1 for number in range(20)})
    assert not store.exists("key", "a")
    store.set("key", 2, "b")
    store.set_many({f"more{number}": 1 for number in range(200)})
    assert not store.exists("key", "b")


def test_a_small_queue_at_its_share_gives_first() -> None:
    """While the small queue has its share or more, who leaves is one of it that was not used."""
    policy, table = S3FIFO(10), Table(None)
    slots = [policy.admit(f"k{number}", table)[0] for number in range(10)]
    table["k9"] = "the entry"
    for slot in slots[:9]:
        policy.used[slot] = True
    assert policy.admit("new", table) == (slots[9], table, "the entry")
    assert "k9" not in table


def test_hits_through_a_reader_count() -> None:
    """What is read through a reader or in a batch is in use, and survives a scan."""
    for read_all in (False, True):
        store = MemoryKVStore(maxsize=20)
        read = store.reader("n")
        store.set("used", 1, "n")
        for number in range(200):
            assert store.get_many(["used"], "n") if read_all else read("used")
            store.set(f"scan{number}", 1, "n")
        assert store.exists("used", "n")


def test_storing_again_counts_as_a_use() -> None:
    """What is stored over and over, or given time, survives a scan as what is read does."""
    store = MemoryKVStore(maxsize=20)
    for key in ("set", "touched"):
        store.set(key, 0)
    for number in range(200):
        store.set("set", number)
        store.touch("touched")
        store.set(f"scan{number}", 1)
    assert store.exists("set")
    assert store.exists("touched")


def test_looking_is_no_use() -> None:
    """exists() and keys() don't count as a use: what was only looked at leaves."""
    store = MemoryKVStore(maxsize=10)
    store.set("looked at", 1)
    for number in range(30):
        store.exists("looked at")
        store.keys()
        store.set(f"k{number}", 1)
    assert not store.exists("looked at")


def test_deleted_entries_leave_the_queues() -> None:
    """What is deleted, popped, cleared or expired makes room, and is not kept by the policy."""
    with time_machine.travel(time.time(), tick=False) as clock:
        store = MemoryKVStore(maxsize=100)
        store.set_many({f"k{number}": number for number in range(40)}, "n")
        store.set_many({f"k{number}": number for number in range(40)}, None, 5)
        assert _queued(store) == 80
        store.delete("k0", "n")
        store.pop("k1", "n")
        assert _queued(store) == 78
        assert store.clear_namespace("n") == 38
        assert _queued(store) == 40
        clock.shift(10)
        for number in range(30):
            store.set(f"new{number}", 1, "n")
        assert _queued(store) == 30
        assert len(store.keys("n")) == 30


@pytest.mark.parametrize("seed", range(5))
def test_deletions_change_nothing_for_the_others(seed: int) -> None:
    """Who leaves is who two plain lists would choose, whatever was deleted in between."""
    dice = random.Random(seed)
    policy, table = S3FIFO(20), Table(None)
    small: List[int] = []  # the queues as they ought to be
    main: List[int] = []
    keys: Dict[int, str] = {}
    for _ in range(3000):
        action = dice.random()
        if keys and action < 0.4:
            slot = dice.choice(list(keys))
            policy.forget(slot)
            (small if slot in small else main).remove(slot)
            del table[keys.pop(slot)]
        elif keys and action < 0.6:
            policy.used[dice.choice(list(keys))] = True
        else:
            key = dice.choice([f"k{n}" for n in range(60) if f"k{n}" not in keys.values()])
            used, limit = policy.used[:], policy._share
            leaver = None, None
            while len(keys) == 20:
                queue = small if len(small) >= limit or not main else main
                slot = queue.pop(0)
                if used[slot]:
                    used[slot] = False
                    main.append(slot)
                else:
                    leaver = table, keys.pop(slot)
            slot, *left = policy.admit(key, table)
            assert tuple(left) == leaver
            table[key] = key
            assert slot not in keys
            (main if slot in policy._main else small).append(slot)
            keys[slot] = key
        assert (list(policy._small), list(policy._main)) == (small, main)
        assert len(policy) == len(keys)
        assert len(policy.used) == len(policy._tables) <= 20


FULL_STORE = """
    from kv_store_adapter import MemoryKVStore

    def work():
        for number in range(2000):
            key = f"k{chance.randrange(150)}"
            store.set(key, number, f"n{number % 2}", ttl=chance.choice((None, 0.001, 60)))
            store.get(key, f"n{number % 2}", default=None)
            store.delete(f"k{chance.randrange(150)}")
            store.delete(f"k{chance.randrange(150)}", "n0")

    store = MemoryKVStore(maxsize=100)
    attack(work, 2000, 4e-4)
    for number in range(5000):
        store.set(f"more{number}", 1)
        assert store.get(f"more{number}") == 1
    other = threading.Thread(target=store.set, args=("other", 1))
    other.start()
    other.join(20)
    assert not other.is_alive(), "the lock was lost"
    held = sum(len(store.keys(name)) for name in (None, "n0", "n1"))
    assert held == 100, held
"""


@needs_timers
def test_a_signal_at_any_moment_leaves_a_full_store_at_work() -> None:
    """Wherever a signal's handler raises, a full store goes on, and holds what it may."""
    run_among_signals(FULL_STORE)


def test_the_namespace_of_evicted_entries_goes() -> None:
    """A namespace whose last entry was evicted is no longer listed, nor kept."""
    store = MemoryKVStore(maxsize=10)
    for number in range(500):
        store.set("key", 1, f"n{number}")
    assert len(store.list_namespaces()) == 10
    assert len(store._tables) == 10


def test_a_full_store_among_threads() -> None:
    """Threads that set, read and delete in a full store leave it whole and within its size."""
    store = MemoryKVStore(maxsize=50)

    def work(me: int) -> None:
        dice = random.Random(me)
        for _ in range(1500):
            key = f"k{dice.randrange(200)}"
            action = dice.random()
            if action < 0.5:
                store.set(key, key, "n", 1000 if action < 0.2 else None)
            elif action < 0.9:
                assert store.get(key, "n", default=key) == key
            else:
                store.delete(key, "n")

    at_once(4, work)
    assert len(store.keys("n")) == _queued(store) <= 50


@pytest.mark.parametrize("maxsize", [0, -1])
def test_no_size_below_one(maxsize: int) -> None:
    """maxsize is at least 1."""
    with pytest.raises(ValueError, match="at least 1"):
        MemoryKVStore(maxsize=maxsize)


@pytest.mark.parametrize("maxsize", [True, 1.5, "10"])
def test_no_size_but_a_number(maxsize: object) -> None:
    """maxsize is an int."""
    with pytest.raises(TypeError, match=f"maxsize .* not {type(maxsize).__name__}"):
        MemoryKVStore(maxsize=maxsize)  # type: ignore[arg-type]  # the mistake
