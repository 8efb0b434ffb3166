"""`check` finds damage, and repairing keeps all that can be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kv_store_adapter import (
    DiskKVStore,
    SerializationError,
    StoreFormatError,
    StoreUnavailableError,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with small and large values in two namespaces."""
    with DiskKVStore(tmp_path / "store", verify=True, spill_threshold=32_768) as store:
        for index in range(600):
            value = "x" * (50_000 if index % 50 == 0 else 500)
            store.set(f"k{index}", [index, value], "named" if index % 2 else None)
    return tmp_path / "store"


def only(pattern: str, root: Path) -> Path:
    return min(root.glob(pattern))


def test_an_undamaged_store_has_no_damage(root: Path) -> None:
    """check() of a store that is as it was written finds nothing and changes nothing."""
    with DiskKVStore(root, verify=True) as store:
        assert store.check() == []
        assert store.check(repair=True) == []
        assert len(store.keys()) + len(store.keys("named")) == 600


@pytest.mark.parametrize("harm", ["truncated", "swapped", "missing", "rotten"])
def test_a_damaged_value_file_hurts_its_entry_alone(root: Path, harm: str) -> None:
    """A value file that is not as written is a typed error for its entry; others are read."""
    first, second = sorted(root.glob("namespaces/default-*/*.value"))[:2]
    if harm == "truncated":
        os.truncate(first, 1000)
    elif harm == "swapped":
        first.write_bytes(second.read_bytes())
    elif harm == "missing":
        first.unlink()
    else:
        data = bytearray(first.read_bytes())
        data[5000] ^= 1
        first.write_bytes(data)
    with DiskKVStore(root, verify=True) as store:
        (damage,) = store.check()
        assert (damage.what, damage.namespace) == ("entry", None)
        assert damage.key is not None
        with pytest.raises(SerializationError, match=damage.key):
            store.get(damage.key)
        assert store.exists(damage.key)
        assert len(store.keys()) == 300
        assert store.check(repair=True) == [damage]
        assert store.check() == []
        assert not store.exists(damage.key)
        assert len([store.get(key) for key in store.keys()]) == 299


def test_damaged_metadata_hurts_nothing(root: Path) -> None:
    """A damaged namespace.json is found and written anew; its entries can be read throughout."""
    about = only("namespaces/named-*/namespace.json", root)
    about.write_text("{")
    with DiskKVStore(root) as store:
        assert store.get("k1", "named")[0] == 1
        assert [(d.what, d.namespace) for d in store.check(repair=True)] == [("namespace", "named")]
        assert store.check() == []


def test_a_damaged_database_keeps_what_can_be_read(root: Path) -> None:
    """Overwritten pages are a typed error, never a wrong value; repairing keeps the other rows."""
    database = root / "kv-store.sqlite3"
    with open(database, "r+b") as file:
        file.seek(database.stat().st_size // 2)
        file.write(os.urandom(8192))
    with DiskKVStore(root, verify=True) as store:
        assert store.check()[0].what == "database"
        for index in range(600):
            try:
                value: Any = store.get(f"k{index}", "named" if index % 2 else None, default=None)
            except (StoreUnavailableError, SerializationError):
                continue
            assert value is None or value[0] == index
        store.check(repair=True)
        assert store.check() == []
        kept = [store.get(key)[0] for key in store.keys()]
        assert len(kept) > 200
        store.set("new", 1)
        assert store.get("new") == 1
    assert list(root.glob("damaged-*/kv-store.sqlite3"))


def test_a_database_that_cant_be_opened_is_set_aside(root: Path) -> None:
    """DiskKVStore.repair() opens what the constructor can't, and loses no file."""
    with open(root / "kv-store.sqlite3", "r+b") as file:
        file.write(b"garbage!" * 1000)
    with pytest.raises(StoreUnavailableError, match="repair"):
        DiskKVStore(root)
    assert [damage.what for damage in DiskKVStore.repair(root)] == ["database"]
    with DiskKVStore(root) as store:
        store.set("new", 1)
        assert store.get("new") == 1
        assert store.check() == []
    assert list(root.glob("damaged-*/kv-store.sqlite3"))
    assert len(list(root.glob("damaged-*/*/*.value"))) == 12


def test_somebody_elses_folder_is_not_repaired(tmp_path: Path) -> None:
    """repair() of a folder that holds something else refuses and leaves it untouched."""
    (tmp_path / "thesis.txt").write_text("final")
    with pytest.raises(StoreFormatError):
        DiskKVStore.repair(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]
