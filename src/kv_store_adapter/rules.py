"""What a key, a namespace, a ttl and a pattern are: the same for every backend.

Pure functions without state. A backend calls these before it touches anything, so that a refused
call has changed nothing.
"""

from __future__ import annotations

import fnmatch
import math
import numbers
import re
from datetime import timedelta
from enum import Enum
from functools import lru_cache
from typing import Any, Callable, Optional, Union

from .exceptions import InvalidKeyError, InvalidTTLError, shown

__all__ = [
    "LONGEST_KEY",
    "MISSING",
    "NO_EXPIRY",
    "TTL",
    "Missing",
    "NoExpiry",
    "check_key",
    "check_namespace",
    "check_timeout",
    "check_ttl",
    "join_namespaces",
    "literal_prefix",
    "matcher",
]

TTL = Union[int, float, timedelta]

#: The longest key or namespace, in bytes of UTF-8.
LONGEST_KEY = 64 * 1024

#: 100 years in milliseconds. Longer than any cache, and safe in every backend's integers.
LONGEST_TTL_MS = 100 * 36525 * 24 * 36 * 1000


class Missing(Enum):
    """The type of `MISSING`. An enum, because its one member survives copy and pickle as itself."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "<MISSING>"


class NoExpiry(Enum):
    """The type of `NO_EXPIRY`."""

    NO_EXPIRY = "NO_EXPIRY"

    def __repr__(self) -> str:
        return "<NO_EXPIRY>"


#: "Nothing there", where ``None`` is a value.
MISSING = Missing.MISSING

#: A ttl that says: store for ever, although the view or mapping has a default ttl.
NO_EXPIRY = NoExpiry.NO_EXPIRY


def check_key(key: Any) -> str:
    """Return `key` as a plain ``str``.

    Subclasses of ``str`` count by their text, whatever ``__hash__`` and ``__eq__`` they bring
    (members of a ``str`` enum hash by name, not by value).

    Raises:
        TypeError: It is not a ``str``.
        InvalidKeyError: It has a lone surrogate or is longer than 64 KiB of UTF-8.
    """
    if type(key) is not str:
        if not isinstance(key, str):
            raise TypeError(f"A key is a str, not {type(key).__name__}. Turn it into text first.")
        key = str.__str__(key)
    if len(key) * 4 > LONGEST_KEY or not key.isascii():
        _check_text(key, "key")
    return key  # type: ignore[no-any-return]  # str.__str__ is typed as returning Any


def check_namespace(namespace: Any) -> Optional[str]:
    """Return `namespace` as a plain ``str``, or ``None`` for the default namespace.

    Raises:
        TypeError: It is neither ``str`` nor ``None``.
        InvalidKeyError: It is empty, has a lone surrogate, or is longer than 64 KiB of UTF-8.
    """
    if namespace is None:
        return None
    if type(namespace) is not str:
        if not isinstance(namespace, str):
            raise TypeError(
                "A namespace is a str, or None for the default one, "
                f"not {type(namespace).__name__}."
            )
        namespace = str.__str__(namespace)
    if not namespace:
        raise InvalidKeyError("A namespace can't be empty. None is the default namespace.")
    if len(namespace) * 4 > LONGEST_KEY or not namespace.isascii():
        _check_text(namespace, "namespace")
    return namespace  # type: ignore[no-any-return]  # as in check_key


def _check_text(text: str, what: str) -> None:
    try:
        length = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidKeyError(
            f"The {what} {shown(text)} has a lone surrogate at position {error.start}, which no "
            "backend can store. Decode the text properly, or encode it with 'backslashreplace'."
        ) from None
    if length > LONGEST_KEY:
        raise InvalidKeyError(
            f"The {what} {shown(text)} is {length} bytes of UTF-8; {LONGEST_KEY} are allowed. "
            "Store a digest of it instead, for example hashlib.sha256(...).hexdigest()."
        )


def join_namespaces(outer: Optional[str], inner: Optional[str]) -> Optional[str]:
    """The namespace `inner` inside of `outer`: ``a`` and ``b`` give ``a:b``. Both are checked."""
    inner = check_namespace(inner)
    if outer is None:
        return inner
    if inner is None:
        return outer
    return check_namespace(f"{outer}:{inner}")


def check_ttl(ttl: Any) -> Optional[int]:
    """Return `ttl` in whole milliseconds, rounded up, or ``None`` for no expiry.

    Args:
        ttl: ``None`` or `NO_EXPIRY`, or seconds as ``int``, ``float`` or ``timedelta``; above zero
            and at most 100 years.

    Raises:
        TypeError: It is of any other type.
        InvalidTTLError: It is zero, negative, NaN, infinite, a ``bool``, or too long.
    """
    if ttl is None or ttl is NO_EXPIRY:
        return None
    if type(ttl) is int:
        if 0 < ttl <= 3_155_760_000:
            return ttl * 1000
        raise _bad_ttl(ttl)
    if isinstance(ttl, bool):
        raise InvalidTTLError(f"A ttl is a number of seconds or a timedelta, not {ttl}.")
    if isinstance(ttl, timedelta):
        # Whole microseconds, so nothing is lost on the way to milliseconds.
        micros = (ttl.days * 86400 + ttl.seconds) * 1_000_000 + ttl.microseconds
        milliseconds = -(-micros // 1000)
    elif isinstance(ttl, (int, float)):
        try:
            seconds = float(ttl)
        except OverflowError:
            raise _bad_ttl(ttl) from None
        if not math.isfinite(seconds):
            raise _bad_ttl(ttl)
        # 1.1 * 1000 is 1100.0000000000002: without round() it would become 1101.
        milliseconds = math.ceil(round(seconds * 1000, 6)) or (1 if seconds > 0 else 0)
    else:
        raise TypeError(
            "A ttl is an int, a float or a timedelta, or None for no expiry, "
            f"not {type(ttl).__name__}."
        )
    if not 0 < milliseconds <= LONGEST_TTL_MS:
        raise _bad_ttl(ttl)
    return milliseconds


def _bad_ttl(ttl: Any) -> InvalidTTLError:
    return InvalidTTLError(
        f"A ttl is above zero and at most 100 years, not {shown(ttl)}. "
        "Use None for no expiry, and delete() to drop an entry now."
    )


def check_timeout(timeout: Any) -> Optional[float]:
    """Return `timeout` in seconds as a ``float``; ``None`` is for ever, and so is infinity.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or NaN.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real):
        raise TypeError(f"timeout= is a number of seconds, not {type(timeout).__name__}.")
    number: Any = timeout
    try:
        seconds = float(number)
    except OverflowError:
        seconds = math.inf if number > 0 else -math.inf
    if not seconds >= 0:
        raise ValueError(f"timeout= is a number of seconds from zero, not {shown(timeout)}.")
    return seconds


# A lone surrogate, which no key holds, ends the prefix, too: backends could not encode it.
_MAGIC = re.compile("[*?[\ud800-\udfff]")


def literal_prefix(pattern: str) -> str:
    """The text that every match of `pattern` starts with: what a backend may prefilter by."""
    pattern = str.__str__(pattern)
    match = _MAGIC.search(pattern)
    return pattern if match is None else pattern[: match.start()]


def matcher(pattern: Any) -> Optional[Callable[[str], Any]]:
    """A function that says whether a key matches `pattern` as `fnmatch.fnmatchcase` does.

    Returns:
        The function, or ``None`` where the pattern matches everything (``"*"``).

    Raises:
        TypeError: The pattern is not a ``str``.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"A pattern is a str, not {type(pattern).__name__}.")
    return _compiled(str.__str__(pattern))


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Optional[Callable[[str], Any]]:
    if pattern.strip("*") == "" and pattern:
        return None
    # fnmatchcase() is exactly this, behind a cache of its own.
    return re.compile(fnmatch.translate(pattern)).match
