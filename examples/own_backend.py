"""A backend of your own in eight methods. Run as a script, it is held to the contract suite."""

import time

import pytest

from kv_store_adapter import KeyNotFoundError, KVStoreProtocol
from kv_store_adapter.rules import check_key, check_namespace, check_ttl, matcher
from kv_store_adapter.testing import KVStoreContract


class DictStore(KVStoreProtocol):
    def __init__(self):
        self._entries = {}  # (namespace, key): (value, end); each change is one step, so atomic

    def get(self, key, namespace=None):
        return self._find(key, namespace)[0]

    def set(self, key, value, namespace=None, ttl=None):
        place, milliseconds = (check_namespace(namespace), check_key(key)), check_ttl(ttl)
        self._entries[place] = value, time.time() + (milliseconds or float("inf")) / 1000

    def delete(self, key, namespace=None):
        place = check_namespace(namespace), check_key(key)
        return self._entries.pop(place, (None, 0))[1] > time.time()

    def ttl(self, key, namespace=None):
        ends = self._find(key, namespace)[1]
        return None if ends == float("inf") else ends - time.time()

    def exists(self, key, namespace=None):
        return bool(self.get_many([key], namespace))  # which follows from get()

    def keys(self, namespace=None, pattern="*"):
        wanted, matches = check_namespace(namespace), matcher(pattern) or (lambda _key: True)
        return [key for name, key in self._live() if name == wanted and matches(key)]

    def clear_namespace(self, namespace):
        return sum(self.delete(key, namespace) for key in self.keys(namespace))

    def list_namespaces(self):
        return list({name for name, _key in self._live()} - {None})

    def _find(self, key, namespace):
        value, ends = self._entries.get((check_namespace(namespace), check_key(key)), (None, 0))
        if ends <= time.time():
            raise KeyNotFoundError(key, namespace)
        return value, ends

    def _live(self):
        return [place for place, (_, ends) in list(self._entries.items()) if ends > time.time()]


class TestDictStore(KVStoreContract):
    store = pytest.fixture(lambda self: DictStore())


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-q", "-p", "no:cacheprovider"]))
