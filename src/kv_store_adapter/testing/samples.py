"""What the suite tries: hostile texts, bad input of every kind, and a way to let time pass."""

from __future__ import annotations

import itertools
import sys
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from threading import Barrier, Thread
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from ..protocol import KVStoreProtocol
from ..rules import LONGEST_KEY

__all__: List[str] = []

_AWKWARD = [
    *("/", ".", "..", "../..", "a/b", "/etc/passwd", "C:\\x", "\\", "a\\:b", "CON", "nul.txt", "~"),
    *("\0", "a\0b", "\n", "a\r\nb", "\t", "\x1b[0m", "\x7f", " ", " a", "a ", "a.", ".a"),
    *(":", "::", "a:b", "a::b", "%", "%3A", "%25", "%253A", "'", '"', "';--", "{a}", "$1", "None"),
    *("*", "?", "[]", "[", "]", "[!a]", "a*", "^a", "-", "0", "1", "True"),
    # Case twins, and texts that some case folding takes for the same.
    *("key", "KEY", "Key", "ß", "ss", "SS", "ı", "i", "I", "İ", "K", "\u212a", "σ", "ς"),
    # The same on the screen, composed and decomposed.
    *("\u00e9", "e\u0301", "\u212b", "\u00c5", "A\u030a", "\ufb01", "fi"),
    *("\u202e", "\ufeff", "\ufeffa", "\u200b", "\uffff", "\ue000", "\U0010ffff", "\U00010000"),
    *("🙂", "👩‍👩‍👧", "漢字", "عربي", "नमस्ते", "x" * 255, "x" * 256, "é" * 200, "ab" * 2000),
]

#: Keys that some backend might mangle, all different.
KEYS = ["", *_AWKWARD]

#: Namespaces that some backend might mangle, all different.
NAMESPACES = list(_AWKWARD)

#: All texts of up to two of the characters that separate, escape or match somewhere.
SHORT = ["", *(a + b for a, b in itertools.product(":\\/%a*", ["", *":\\/%a*"]))]

#: Patterns with every kind of bracket, wildcard and literal.
PATTERNS = [
    *("*", "**", "", "a", "a*", "*a", "*a*", "?", "??", "a?", "?a", "a**b", "*?", "?*"),
    *("[ab]", "[!a]", "[!a]*", "[a-b]*", "[]]", "[!]]", "[]-a]", "[a-]", "[-a]", "[a", "[", "]"),
    *("[!]", "[]", "[*]", "[?]", "[[]", "[^a]", "^a", "$", "\\", "\\*", "\\a", "[\\]", "[\\]]*"),
    *(
        "a\\",
        "a[",
        "a[b",
        "a[]",
        "a]",
        "{a,b}",
        "a.",
        ".",
        ".*",
        "A*",
        "[A-Z]*",
        "a\n",
        "\n",
        "*\n",
    ),
    *("é", "[é]", "?é", "🙂*", "a:*", ":*", "%*", "a\0*"),
]

#: Values of the kinds that people store; each comes back equal, and of the same type.
VALUES: List[Any] = [
    *(None, True, False, 0, 1, -1, 10**30, 1.5, "", "text", "é\0🙂", b"", b"\0\xff", (), (1, "a")),
    *([], [1, [2, None]], {}, {"a": {"b": [1]}}, {1: "int key"}, {1, 2}, frozenset("ab")),
    *(timedelta(days=1), Decimal("1.10"), "x" * 100_000, b"\0" * 100_000),
]

#: No keys, by type; and with ``None`` taken out no namespaces.
WRONG_TYPES: List[Any] = [None, b"key", 1, 1.0, True, ["key"], ("key",), {"key"}, object()]

