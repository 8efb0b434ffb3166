"""How a call becomes a key. One law: equal keys if and only if equal calls.

Either every argument has its part in the key, by `identity.text_of`, or a `Template` says which.
"""

from __future__ import annotations

import hashlib
import re
import string
import sys
import types
from enum import Enum
from typing import Any, FrozenSet, List, Mapping, Sequence, Tuple

from .exceptions import UnkeyableArgumentError
from .identity import NamelessError, is_of, qualified_name, text_of

__all__ = ["LONGEST_READABLE", "Template", "key_of_call", "shortened"]

#: A key longer than this is replaced by its SHA-256, which starts with "#" as no other key does.
LONGEST_READABLE = 200


def key_of_call(
    function: str, names: Sequence[str], values: Sequence[Any], ignored: FrozenSet[str]
) -> str:
    """The key of a call with all its parameters bound: ``(user_id=7,full=True)``.

    Args:
        function: The function's name, for messages.
        names: The names of its parameters, ``*args`` and ``**kwargs`` with their stars.
        values: What they are bound to.
        ignored: The names of those that do not count, without stars.

    Raises:
        UnkeyableArgumentError: An argument has no stable identity.
    """
    parts = []
    for name, value in zip(names, values):
        if name.lstrip("*") in ignored:
            continue
        try:
            parts.append(f"{name}={text_of(value)}")
        except (NamelessError, RecursionError) as error:
            raise _unkeyable(function, name, value, error) from None
    return shortened(f"({','.join(parts)})")


def shortened(key: str) -> str:
    """The key itself while it is readable, else its digest."""
    if len(key) <= LONGEST_READABLE:
        return key
    return "#" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _unkeyable(
    function: str, name: str, value: Any, error: BaseException
) -> UnkeyableArgumentError:
    inside = f" a {qualified_name(type(value))} that holds"
    if isinstance(error, NamelessError):
        what = str(error)
        if error.value is value:
            inside = ""
    else:
        what = "something that contains itself, or is nested too deep"
    plain = name.lstrip("*")
    return UnkeyableArgumentError(
        f"The argument {plain!r} of {function}() is{inside} {what}, which has no stable identity "
        "to cache by. Three ways out: give the class a __cache_key__() method (or make it a "
        "dataclass), or tell register_key_encoder() about it; leave it out of the key with "
        f"ignore=({plain!r},); or make the key yourself with key=."
    )


# ---------------------------------------------------------------------- templates


class Template:
    """A key such as ``"user:{user_id}"``, filled in from a call's arguments.

    Fields identify by their text, so ``1`` and ``"1"`` give one key. What separates fields in the
    template is escaped in their values, so that ``"a:b", "c"`` and ``"a", "b:c"`` give two.

    Args:
        text: The template, in `str.format`'s language: ``{name}``, ``{user.id}``, ``{day:%Y}``.
        names: The parameters it may name.
        escape: Whether to escape separators in values.

    Raises:
        ValueError: It names no parameter of the function, or two fields touch.
    """

    def __init__(self, text: str, names: Sequence[str], *, escape: bool = True) -> None:
        self._text = text
        self._pieces: List[Tuple[str, Any, str, str]] = []
        known = {name.lstrip("*") for name in names}
        literals = []
        for literal, field, spec, conversion in string.Formatter().parse(text):
            if field is not None:
                root = re.split(r"[.\[]", field, maxsplit=1)[0]
                if root not in known:
                    raise ValueError(
                        f"The template {text!r} names {root or 'a field without name'!r}, and the "
                        f"function has {', '.join(sorted(known)) or 'no parameters'}."
                    )
                if "{" in (spec or ""):
                    raise ValueError(
                        f"The template {text!r} has a field inside the format of another one, "
                        "which is more than a key can say."
                    )
                if escape and self._pieces and not literal and self._pieces[-1][1] is not None:
                    raise ValueError(
                        f"Two fields of the template {text!r} touch, so different values would "
                        "give one key. Put a separator between them."
                    )
            literals.append(literal)
            self._pieces.append((literal, field, spec or "", conversion or ""))
        marks = {char for literal in literals for char in literal if not char.isalnum()}
        # A separator of letters alone is recognised by its first one.
        between = [literal for literal in literals[1:] if literal]
        marks.update(lit[0] for lit in between if not any(not char.isalnum() for char in lit))
        # What starts an escape must start nothing else.
        signs = map(chr, range(ord("%"), sys.maxunicode))
        sign = next(c for c in signs if c not in marks and not c.isalnum())
        self._escapes = {ord(c): _escaped(c, sign) for c in marks | {sign}} if escape else {}

    def fill(self, function: str, arguments: Mapping[str, Any]) -> str:
        """The key for these arguments, by parameter name."""
        formatter = string.Formatter()
        parts = []
        for literal, field, spec, conversion in self._pieces:
            parts.append(literal)
            if field is not None:
                value, _ = formatter.get_field(field, (), arguments)
                try:
                    if conversion:
                        value = _converted(value, conversion)
                    text = format(value, spec) if spec else _plain_text(value)
                except (NamelessError, RecursionError) as error:
                    raise _unkeyable(function, field, value, error) from None
                parts.append(text.translate(self._escapes))
        return "".join(parts)


def _escaped(char: str, sign: str) -> str:
    return "".join(f"{sign}{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def _converted(value: Any, conversion: str) -> Any:
    kind: Any = type(value)
    if kind.__repr__ is object.__repr__ and (conversion != "s" or kind.__str__ is object.__str__):
        raise NamelessError(value)  # that would be its address
    return string.Formatter().convert_field(value, conversion)


_TEXTUAL = (str, int, float, type(None))


def _plain_text(value: Any) -> str:
    if isinstance(value, Enum):
        return _plain_text(value.value)
    if isinstance(value, _TEXTUAL) or is_of(
        "uuid.UUID", "decimal.Decimal", "datetime.date", "datetime.datetime"
    )(value, type(value)):
        return str(value)
    if isinstance(getattr(value, "__fspath__", None), types.MethodType):
        return str(value)
    return text_of(value)
