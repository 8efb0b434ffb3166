"""How long a result is good, and what is stored besides the result to tell."""

from __future__ import annotations

import math
import random
import sys
import time
from datetime import timedelta
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

from ..exceptions import InvalidTTLError, shown
from ..rules import NO_EXPIRY, TTL, NoExpiry, check_key, check_ttl

__all__ = ["EARLY", "FRESH", "STALE", "Envelope", "Freshness"]

#: How good a stored result is: good, good but better refreshed now, too old but still allowed.
FRESH, EARLY, STALE = "fresh", "early", "stale"

_MARK = "kvc1"


class Envelope(NamedTuple):
    """A result with what is known about it. Stored as a list, so that JSON can hold it.

    Attributes:
        value: The result.
        fresh_until: Seconds since 1970; ``None``: always.
        took: Seconds that computing it took.
        tags: Each tag it carries, with the token the tag had then.
    """

    value: Any
    fresh_until: Optional[float]
    took: float
    tags: Dict[str, str]

    def pack(self) -> List[Any]:
        """What is stored."""
        return [_MARK, self.fresh_until, self.took, self.tags, self.value]

    @staticmethod
    def unpack(stored: Any) -> Optional[Envelope]:
        """The envelope, or ``None`` where something else was stored."""
        if type(stored) is not list or len(stored) != 5 or stored[0] != _MARK:
            return None
        _, fresh_until, took, tags, value = stored
        # Whoever can write to the store could have written these.
        if not ((fresh_until is None or _is_finite(fresh_until)) and _is_finite(took)):
            return None
        if not isinstance(tags, dict):
            return None
        try:
            for tag in tags:
                check_key(tag)
        except (TypeError, ValueError):
            return None
        return Envelope(value, fresh_until, took, tags)


class Freshness:
    """The lifetimes of one function's results.

    Args:
        ttl: Seconds, a ``timedelta``, ``None`` for whatever the store does with what has no ttl,
            `NO_EXPIRY`, or a function of the result and the arguments that returns one of these.
        jitter: The fraction of the ttl, from 0 to 1, that chance may take off.
        stale: For how long after that the old result is still served while it is refreshed.
        early: How eagerly hot results are refreshed before they expire; 0: not at all. See
            Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention",
            VLDB 2015: each reader refreshes early with a chance that grows towards the end, and
            with the time that computing takes.
    """

    def __init__(
        self,
        ttl: Union[TTL, NoExpiry, Callable[..., Union[TTL, NoExpiry, None]], None],
        jitter: float,
        stale: Any,
        early: float,
    ) -> None:
        self._of_result = ttl if callable(ttl) else None
        self._fixed = None if callable(ttl) else _seconds(ttl)
        if stale is NO_EXPIRY:
            raise TypeError("stale= is a number of seconds or a timedelta, not NO_EXPIRY.")
        self._stale: float = _seconds(stale) or 0.0
        if isinstance(self._fixed, float):
            _check_sum(self._fixed, self._stale)  # what the store is told in the end
        self._jitter = checked_number("jitter", jitter)
        self._early = checked_number("early", early)
        if self._jitter > 1:
            raise ValueError(f"jitter= is a fraction from 0 to 1, not {jitter!r}.")
        endless = ttl is None or ttl is NO_EXPIRY
        if endless and (stale is not None or self._early or self._jitter):
            raise ValueError("stale=, early= and jitter= need a ttl=: what never expires is fresh.")
        #: Whether results need an envelope to tell how fresh they are.
        self.needs_envelope: bool = bool(self._stale or self._early)

    def lifetimes(
        self, name: str, result: Any, call: Callable[[Callable[..., Any]], Any]
    ) -> Tuple[Optional[float], Union[float, NoExpiry, None]]:
        """Seconds that a result stays fresh (``None``: for ever), and the ttl to store it with.

        Args:
            name: What the decorated function is called.
            result: What it returned.
            call: Calls a function with the arguments of the call.
        """
        if self._of_result is None:
            seconds = self._fixed
        else:
            of_result = self._of_result
            given = call(lambda *args, **kwargs: of_result(result, *args, **kwargs))
            try:
                seconds = _seconds(given)
                if isinstance(seconds, float):
                    _check_sum(seconds, self._stale)
            except (TypeError, InvalidTTLError) as error:
                raise type(error)(
                    f"The ttl= of {name}() gave {shown(given)} for a result, which was not "
                    f"stored: {error} What is not to be remembered is for cache_if=."
                ) from None
        if not isinstance(seconds, float):
            return None, seconds
        if self._jitter:
            seconds = max(0.001, seconds * (1 - self._jitter * random.random()))
        return seconds, seconds + self._stale

    def judge(self, envelope: Envelope) -> Optional[str]:
        """`FRESH`, `EARLY` or `STALE`; ``None``: too old to serve."""
        if envelope.fresh_until is None:
            return FRESH
        now = time.time()
        if now < envelope.fresh_until:
            if self._early and envelope.took:
                # 1 - random(): from (0, 1], because log(0) is not.
                ahead = envelope.took * self._early * -math.log(1.0 - random.random())
                if now + ahead >= envelope.fresh_until:
                    return EARLY
            return FRESH
        return STALE if now < envelope.fresh_until + self._stale else None


def _is_finite(number: Any) -> bool:
    # Not math.isfinite(): that raises where an int is too large for a float.
    return isinstance(number, (int, float)) and abs(number) <= sys.float_info.max


def _seconds(ttl: Any) -> Any:
    """A checked ttl as ``float``; ``None`` and `NO_EXPIRY`, which a view tells apart, as it is."""
    if check_ttl(ttl) is None:
        return ttl
    # What was checked is passed on as it is: the store rounds.
    return ttl.total_seconds() if isinstance(ttl, timedelta) else float(ttl)


def _check_sum(seconds: float, stale: float) -> None:
    if stale:
        try:
            check_ttl(seconds + stale)
        except InvalidTTLError:
            raise InvalidTTLError("ttl= and stale= are at most 100 years together.") from None


def checked_number(name: str, value: Any) -> float:
    """Return an option that is a finite number, not below zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}= is a number, not {type(value).__name__}.")
    if not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{name}= is not negative and finite, not {shown(value)}.")
    return float(value)
