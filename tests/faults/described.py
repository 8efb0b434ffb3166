"""Values that say which they are: a torn, mixed or foreign one gives itself away."""

from __future__ import annotations

import hashlib
from typing import Any, Optional

# Below and above the size from which a value has a file of its own (128 KiB).
SMALL, LARGE = 200, 140_000


def described(key: str, counter: int, size: int = SMALL, namespace: Optional[str] = None) -> Any:
    """A value that names its place, its counter and its length, with a digest of all its bytes."""
    unit = hashlib.sha256(repr((namespace, key, counter)).encode()).digest()
    body = (unit * (size // len(unit) + 1))[:size]
    return namespace, key, counter, size, hashlib.sha256(body).hexdigest(), body


def counter_of(value: Any, key: str, namespace: Optional[str] = None) -> int:
    """The counter of a value; fails unless it is a whole one that was written for this place."""
    assert isinstance(value, tuple) and len(value) == 6, f"not a value of ours: {value!r:.200}"
    place, name, counter, size, digest, body = value
    assert (place, name) == (namespace, key), f"written for {(place, name)}, read at {key!r}"
    assert len(body) == size and hashlib.sha256(body).hexdigest() == digest, f"torn: {key!r}"
    assert value == described(key, counter, size, namespace), f"mixed: {key!r}"
    return int(counter)
