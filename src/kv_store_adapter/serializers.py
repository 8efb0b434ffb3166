"""A value to bytes and back: pickle, JSON, and wrappers that compress or sign.

A serializer is any object with ``dumps(value) -> bytes`` and ``loads(bytes) -> value``; the module
``pickle`` itself will do. One that must know where its bytes are kept (a signature that covers key
and namespace) has ``dumps_at`` and ``loads_at`` besides.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
import zlib
from itertools import repeat
from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
)

from .exceptions import SerializationError, where
from .interruption import let_through

if TYPE_CHECKING:
    from typing_extensions import Protocol

    class SerializerLike(Protocol):
        """What a store takes as ``serializer=``."""

        def dumps(self, value: Any, /) -> bytes:
            """Turn a value into bytes, or raise."""
            ...

        def loads(self, data: bytes, /) -> Any:
            """Turn the bytes back into an equal value, or raise."""

else:
    SerializerLike = Any  # for whoever imports it: type checkers know better


__all__ = [
    "Codec",
    "CompressedSerializer",
    "JSONSerializer",
    "PickleSerializer",
    "Serializer",
    "SerializerLike",
    "SignedSerializer",
]


class Serializer:
    """What our serializers have in common. Your own need only ``dumps`` and ``loads``."""

    @property
    def name(self) -> str:
        """How a store remembers what its values were written with."""
        raise NotImplementedError(f"{type(self).__name__} does not say its name.")

    def dumps(self, value: Any) -> bytes:
        """Turn a value into bytes."""
        raise NotImplementedError(f"{type(self).__name__} does not write.")

    def loads(self, data: bytes) -> Any:
        """Turn bytes into an equal value."""
        raise NotImplementedError(f"{type(self).__name__} does not read.")

    def dumps_at(self, value: Any, key: str, namespace: Optional[str]) -> bytes:
        """Like `dumps`, for a serializer that needs to know the place."""
        return self.dumps(value)

    def loads_at(self, data: bytes, key: str, namespace: Optional[str]) -> Any:
        """Like `loads`, for a serializer that needs to know the place."""
        return self.loads(data)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class PickleSerializer(Serializer):
    """Any Python object that pickles. The default on disk and Redis.

    Reading a pickle can run any code: it trusts whoever can write to the store. Where that is not
    only you, use JSON, `RestrictedPickleSerializer`, or sign.

    Args:
        protocol: The pickle protocol; 4 by default, which every Python from 3.8 reads.
    """

    def __init__(self, protocol: int = 4) -> None:
        if isinstance(protocol, bool) or not isinstance(protocol, int):
            raise TypeError(f"A pickle protocol is an int, not {type(protocol).__name__}.")
        if not -1 <= protocol <= pickle.HIGHEST_PROTOCOL:
            raise ValueError(
                f"This Python has pickle protocols up to {pickle.HIGHEST_PROTOCOL}, not {protocol}."
            )
        self._protocol = protocol

    @property
    def name(self) -> str:
        return "pickle"

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value, self._protocol)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class JSONSerializer(Serializer):
    """JSON text: readable with any tool, harmless to read.

    Takes exactly what JSON gives back equal: ``None``, ``bool``, ``int``, finite ``float``,
    ``str``, ``list``, and ``dict`` with ``str`` keys. A tuple (which would come back as a list), a
    number as key, an enum or NaN is refused rather than changed on the way.

    Args:
        strict: ``False`` takes whatever `json.dumps` takes, and gives back what JSON made of it.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self._strict = strict

    @property
    def name(self) -> str:
        return "json"

    def dumps(self, value: Any) -> bytes:
        if self._strict:
            _check_json(value)
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode("utf-8")

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


def _check_json(value: Any) -> None:
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"a key of type {type(key).__name__} would come back as a str")
            _check_json(item)
    elif kind is list:
        for item in value:
            _check_json(item)
    elif kind not in (str, int, float, bool, type(None)):
        raise TypeError(f"{kind.__name__} is a type that would not come back from JSON as it was")


