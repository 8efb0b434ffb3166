"""`RestrictedPickleSerializer` against nested tricks: what is not on the list is not reached."""

from __future__ import annotations

import copyreg
import enum
import fractions
import os
import pickle
import threading
import uuid
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from kv_store_adapter import RestrictedPickleSerializer, SerializationError
from kv_store_adapter.serializers import Codec


class Account:
    """What an application lets the restricted pickle read."""

    __slots__ = ("admin", "name")

    def __init__(self, name: str, admin: bool = False) -> None:
        self.name, self.admin = name, admin

    def may(self, what: str) -> bool:
        return self.admin


class Folder:
    """Allowed as well; its attribute leads to what is not."""

    module = os
    system = staticmethod(os.getcwd)


class Role(enum.Enum):
    """Allowed in one test."""

    READER = 1


HARMLESS: List[Any] = [
    *(fractions.Fraction(1, 3), uuid.UUID(int=5), {"x": {1, 2}}, bytearray(b"x"), 2j, b"y"),
    *(OrderedDict(a=1), deque([1]), range(3), slice(1, 2), frozenset("a"), complex(1, 2)),
]
ALLOWED = Codec(RestrictedPickleSerializer(allow=[Account, Folder]))
PLAIN = Codec(RestrictedPickleSerializer())
HERE = __name__

#: An empty line, where a name should be, is torn.
REFUSED = "not on the list|truncated"


def stack_global(module: str, name: str) -> bytes:
    """Asks for a name as protocol 4 does: a dotted one is walked attribute by attribute."""
    parts = [part.encode() for part in (module, name)]
    return b"".join(b"\x8c" + bytes([len(part)]) + part for part in parts) + b"\x93"


#: Names that lead from what is allowed, or from anywhere, to code.
NAMES: Dict[str, Tuple[str, str]] = {
    "os.system": ("os", "system"),
    "posix": (os.name if os.name == "nt" else "posix", "system"),
    "eval": ("builtins", "eval"),
    "exec": ("builtins", "exec"),
    "getattr": ("builtins", "getattr"),
    "setattr": ("builtins", "setattr"),
    "import": ("builtins", "__import__"),
    "breakpoint": ("builtins", "breakpoint"),
    "type": ("builtins", "type"),
    "object": ("builtins", "object"),
    "a class's subclasses": ("builtins", "set.__subclasses__"),
    "a class's base": ("builtins", "set.__base__"),
    "a class's base by mro": ("builtins", "set.__mro__"),
    "globals of a method": ("fractions", "Fraction.__init__.__globals__"),
    "globals of an allowed method": (HERE, "Account.__init__.__globals__"),
    "an allowed class's method": (HERE, "Account.may"),
    "an allowed class's module": (HERE, "Folder.module"),
    "through an allowed class": (HERE, "Folder.module.system"),
    "an allowed class's callable": (HERE, "Folder.system"),
    "the module's import": (HERE, "os.system"),
    "through a module that is allowed to be named": ("datetime", "sys.modules"),
    "by a module's path": ("collections.abc", "sys"),
    "a dot in the module": ("builtins.set", "__base__"),
    "an empty module": ("", "eval"),
    "a name of Python 2": ("__builtin__", "eval"),
    "a name of Python 2 that is renamed": ("copy_reg", "_reconstructor"),
    "a class of Python 2": ("__builtin__", "set"),
    "a blank behind": ("builtins", "set "),
    "copyreg": ("copyreg", "_reconstructor"),
    "copyreg's registration": ("copyreg", "add_extension"),
    "a codec": ("codecs", "decode"),
    "an unpickler": ("pickle", "loads"),
    "functools": ("functools", "partial"),
    "operator": ("operator", "attrgetter"),
}


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out(name: str) -> None:
    """A name that is not on the list is refused in every spelling, before anything is called."""
    module, attribute = NAMES[name]
    asked = stack_global(module, attribute)
    old = f"c{module}\n{attribute}\n".encode()
    for codec in (PLAIN, ALLOWED):
        for ask in (b"\x80\x04" + asked, old, b"\x80\x02" + old, b"\x80\x03" + old):
            for use in (b".", b")R.", b")\x81.", b"0N.", b"}b.", b"\x85.", b"q\x000h\x00."):
                with pytest.raises(SerializationError, match=REFUSED):
                    codec.decode(ask + use, "key", None)
        for ask in (b"(i%b\n%b\n." % (module.encode(), attribute.encode()), b"(" + old + b"o."):
            with pytest.raises(SerializationError, match=REFUSED):
                codec.decode(ask, "key", None)


