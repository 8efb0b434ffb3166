"""What type checkers know of decorated functions. Never imported when the program runs."""

from __future__ import annotations

from typing import Any, Awaitable, Callable, Coroutine, Dict, Generic, Optional, TypeVar, overload

from typing_extensions import Concatenate, ParamSpec, Protocol, Self

from .tally import CacheInfo

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
S = TypeVar("S")
T_co = TypeVar("T_co", covariant=True)


class _Handles:
    def cache_info(self) -> CacheInfo: ...
    def cache_parameters(self) -> Dict[str, Any]: ...


class BoundCached(_Handles, Generic[P, T]):
    """A bound method of a plain decorated function."""

    __self__: Any
    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    def cache_clear(self) -> None: ...
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def bypass(self, *args: P.args, **kwargs: P.kwargs) -> T: ...


class CachedFunction(BoundCached[P, T]):
    """A plain decorated function."""

    __wrapped__: Callable[P, T]
    __qualname__: str

    @overload
    def __get__(self, instance: None, owner: Optional[type] = None) -> Self: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[S, Q], T], instance: S, owner: Optional[type] = None
    ) -> BoundCached[Q, T]: ...


class BoundCachedCoroutine(_Handles, Generic[P, T]):
    """A bound method of a decorated coroutine function."""

    __self__: Any
    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]: ...
    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    def cache_clear(self) -> Awaitable[None]: ...
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[bool]: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...
    def bypass(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...


class CachedCoroutineFunction(BoundCachedCoroutine[P, T]):
    """A decorated coroutine function."""

    __wrapped__: Callable[P, Coroutine[Any, Any, T]]
    __qualname__: str

    @overload
    def __get__(self, instance: None, owner: Optional[type] = None) -> Self: ...
    @overload
    def __get__(
        self: CachedCoroutineFunction[Concatenate[S, Q], T],
        instance: S,
        owner: Optional[type] = None,
    ) -> BoundCachedCoroutine[Q, T]: ...


class CachedClassMethod(Generic[P, T]):
    """What ``@cached`` above ``@classmethod`` makes."""

    def __get__(self, instance: Any, owner: Optional[type] = None) -> BoundCached[P, T]: ...


class CachedStaticMethod(Generic[P, T]):
    """What ``@cached`` above ``@staticmethod`` makes."""

    def __get__(self, instance: Any, owner: Optional[type] = None) -> BoundCached[P, T]: ...


class Decorator(Protocol):
    """What ``cached(store)`` returns."""

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> CachedCoroutineFunction[P, T]: ...
    @overload
    def __call__(self, function: classmethod[Any, P, T], /) -> CachedClassMethod[P, T]: ...
    @overload
    def __call__(self, function: staticmethod[P, T], /) -> CachedStaticMethod[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> CachedFunction[P, T]: ...
