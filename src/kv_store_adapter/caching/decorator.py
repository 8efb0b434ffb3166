"""`cached`: the decorator, and what it refuses."""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Optional, Tuple, Union

from ..guard import Guard
from ..identity import qualified_name, text_of
from ..namespace import root_of
from ..protocol import KVStoreProtocol, check_lease
from ..rules import TTL, NoExpiry, check_namespace
from .declaration import Options
from .flow import Flow
from .freshness import Freshness, checked_number

if TYPE_CHECKING:
    from .surface import Decorator

__all__ = ["cached"]


def cached(
    store: KVStoreProtocol,
    *,
    ttl: Union[TTL, NoExpiry, Callable[..., Union[TTL, NoExpiry, None]], None] = None,
    namespace: Optional[str] = None,
    key: Union[str, Callable[..., str], None] = None,
    ignore: Iterable[str] = (),
    version: Union[str, int, None] = None,
    jitter: float = 0.0,
    cache_if: Optional[Callable[[Any], Any]] = None,
    stale: Optional[TTL] = None,
    early: float = 0.0,
    tags: Iterable[str] = (),
    lock: Optional[str] = None,
    lock_ttl: TTL = 10.0,
    lock_timeout: float = 60.0,
    on_error: str = "compute",
) -> Decorator:
    """Remember what a function returns, in any store.

    For functions, methods, class methods and static methods (in either order with this decorator),
    and coroutine functions, which are awaited. The call is bound to the signature first, so
    ``f(1, 2)``, ``f(1, b=2)`` and ``f(a=1, b=2)`` are one entry, and ``1``, ``1.0``, ``True`` and
    ``"1"`` are four. ``None`` is remembered like any other result; exceptions are not.

    Callers of one key at the same time wait for one of them, and share its result or exception.
    A call that reaches itself computes.

    Args:
        store: Any store or view; it stays the caller's.
        ttl: Seconds (or a ``timedelta``) to remember a result; ``None``: until it is dropped, or
            for the default ttl of a view; `NO_EXPIRY`: until it is dropped, also in such a view.
            Or a function ``ttl(result, *args, **kwargs)`` that returns one of these.
        namespace: Where results are stored; by default the function's module and qualified name.
        key: What identifies a call: a function of the arguments that returns a ``str``, or a
            template such as ``"user:{user_id}"``. By default all arguments.
        ignore: Names of parameters that don't count, ``"self"`` perhaps.
        version: Raise it to abandon results that were stored before.
        jitter: The fraction of the ttl, from 0 to 1, that chance may take off, so that what was
            stored together does not expire together.
        cache_if: ``cache_if(result)`` tells whether to remember it.
        stale: For so many seconds after the ttl the old result is still served, while one caller
            refreshes it in the background, and if the refresh fails.
        early: Refresh hot results before they expire, as XFetch does (VLDB 2015); 1.0 is a good
            value, 0 is never.
        tags: Templates; ``store.invalidate_tag(tag)`` drops all results that carry the tag.
        lock: ``"store"``: one computation per key among all processes, by the store's lock.
        lock_ttl: The lease of that lock in seconds; renewed while the function runs.
        lock_timeout: Seconds to wait for another call's result at most; then compute.
        on_error: What trouble with the store costs: ``"compute"``, a warning and a plain call;
            ``"raise"``, its exception.

    Returns:
        A decorator. What it makes has ``cache_info()``, ``cache_clear()``, ``cache_parameters()``,
        ``cache_key(...)``, ``invalidate(...)``, ``refresh(...)``, ``peek(...)`` and
        ``bypass(...)``, on bound methods too; on coroutine functions the last four and
        ``cache_clear`` are awaited.

    Raises:
        TypeError: At decoration: a generator function, or something that is no function; an option
            of the wrong type. By calls: an argument without stable identity
            (`UnkeyableArgumentError`).
        ValueError: At decoration: an option that can't be (`InvalidTTLError` for a ttl), a template
            that names no parameter, or another function's results under the same keys in the same
            place. By calls: what a ``ttl=`` function gave (`InvalidTTLError`).

    Example:
        >>> from kv_store_adapter import MemoryKVStore
        >>> @cached(MemoryKVStore(), ttl=60)
        ... def add(a: int, b: int = 2) -> int:
        ...     return a + b
        >>> add(1), add(1, 2), add(a=1, b=2), add.cache_info().hits
        (3, 3, 3, 2)
    """
    check_store(store)
    ignored = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    options = Options(
        freshness=Freshness(ttl, jitter, stale, early),
        cache_if=cache_if,
        key=key,
        ignore=ignored,
        version=check_version(version),
        tags=(tags,) if isinstance(tags, str) else tuple(tags),
        lock=one_of("lock", lock, (None, "store")),
        lock_ttl=check_lease(lock_ttl) / 1000,
        lock_timeout=checked_number("lock_timeout", lock_timeout),
        on_error=one_of("on_error", on_error, ("compute", "raise")),
    )
    if not (key is None or isinstance(key, str) or callable(key)):
        raise TypeError(f"key= is a template or a function, not {type(key).__name__}.")
    check_namespace(namespace)
    parameters: Dict[str, Any] = {
        "maxsize": None,
        "typed": True,
        "ttl": ttl,
        "namespace": namespace,
        "key": key,
        "ignore": ignored,
        "version": version,
        "jitter": jitter,
        "cache_if": cache_if,
        "stale": stale,
        "early": early,
        "tags": options.tags,
        "lock": lock,
        "lock_ttl": lock_ttl,
        "lock_timeout": lock_timeout,
        "on_error": on_error,
    }

    def decorate(function: Any) -> Any:
        from .wrapper import decorate as wrap

        plain, kind, is_async = unwrapped(function)
        place, label = place_of(plain, store, namespace, key)
        flow = Flow(plain, getattr(plain, "__qualname__", place), store, place, label, options)
        return wrap(flow, kind, is_async, {**parameters, "namespace": place})

    return decorate


