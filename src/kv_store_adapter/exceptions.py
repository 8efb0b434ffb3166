"""All that can go wrong, as one tree.

::

    KVStoreError
    ├── KeyNotFoundError        (also KeyError)       nothing is stored under this key
    ├── InvalidKeyError         (also ValueError)     this text can't be a key or a namespace
    ├── InvalidTTLError         (also ValueError)     this number can't be a time to live
    ├── SerializationError                            a value can't become bytes, or bytes a value
    ├── LockTimeoutError        (also TimeoutError)   somebody else held the lock for too long
    ├── UnkeyableArgumentError  (also TypeError)      a cached call has an argument without identity
    ├── StoreClosedError                              the store was closed before this call
    └── StoreUnavailableError                         the backend can't be reached, read or written
        └── StoreFormatError                          the folder is of another format or serializer

Catch ``KVStoreError`` for everything that is the store's trouble. Wrong *types* (a key that is not
a ``str``) are plain ``TypeError``: they are mistakes in the calling program. A driver's own
exception never escapes; it is the ``__cause__`` of ours. All of them survive pickling.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

__all__ = [
    "InvalidKeyError",
    "InvalidTTLError",
    "KVStoreError",
    "KeyNotFoundError",
    "LockTimeoutError",
    "SerializationError",
    "StoreClosedError",
    "StoreFormatError",
    "StoreUnavailableError",
    "UnkeyableArgumentError",
]

# A message is read at night on a small screen: a key of 64 KiB must not fill it.
_SHOWN = 120


def shown(text: object) -> str:
    """``repr(text)``, cut in the middle where it is too long to read."""
    try:
        whole = repr(text)
    except Exception:  # an int too long to print, or anybody's __repr__
        return f"<{type(text).__name__}>"
    if len(whole) <= _SHOWN:
        return whole
    return f"{whole[: _SHOWN - 40]}...{whole[-20:]} ({len(whole)} characters)"


def where(key: object, namespace: Optional[str]) -> str:
    """``key 'k' in namespace 'n'``, as every message names a place."""
    if namespace is None:
        return f"key {shown(key)} in the default namespace"
    return f"key {shown(key)} in namespace {shown(namespace)}"


class KVStoreError(Exception):
    """The root of everything this package raises on purpose."""


class KeyNotFoundError(KVStoreError, KeyError):
    """Nothing is stored under this key: never was, was deleted, or has expired.

    Attributes:
        key: The key that was asked for.
        namespace: Its full namespace, ``None`` for the default one.
    """

    def __init__(self, key: Any, namespace: Optional[str] = None) -> None:
        if isinstance(key, str):
            key = str.__str__(key)  # a subclass may bring a __repr__ of its own
        super().__init__(key, namespace)
        self.key = key
        self.namespace = namespace

    def __str__(self) -> str:
        # KeyError would show the repr of its arguments; people read sentences.
        return f"There is no {where(self.key, self.namespace)}."

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), (self.key, self.namespace)


class InvalidKeyError(KVStoreError, ValueError):
    """A key or namespace with a lone surrogate, too long, or (namespaces only) empty."""


class InvalidTTLError(KVStoreError, ValueError):
    """A ttl that is zero, negative, NaN, infinite, a ``bool``, or more than 100 years."""


class SerializationError(KVStoreError):
    """A value could not become bytes, or stored bytes could not become a value.

    When writing, what was stored before is still there. When reading, the entry is left where it
    is: it may be another version's. ``delete`` and ``set`` go on working on it.
    """


class LockTimeoutError(KVStoreError, TimeoutError):
    """Somebody else held the lock for longer than ``timeout`` seconds."""


class UnkeyableArgumentError(KVStoreError, TypeError):
    """A cached function was called with an argument that has no stable identity."""


class StoreClosedError(KVStoreError):
    """The store was used after its ``close()``."""


class StoreUnavailableError(KVStoreError):
    """The backend can't be reached, or can't be read or written.

    The driver's own error is its ``__cause__``. After a failed write the message says whether the
    write may have been applied all the same.
    """


class StoreFormatError(StoreUnavailableError):
    """The folder holds data of another format, version or serializer. It is untouched."""
