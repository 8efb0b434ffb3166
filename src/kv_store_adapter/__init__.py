"""One small key-value protocol over memory, disk and Redis, and a caching toolkit on it.

>>> from kv_store_adapter import MemoryKVStore, cached
>>> store = MemoryKVStore()                 # or DiskKVStore("folder"), or RedisKVStore()
>>> @cached(store, ttl=60)
... def square(n: int) -> int:
...     return n * n
>>> square(12), square(12)
(144, 144)

Importing this package defines names and does nothing else: each part is loaded when it is first
used, so redis, sqlite3 and asyncio cost nothing until then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from .caching import CacheInfo as CacheInfo
    from .caching import cached as cached
    from .caching import cached_many as cached_many
    from .caching import caching_disabled as caching_disabled
    from .disk import DiskKVStore as DiskKVStore
    from .exceptions import InvalidKeyError as InvalidKeyError
    from .exceptions import InvalidTTLError as InvalidTTLError
    from .exceptions import KeyNotFoundError as KeyNotFoundError
    from .exceptions import KVStoreError as KVStoreError
    from .exceptions import LockTimeoutError as LockTimeoutError
    from .exceptions import SerializationError as SerializationError
    from .exceptions import StoreClosedError as StoreClosedError
    from .exceptions import StoreFormatError as StoreFormatError
    from .exceptions import StoreUnavailableError as StoreUnavailableError
    from .exceptions import UnkeyableArgumentError as UnkeyableArgumentError
    from .identity import register_key_encoder as register_key_encoder
    from .mapping import KVMapping as KVMapping
    from .memory import MemoryKVStore as MemoryKVStore
    from .namespace import NamespaceView as NamespaceView
    from .protocol import KVStoreProtocol as KVStoreProtocol
    from .redis import RedisKVStore as RedisKVStore
    from .restricted_pickle import RestrictedPickleSerializer as RestrictedPickleSerializer
    from .rules import NO_EXPIRY as NO_EXPIRY
    from .serializers import CompressedSerializer as CompressedSerializer
    from .serializers import JSONSerializer as JSONSerializer
    from .serializers import PickleSerializer as PickleSerializer
    from .serializers import SignedSerializer as SignedSerializer
    from .urls import open_store as open_store

__version__ = "0.1.0"

# Name to the module that defines it.
_HOME = {
    "CacheInfo": "caching",
    "CompressedSerializer": "serializers",
    "DiskKVStore": "disk",
    "InvalidKeyError": "exceptions",
    "InvalidTTLError": "exceptions",
    "JSONSerializer": "serializers",
    "KVMapping": "mapping",
    "KVStoreError": "exceptions",
    "KVStoreProtocol": "protocol",
    "KeyNotFoundError": "exceptions",
    "LockTimeoutError": "exceptions",
    "MemoryKVStore": "memory",
    "NO_EXPIRY": "rules",
    "NamespaceView": "namespace",
    "PickleSerializer": "serializers",
    "RedisKVStore": "redis",
    "RestrictedPickleSerializer": "restricted_pickle",
    "SerializationError": "exceptions",
    "SignedSerializer": "serializers",
    "StoreClosedError": "exceptions",
    "StoreFormatError": "exceptions",
    "StoreUnavailableError": "exceptions",
    "UnkeyableArgumentError": "exceptions",
    "cached": "caching",
    "cached_many": "caching",
    "caching_disabled": "caching",
    "open_store": "urls",
    "register_key_encoder": "identity",
}

__all__ = [
    "NO_EXPIRY",
    "CacheInfo",
    "CompressedSerializer",
    "DiskKVStore",
    "InvalidKeyError",
    "InvalidTTLError",
    "JSONSerializer",
    "KVMapping",
    "KVStoreError",
    "KVStoreProtocol",
    "KeyNotFoundError",
    "LockTimeoutError",
    "MemoryKVStore",
    "NamespaceView",
    "PickleSerializer",
    "RedisKVStore",
    "RestrictedPickleSerializer",
    "SerializationError",
    "SignedSerializer",
    "StoreClosedError",
    "StoreFormatError",
    "StoreUnavailableError",
    "UnkeyableArgumentError",
    "cached",
    "cached_many",
    "caching_disabled",
    "open_store",
    "register_key_encoder",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    # Found at once from now on.
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
