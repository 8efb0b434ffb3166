"""A call's arguments, bound to the signature with defaults filled: ``f(1, b=2)`` is ``f(1, 2)``.

`inspect.Signature.bind` takes 2 to 3 microseconds. So a function with the same signature is
compiled once for each decorated function, and Python's own calling does the binding, and raises its
own ``TypeError`` for a wrong call.
"""

from __future__ import annotations

import inspect
import keyword
from typing import Any, Callable, Dict, List, Sequence, Tuple

__all__ = ["Binding"]

_KINDS = inspect.Parameter


class Binding:
    """The signature of one function, compiled.

    Attributes:
        names: The parameters' names in order, ``*args`` and ``**kwargs`` with their stars.
        bind: Takes a call's arguments and returns the tuple of what `names` are bound to.
        call: Takes a function and such a tuple, and calls the function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"The signature of {function!r:.100} can't be told, so its calls have no key. "
                "Wrap it in a function of your own."
            ) from error
        self.parameters: List[inspect.Parameter] = list(signature.parameters.values())
        self.names: List[str] = [_STARS.get(p.kind, "") + p.name for p in self.parameters]
        self.plain_names: List[str] = [p.name for p in self.parameters]
        # A prefix that no parameter starts with, for names of our own in compiled code.
        self.prefix: str = "_kv_"
        while any(p.name.startswith(self.prefix) for p in self.parameters):
            self.prefix += "_"
        # What the user sees in a TypeError is the function's own name.
        self.bind: Callable[..., Tuple[Any, ...]] = self.compile(
            getattr(function, "__name__", "call"),
            f"    return {self.as_tuple(self.plain_names)}",
            {},
        )
        self.bind.__name__ = getattr(function, "__name__", "call")
        self.bind.__qualname__ = getattr(function, "__qualname__", "call")
        self.call: Callable[[Callable[..., Any], Tuple[Any, ...]], Any] = self._compile_call()

    @staticmethod
    def as_tuple(names: Sequence[str]) -> str:
        """The source of a tuple of names."""
        return f"({', '.join(names)}{',' if len(names) == 1 else ''})"

    def compile(
        self, name: str, body: str, scope: Dict[str, Any], *, is_async: bool = False
    ) -> Callable[..., Any]:
        """A function with the same parameters and defaults, and this body.

        Only names of parameters, which are identifiers, and our own text go into the source;
        defaults are handed over as objects.
        """
        # Python reads other letters as what they resemble, and would define another name.
        named = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
        if not named or name in scope or name == "__debug__":
            name = "call"
        scope = dict(scope)
        source = f"{'async ' if is_async else ''}def {name}({self._signature(scope)}):\n{body}\n"
        exec(compile(source, "<kv_store_adapter>", "exec"), scope)  # noqa: S102  # see above
        function: Callable[..., Any] = scope[name]
        return function

    def _signature(self, scope: Dict[str, Any]) -> str:
        parts: List[str] = []
        starred = False
        for index, parameter in enumerate(self.parameters):
            kind = parameter.kind
            previous = self.parameters[index - 1].kind if index else None
            if previous is _KINDS.POSITIONAL_ONLY and kind is not _KINDS.POSITIONAL_ONLY:
                parts.append("/")
            if kind is _KINDS.KEYWORD_ONLY and not starred:
                parts.append("*")
                starred = True
            starred = starred or kind is _KINDS.VAR_POSITIONAL
            text = _STARS.get(kind, "") + parameter.name
            if parameter.default is not _KINDS.empty:
                default = f"{self.prefix}default_{index}"
                scope[default] = parameter.default
                text += f"={default}"
            parts.append(text)
        if self.parameters and self.parameters[-1].kind is _KINDS.POSITIONAL_ONLY:
            parts.append("/")
        return ", ".join(parts)

    def _compile_call(self) -> Callable[[Callable[..., Any], Tuple[Any, ...]], Any]:
        arguments = [
            f"{p.name}={p.name}"
            if p.kind is _KINDS.KEYWORD_ONLY
            else _STARS.get(p.kind, "") + p.name
            for p in self.parameters
        ]
        function, values = f"{self.prefix}function", f"{self.prefix}values"
        unpack = f"    {self.as_tuple(self.plain_names)} = {values}\n" if self.parameters else ""
        call_it = f"    return {function}({', '.join(arguments)})"
        source = f"def call({function}, {values}):\n{unpack}{call_it}"
        scope: Dict[str, Any] = {}
        exec(compile(source, "<kv_store_adapter>", "exec"), scope)  # noqa: S102  # as above
        call: Callable[[Callable[..., Any], Tuple[Any, ...]], Any] = scope["call"]
        return call

    def arguments(self, values: Sequence[Any]) -> Dict[str, Any]:
        """What each parameter is bound to, by name."""
        return dict(zip(self.plain_names, values))


_STARS: Dict[Any, str] = {_KINDS.VAR_POSITIONAL: "*", _KINDS.VAR_KEYWORD: "**"}
