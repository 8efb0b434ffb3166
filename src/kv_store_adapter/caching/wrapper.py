"""What the user calls: the decorated function, and its handles."""

from __future__ import annotations

import contextlib
import functools
import time
import types
from importlib import import_module
from inspect import getattr_static
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple

import wrapt

from ..exceptions import StoreClosedError
from .drivers import AsyncDriver, PlainDriver
from .flow import Flow
from .switch import RememberedKeys

if TYPE_CHECKING:
    from .surface import BoundCached as BoundCached
    from .surface import CachedFunction as CachedFunction
else:

    class _Handles(wrapt.CallableObjectProxy):
        """What a decorated function and a bound method of one have in common.

        A proxy in front of compiled code: calling it is calling that code, without a Python frame
        in between. ``__wrapped__`` is the user's function, as `functools.wraps` has it.
        """

        def __init__(self, call: Callable[..., Any], cached: _Cached, prefix: Tuple[Any, ...]):
            super().__init__(call)
            self._self_call = call
            self._self_cached = cached
            self._self_prefix = prefix

        def _self_bind(self, args: Any, kwargs: Any) -> Tuple[Any, ...]:
            flow = self._self_cached.flow
            # On Python 3.8 and from 3.13 on a classmethod above hands out this object without
            # saying which class was asked; taking the first argument for it would be silent.
            names = flow.binding.plain_names
            in_class = flow.name.rpartition(".")[0]
            if (
                not self._self_prefix
                and names[:1] == ["cls"]
                and in_class
                and not in_class.endswith("<locals>")
            ):
                first = args[0] if args else kwargs.get("cls")
                if not isinstance(first, type):
                    raise TypeError(
                        f"Which class? Where @classmethod stands above @cached, pass it first: "
                        f"{flow.name}.cache_key(SomeClass, ...); or put @cached above @classmethod."
                    )
            return flow.binding.bind(*self._self_prefix, *args, **kwargs)

        def cache_info(self):
            """What was counted so far, a `CacheInfo`: hits, misses and so on."""
            return self._self_cached.info()

        def cache_parameters(self):
            """What the decorator was told, as a new dictionary."""
            return dict(self._self_cached.parameters)

        def cache_key(self, /, *args, **kwargs):
            """The key under which the result of this call is stored."""
            return self._self_cached.flow.key(self._self_bind(args, kwargs))

        def cache_clear(self):
            """Drop all results of this function, of all instances, and count from zero."""
            return self._self_cached.driver.clear()

        def invalidate(self, /, *args, **kwargs):
            """Drop the result of this call, and return whether there was one."""
            return self._self_cached.driver.invalidate(self._self_bind(args, kwargs))

        def refresh(self, /, *args, **kwargs):
            """Compute this call now, replace what is stored, and return it.

            If the function raises, that is raised and the old result stays.
            """
            return self._self_cached.driver.refresh(self._self_bind(args, kwargs))

        def peek(self, /, *args, **kwargs):
            """Return what is stored for this call, without computing or counting.

            Raises:
                KeyNotFoundError: Nothing is.
            """
            return self._self_cached.driver.peek(self._self_bind(args, kwargs))

        def bypass(self, /, *args, **kwargs):
            """Call the function itself; the store is neither read nor written."""
            return self._self_cached.driver.bypass(self._self_bind(args, kwargs))

        def __copy__(self):
            # As functions and methods do: they are what they are.
            return self

        def __deepcopy__(self, memo):
            return self

        def __reduce__(self):
            return self.__reduce_ex__(2)

    class CachedFunction(_Handles):
        """A function whose results are remembered. Made by `cached`."""

        @property
        def __wrapped__(self):
            return self._self_cached.flow.function

        @__wrapped__.setter
        def __wrapped__(self, value):
            # wrapt's pure-Python proxy sets it; what is wrapped is asked of us all the same.
            pass

        def __get__(self, instance, owner=None):
            kind = self._self_cached.kind
            if kind == "static" or (kind == "function" and instance is None):
                return self
            if kind == "class":
                instance = type(instance) if owner is None else owner
            return BoundCached(self, instance)

        def __repr__(self):
            return f"<cached {self._self_cached.flow.name} in {self._self_cached.flow.store!r}>"

        def __reduce_ex__(self, protocol):
            function = self._self_cached.flow.function
            return _by_name, (function.__module__, function.__qualname__)

    class BoundCached(_Handles):
        """A method of an object or class whose results are remembered."""

        def __init__(self, cached: CachedFunction, instance: Any):
            call = types.MethodType(cached._self_call, instance)
            super().__init__(call, cached._self_cached, (instance,))

        @property
        def __wrapped__(self):
            return types.MethodType(self._self_cached.flow.function, self._self_prefix[0])

        @__wrapped__.setter
        def __wrapped__(self, value):
            pass  # as above

        def __repr__(self):
            return f"<bound {self._self_cached.flow.name} of {self._self_prefix[0]!r}>"

        def __reduce_ex__(self, protocol):
            name = self._self_cached.flow.function.__name__
            if name.startswith("__") and not name.endswith("__"):
                # As the compiler mangles the names of private methods.
                owner = self._self_cached.flow.name.split(".")[-2]
                name = f"_{owner.lstrip('_')}{name}"
            return getattr, (self._self_prefix[0], name)

    if isinstance(wrapt.CallableObjectProxy.__call__, types.FunctionType):
        # Where wrapt has no compiled part its proxy calls __wrapped__, which is not what we want.
        def _call(*args, **kwargs):
            return args[0]._self_call(*args[1:], **kwargs)

        CachedFunction.__call__ = BoundCached.__call__ = _call