def check_store(store: Any) -> None:
    """Refuse what is no store, a function that was decorated without one above all."""
    if isinstance(store, KVStoreProtocol):
        return
    if callable(store) and not isinstance(store, type):
        raise TypeError("@cached takes a store: write @cached(store) or @cached(store, ttl=60).")
    raise TypeError(f"@cached takes a store, not {type(store).__name__}.")


def check_version(version: Any) -> Any:
    """Return `version=`, which is a ``str``, an ``int`` or ``None``."""
    if version is not None and (isinstance(version, bool) or not isinstance(version, (str, int))):
        raise TypeError(f"version= is a str or an int, not {type(version).__name__}.")
    if version is None:
        return None
    # As a plain value: a member of an enum is its value.
    version = int.__int__(version) if isinstance(version, int) else str.__str__(version)
    text_of(version)
    return version


def one_of(name: str, value: Any, allowed: Tuple[Any, ...]) -> Any:
    """Return the value of an option that is one of a few."""
    if value not in allowed:
        raise ValueError(f"{name}= is one of {', '.join(map(repr, allowed))}, not {value!r}.")
    return value


def unwrapped(function: Any) -> Tuple[Callable[..., Any], str, bool]:
    """The function to decorate, what kind it is, and whether it is awaited.

    Raises:
        TypeError: It can't be cached.
    """
    kind = "function"
    if isinstance(function, (classmethod, staticmethod)):
        kind = "class" if isinstance(function, classmethod) else "static"
        function = function.__func__
    if isinstance(function, (property, functools.cached_property)):
        raise TypeError("A property can't be cached from outside: put @property above @cached.")
    if isinstance(function, type):
        raise TypeError(
            f"{function.__qualname__} is a class: caching it would share its instances. Cache a "
            "function that makes them."
        )
    if not callable(function):
        raise TypeError(f"@cached decorates functions, not {type(function).__name__}.")
    # An object with __call__ may be any of these, too.
    for one in (function, type(function).__call__):
        if inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one):
            raise TypeError(
                f"{getattr(function, '__qualname__', 'This')}() is a generator function: its "
                "result can be used once only. Return a list, or cache the function that makes "
                "the items."
            )
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    )
    return function, kind, is_async


