"""How a call becomes a key. One law: equal keys if and only if equal calls.

`text_of` writes a value as text that no other value has: exact about types (``1``, ``1.0``, ``True``
and ``"1"`` are four texts), the same in every process, hash seed and Python version, and readable.
A value that does not say who it is has no text: that is an error, never its address or its repr.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import string
import sys
import types
from enum import Enum, Flag
from typing import Any, Callable, Dict, FrozenSet, Iterable, List, Mapping, Sequence, Tuple, Type

from .exceptions import UnkeyableArgumentError

__all__ = [
    "LONGEST_READABLE",
    "Template",
    "key_of_call",
    "qualified_name",
    "register_key_encoder",
    "shortened",
    "text_of",
]

#: A key longer than this is replaced by its SHA-256, which starts with "#" as no other key does.
LONGEST_READABLE = 200

_SURROGATES = re.compile("[\ud800-\udfff]")


class _Nameless(TypeError):
    """This object has no stable identity. Becomes an `UnkeyableArgumentError` with its parameter."""


# ---------------------------------------------------------------------- values


def text_of(value: Any) -> str:
    """The text of one value.

    Raises:
        TypeError: The value, or something in it, has no stable identity.
    """
    encode = _EXACT.get(type(value))
    return _other(value) if encode is None else encode(value)


def register_key_encoder(kind: Type[Any], encode: Callable[[Any], Any]) -> None:
    """Say how objects of a class you can't change are identified in keys.

    Args:
        kind: The class; subclasses are encoded likewise, and stay apart by their names.
        encode: Returns what identifies the object, out of plain values (numbers, text, tuples...).

    Example:
        >>> class Connection:
        ...     def __init__(self, dsn): self.dsn = dsn
        >>> register_key_encoder(Connection, lambda connection: connection.dsn)
    """
    if not isinstance(kind, type):
        raise TypeError(f"register_key_encoder takes a class, not {kind!r:.80}.")
    if not callable(encode):
        raise TypeError(f"register_key_encoder takes a function, not {type(encode).__name__}.")
    _registered[kind] = encode


def _quoted(text: str) -> str:
    # JSON's quoting, not repr's: what repr escapes changes with Python's Unicode tables. A lone
    # surrogate, which no key can hold, is escaped by itself.
    quoted = json.dumps(text, ensure_ascii=False)
    return _SURROGATES.sub(lambda match: f"\\u{ord(match.group()):04x}", quoted)


def _listed(values: Iterable[Any]) -> str:
    return ",".join([text_of(value) for value in values])


def _sorted(values: Iterable[Any]) -> str:
    return ",".join(sorted(text_of(value) for value in values))


def _paired(mapping: Mapping[Any, Any]) -> str:
    return ",".join(sorted(f"{text_of(key)}:{text_of(value)}" for key, value in mapping.items()))


def _big_int(value: int) -> str:
    # Hexadecimal where str() would refuse (since 3.11) or take long: the text stays one to one.
    return str(value) if -(10**40) < value < 10**40 else hex(value)


_EXACT: Dict[type, Callable[[Any], str]] = {
    type(None): str,
    bool: str,
    int: _big_int,
    float: repr,
    complex: repr,
    str: _quoted,
    bytes: repr,
    bytearray: lambda value: f"bytearray({bytes(value)!r})",
    tuple: lambda value: f"({_listed(value)})",
    list: lambda value: f"[{_listed(value)}]",
    set: lambda value: f"set{{{_sorted(value)}}}",
    frozenset: lambda value: f"frozenset{{{_sorted(value)}}}",
    dict: lambda value: f"{{{_paired(value)}}}",
    range: repr,
    slice: lambda value: f"slice({_listed((value.start, value.stop, value.step))})",
    type(Ellipsis): str,
    type(NotImplemented): str,
    types.ModuleType: lambda value: f"<module {value.__name__}>",
    functools.partial: lambda value: (
        f"partial({text_of(value.func)},{text_of(value.args)},{text_of(value.keywords)})"
    ),
}

_registered: Dict[type, Callable[[Any], Any]] = {}


def qualified_name(thing: Any) -> str:
    """Module and qualified name of a class or function, the same in worker processes."""
    module = thing.__module__
    # What a spawned worker calls the program's main module.
    return f"{'__main__' if module == '__mp_main__' else module}.{thing.__qualname__}"


_name = qualified_name


def _other(value: Any) -> str:
    """The text of a value that is not exactly of a plain type."""
    kind = type(value)
    own = getattr(kind, "__cache_key__", None)
    if own is not None:
        return f"{_name(kind)}<{text_of(own(value))}>"
    for base in kind.__mro__:
        if base in _registered:
            return f"{_name(kind)}<{text_of(_registered[base](value))}>"
    if isinstance(value, Enum):
        # The names of combined flags differ between versions of Python; their numbers don't.
        which = text_of(value.value) if isinstance(value, Flag) else value.name
        return f"{_name(kind)}.{which}"
    if isinstance(value, type):
        return f"<class {_name(value)}>"
    for known, encode in _KNOWN:
        if known(value, kind):
            return encode(value)
    raise _Nameless(f"a {_name(kind)}")


def _is_of(*names: str) -> Callable[[Any, type], bool]:
    # By name, so that nothing is imported that the program does not use.
    return lambda value, kind: _name(kind) in names


def _datetime_text(value: Any) -> str:
    zone = value.tzinfo
    if zone is None:
        which = ""
    elif _name(type(zone)) == "datetime.timezone":
        which = str(zone)
    else:
        # zoneinfo and dateutil, pytz: the zone's name; others by class and offset.
        named = getattr(zone, "key", None) or getattr(zone, "zone", None)
        which = named or f"{_name(type(zone))} {value.utcoffset()}"
    return f"{type(value).__name__}({value.isoformat()},{value.fold},{which})"


def _callable_text(value: Any) -> str:
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        return f"<method {value.__name__} of {text_of(owner)}>"
    name = _name(value)
    if "<" in value.__qualname__:
        # Two of them may have one name: each call of the outer function makes another.
        raise _Nameless(f"the local function {name}")
    return f"<function {name}>"


def _fields_text(value: Any, names: Iterable[str]) -> str:
    inside = ",".join(f"{name}={text_of(getattr(value, name))}" for name in names)
    return f"{_name(type(value))}({inside})"


def _dataclass_text(value: Any) -> str:
    if type(value).__eq__ is object.__eq__:
        raise _Nameless(f"a {_name(type(value))} (a dataclass with eq=False)")
    fields = value.__dataclass_fields__.values()
    # ClassVar and InitVar stand among them, too, and are no fields of the instance.
    own = [f.name for f in fields if f.compare and f._field_type.name == "_FIELD"]
    return _fields_text(value, own)


def _subclass_text(value: Any) -> str:
    """A subclass of a plain type that adds no attributes, such as ``class UserId(int)``."""
    if getattr(value, "__dict__", None):
        raise _Nameless(f"a {_name(type(value))} with attributes")
    for base in (int, float, str, bytes):
        if isinstance(value, base):
            # The plain value inside, whatever __int__ or __str__ of the subclass say.
            return f"{_name(type(value))}({_EXACT[base](base.__new__(base, _plain(base, value)))})"
    raise _Nameless(f"a {_name(type(value))}")


def _plain(base: Any, value: Any) -> Any:
    if base is int:
        return int.__add__(value, 0)
    if base is float:
        return float.__add__(value, 0.0) if value else float.__float__(value)
    return base.__getitem__(value, slice(None))


def _is_numpy(value: Any, kind: type) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic, numpy.dtype))


def _numpy_text(value: Any) -> str:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.dtype):
        return f"numpy.dtype({text_of(value.descr if value.names else value.str)})"
    dtype = _numpy_text(value.dtype)
    if value.dtype.hasobject:
        if value.ndim == 0 or type(value) is not numpy.ndarray:
            raise _Nameless("a numpy object")
        return f"numpy.array({dtype},{text_of(value.shape)},{_listed(value.ravel().tolist())})"
    if isinstance(value, numpy.generic):
        return f"{type(value).__name__}({dtype},{value.tobytes()!r})"
    if type(value) is not numpy.ndarray:
        raise _Nameless(f"a {_name(type(value))}")
    digest = hashlib.sha256(numpy.ascontiguousarray(value).tobytes()).hexdigest()
    return f"numpy.array({dtype},{text_of(value.shape)},{digest})"


_PATHLIB = ("pathlib", "pathlib._local")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")

_KNOWN: Sequence[Tuple[Callable[[Any, type], bool], Callable[[Any], str]]] = (
    (lambda value, kind: hasattr(kind, "__dataclass_fields__"), _dataclass_text),
    (
        lambda value, kind: hasattr(kind, "__attrs_attrs__"),
        lambda value: _fields_text(value, [a.name for a in value.__attrs_attrs__ if a.eq]),
    ),
    (
        lambda value, kind: isinstance(value, tuple) and hasattr(kind, "_fields"),
        lambda value: f"{_name(type(value))}({_listed(value)})",
    ),
    (_is_of("datetime.datetime", "datetime.time"), _datetime_text),
    (_is_of("datetime.date"), lambda value: f"date({value.isoformat()})"),
    (
        _is_of("datetime.timedelta"),
        lambda value: f"timedelta({value.days},{value.seconds},{value.microseconds})",
    ),
    (_is_of("datetime.timezone"), lambda value: f"timezone({value})"),
    (
        lambda value, kind: type(value).__module__ == "zoneinfo" and bool(value.key),
        lambda value: f"ZoneInfo({value.key})",
    ),
    (_is_of("decimal.Decimal"), lambda value: f"Decimal({value})"),
    (_is_of("fractions.Fraction"), lambda value: f"Fraction({value})"),
    (_is_of("uuid.UUID"), lambda value: f"UUID({value})"),
    (
        # Python 3.13 keeps them in pathlib._local.
        _is_of(*(f"{module}.{name}" for module in _PATHLIB for name in _PATHS)),
        lambda value: f"{type(value).__name__}({_quoted(str(value))})",
    ),
    (
        _is_of(*(f"ipaddress.IPv{n}{what}" for n in "46" for what in ("Address", "Network"))),
        lambda value: f"{type(value).__name__}({value})",
    ),
    (_is_of("re.Pattern"), lambda value: f"Pattern({text_of(value.pattern)},{value.flags})"),
    (_is_of("collections.deque"), lambda value: f"deque({value.maxlen},{_listed(value)})"),
    (_is_of("collections.OrderedDict"), lambda value: f"OrderedDict({_listed(value.items())})"),
    (_is_of("collections.Counter"), lambda value: f"Counter({_paired(value)})"),
    (
        _is_of("collections.defaultdict"),
        lambda value: f"defaultdict({text_of(value.default_factory)},{_paired(value)})",
    ),
    (_is_of("builtins.mappingproxy"), lambda value: f"mappingproxy({_paired(value)})"),
    (_is_numpy, _numpy_text),
    (
        lambda value, kind: callable(value)
        and isinstance(getattr(value, "__qualname__", None), str)
        and isinstance(getattr(value, "__module__", ""), str),
        _callable_text,
    ),
    (lambda value, kind: isinstance(value, (int, float, str, bytes)), _subclass_text),
)


# ---------------------------------------------------------------------- calls


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
        except (_Nameless, RecursionError) as error:
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
    if isinstance(error, RecursionError):
        what = "something that contains itself, or is nested too deep"
    else:
        what = str(error)
    inside = "" if what.endswith(_name(type(value))) else f" a {_name(type(value))} that holds"
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
        self._escapes = {ord(c): f"%{ord(c):02X}" for c in marks | {"%"}} if escape else {}

    def fill(self, function: str, arguments: Mapping[str, Any]) -> str:
        """The key for these arguments, by parameter name."""
        formatter = string.Formatter()
        parts = []
        for literal, field, spec, conversion in self._pieces:
            parts.append(literal)
            if field is not None:
                value, _ = formatter.get_field(field, (), arguments)
                if conversion:
                    value = formatter.convert_field(value, conversion)
                try:
                    text = format(value, spec) if spec else _plain_text(value)
                except _Nameless as error:
                    raise _unkeyable(function, field, value, error) from None
                parts.append(text.translate(self._escapes))
        return "".join(parts)


_TEXTUAL = (str, int, float, type(None))


def _plain_text(value: Any) -> str:
    if isinstance(value, Enum):
        return _plain_text(value.value)
    if isinstance(value, _TEXTUAL) or _is_of(
        "uuid.UUID", "decimal.Decimal", "datetime.date", "datetime.datetime"
    )(value, type(value)):
        return str(value)
    if isinstance(getattr(value, "__fspath__", None), types.MethodType):
        return str(value)
    return text_of(value)
