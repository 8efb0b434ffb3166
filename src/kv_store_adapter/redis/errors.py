"""The seam between redis-py and us: whatever the driver raises becomes one of our errors, here."""

from __future__ import annotations

import copy
import socket
from typing import Any, List, Optional

from ..exceptions import KVStoreError, StoreUnavailableError
from ..interruption import causes
from .conversation import Ask, WrongTypeError

__all__ = [
    "MISREAD",
    "first_error",
    "is_final",
    "may_have_arrived",
    "no_place_left",
    "not_asked",
    "place_of",
    "repeats",
    "translate",
    "unrepeating",
]

#: What a conversation raises, but for errors of ours, on a reply that its command can't have:
#: there is no Redis at the other end, or the connection is out of step.
MISREAD = (TypeError, AttributeError, IndexError, ValueError)

# What follows the news of a write that may have arrived.
_DOUBT = " The write may have been applied all the same."


def place_of(client: Any) -> str:
    """Where the server is, without the password."""
    pool = getattr(client, "connection_pool", None)
    settings = getattr(pool, "connection_kwargs", None)
    if not isinstance(settings, dict):
        return type(client).__name__
    path = settings.get("path")
    place = path or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"
    return f"{place}/{settings.get('db') or 0}"


def first_error(replies: List[Any]) -> List[Any]:
    """The replies of a pipeline, or the first error among them."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def is_final(error: Exception) -> bool:
    """Whether a connection error would only come again."""
    import redis

    return isinstance(error, (redis.AuthenticationError, redis.BusyLoadingError))


def repeats(client: Any) -> bool:
    """Whether a client says again by itself what had no answer; unless told, redis-py does."""
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        return True  # a cluster's client looks for the right node again and again
    retry = getattr(pool, "connection_kwargs", {}).get("retry")
    return getattr(retry, "_retries", 0) != 0


def unrepeating(retry: Any) -> Any:
    """The driver's own settings for repeating, whichever driver it is, but without repeating."""
    once = copy.copy(retry)
    once._retries = 0
    return once


def may_have_arrived(error: BaseException, client: Any) -> bool:
    """Whether there was a connection that the command may have gone out on."""
    if repeats(client):
        return True  # refused in the end, but before that?
    for cause in causes(error):
        if isinstance(cause, (ConnectionRefusedError, socket.gaierror)):
            return False
        if no_place_left(cause):
            return False
        # "Timeout connecting to server", "Error 2 connecting to unix socket": redis-py's, for
        # whatever went wrong until there was a connection.
        if " connecting to " in str(cause):
            return False
    return True


def no_place_left(error: BaseException) -> bool:
    """Whether a pool has as many connections as it may have, and none is free."""
    # By its text: redis-py before 6.3 has no class for it, and valkey-py's is another.
    return "Too many connections" in str(error)


def translate(error: Exception, ask: Optional[Ask], client: Any) -> KVStoreError:
    """The one seam: any error of the driver becomes ours, with the driver's as its cause."""
    from redis import exceptions as driver

    if isinstance(error, KVStoreError):
        return error
    text = str(error).rstrip(".") or type(error).__name__
    ours: KVStoreError
    # By its text, because valkey-py's errors are classes of their own.
    if text.startswith("WRONGTYPE"):
        ours = WrongTypeError(text)
        ours.__cause__ = error
        return ours
    where = f"Redis at {place_of(client)}"
    if isinstance(
        error, (driver.AuthenticationError, driver.AuthorizationError)
    ) or text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
        message = f"{where} refuses this login: {text}. Check user name and password."
    elif isinstance(error, driver.BusyLoadingError):
        message = f"{where} is still loading its data. Try again in a moment."
    elif isinstance(error, driver.ReadOnlyError):
        message = f"{where} is a read-only replica. Connect to the primary."
    elif isinstance(error, (driver.ConnectionError, driver.TimeoutError, OSError)):
        message = f"{where} can't be reached: {text}. Is the server up, and the address right?"
        if ask is not None and (ask.said or (ask.writes and may_have_arrived(error, client))):
            message += _DOUBT
    elif isinstance(error, driver.ResponseError):
        message = f"{where} refused the command: {text}."
    else:
        message = f"{where} gave no answer that a Redis gives: {text}. Is it a Redis?"
        if ask is not None and ask.writes:
            message += _DOUBT
    ours = StoreUnavailableError(message)
    ours.__cause__ = error
    return ours


def not_asked(client: Any) -> StoreUnavailableError:
    """For a call that queued while those before it ran into their time-outs."""
    import redis

    ours = StoreUnavailableError(
        f"Redis at {place_of(client)} can't be reached: nobody before this call had an answer, so "
        "it was not sent. Is the server up, and the address right?"
    )
    ours.__cause__ = redis.TimeoutError("no answer to those before")
    return ours