class CompressedSerializer(Serializer):
    """Compresses what another serializer made.

    Args:
        inner: The serializer of the values.
        level: From 1 (fast) to 9 (small).
        threshold: Values below so many bytes are kept as they are.
        limit: The most bytes that one value may have when unpacked, so that a planted bomb stops.
    """

    def __init__(
        self,
        inner: Optional[SerializerLike] = None,
        *,
        level: int = 6,
        threshold: int = 512,
        limit: int = 1 << 30,
    ) -> None:
        for name, number in (("level", level), ("threshold", threshold), ("limit", limit)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name}= is an int, not {type(number).__name__}.")
        if not 1 <= level <= 9:
            raise ValueError(f"level= is from 1 (fast) to 9 (small), not {level}.")
        if threshold < 0 or limit < 1:
            raise ValueError(f"threshold= and limit= are numbers of bytes: {threshold}, {limit}.")
        self._inner = PickleSerializer() if inner is None else inner
        self._level = level
        self._threshold = threshold
        self._limit = limit

    @property
    def name(self) -> str:
        return f"zlib({name_of(self._inner)})"

    def dumps(self, value: Any) -> bytes:
        return self._pack(self._inner.dumps(value))

    def loads(self, data: bytes) -> Any:
        return self._inner.loads(self._unpack(data))

    def dumps_at(self, value: Any, key: str, namespace: Optional[str]) -> bytes:
        return self._pack(_dumps_at(self._inner, value, key, namespace))

    def loads_at(self, data: bytes, key: str, namespace: Optional[str]) -> Any:
        return _loads_at(self._inner, self._unpack(data), key, namespace)

    def _pack(self, data: bytes) -> bytes:
        if len(data) > self._limit:
            raise ValueError(f"{len(data)} bytes are over the limit of {self._limit}")
        # The first byte says which: 0 as it is, 1 compressed.
        if len(data) < self._threshold:
            return b"\0" + data
        return b"\1" + zlib.compress(data, self._level)

    def _unpack(self, data: bytes) -> bytes:
        kind, body = data[:1], data[1:]
        if kind == b"\0":
            return body
        if kind != b"\1":
            raise ValueError("these bytes were not written by CompressedSerializer")
        unpacker = zlib.decompressobj()
        # One byte more than allowed is asked for, to tell the limit from what is beyond it.
        whole = unpacker.decompress(body, self._limit + 1)
        if len(whole) > self._limit:
            raise ValueError(f"more than the limit of {self._limit} bytes when unpacked")
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("the compressed bytes are torn")
        return whole


class SignedSerializer(Serializer):
    """Signs what another serializer made, with HMAC-SHA256.

    Bytes that were not signed with one of the keys, for this very key and namespace, are refused
    before the inner serializer sees them. The reader alone fixes the algorithm. It does not hide
    the value, and does not notice when an older signed value of the same key is put back.

    Args:
        secret: The secret to sign with; at least 16 bytes.
        inner: The serializer of the values.
        accept: Older secrets that are still accepted when reading, to change secrets in steps.
    """

    _MARK = b"kvs1"
    _DIGEST = 32

    def __init__(
        self,
        secret: bytes,
        inner: Optional[SerializerLike] = None,
        *,
        accept: Iterable[bytes] = (),
    ) -> None:
        secrets = [secret, *accept]
        for each in secrets:
            if not isinstance(each, bytes):
                raise TypeError(f"A secret is bytes, not {type(each).__name__}.")
            if len(each) < 16:
                raise ValueError("A secret has at least 16 bytes: secrets.token_bytes(32).")
        self._secrets = secrets
        self._inner = PickleSerializer() if inner is None else inner

    @property
    def name(self) -> str:
        return f"signed({name_of(self._inner)})"

    def dumps(self, value: Any) -> bytes:
        raise TypeError("A signature covers key and namespace: use dumps_at().")

    def loads(self, data: bytes) -> Any:
        raise TypeError("A signature covers key and namespace: use loads_at().")

    def dumps_at(self, value: Any, key: str, namespace: Optional[str]) -> bytes:
        data = _dumps_at(self._inner, value, key, namespace)
        return self._MARK + self._sign(self._secrets[0], data, key, namespace) + data

    def loads_at(self, data: bytes, key: str, namespace: Optional[str]) -> Any:
        start = len(self._MARK) + self._DIGEST
        if data[: len(self._MARK)] != self._MARK or len(data) < start:
            raise ValueError("these bytes are not signed")
        signature, body = data[len(self._MARK) : start], data[start:]
        # Every secret is tried, so that the time taken does not tell which one matched.
        good = [
            hmac.compare_digest(signature, self._sign(secret, body, key, namespace))
            for secret in self._secrets
        ]
        if not any(good):
            raise ValueError(
                "the signature does not fit: changed, moved from another key or namespace, or "
                "signed with another secret"
            )
        return _loads_at(self._inner, body, key, namespace)

    def _sign(self, secret: bytes, data: bytes, key: str, namespace: Optional[str]) -> bytes:
        place = key.encode("utf-8")
        # Each part goes with its length, or "ab" + "c" would be signed like "a" + "bc". None and
        # a name are told apart by the first byte.
        space = b"\0" if namespace is None else b"\1" + namespace.encode("utf-8")
        mac = hmac.new(secret, self._MARK, hashlib.sha256)
        for part in (self.name.encode("utf-8"), space, place):
            mac.update(len(part).to_bytes(8, "big") + part)
        mac.update(data)
        return mac.digest()

    def __repr__(self) -> str:
        return f"<SignedSerializer {self.name}, secret not shown>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "A SignedSerializer does not pickle, because its secret would travel along. Make one "
            "in each process."
        )