def _by_name(module: str, qualname: str) -> Any:
    """Unpickle a decorated function: what has this name, as it stands in its class."""
    found: Any = import_module(module)
    for name in qualname.split("."):
        # Statically, because a class would bind what it hands out.
        found = getattr_static(found, name) if isinstance(found, type) else getattr(found, name)
    if isinstance(found, (classmethod, staticmethod)):
        found = found.__func__
    return found


class _Cached:
    """One decorated function, behind its proxy and all that are bound to it."""

    def __init__(self, flow: Flow, kind: str, is_async: bool, parameters: Dict[str, Any]) -> None:
        self.flow = flow
        self.kind = kind
        self.parameters = parameters
        self.driver: Any = AsyncDriver(flow) if is_async else PlainDriver(flow)

    def info(self) -> Any:
        """The counters."""
        flow = self.flow
        size: Optional[int] = None
        if not flow.store.waits:
            with contextlib.suppress(StoreClosedError):
                size = len(flow.store.keys(flow.namespace))
        return flow.tally.info(size)


# Types whose equality is identity of content and type among each other, so that a dictionary tells
# them apart as keys do: 1 == 1.0 == True is why float and bool are not among them.
_PLAIN = frozenset({int, str, type(None)})

# How many keys of recent plain arguments a function remembers.
_REMEMBERED = 4096


def decorate(flow: Flow, kind: str, is_async: bool, parameters: Dict[str, Any]) -> Any:
    """The decorated function."""
    cached = _Cached(flow, kind, is_async, parameters)
    call = _compile(cached, is_async)
    function = flow.function
    functools.update_wrapper(call, function)
    return CachedFunction(call, cached, ())  # type: ignore[call-arg]  # the stub says nothing of it


def _compile(cached: _Cached, is_async: bool) -> Callable[..., Any]:
    """The code that runs on a call, with the function's own signature.

    For plain arguments the key is looked up, not made, and the store read at once: the whole of a
    hit. Anything else (a miss, trouble, caching off) is left to the driver.
    """
    flow, driver = cached.flow, cached.driver
    binding, p = flow.binding, flow.binding.prefix
    values = binding.as_tuple(binding.plain_names)
    slow = f"{'await ' if is_async else ''}{p}slow({values}"
    name = getattr(flow.function, "__name__", "call")
    keyed = list(flow.keyed_names)
    starred = any(n.startswith("*") for n in binding.names)
    quick = flow.hits_are_raw and flow.remembers_keys and not starred and not flow.store.waits
    if not quick:
        body = f"    return {slow})"
        return binding.compile(name, body, {f"{p}slow": driver.call}, is_async=is_async)
    remembered = RememberedKeys(flow.store)

    def miss(values: Tuple[Any, ...]) -> Any:
        """Not there, or its key is not remembered yet."""
        plain = [v for v, n in zip(values, binding.plain_names) if n in keyed]
        if not all(type(v) in _PLAIN for v in plain):
            return driver.call(values)
        key = flow.key(values)
        # Long ones are kept as digests; their arguments are too large to hold on to.
        if not key.startswith("#"):
            if len(remembered) >= _REMEMBERED:
                remembered.clear()
            remembered.keep(plain[0] if len(plain) == 1 else tuple(plain), key)
        # Stored under this very object, a key is found without comparing letters.
        return driver.call(values, None, key)

    arguments = keyed[0] if len(keyed) == 1 else binding.as_tuple(keyed)
    read = flow.store.finder(flow.namespace)
    # A dictionary's own get never fails, nor finds anything under None: where the key is not
    # remembered, either.
    is_get = isinstance(getattr(read, "__self__", None), dict)
    tests = [] if is_get else [f"not {p}down"]
    # What is likely is asked for by itself: a comparison, where the set takes a look-up.
    texts = {v.name for v in binding.parameters if v.annotation in (str, "str")}
    for n in keyed:
        likely = f"{p}str" if n in texts else f"{p}int"
        tests.append(f"({p}type({n}) is {likely} or {p}type({n}) in {p}plain)")
    if is_get:
        look = [f"{p}entry = {p}read({p}find({arguments}))"]
    else:
        look = [
            f"{p}key, {p}entry = {p}find({arguments}), None",
            f"if {p}key is not None:",
            "    try:",
            f"        {p}entry = {p}read({p}key)",
            f"    except {p}Error as {p}error:",
            f"        return {slow}, {p}error)",
        ]
    body = "\n".join(
        [
            f"    if {' and '.join(tests) or 'True'}:",
            *(f"        {line}" for line in look),
            f"        if {p}entry is not None:",
            f"            {p}until = {p}entry[1]",
            f"            if {p}until is None or {p}until > {p}time.time():",
            f"                {p}next({p}hits)",
            f"                return {p}entry[0]",
            f"    return {'await ' if is_async else ''}{p}miss({values})",
        ]
    )
    scope = {
        f"{p}down": flow.health.reading.open,
        f"{p}type": type,
        f"{p}int": int,
        f"{p}str": str,
        f"{p}plain": _PLAIN,
        f"{p}find": remembered.get,
        f"{p}read": read,
        f"{p}time": time,
        f"{p}Error": Exception,  # a third party's store may raise anything
        f"{p}next": next,
        f"{p}hits": flow.tally.hits.count,
        f"{p}slow": driver.call,
        f"{p}miss": miss,
    }
    return binding.compile(name, body, scope, is_async=is_async)
