"""What a cached function counts."""

from __future__ import annotations

import itertools
import operator
import sys
from typing import Callable, NamedTuple, Optional

__all__ = ["CacheInfo", "Tally"]


class CacheInfo(NamedTuple):
    """What ``cache_info()`` returns. The first four are those of `functools.lru_cache`.

    Attributes:
        hits: Calls answered from the store.
        misses: Calls for which nothing (fresh or stale) was stored.
        maxsize: Always ``None``: how much fits is the store's affair.
        currsize: Results that the store holds for this function; ``None`` where counting would
            mean asking a disk or a server.
        stale: Calls answered with an old value while it was refreshed.
        errors: Times that the store was in trouble and the call was answered all the same.
        waits: Calls that waited for another call to compute the same result.
    """

    hits: int
    misses: int
    maxsize: Optional[int]
    currsize: Optional[int]
    stale: int
    errors: int
    waits: int


class _Count:
    """A counter that threads share without a lock, and without losing a count.

    ``next()`` of an iterator written in C is one step of the interpreter; ``n += 1`` is several.
    `itertools.repeat` counts down what is left, where `itertools.count` makes an int at each step:
    a sixteenth of a hit.

    Attributes:
        count: What is counted with, for those whom the call of `add` takes too long.
    """

    __slots__ = ("_start", "add", "count")

    def __init__(self) -> None:
        self.count = itertools.repeat(None, sys.maxsize)
        self._start = 0
        self.add: Callable[[], None] = self.count.__next__

    def _total(self) -> int:
        return sys.maxsize - operator.length_hint(self.count)

    def value(self) -> int:
        return self._total() - self._start

    def reset(self) -> None:
        self._start = self._total()


class Tally:
    """The counters of one function."""

    __slots__ = ("errors", "hits", "misses", "stale", "waits")

    def __init__(self) -> None:
        self.hits: _Count = _Count()
        self.misses: _Count = _Count()
        self.stale: _Count = _Count()
        self.errors: _Count = _Count()
        self.waits: _Count = _Count()

    def reset(self) -> None:
        """Start again from zero."""
        for count in (self.hits, self.misses, self.stale, self.errors, self.waits):
            count.reset()

    def info(self, currsize: Optional[int]) -> CacheInfo:
        """The counts as they are now."""
        return CacheInfo(
            self.hits.value(),
            self.misses.value(),
            None,
            currsize,
            self.stale.value(),
            self.errors.value(),
            self.waits.value(),
        )
