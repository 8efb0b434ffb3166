"""What was said to the decorator of one function, and which key each call has."""

from __future__ import annotations

import re
import types
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

from ..exceptions import UnkeyableArgumentError
from ..identity import text_of
from ..keys import Template, key_of_call, shortened
from ..protocol import KVStoreProtocol
from .binding import Binding
from .freshness import Freshness

__all__ = ["Declaration", "Options"]

# Marks a key whose entry is an envelope, so that one function declared with and without stale=
# never takes the one for the other.
_ENVELOPED = "~"

# How keys begin that a user's own could be taken for: an envelope's, and one with a version.
_LIKE_OURS = re.compile(r"[~=]|v[-'\"0-9].*:", re.DOTALL)


class Options(NamedTuple):
    """What the user said to the decorator, checked."""

    freshness: Freshness
    cache_if: Optional[Callable[[Any], Any]]
    key: Any
    ignore: Tuple[str, ...]
    version: Any
    tags: Tuple[str, ...]
    lock: Optional[str]
    lock_ttl: float
    lock_timeout: float
    on_error: str


class Declaration:
    """One decorated function: what was said of it, and which key each call of it has."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        store: KVStoreProtocol,
        namespace: str,
        label: str,
        options: Options,
    ) -> None:
        self.function = function
        self.name = name
        self.store = store
        self.namespace = namespace
        self.options = options
        self.binding: Binding = Binding(function)
        self.enveloped: bool = options.freshness.needs_envelope or bool(options.tags)
        names = self.binding.names
        unknown = set(options.ignore) - set(self.binding.plain_names)
        if unknown:
            raise ValueError(
                f"ignore= names {', '.join(sorted(unknown))}, which {name}() does not have."
            )
        self._ignored = frozenset(options.ignore)
        self._template = Template(options.key, names) if isinstance(options.key, str) else None
        self._tags = [Template(tag, names, escape=False) for tag in options.tags]
        # What keys start with besides the arguments.
        self._start = "" if options.version is None else f"v{text_of(options.version)}:"
        if options.key is None:
            self._start += label + self._owner()
        if self.enveloped:
            self._start = _ENVELOPED + self._start

    def _owner(self) -> str:
        """Whose method is decorated, if it was bound before: it is no argument, but it counts."""
        owner = getattr(self.function, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return ""
        try:
            return f"{text_of(owner)}."
        except TypeError as error:
            raise UnkeyableArgumentError(
                f"{self.name}() is bound to {error}, which has no stable identity to cache by. "
                "Decorate the method in its class, give the class a __cache_key__() method, or "
                "make the key yourself with key=."
            ) from None

    @property
    def remembers_keys(self) -> bool:
        """Whether equal plain arguments always give the same key, so that it may be looked up."""
        return not callable(self.options.key)

    @property
    def hits_are_raw(self) -> bool:
        """Whether what is stored is the result itself, so that reading it is all of a hit."""
        return not self.enveloped

    @property
    def keyed_names(self) -> Sequence[str]:
        """The parameters that count for the key."""
        if self._template is not None:
            return self.binding.plain_names  # it may name one that is ignored otherwise
        return [n for n in self.binding.plain_names if n not in self._ignored]

    def key(self, values: Tuple[Any, ...]) -> str:
        """The key under which the result of a call is stored.

        Raises:
            UnkeyableArgumentError: An argument has no stable identity.
        """
        if self._template is not None:
            arguments = self.binding.arguments(values)
            return self._start + self._made(self._template.fill(self.name, arguments))
        if self.options.key is not None:
            key = self.binding.call(self.options.key, values)
            if not isinstance(key, str):
                raise TypeError(
                    f"The key= of {self.name}() gave a {type(key).__name__}; a key is a str."
                )
            return self._start + self._made(str.__str__(key))
        key = key_of_call(self.name, self.binding.names, values, self._ignored)
        return shortened(self._start + key) if self._start else key

    def _made(self, key: str) -> str:
        """A key that the user made: never taken for that of an envelope or of another version."""
        if self.options.version is not None:
            return key  # its version is before it
        return f"={key}" if _LIKE_OURS.match(key) else key

    def keys(self, values: Tuple[Any, ...]) -> List[str]:
        """All keys that a call is about."""
        return [self.key(values)]

    def _tag_names(self, values: Tuple[Any, ...]) -> List[str]:
        arguments = self.binding.arguments(values)
        return [tag.fill(self.name, arguments) for tag in self._tags]