#: No keys and no namespaces, by content.
WRONG_TEXTS = ["\ud800", "a\udfffb", "x" * (LONGEST_KEY + 1), "é" * (LONGEST_KEY // 2 + 1)]

#: No ttl, by value.
WRONG_TTLS: List[Any] = [
    *(0, -1, 0.0, -0.0, -0.5, True, False, float("nan"), float("inf"), -float("inf")),
    *(timedelta(0), timedelta(seconds=-1), timedelta(days=40_000), 3_155_760_001, 1e300, 10**400),
]

#: No ttl, by type.
WRONG_TTL_TYPES: List[Any] = [
    "60",
    b"60",
    [60],
    (60,),
    {},
    Decimal(60),
    Fraction(60),
    60j,
    object(),
]


class OddText(str):
    """A text that hashes and compares like nothing else: a key all the same, by its text."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return self is other


class LooseText(str):
    """A text that is equal to others, whatever its letters' case: a key by its own text."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(self.lower())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == str.lower(other)


class Endless:
    """Raises StopIteration, as a slip with next() does, when it is pickled or when it is read."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __getstate__(self) -> Dict[str, str]:
        if self.when == "written":
            raise StopIteration
        return {"when": self.when}

    def __setstate__(self, state: Dict[str, str]) -> None:
        if state["when"] == "read":
            raise StopIteration


def travel(seconds: float) -> AbstractContextManager[Any]:
    """Let `seconds` pass at once, for this process, until the block ends.

    Raises:
        ImportError: The package time-machine, which does it, is not installed.
    """
    try:
        import time_machine
    except ImportError as error:
        raise ImportError("travel() needs time-machine: pip install time-machine.") from error

    journey: AbstractContextManager[Any] = time_machine.travel(time.time() + seconds, tick=True)
    return journey


def contents(
    store: KVStoreProtocol, namespaces: Iterable[Optional[str]]
) -> Dict[Optional[str], Dict[str, Any]]:
    """All that `namespaces` hold, read one by one."""
    return {name: {key: store.get(key, name) for key in store.keys(name)} for name in namespaces}


def calls_with_key(store: KVStoreProtocol) -> Dict[str, Callable[[Any, Any], Any]]:
    """Every operation that takes a key and a namespace, by name."""
    return {
        "get": store.get,
        "set": lambda key, name: store.set(key, "new", name),
        "delete": store.delete,
        "ttl": store.ttl,
        "exists": store.exists,
        "add": lambda key, name: store.add(key, "new", name),
        "pop": lambda key, name: store.pop(key, name, default=None),
        "touch": store.touch,
        "get_many": lambda key, name: store.get_many(["fine", key], name),
        "set_many": lambda key, name: store.set_many({"fine": "new", key: "new"}, name),
        "delete_many": lambda key, name: store.delete_many(["fine", key], name),
        "reader": lambda key, name: store.reader(name)(key),
        "lock": store.lock,
    }


def calls_with_namespace(store: KVStoreProtocol) -> Dict[str, Callable[[Any], Any]]:
    """Every operation that takes a namespace alone, by name."""
    return {
        "keys": store.keys,
        "iter_keys": lambda name: list(store.iter_keys(name)),
        "clear_namespace": store.clear_namespace,
        "namespace": store.namespace,
        "as_mapping": store.as_mapping,
        **{name: partial(call, "fine") for name, call in calls_with_key(store).items()},
    }


def calls_with_ttl(store: KVStoreProtocol) -> Dict[str, Callable[[Any], Any]]:
    """Every operation that takes a ttl, by name."""
    return {
        "set": lambda ttl: store.set("fine", "new", None, ttl),
        "add": lambda ttl: store.add("absent", "new", None, ttl),
        "touch": lambda ttl: store.touch("fine", None, ttl),
        "set_many": lambda ttl: store.set_many({"fine": "new", "absent": "new"}, None, ttl),
        "namespace": lambda ttl: store.namespace("a", ttl=ttl),
        "as_mapping": lambda ttl: store.as_mapping(None, ttl),
        "lock": lambda ttl: store.lock("fine", ttl=ttl),
    }


def at_once(count: int, work: Callable[[int], Any]) -> List[Any]:
    """Run ``work(0)`` to ``work(count - 1)`` in as many threads that start together.

    Returns their results in order; what one of them raised is raised here.
    """
    barrier = Barrier(count)
    outcomes: List[Tuple[Any, Optional[BaseException]]] = [(None, None)] * count

    def run(number: int) -> None:
        try:
            barrier.wait(30)
            outcomes[number] = work(number), None
        except BaseException as error:  # carried over to the caller's thread, whatever it is
            outcomes[number] = None, error

    threads = [Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    # By default a thread runs for 5 ms at a stretch, in which most races are over.
    stretch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(stretch)
    assert not any(thread.is_alive() for thread in threads), "a thread did not come back"
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]
