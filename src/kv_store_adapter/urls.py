"""`open_store`: the backend as one line of configuration."""

from __future__ import annotations

from typing import Any, Callable, Dict
from urllib.parse import parse_qsl, unquote, urlsplit

from .protocol import KVStoreProtocol

__all__ = ["open_store"]


def open_store(url: str, **options: Any) -> KVStoreProtocol:
    """Open the store that `url` names.

    Args:
        url: One of

            - ``memory://`` with ``?maxsize=1000``
            - ``disk:///absolute/path`` or ``disk:relative/path``, with ``?durable=true``,
              ``size_limit=``, ``spill_threshold=``, ``verify=``, ``remember=``, ``trust_root=``,
              ``timeout=``
            - ``redis://``, ``rediss://`` or ``unix://`` as redis-py takes them, with ``?prefix=``
              besides redis-py's own options

        options: More arguments for the store's constructor, for what a text can't say
            (``serializer=``). They win over the url's.

    Raises:
        ValueError: The url names no backend, or an option that the backend does not have.
        StoreUnavailableError: The folder can't be used. A server is asked at the first operation.
    """
    if not isinstance(url, str):
        raise TypeError(f"A store's url is a str, not {type(url).__name__}.")
    scheme, colon, _ = url.partition(":")
    opener = _OPENERS.get(scheme.lower())
    if opener is None or not colon:
        raise ValueError(
            # Nothing of it: without its scheme, even the start may be a password.
            "No backend has urls that start like this one. There are "
            f"{', '.join(sorted(_OPENERS))}: memory://, disk:///path, redis://host:6379/0."
        )
    return opener(url, options)


def _open_memory(url: str, options: Dict[str, Any]) -> KVStoreProtocol:
    from .memory import MemoryKVStore

    parts = urlsplit(url)
    if parts.netloc or parts.path.strip("/"):
        raise ValueError("A memory store has no place: memory:// or memory://?maxsize=1000.")
    return MemoryKVStore(**{**_read_options(parts.query, {"maxsize": int}), **options})


def _open_disk(url: str, options: Dict[str, Any]) -> KVStoreProtocol:
    from .disk import DiskKVStore

    parts = urlsplit(url)
    if parts.netloc:
        raise ValueError(
            f"disk://{parts.netloc}/... names a host. An absolute path has three slashes "
            "(disk:///var/cache/app), a relative one has none (disk:cache)."
        )
    if not parts.path:
        raise ValueError("A disk store has a path: disk:///absolute/path or disk:relative/path.")
    kinds: Dict[str, Callable[[str], Any]] = {
        "durable": _read_bool,
        "remember": int,
        "size_limit": int,
        "spill_threshold": int,
        "timeout": float,
        "trust_root": _read_bool,
        "verify": _read_bool,
    }
    return DiskKVStore(unquote(parts.path), **{**_read_options(parts.query, kinds), **options})


def _open_redis(url: str, options: Dict[str, Any]) -> KVStoreProtocol:
    from .redis import RedisKVStore

    return RedisKVStore.from_url(url, **options)


def _read_options(query: str, kinds: Dict[str, Callable[[str], Any]]) -> Dict[str, Any]:
    options = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in kinds:
            raise ValueError(
                f"There is no option {name!r} in a url. There are {', '.join(sorted(kinds))}. What "
                "is no text, as a serializer, goes beside it: open_store(url, serializer=...)."
            )
        try:
            options[name] = kinds[name](text)
        except ValueError:
            raise ValueError(f"The option {name}={text!r} can't be read.") from None
    return options


def _read_bool(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


_OPENERS: Dict[str, Callable[[str, Dict[str, Any]], KVStoreProtocol]] = {
    "disk": _open_disk,
    "memory": _open_memory,
    "redis": _open_redis,
    "rediss": _open_redis,
    "unix": _open_redis,
}
