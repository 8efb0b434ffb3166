"""The errors: one tree, which pickles and reads well."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any, Dict, List, Type

import pytest

from kv_store_adapter import exceptions
from kv_store_adapter.exceptions import (
    KeyNotFoundError,
    KVStoreError,
    StoreFormatError,
    StoreUnavailableError,
    shown,
    where,
)

ALL: List[Type[KVStoreError]] = [getattr(exceptions, name) for name in exceptions.__all__]

ALSO: Dict[str, type] = {
    "KeyNotFoundError": KeyError,
    "InvalidKeyError": ValueError,
    "InvalidTTLError": ValueError,
    "LockTimeoutError": TimeoutError,
    "UnkeyableArgumentError": TypeError,
    "StoreFormatError": StoreUnavailableError,
}


def test_one_tree() -> None:
    """Every exception the module defines is in __all__ and under KVStoreError."""
    defined = {
        name
        for name, value in vars(exceptions).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }
    assert defined == set(exceptions.__all__)
    assert all(issubclass(kind, KVStoreError) for kind in ALL)


@pytest.mark.parametrize(("name", "builtin"), ALSO.items())
def test_what_else_they_are(name: str, builtin: type) -> None:
    """Where the standard library has a word for it, the error is that as well."""
    assert issubclass(getattr(exceptions, name), builtin)


def test_the_drawing_is_the_tree() -> None:
    """The tree drawn at the top of the module names every class, and what else it is."""
    drawing = exceptions.__doc__ or ""
    for kind in ALL:
        assert kind.__name__ in drawing
    for name, builtin in ALSO.items():
        if builtin is not StoreUnavailableError:
            (line,) = (line for line in drawing.splitlines() if name in line)
            assert f"(also {builtin.__name__})" in line


@pytest.mark.parametrize("kind", ALL)
def test_they_pickle_and_copy(kind: Any) -> None:
    """Each comes back from pickle and copy with its type, message and attributes."""
    error = kind("key", "space") if kind is KeyNotFoundError else kind("What to do.")
    error.note = 5
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    for again in (copy.copy(error), *(pickle.loads(pickle.dumps(error, p)) for p in protocols)):
        assert type(again) is kind
        assert (str(again), again.args) == (str(error), error.args)


@pytest.mark.parametrize(
    ("namespace", "text"),
    [
        (None, "There is no key 'a\\n' in the default namespace."),
        ("n", "There is no key 'a\\n' in namespace 'n'."),
    ],
)
def test_not_found_reads_as_a_sentence(namespace: Any, text: str) -> None:
    """KeyNotFoundError is a sentence, not the repr that KeyError would show."""
    error = KeyNotFoundError("a\n", namespace)
    assert str(error) == text
    assert (error.key, error.namespace) == ("a\n", namespace)


def test_long_keys_are_cut() -> None:
    """A key of 64 KiB does not fill the screen; its length is told."""
    for text in (shown("x" * 65536), where("x" * 65536, "y" * 65536)):
        assert len(text) < 300
        assert "65538 characters" in text
    assert shown("short") == "'short'"


def test_format_errors_are_caught_as_unavailable() -> None:
    """Who catches StoreUnavailableError catches a folder of another format, too."""
    with pytest.raises(StoreUnavailableError):
        raise StoreFormatError("another format")
