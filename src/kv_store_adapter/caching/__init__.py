"""`cached`: remember what a function returned, in any store.

Rooms, from the ground up: `switch` (caching off), `tally` (counting), `health` (a store in
trouble), `flights` (one computation per key), `binding` (a call's arguments), `freshness` (how long
a result is good), `declaration` (what was said of a function, and its keys), `flow` (the one
conversation: look, compute, keep), `drivers` (who holds it, plainly or with await), `wrapper` (what
the user calls), `decorator` and `many` (the front door).
"""

from __future__ import annotations

from .decorator import cached
from .many import cached_many
from .switch import caching_disabled
from .tally import CacheInfo
from .wrapper import CachedFunction

__all__ = ["CacheInfo", "CachedFunction", "cached", "cached_many", "caching_disabled"]
