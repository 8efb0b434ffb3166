"""Times as the index holds them: whole milliseconds since 1970."""

from __future__ import annotations

import math
import time
from typing import Optional

__all__ = ["deadline", "time_ms"]


def time_ms() -> int:
    """The time, rounded down: an entry is over when its expiry is not above this."""
    return int(time.time() * 1000)


def deadline(milliseconds: Optional[int]) -> Optional[int]:
    """When what is stored now will be over. Rounded up: never early, less than 1 ms late."""
    return None if milliseconds is None else math.ceil(time.time() * 1000) + milliseconds
