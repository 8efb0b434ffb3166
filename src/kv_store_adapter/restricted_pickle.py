"""Pickle that reads only what it was told of."""

from __future__ import annotations

import copyreg
import enum
import io
import pickle
from typing import AbstractSet, Any, ClassVar, Dict, Iterable, List, Union

from .serializers import PickleSerializer

__all__ = ["RestrictedPickleSerializer"]


class RestrictedPickleSerializer(PickleSerializer):
    """Pickle that reads only plain data and the classes it was told of.

    Everything a pickle imports must be on the list: a planted one that asks for ``os.system`` is
    refused before it runs. It can set any state on new objects of the listed classes, but change
    no class. Still, list only classes that are harmless to make with any arguments and any state.

    What it could not read it does not write: whatever may hold a class is read once when it is
    written, so that a class that is not on the list is refused then, and not when it is needed.

    Large plain data is read as fast as with `PickleSerializer`, a small value takes several times
    as long. A pickle with classes made in Python (also ``Fraction`` and ``UUID``) is read by
    Python's own unpickler, six to eight times slower.

    Args:
        allow: Classes (or ``"module.qualname"`` texts) that may be read besides plain data.
        protocol: The pickle protocol to write, 3 or later.
    """

    #: Types that hold data and do nothing when made.
    HARMLESS = frozenset(
        {
            "builtins.bytearray",
            "builtins.complex",
            "builtins.frozenset",
            "builtins.range",
            "builtins.set",
            "builtins.slice",
            "collections.OrderedDict",
            "collections.deque",
            "datetime.date",
            "datetime.datetime",
            "datetime.time",
            "datetime.timedelta",
            "datetime.timezone",
            "decimal.Decimal",
            "fractions.Fraction",
            "uuid.UUID",
        }
    )

    def __init__(self, allow: Iterable[Union[type, str]] = (), protocol: int = 4) -> None:
        if 0 <= protocol < 3:
            raise ValueError("Protocols below 3 name sets and bytes as Python 2 did: use 4.")
        super().__init__(protocol)
        self._allowed = self.HARMLESS | {
            c if isinstance(c, str) else f"{c.__module__}.{c.__qualname__}" for c in allow
        }

    @property
    def name(self) -> str:
        # The same bytes as pickle: a folder may be opened with either.
        return "pickle"

    def dumps(self, value: Any) -> bytes:
        data = super().dumps(value)
        # What a pickle imports comes by one of these. They may be letters of a text as well: then
        # it is read in vain.
        by_name = pickle.GLOBAL if self._protocol == 3 else pickle.STACK_GLOBAL
        if any(code in data for code in (by_name, *_EXTENSIONS)):
            self.loads(data)
        return data

    def loads(self, data: bytes) -> Any:
        # An extension that was read before, by whomever, is handed out without find_class().
        if not (_extension_cache and any(code in data for code in _EXTENSIONS)):
            try:
                return _RestrictedUnpickler(data, self._allowed).load()
            except _NeedsCareError:
                pass
        return _CarefulUnpickler(data, self._allowed).load()


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, allowed: AbstractSet[str]) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        _check_allowed(module, name, self._allowed)
        found = super().find_class(module, name)
        if not isinstance(found, type) or found.__flags__ & _CHANGEABLE == _HEAP_TYPE:
            raise _NeedsCareError
        return found


# Classes that can be changed: made on the heap, and not said to be immutable (Python 3.10).
_HEAP_TYPE = 1 << 9
_CHANGEABLE = _HEAP_TYPE | 1 << 8
_EXTENSIONS = (pickle.EXT1, pickle.EXT2, pickle.EXT4)
# Not public, and there is no other way to what copyreg was told.
_extensions: Dict[int, Any] = copyreg._inverted_registry  # type: ignore[attr-defined]
_extension_cache: Dict[int, Any] = copyreg._extension_cache  # type: ignore[attr-defined]
_load_build: Any = pickle._Unpickler.dispatch[pickle.BUILD[0]]


class _NeedsCareError(Exception):
    """A pickle that could change what others use, if it is read by the fast unpickler."""


class _CarefulUnpickler(pickle._Unpickler):
    """The same in Python, which can be told what BUILD may set state on."""

    def __init__(self, data: bytes, allowed: AbstractSet[str]) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed = allowed
        self._found: Dict[int, Any] = {}  # by identity

    def find_class(self, module: str, name: str) -> Any:
        _check_allowed(module, name, self._allowed)
        found = super().find_class(module, name)
        self._found[id(found)] = found
        return found

    stack: List[Any]
    append: Any

    def get_extension(self, code: int) -> None:
        if code not in _extensions:
            raise pickle.UnpicklingError(f"there is no extension {code}")
        self.append(self.find_class(*_extensions[code]))

    def load_build(self) -> None:
        target = self.stack[-2]
        if isinstance(target, (type, enum.Enum)) or id(target) in self._found:
            raise pickle.UnpicklingError("it would change a class, not an object of it")
        _load_build(self)

    dispatch: ClassVar[Any] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def _check_allowed(module: str, name: str, allowed: AbstractSet[str]) -> None:
    # A dotted name is walked attribute by attribute, so only whole names are compared.
    if f"{module}.{name}" not in allowed:
        raise pickle.UnpicklingError(
            f"{module}.{name} is not on the list of classes that may be read. If you trust "
            "it, add it to RestrictedPickleSerializer(allow=[...])."
        )
