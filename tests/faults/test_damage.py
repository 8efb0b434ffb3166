"""Damage: bytes flipped, cut, zeroed or swapped are told or do no harm, and repairing keeps the rest."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest
import time_machine
from described import LARGE, SMALL, counter_of, described

from kv_store_adapter import DiskKVStore, KVStoreError, StoreUnavailableError
from kv_store_adapter.disk.folder import DATABASE

pytestmark = pytest.mark.timeout(600)

NAMESPACES: List[Optional[str]] = [None, "a", "b"]
PLACES = [(f"k{number}", namespace) for number in range(60) for namespace in NAMESPACES]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as it was written, with checksums."""
    path = tmp_path_factory.mktemp("sound") / "store"
    with DiskKVStore(path, verify=True) as store:
        for number, (key, namespace) in enumerate(PLACES):
            size = LARGE if number % 40 == 0 else SMALL + number * 10
            store.set(key, described(key, number, size, namespace), namespace)
    return path


# ---------------------------------------------------------------------- the database


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 3, 20))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _zero_pages(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 2, 5))):
        start = chance.randrange(len(data) // 4096) * 4096
        data[start : start + 4096] = bytes(4096)


def _truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _swap_pages(data: bytearray, chance: random.Random) -> None:
    one, two = (chance.randrange(len(data) // 4096) * 4096 for _ in range(2))
    data[one : one + 4096], data[two : two + 4096] = (
        data[two : two + 4096],
        data[one : one + 4096],
    )


def _headers(data: bytearray, chance: random.Random) -> None:
    """Bytes near the ends of pages and of records, where types and lengths are."""
    for _ in range(chance.choice((1, 4))):
        page = chance.randrange(len(data) // 4096) * 4096
        data[page + chance.choice((chance.randrange(120), 4095 - chance.randrange(400)))] = (
            chance.randrange(256)
        )


HARMS = {
    "bits flipped": _flip,
    "pages zeroed": _zero_pages,
    "truncated": _truncate,
    "pages swapped": _swap_pages,
    "headers changed": _headers,
}


def use(store: DiskKVStore, tally: Dict[str, int]) -> None:
    """Every kind of operation: typed errors are fine, wrong values are not."""

    def attempt(call: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except KVStoreError:
            tally["typed errors"] += 1
            return None

    for number, (key, namespace) in enumerate(PLACES):
        value = attempt(store.get, key, namespace, default=None)
        if value is not None:
            assert counter_of(value, key, namespace) == number, "a wrong value"
            tally["entries read"] += 1
    for namespace in NAMESPACES:
        for listing in (store.keys, lambda n: list(store.iter_keys(n))):
            keys = attempt(listing, namespace) or []
            assert all(isinstance(key, str) for key in keys)
        attempt(store.get_many, [f"k{n}" for n in range(60)], namespace)
        attempt(store.ttl, "k1", namespace)
        attempt(store.exists, "k2", namespace)
    assert all(isinstance(name, str) for name in attempt(store.list_namespaces) or [])


def change(store: DiskKVStore) -> None:
    """Operations that write; typed errors are fine."""
    for call in (
        lambda: store.set("k3", described("k3", 1000, SMALL, "a"), "a"),
        lambda: store.set("large", described("large", 1, LARGE, "a"), "a"),
        lambda: store.add("k4", 1, "b"),
        lambda: store.pop("k5", "a", default=None),
        lambda: store.delete("k6"),
        lambda: store.delete_many(["k7", "k8"], "b"),
        lambda: store.touch("k9", "a", 60),
        lambda: store.purge(),
        lambda: store.clear_namespace("b"),
    ):
        try:
            call()
        except KVStoreError:
            pass


def one_round(sound: Path, path: Path, harm: str, seed: int) -> Dict[str, int]:
    """Damage a copy, use it, repair it, use it again."""
    chance = random.Random(seed)
    tally = dict.fromkeys(("typed errors", "entries read", "entries after repair"), 0)
    shutil.copytree(sound, path)
    data = bytearray((path / DATABASE).read_bytes())
    HARMS[harm](data, chance)
    (path / DATABASE).write_bytes(bytes(data))
    try:
        with DiskKVStore(path, verify=True) as store:
            use(store, tally)
            if chance.random() < 0.5:
                change(store)
                return tally
    except KVStoreError:
        tally["typed errors"] += 1
    try:
        DiskKVStore.repair(path, verify=True)
    except StoreUnavailableError:
        # What says whose it is was hit: it is taken for a stranger's, and left as it was.
        assert len(data) == 0 or bytes(data) == (path / DATABASE).read_bytes()
        return tally
    with DiskKVStore(path, verify=True) as store:
        assert store.check() == []
        for key, namespace in PLACES:
            value = store.get(key, namespace, default=None)
            if value is not None:
                counter_of(value, key, namespace)
                tally["entries after repair"] += 1
        for namespace in NAMESPACES:
            assert all(isinstance(key, str) for key in store.keys(namespace))
        store.set("new", described("new", 1, LARGE))
        assert counter_of(store.get("new"), "new") == 1
    return tally


@pytest.mark.parametrize(
    ("harm", "seed"),
    [
        ("headers changed", 4139356782),
        ("bits flipped", 3815762379),
        ("bits flipped", 3071626151),
    ],
)
def test_damage_that_was_found_once(sound: Path, tmp_path: Path, harm: str, seed: int) -> None:
    """What random damage once got through (a walk without end, a bit in a trigger, a number among keys) is mended."""
    one_round(sound, tmp_path / "store", harm, seed)


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_database(
    sound: Path, tmp_path: Path, harm: str, rounds: Any, seed: int, count: Any
) -> None:
    """A database with bits flipped, pages zeroed or swapped, or cut short, is typed errors, never a wrong value where there are checksums; a repair keeps what can be read, and check() finds nothing after it."""
    chance = random.Random(seed)
    for number in range(rounds(8, 80)):
        mine = chance.randrange(2**32)
        path = tmp_path / f"store{number}"
        try:
            tally = one_round(sound, path, harm, mine)
        except Exception as error:
            raise AssertionError(f"{harm}, round of seed {mine}: {error!r}") from error
        for what, figure in tally.items():
            count(f"damage: {what}", figure)
        count("databases damaged")
        shutil.rmtree(path)


@pytest.mark.parametrize("harm", ["a row of garbage is NULL", "the schema is no UTF-8"])
def test_damage_that_escaped(sound: Path, tmp_path: Path, harm: str) -> None:
    """What random damage once got past the library with is a typed error, or does no harm."""
    path = tmp_path / "store"
    shutil.copytree(sound, path)
    if harm == "the schema is no UTF-8":
        data = (path / DATABASE).read_bytes()
        (path / DATABASE).write_bytes(data.replace(b"AUTOINCREMENT", b"\xdaUTOINCREMENT"))
    else:
        with DiskKVStore(path) as store:
            store._database.write("INSERT INTO garbage VALUES(NULL, 0)")
    try:
        with DiskKVStore(path, verify=True) as store:
            use(store, {"typed errors": 0, "entries read": 0})
    except KVStoreError:
        pass


def test_a_namespace_whose_folder_is_garbled_keeps_its_files(sound: Path, tmp_path: Path) -> None:
    """Where the index is damaged and names no folder for a namespace, a repair finds it by its entries and keeps their files."""
    path = tmp_path / "store"
    shutil.copytree(sound, path)
    with DiskKVStore(path) as store:
        store.set("large", b"x" * 300_000, "a")
        store._database.write("UPDATE namespaces SET folder = replace(folder, '-', '!')")
        store._database.write("DROP TRIGGER entries_deleted")  # more damage: the index is made anew
    assert [damage.what for damage in DiskKVStore.repair(path)].count("entry") == 0
    with DiskKVStore(path, verify=True) as store:
        assert store.check() == []
        assert store.get("large", namespace="a") == b"x" * 300_000
        use(store, {"typed errors": 0, "entries read": 0})


ODD = [b"bytes", b"\xff", 5, 2.5, "text", "\0", ""]


@pytest.mark.parametrize("column", ["key", "expires", "size", "value", "file", "digest"])
def test_columns_of_another_type(sound: Path, tmp_path: Path, column: str) -> None:
    """Where damage made something else of one field of an entry, that entry alone suffers, with a typed error, and check(repair=True) takes it out."""
    for number, odd in enumerate(ODD):
        path = tmp_path / str(number)
        shutil.copytree(sound, path)
        with DiskKVStore(path, verify=True) as store:
            store._database.write(
                f"UPDATE entries SET {column} = ? WHERE key = 'k7' AND ns = "
                "(SELECT id FROM namespaces WHERE name = 'a')",
                (odd,),
            )
            use(store, {"typed errors": 0, "entries read": 0})
            store.check(repair=True)
            assert store.check() == []
            use(store, {"typed errors": 0, "entries read": 0})


@pytest.mark.parametrize("change", ["earliest = ?", "earliest = ? WHERE id > 1", None])
def test_times_of_blocks(tmp_path: Path, change: Optional[str]) -> None:
    """Whatever damage made of the times of blocks, entries expire when they should; check(repair=True) sets the times right."""
    for odd in (2**62, b"bytes", "text", 0, -1.5):
        path = tmp_path / repr(odd)
        start = time.time()
        with time_machine.travel(start, tick=False) as clock, DiskKVStore(path) as store:
            for number in range(300):
                store.set(str(number), number, ttl=100 + number)
            with contextlib.closing(sqlite3.connect(path / DATABASE)) as raw, raw:
                if change is None:
                    raw.execute("DELETE FROM blocks WHERE id != 2")
                else:
                    raw.execute(f"UPDATE blocks SET {change}", (odd,))
            clock.move_to(start + 250.5)
            assert store.get_many(map(str, range(300))) == {str(n): n for n in range(151, 300)}
            too_late = change is None or isinstance(odd, (bytes, str)) or odd > 0
            assert [damage.what for damage in store.check(repair=True)] == ["database"] * too_late
            assert store.check() == []
            assert sorted(map(int, store.keys())) == list(range(151, 300))
            assert store.purge() == 151
            clock.move_to(start + 1000)
            assert store.purge() == 149
            assert store._database.fetch("SELECT * FROM blocks") == []


@pytest.mark.parametrize("odd", [5, 2.5, b"bytes"])
def test_keys_that_are_no_text_any_more(sound: Path, tmp_path: Path, odd: Any) -> None:
    """A key that damage made a number or bytes of is listed nowhere; check(repair=True) takes its entry out."""
    path = tmp_path / "store"
    shutil.copytree(sound, path)

    def retype(old: str, new: str) -> None:
        with contextlib.closing(sqlite3.connect(path / DATABASE, isolation_level=None)) as raw:
            raw.execute("PRAGMA writable_schema=ON")
            raw.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?)", (old, new))

    # SQLite itself makes text of what is stored in a column of text.
    retype("key TEXT NOT NULL, expires", "key BLOB NOT NULL, expires")
    with contextlib.closing(sqlite3.connect(path / DATABASE, isolation_level=None)) as raw:
        assert raw.execute("UPDATE entries SET key = ? WHERE key = 'k7'", (odd,)).rowcount == 3
    retype("key BLOB NOT NULL, expires", "key TEXT NOT NULL, expires")
    with DiskKVStore(path, verify=True) as store:
        for namespace in NAMESPACES:
            assert "k7" not in store.keys(namespace)
            assert all(isinstance(key, str) for key in store.keys(namespace))
            assert list(store.iter_keys(namespace)) == store.keys(namespace)
        store.check(repair=True)
        assert store.check() == []


@pytest.mark.parametrize("harm", ["no serializer", "two serializers"])
def test_a_database_that_lost_its_serializer(sound: Path, tmp_path: Path, harm: str) -> None:
    """A database that does not say its serializer any more is a typed error to open."""
    path = tmp_path / "store"
    shutil.copytree(sound, path)
    with DiskKVStore(path) as store:
        if harm == "no serializer":
            store._database.write("DELETE FROM meta")
        else:
            store._database.transaction(
                lambda c: (
                    [c.execute("DROP TABLE meta"), c.execute("CREATE TABLE meta(name, value)")]
                    + [
                        c.execute("INSERT INTO meta VALUES('serializer', 'pickle')")
                        for _ in range(2)
                    ]
                )
            )
    with pytest.raises(StoreUnavailableError):
        DiskKVStore(path)


# ---------------------------------------------------------------------- files


def test_any_damage_of_a_value_file(
    sound: Path, tmp_path: Path, rounds: Any, seed: int, count: Any
) -> None:
    """A value file cut anywhere, longer, exchanged for another or with any byte changed is noticed by its entry alone; without checksums all but changed bytes are."""
    chance = random.Random(seed)
    path = tmp_path / "store"
    shutil.copytree(sound, path)
    with DiskKVStore(path, verify=True) as checked, DiskKVStore(path) as plain:
        files = {
            (key, namespace or None): path / "namespaces" / file
            for file, key, namespace in plain._database.fetch(
                "SELECT file, key, name FROM entries JOIN namespaces ON namespaces.id = ns "
                "WHERE file IS NOT NULL"
            )
        }
        assert len(files) > 3
        for _ in range(rounds(100, 2000)):
            place, file = chance.choice(sorted(files.items(), key=str))
            data = file.read_bytes()
            harm = chance.choice(("cut", "longer", "exchanged", "changed"))
            changed = bytearray(data)
            if harm == "cut":
                del changed[chance.randrange(len(data)) :]
            elif harm == "longer":
                changed += os.urandom(chance.randrange(1, 5000))
            elif harm == "changed":
                changed[chance.randrange(len(data))] ^= chance.randrange(1, 256)
            else:
                other = chance.choice([f for f in files.values() if f != file])
                changed = bytearray(other.read_bytes())
            file.write_bytes(bytes(changed))
            _told(checked, place)
            if harm != "changed":
                _told(plain, place)
            ((damage,), others) = checked.check(), [p for p in files if p != place]
            assert (damage.what, damage.key, damage.namespace) == ("entry", *place)
            for key, namespace in others:
                counter_of(checked.get(key, namespace), key, namespace)
            file.write_bytes(data)
            assert checked.get(*place)[1] == place[0]
            count("value files damaged")


def _told(store: DiskKVStore, place: Tuple[str, Optional[str]]) -> None:
    with pytest.raises(KVStoreError, match=place[0]):
        store.get(*place)


def test_any_damage_of_metadata(sound: Path, tmp_path: Path, count: Any) -> None:
    """A namespace's metadata that is cut, empty, garbage, another's or gone is found by check(), which names the namespace, and hurts no entry."""
    path = tmp_path / "store"
    shutil.copytree(sound, path)
    (about,) = path.glob("namespaces/a-*/namespace.json")
    (other,) = path.glob("namespaces/b-*/namespace.json")
    whole = about.read_bytes()
    for content in [
        *(whole[:length] for length in range(0, len(whole) - 1, 7)),
        *(b"null", b"[]", b"{}", b'{"name": 5}', b"\xff\xfe", os.urandom(500)),
        other.read_bytes(),
        None,
    ]:
        about.unlink() if content is None else about.write_bytes(content)
        with DiskKVStore(path) as store:
            for key, namespace in PLACES[:9]:
                counter_of(store.get(key, namespace), key, namespace)
            (damage,) = store.check()
            assert (damage.what, damage.namespace) == ("namespace", "a"), content
            assert store.check(repair=True) == [damage]
            assert store.check() == []
        count("metadata files damaged")


def test_metadata_that_nests_too_deep(sound: Path, tmp_path: Path) -> None:
    """A namespace's metadata that nests deeper than Python reads is damage like any other."""
    path = tmp_path / "store"
    shutil.copytree(sound, path)
    (about,) = path.glob("namespaces/a-*/namespace.json")
    about.write_bytes(b"[" * 100_000)
    with DiskKVStore(path) as store:
        assert [(d.what, d.namespace) for d in store.check(repair=True)] == [("namespace", "a")]
        assert store.check() == []
