"""What a value is, as text that no other value has. See `text_of`.

Exact about types (``1``, ``1.0``, ``True`` and ``"1"`` are four texts), the same in every process,
hash seed and Python version, and readable.
A value that does not say who it is has no text: that is an error, never its address or its repr.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import types
from enum import Enum, Flag
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
)

__all__ = ["NamelessError", "is_of", "qualified_name", "register_key_encoder", "text_of"]

_SURROGATES = re.compile("[\ud800-\udfff]")


class NamelessError(TypeError):
    """This object has no stable identity. Becomes an `UnkeyableArgumentError`."""

    def __init__(self, value: Any, what: Optional[str] = None) -> None:
        super().__init__(what or f"a {_name(type(value))}")
        self.value = value


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
    if kind in _EXACT:
        raise TypeError(f"{kind.__name__} values have a text already, which can't be changed.")
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
    range: lambda value: f"range({_listed((value.start, value.stop, value.step))})",
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
    # By issubclass: isinstance() believes what mocks, proxies and ``list[int]`` say they are.
    if issubclass(kind, Enum):
        # The names of combined flags differ between versions of Python; their numbers don't.
        member = value.value if issubclass(kind, Flag) else value.name
        plain = isinstance(member, str) and member.isascii() and member.isidentifier()
        return f"{_name(kind)}.{member if plain else text_of(member)}"
    if issubclass(kind, type):
        return f"<class {_name(value)}>"
    for known, encode in _KNOWN:
        if known(value, kind):
            return encode(value)
    raise NamelessError(value)


def is_of(*names: str) -> Callable[[Any, type], bool]:
    """Whether a value is of one of these classes itself, as a function of it and its class."""
    # By name, so that nothing is imported that the program does not use.
    return lambda value, kind: _name(kind) in names


def _datetime_text(value: Any) -> str:
    which = "" if value.tzinfo is None else _zone_text(value)
    return f"{type(value).__name__}({value.isoformat()},{value.fold},{which})"


def _zone_text(value: Any) -> str:
    zone = value.tzinfo
    # zoneinfo has the one, pytz the other.
    named = getattr(zone, "key", None) or getattr(zone, "zone", None)
    if isinstance(named, str):
        return f"{_name(type(zone))}({_quoted(named)})"
    try:
        return text_of(zone)
    except NamelessError:
        return f"{_name(type(zone))}({value.utcoffset()},{_quoted(str(value.tzname()))})"


_BY_NAME = (types.FunctionType, types.BuiltinFunctionType)


def _callable_text(value: Any) -> str:
    name = _name(value)
    own_name = value.__qualname__.rpartition("<locals>.")[2]
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType) and own_name != "<lambda>":
        return f"<method {name} of {text_of(owner)}>"
    if "<" in value.__qualname__:
        # Two of them may have one name: each call of the outer function makes another.
        raise NamelessError(value, f"the local function {name}")
    found: Any = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    path = name
    while found is not None and found is not value:
        # A decorator, and the function inside it that has the same name.
        found = getattr(found, "__wrapped__", None)
        path += ".__wrapped__"
    if found is value:
        return f"<function {path}>"
    if type(value) in _BY_NAME and not hasattr(value, "__wrapped__"):
        return f"<function {name}>"
    # Not what it is called: ``List[int]`` says that it is ``typing.List``, a decorated function
    # that it is the one inside.
    raise NamelessError(value)


def _fields_text(value: Any, names: Iterable[str]) -> str:
    inside = ",".join(f"{name}={text_of(getattr(value, name))}" for name in names)
    return f"{_name(type(value))}({inside})"


def _compared(value: Any, what: str) -> None:
    kind: Any = type(value)
    if kind.__eq__ is object.__eq__:
        raise NamelessError(value, f"a {_name(type(value))} (a {what} with eq=False)")


def _dataclass_text(value: Any) -> str:
    _compared(value, "dataclass")
    fields = value.__dataclass_fields__.values()
    # ClassVar and InitVar stand among them, too, and are no fields of the instance.
    own = [f.name for f in fields if f.compare and f._field_type.name == "_FIELD"]
    _no_more(value, "__dataclass_fields__", {f.name for f in fields})
    return _fields_text(value, own)


def _no_more(value: Any, declared: str, fields: Set[str]) -> None:
    """Refuse a subclass that does not declare fields itself and adds attributes all the same."""
    kind = type(value)
    more = set(getattr(value, "__dict__", ())) - fields
    if more and declared not in vars(kind):
        raise NamelessError(
            value, f"a {_name(kind)} with attributes besides its fields ({min(more)!r})"
        )


def _attrs_text(value: Any) -> str:
    _compared(value, "class of attrs")
    _no_more(value, "__attrs_attrs__", {a.name for a in value.__attrs_attrs__})
    return _fields_text(value, [a.name for a in value.__attrs_attrs__ if a.eq])


def _namedtuple_text(value: Any) -> str:
    _no_more(value, "_fields", set())
    return f"{_name(type(value))}({_listed(value)})"


# The plain value inside one of a subclass, whatever __int__ or __str__ of the subclass say.
_INSIDE: Dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
}


def _subclass_text(value: Any) -> str:
    """A subclass of a plain type that adds no attributes, such as ``class UserId(int)``."""
    kind = type(value)
    slots = any(base.__dict__.get("__slots__") for base in kind.__mro__)
    if slots or getattr(value, "__dict__", None):
        raise NamelessError(value, f"a {_name(kind)} with attributes")
    base = next(base for base in _INSIDE if issubclass(kind, base))
    return f"{_name(kind)}({_EXACT[base](_INSIDE[base](value))})"


def _is_numpy(_: Any, kind: type) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and issubclass(kind, (numpy.ndarray, numpy.generic, numpy.dtype))


def _numpy_text(value: Any) -> str:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.dtype):
        if value.subdtype:
            return f"numpy.dtype({_listed(value.subdtype)})"
        return f"numpy.dtype({text_of(value.descr if value.names else value.str)})"
    scalar = isinstance(value, numpy.generic)
    if not (scalar or type(value) is numpy.ndarray) or (scalar and value.dtype.hasobject):
        raise NamelessError(value)
    # Not the type's name: numpy 2 calls bool_ bool.
    what = f"numpy.{'scalar' if scalar else 'array'}({_numpy_text(value.dtype)}"
    if not scalar:
        what += f",{text_of(value.shape)}"
    if value.dtype.names:
        # One by one, because what is between them is anything.
        return f"{what},{_listed(value[name] for name in value.dtype.names)})"
    if value.dtype.char in "gG":
        raise NamelessError(value, "a numpy longdouble, whose bytes are not all its own")
    if value.dtype.hasobject:
        return f"{what},{_listed(value.ravel().tolist())})"
    if scalar:
        return f"{what},{value.tobytes()!r})"
    return f"{what},{hashlib.sha256(numpy.ascontiguousarray(value).tobytes()).hexdigest()})"


_PATHLIB = ("pathlib", "pathlib._local")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")

_KNOWN: Sequence[Tuple[Callable[[Any, type], bool], Callable[[Any], str]]] = (
    (lambda value, kind: hasattr(kind, "__dataclass_fields__"), _dataclass_text),
    (
        lambda value, kind: hasattr(kind, "__attrs_attrs__"),
        _attrs_text,
    ),
    (
        lambda value, kind: issubclass(kind, tuple) and hasattr(kind, "_fields"),
        _namedtuple_text,
    ),
    (is_of("datetime.datetime", "datetime.time"), _datetime_text),
    (is_of("datetime.date"), lambda value: f"date({value.isoformat()})"),
    (
        is_of("datetime.timedelta"),
        lambda value: f"timedelta({value.days},{value.seconds},{value.microseconds})",
    ),
    (
        is_of("datetime.timezone"),
        lambda value: f"timezone({value.utcoffset(None)},{_quoted(str(value))})",
    ),
    (
        lambda value, kind: _name(kind) == "zoneinfo.ZoneInfo" and bool(value.key),
        lambda value: f"ZoneInfo({_quoted(value.key)})",
    ),
    # The context says whether str() writes 1E+5 or 1e+5.
    (is_of("decimal.Decimal"), lambda value: f"Decimal({str(value).replace('e', 'E')})"),
    (
        is_of("fractions.Fraction"),
        lambda value: f"Fraction({_listed((value.numerator, value.denominator))})",
    ),
    (is_of("uuid.UUID"), lambda value: f"UUID({value})"),
    (
        # Python 3.13 keeps them in pathlib._local.
        is_of(*(f"{module}.{name}" for module in _PATHLIB for name in _PATHS)),
        lambda value: f"{type(value).__name__}({_quoted(str(value))})",
    ),
    (
        is_of(*(f"ipaddress.IPv{n}{what}" for n in "46" for what in ("Address", "Network"))),
        lambda value: f"{type(value).__name__}({_quoted(str(value))})",
    ),
    (is_of("re.Pattern"), lambda value: f"Pattern({text_of(value.pattern)},{value.flags})"),
    (is_of("collections.deque"), lambda value: f"deque({value.maxlen},{_listed(value)})"),
    (is_of("collections.OrderedDict"), lambda value: f"OrderedDict({_listed(value.items())})"),
    (is_of("collections.Counter"), lambda value: f"Counter({_paired(value)})"),
    (
        is_of("collections.defaultdict"),
        lambda value: f"defaultdict({text_of(value.default_factory)},{_paired(value)})",
    ),
    (is_of("builtins.mappingproxy"), lambda value: f"mappingproxy({_paired(value)})"),
    (_is_numpy, _numpy_text),
    (
        # Such as str.upper.
        lambda value, kind: kind is types.MethodDescriptorType,
        lambda value: f"<method {_name(value.__objclass__)}.{value.__name__}>",
    ),
    (
        lambda value, kind: (
            callable(value)
            and isinstance(getattr(value, "__qualname__", None), str)
            and isinstance(getattr(value, "__module__", None), str)
        ),
        _callable_text,
    ),
    (lambda value, kind: issubclass(kind, tuple(_INSIDE)), _subclass_text),
)