def test_a_pickle_in_a_pickle_stays_bytes(tmp_path: Path) -> None:
    """Nested pickles, states and reduced objects are held to the list at every depth."""
    target = tmp_path / "ran"

    class Planted:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(target),)

    class Carrier:
        def __init__(self, *parts: Any) -> None:
            self.parts = parts

        def __reduce__(self) -> Any:
            return self.parts

    inner = Planted()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        tricks = [
            {"a": [({"b": inner},)]},
            Carrier(Account, ("ann",), {"name": inner}),
            Carrier(Account, ("ann",), (None, {"name": inner})),
            Carrier(set, ([inner],)),
            Carrier(OrderedDict, (), None, None, iter([("x", inner)])),
            Carrier(deque, (), None, iter([inner])),
            Carrier(fractions.Fraction, (inner,)),
            Carrier(Account, (inner, inner)),
        ]
        for trick in tricks:
            with pytest.raises(SerializationError, match="not on the list"):
                ALLOWED.decode(pickle.dumps(trick, protocol), "key", None)
    assert ALLOWED.decode(pickle.dumps(pickle.dumps(inner)), "key", None) == pickle.dumps(inner)
    with pytest.raises(SerializationError, match="persistent"):
        ALLOWED.decode(b"\x80\x04NQ.", "key", None)
    with pytest.raises(SerializationError, match="persistent"):
        ALLOWED.decode(b"Pos.system\n.", "key", None)
    assert not target.exists()


def test_registered_extensions_are_held_to_the_list() -> None:
    """A class registered with copyreg.add_extension() is refused like any other, however often."""
    copyreg.add_extension("os", "getcwd", 0xF0)
    try:
        for code in (b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"):
            with pytest.raises(SerializationError, match="not on the list"):
                PLAIN.decode(b"\x80\x04" + code + b")R.", "key", None)
        # Somewhere in the program plain pickle reads one: from then on it is remembered.
        assert pickle.loads(b"\x80\x04\x82\xf0.") is os.getcwd
        with pytest.raises(SerializationError, match="not on the list"):
            PLAIN.decode(b"\x80\x04\x82\xf0)R.", "key", None)
    finally:
        copyreg.remove_extension("os", "getcwd", 0xF0)


def _set_on(module: str, name: str, attribute: str, value: bytes) -> bytes:
    """A pickle whose BUILD sets an attribute of a class, instead of an instance."""
    text = b"\x8c" + bytes([len(attribute)]) + attribute.encode()
    return b"\x80\x04" + stack_global(module, name) + b"N}" + text + value + b"s\x86b."


@pytest.mark.parametrize("kind", ["a class that is always allowed", "a class of the application"])
def test_no_class_can_be_changed(kind: str) -> None:
    """Reading an entry changes no class: the next Fraction and the next Account are as before."""
    saved = fractions.Fraction.__eq__, Account.may
    slice_ = stack_global("builtins", "slice")
    try:
        # slice(other) is true: everything would equal everything, and everybody may do anything.
        codec, data = PLAIN, _set_on("fractions", "Fraction", "__eq__", slice_)
        if kind == "a class of the application":
            codec, data = ALLOWED, _set_on(HERE, "Account", "may", slice_)
        try:
            codec.decode(data, "key", None)
        except SerializationError:
            pass
        assert fractions.Fraction(1, 2) != fractions.Fraction(1, 3)
        assert Account("mallory").may("delete everything") is False
    finally:
        fractions.Fraction.__eq__, Account.may = saved  # type: ignore[method-assign]


def test_nothing_shared_can_be_changed() -> None:
    """A member of an enum and a function on the list stay as they are, as classes do."""
    codec = Codec(RestrictedPickleSerializer(allow=[Role, f"{HERE}.stack_global"]))
    change = b"N}\x8c\x05adminNs\x86b."
    member = b"\x80\x04" + stack_global(HERE, "Role") + b"K\x01\x85R"
    assert codec.decode(member + b".", "key", None) is Role.READER
    for data in (member + change, b"\x80\x04" + stack_global(HERE, "stack_global") + change):
        with pytest.raises(SerializationError, match="would change a class"):
            codec.decode(data, "key", None)
    assert not hasattr(Role.READER, "admin") and not hasattr(stack_global, "admin")


def test_what_is_allowed_still_reads() -> None:
    """Plain data and the classes on the list come back, from every protocol."""
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        assert PLAIN.decode(pickle.dumps(HARMLESS, protocol), "key", None) == HARMLESS
        account = ALLOWED.decode(pickle.dumps(Account("ann", True), protocol), "key", None)
        assert (account.name, account.may("read")) == ("ann", True)


@pytest.mark.parametrize("protocol", [-1, *range(3, pickle.HIGHEST_PROTOCOL + 1)])
def test_it_reads_what_it_writes(protocol: int) -> None:
    """With every protocol= that it takes, the restricted pickle reads its own plain data."""
    codec = Codec(RestrictedPickleSerializer(protocol=protocol))
    assert codec.decode(codec.encode(HARMLESS, "key", None), "key", None) == HARMLESS


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_it_writes_nothing_that_it_can_t_read(protocol: int) -> None:
    """Protocols that name sets and bytes as Python 2 did are refused when the serializer is made."""
    with pytest.raises(ValueError, match="use 4"):
        RestrictedPickleSerializer(protocol=protocol)


def test_readers_in_threads_share_no_list() -> None:
    """What one serializer allows no other does, in many threads at once."""
    data = pickle.dumps(Account("ann"))
    wrong: List[str] = []

    def read(codec: Any, fine: bool) -> None:
        for _ in range(300):
            try:
                codec.decode(data, "key", None)
            except SerializationError:
                if fine:
                    wrong.append("refused")
            else:
                if not fine:
                    wrong.append("read")

    codecs = (PLAIN, ALLOWED) * 4
    threads = [threading.Thread(target=read, args=(c, c is ALLOWED)) for c in codecs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