_log = logging.getLogger("kv_store_adapter")

# Who stores where, for each store: a namespace, to the functions in it that are still alive.
_places: weakref.WeakKeyDictionary[KVStoreProtocol, Dict[str, Any]] = weakref.WeakKeyDictionary()
_guard = Guard()


def place_of(
    function: Callable[..., Any], store: KVStoreProtocol, namespace: Optional[str], key: Any
) -> Tuple[str, str]:
    """The namespace of a function's results, and what its keys start with.

    Raises:
        ValueError: Another function would have the same keys in the same place.
        TypeError: It has no name of its own and was given no namespace.
    """
    named = isinstance(getattr(function, "__qualname__", None), str)
    if not named and namespace is None:
        raise TypeError(
            f"A {type(function).__name__} has no name to store its results under: pass namespace=."
        )
    place = namespace or qualified_name(function)
    # In a namespace that functions may share, their keys say whose they are.
    label = "" if not named or namespace is None or key is not None else qualified_name(function)
    full = place if root_of(store) is store else f"{getattr(store, 'name', '')}:{place}"
    try:
        # A template is the same for two functions if its text is; what a key function gives can't
        # be known, so only the very same one counts.
        who = f"{full} {label} {key if key is None or isinstance(key, str) else id(key)}"
        earlier = _settled_by(function, root_of(store), who)
        if earlier is None:
            return place, label
    except TypeError:  # a store that does not hash, or a function without weak references
        return place, label
    names = [
        qualified_name(each) if hasattr(each, "__qualname__") else type(each).__name__
        for each in (function, earlier)
    ]
    raise ValueError(
        f"{names[0]}() would store its results where {names[1]}() "
        "does, under the same keys. Give one of them a namespace= of its own."
    )


@_guard
def _settled_by(function: Callable[..., Any], root: KVStoreProtocol, who: str) -> Any:
    """Give `function` a place, or say who has it already."""
    known = _places.setdefault(root, {})
    earlier = known.get(who, lambda: None)()
    if earlier is None or _may_follow(earlier, function):
        known[who] = weakref.ref(function, _forgetter(known, who))
        return None
    return earlier


def _forgetter(known: Dict[str, Any], who: str) -> Callable[[Any], None]:
    """What drops a function's entry when it dies, unless another one took its place."""

    def forget(dead: Any) -> None:
        # Without the guard: this may run anywhere, also while this thread has it.
        if known.get(who) is dead:
            known.pop(who, None)

    return forget


def _may_follow(earlier: Any, function: Any) -> bool:
    """Whether a function may store where an earlier one does, which is still alive."""
    if earlier is function:
        return True
    names = [getattr(each, "__qualname__", None) for each in (earlier, function)]
    if names[0] is None or names[0] != names[1] or earlier.__module__ != function.__module__:
        return False
    # Of one name: defined anew, in a notebook perhaps, or made again by the same outer function.
    # But all lambdas of a module have one name, so there the code must be the same.
    code = getattr(function, "__code__", None)
    if getattr(earlier, "__code__", None) is not code:
        return "<lambda>" not in function.__qualname__
    # What is not assigned yet, as the function's own name, can't be told from what was before.
    if any(now and then != now for then, now in zip(_captured(earlier), _captured(function))):
        _log.warning(
            "%s() was decorated twice for one store, with different captured variables: both "
            "share their results. Give each a namespace= of its own, or pass what differs as an "
            "argument.",
            qualified_name(function),
        )
    return True


def _captured(function: Any) -> Tuple[int, ...]:
    """Which objects a closure has captured, by identity; 0 for an empty cell."""
    captured = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            captured.append(id(cell.cell_contents))
        except ValueError:  # as a function's own name while it is decorated
            captured.append(0)
    return tuple(captured)