def name_of(serializer: Any) -> str:
    """The name by which a store remembers the serializer."""
    name = getattr(serializer, "name", None)
    if isinstance(name, str):
        return name
    if hasattr(serializer, "__name__"):  # a module, such as pickle
        return str(serializer.__name__)
    return f"{type(serializer).__module__}.{type(serializer).__qualname__}"


def _dumps_at(serializer: Any, value: Any, key: str, namespace: Optional[str]) -> bytes:
    at = getattr(serializer, "dumps_at", None)
    data = serializer.dumps(value) if at is None else at(value, key, namespace)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"{name_of(serializer)}.dumps gave {type(data).__name__}, not bytes")
    return bytes(data)


def _loads_at(serializer: Any, data: bytes, key: str, namespace: Optional[str]) -> Any:
    at = getattr(serializer, "loads_at", None)
    return serializer.loads(data) if at is None else at(data, key, namespace)


class Codec:
    """The seam between a store and its serializer: whatever it raises becomes ours.

    `encode` and `decode` know key and namespace, for messages and for signatures.
    """

    def __init__(self, serializer: Optional[SerializerLike] = None) -> None:
        self.serializer: Any = PickleSerializer() if serializer is None else serializer
        if isinstance(self.serializer, type):
            raise TypeError(f"Pass an instance: serializer={self.serializer.__name__}().")
        for method in ("dumps", "loads"):
            if not callable(getattr(self.serializer, method, None)):
                raise TypeError(
                    f"A serializer has dumps() and loads(); {type(serializer).__name__} has no "
                    f"{method}()."
                )
        self.name: str = name_of(self.serializer)
        # Whoever has a loads() of its own has it for a reason, perhaps to refuse.
        plain = type(self.serializer) is PickleSerializer and not (
            set(dir(Serializer)) & vars(self.serializer).keys()
        )
        #: Reads a value from an open file as `decode` does from bytes, but for its errors;
        #: ``None`` where the serializer wants bytes.
        self.load: Optional[Callable[[IO[bytes]], Any]] = pickle.load if plain else None
        # The protocol of plain pickle, which is written and read without the serializer's frames.
        self._pickled: Optional[int] = vars(self.serializer)["_protocol"] if plain else None

    def encode(self, value: Any, key: str, namespace: Optional[str]) -> bytes:
        """The bytes of `value`, or `SerializationError`."""
        try:
            if self._pickled is not None:
                return pickle.dumps(value, self._pickled)
            return _dumps_at(self.serializer, value, key, namespace)
        except Exception as error:  # a serializer is anybody's code: it may raise anything
            let_through(error)
            raise SerializationError(
                f"A value of type {type(value).__name__} for {where(key, namespace)} can't be "
                f"serialised with {self.name}: {_reason(error)}. Nothing was stored."
            ) from error

    def encode_each(self, items: Mapping[str, Any], namespace: Optional[str]) -> List[bytes]:
        """The bytes of each value; `SerializationError` at the first that has none."""
        if self._pickled is not None:
            # Without a frame for each; which one is bad is found below.
            try:
                encoded = list(map(pickle.dumps, items.values(), repeat(self._pickled)))
            except Exception as error:
                let_through(error)
            else:
                if len(encoded) == len(items):  # else one raised StopIteration
                    return encoded
        return [self.encode(value, key, namespace) for key, value in items.items()]

    def decode(self, data: bytes, key: str, namespace: Optional[str]) -> Any:
        """The value of `data`, or `SerializationError`."""
        try:
            if self.load is not None:
                return pickle.loads(data)  # without two frames: this is the path of most reads
            return _loads_at(self.serializer, data, key, namespace)
        except Exception as error:  # so may the class that is being read
            let_through(error)
            raise SerializationError(
                f"What is stored under {where(key, namespace)} can't be read with {self.name}: "
                f"{_reason(error)}. It is left where it is; set() replaces it, delete() drops it."
            ) from error

    def decode_each(
        self, keys: Sequence[str], found: Sequence[bytes], namespace: Optional[str]
    ) -> Dict[str, Any]:
        """The value of each key; `SerializationError` at the first that can't be read."""
        if self.load is not None:
            # Without a frame for each; which one is bad is found below.
            try:
                values = dict(zip(keys, map(pickle.loads, found)))
            except Exception as error:
                let_through(error)
            else:
                if len(values) == len(keys):  # else one raised StopIteration
                    return values
        return {key: self.decode(data, key, namespace) for key, data in zip(keys, found)}


def _reason(error: BaseException) -> str:
    try:
        text = str(error).rstrip(".")
    except Exception:  # anybody's __str__
        text = ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
