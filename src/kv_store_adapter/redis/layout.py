"""Which Redis key holds which entry: ``prefix:namespace:key``.

The namespace has its colons and percent signs escaped (``%3A``, ``%25``), so the second colon of a
name always ends it and no two entries meet; the key follows as it is. The default namespace is
empty::

    kv::config                  config in the default namespace
    kv:user%3A1:settings        settings in the namespace user:1
    kv%lock:user%3A1:settings   the lock of that name; "%l" is no escape, so it is no entry
"""

from __future__ import annotations

from functools import lru_cache
from typing import Callable, Iterable, List, Optional, Sequence, Tuple

__all__ = ["Layout"]

_SPECIAL_IN_GLOB = b"\\*?[]"


class Layout:
    """The names of one store. Two stores with different prefixes share no name."""

    def __init__(self, prefix: str) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"A prefix is a str, not {type(prefix).__name__}.")
        if not prefix:
            raise ValueError("A prefix can't be empty: it tells this store's keys from others.")
        self.prefix = prefix
        self._start = _escape(prefix).encode("utf-8")
        # A program has few namespaces that it uses a lot.
        self.start: Callable[[Optional[str]], bytes] = lru_cache(maxsize=1024)(self._make_start)

    def __reduce__(self) -> Tuple[type, Tuple[str]]:
        return Layout, (self.prefix,)

    def _make_start(self, namespace: Optional[str]) -> bytes:
        """What the names of a namespace's entries start with."""
        return b"%b:%b:" % (self._start, _escape(namespace or "").encode("utf-8"))

    def name(self, key: str, namespace: Optional[str]) -> bytes:
        """The Redis key of an entry."""
        return self.start(namespace) + key.encode("utf-8")

    def names(self, keys: Iterable[str], namespace: Optional[str]) -> List[bytes]:
        """The Redis keys of several entries."""
        keys, start = list(keys), self.start(namespace)
        # Encoded all at once, in a few steps of the interpreter: right if NUL is in none of them.
        together = ("\0" + start.decode("utf-8")).join(("", *keys)).encode("utf-8")
        names = together.split(b"\0")[1:]
        return names if len(names) == len(keys) else [start + k.encode("utf-8") for k in keys]

    def lock(self, key: str, namespace: Optional[str]) -> bytes:
        """The Redis key of a lock."""
        space = _escape(namespace or "").encode("utf-8")
        return b"%b%%lock:%b:%b" % (self._start, space, key.encode("utf-8"))

    def key(self, name: bytes, namespace: Optional[str]) -> Optional[str]:
        """The key of an entry of `namespace`; ``None``: the name is none of ours."""
        start = self.start(namespace)
        if not name.startswith(start):
            return None
        try:
            return name[len(start) :].decode("utf-8")
        except UnicodeDecodeError:
            return None

    def keys(self, names: Sequence[bytes], namespace: Optional[str]) -> List[str]:
        """The keys of those `names` that are entries of `namespace`."""
        start = self.start(namespace)
        # Decoded all at once, as in `names`: right if each NUL is one that was put in here, and if
        # what each name starts with follows it.
        together = b"\0".join((b"", *names))
        if together.count(b"\0") == len(names):
            try:
                keys = together.decode("utf-8").split("\0" + start.decode("utf-8"))[1:]
            except UnicodeDecodeError:
                keys = []
            if len(keys) == len(names):
                return keys
        return [key for key in (self.key(name, namespace) for name in names) if key is not None]

    def pattern(self, namespace: Optional[str], prefix: str) -> bytes:
        """What SCAN is asked for: the keys of `namespace` that start with `prefix`."""
        return _quote(self.start(namespace) + prefix.encode("utf-8", "surrogatepass")) + b"*"

    def pattern_of_all(self) -> bytes:
        """What SCAN is asked for: the entries of named namespaces."""
        return _quote(self._start + b":") + b"?*:*"

    def namespace(self, name: bytes) -> Optional[str]:
        """The namespace of an entry; ``None``: the default one, or the name is none of ours."""
        start = self._start + b":"
        escaped, colon, _ = name[len(start) :].partition(b":")
        if not name.startswith(start) or not colon:
            return None
        try:
            text = escaped.decode("utf-8")
        except UnicodeDecodeError:
            return None
        namespace = text.replace("%3A", ":").replace("%25", "%")
        # What we would not have written so is not ours.
        return namespace if namespace and _escape(namespace) == text else None


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace(":", "%3A")


def _quote(literal: bytes) -> bytes:
    return b"".join(
        b"\\" + bytes([byte]) if byte in _SPECIAL_IN_GLOB else bytes([byte]) for byte in literal
    )
