"""How a call becomes a key: binding, options, templates, and whose keys they are."""

from __future__ import annotations

import decimal
import functools
import itertools
import sys
import typing
import uuid
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_store_adapter import (
    MemoryKVStore,
    UnkeyableArgumentError,
    cached,
    cached_many,
)
from kv_store_adapter.identity import text_of
from kv_store_adapter.keys import Template
from shapes import (
    NOON,
    Level,
    Name,
    Own,
    Plain,
    Point,
    endless_list,
    function,
    function_of,
    key_of,
    keyed,
)

# ---------------------------------------------------------------------- binding


def test_one_call_has_one_key_however_it_is_written() -> None:
    """f(1, 2), f(1, b=2), f(b=2, a=1) and the default are one call."""

    def f(a: Any, b: Any = 2, *, c: Any = 3) -> None: ...

    key = keyed(f)
    same = [
        key(1),
        key(1, 2),
        key(1, b=2),
        key(a=1, b=2),
        key(b=2, a=1),
        key(1, c=3),
        key(c=3, a=1),
    ]
    assert len(set(same)) == 1
    assert len({key(1), key(1, 3), key(2), key(1, c=4), key("1"), key(True), key(1.0)}) == 7


def test_positional_only_parameters_and_kwargs_of_one_name_are_apart() -> None:
    """f(1, a=2) with def f(a, /, **more) has two things called a."""
    key = keyed(function_of("def f(a, /, **more): pass"))
    assert key(1, a=2) == key(1, a=2) != key(2, a=1)
    with pytest.raises(TypeError):
        key(a=1)


def test_star_arguments_count_in_order_and_keywords_in_none() -> None:
    """*args are a sequence; the order of **kwargs does not count."""
    assert key_of(1, 2) != key_of(2, 1)
    assert key_of((1, 2)) != key_of(1, 2)
    assert key_of(a=1, b=2) == key_of(b=2, a=1) != key_of(a=2, b=1)
    assert key_of({"a": 1}) != key_of(a=1)
    assert key_of() != key_of(None) != key_of(*[None, None])


def test_parameters_may_have_any_name() -> None:
    """Names that our own code might use are the function's to use."""
    key = keyed(function_of("def f(self, function, values, cls, _kv_a, off=1, *, key=2): pass"))
    assert key(1, 2, 3, 4, 5) == key(1, 2, 3, 4, _kv_a=5, off=1, key=2)


@pytest.mark.parametrize("call", [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"a": 1})])
def test_a_wrong_call_is_the_functions_own_type_error(call: Tuple[Any, Any]) -> None:
    """Missing, surplus and doubled arguments are refused as Python does, by the function's name."""

    def load(a: Any, b: Any = 2) -> None: ...

    args, kwargs = call
    # Python 3.8 and 3.9 don't say the qualified name, but that of the code.
    name = "load" if sys.version_info >= (3, 10) else r"\(\)"
    with pytest.raises(TypeError, match=name):
        keyed(load)(*args, **kwargs)


def test_self_and_cls_count() -> None:
    """Instances are apart by who they say they are, classes by name."""
    store = MemoryKVStore()

    class Repo(Own):
        @cached(store)
        def load(self, n: int) -> None: ...

        @cached(store)
        @classmethod
        def make(cls, n: int) -> None: ...

    class Sub(Repo): ...

    assert Repo("a").load.cache_key(1) == Repo("a").load.cache_key(1)
    assert Repo("a").load.cache_key(1) != Repo("b").load.cache_key(1)
    assert Repo("a").load.cache_key(1) != Sub("a").load.cache_key(1)
    assert Repo.make.cache_key(1) == Repo("a").make.cache_key(1) != Sub.make.cache_key(1)


def test_a_self_without_identity_is_refused() -> None:
    """An instance that doesn't say who it is is neither shared nor told by its address."""

    class Repo:
        @cached(MemoryKVStore())
        def load(self, n: int) -> int:
            return n

        @cached(MemoryKVStore(), ignore=("self",))
        def shared(self, n: int) -> int:
            return n

    with pytest.raises(UnkeyableArgumentError, match=r"'self'.*ignore=\('self',\)"):
        Repo().load(1)
    assert Repo().shared.cache_key(1) == Repo().shared.cache_key(1)


# ---------------------------------------------------------------------- ignore=, version=, key=


def test_ignored_parameters_do_not_count() -> None:
    """They may be anything; *args and **kwargs are named without stars."""

    def f(a: Any, session: Any = None, *args: Any, **more: Any) -> None: ...

    assert keyed(f, ignore=("session",))(1, Plain()) == keyed(f, ignore="session")(1, object())
    assert keyed(f, ignore=("session",))(1) != keyed(f, ignore=("session",))(2)
    loose = keyed(f, ignore=("args", "more"))
    assert loose(1, 2, 3, x=4) == loose(1, 2)
    with pytest.raises(ValueError, match="sesion"):
        keyed(f, ignore=("sesion",))


def test_versions_abandon_what_was_stored_before() -> None:
    """No version, 1 and "1" are three; other versions are refused."""

    def f(a: Any) -> None: ...

    versions = [None, 1, "1", 2, "", "1:(a=1)"]
    assert len({keyed(f, version=version)(1) for version in versions}) == len(versions)
    templates = {keyed(f, version=version, key="{a}")(1) for version in versions}
    assert len(templates) == len(versions)
    for wrong in (True, 1.0, b"1", (1,)):
        with pytest.raises(TypeError):
            keyed(f, version=wrong)


def test_a_key_function_is_asked_with_the_bound_arguments() -> None:
    """Defaults are filled in, self is included, and what it returns is the key."""

    def f(a: Any, b: Any = 2, *rest: Any, **more: Any) -> None: ...

    key = keyed(f, key=lambda a, b, *rest, **more: f"{a}/{b}/{rest}/{sorted(more)}")
    assert key(1) == key(b=2, a=1) == "1/2/()/[]"
    assert key(1, 2, 3, x=4) == "1/2/(3,)/['x']"

    class Repo:
        name = "r"

        @cached(MemoryKVStore(), key=lambda self, n: f"{self.name}:{n}")
        def load(self, n: int) -> None: ...

    assert Repo().load.cache_key(7) == "r:7"


def test_a_key_function_must_give_a_str() -> None:
    """Anything else is the caller's mistake, and says so."""
    with pytest.raises(TypeError, match="a key is a str"):
        keyed(function, key=lambda: 7)()


# ---------------------------------------------------------------------- templates


def filled(template: str, *args: Any, **kwargs: Any) -> str:
    """What a template makes of a call of f(a, b="c")."""

    def f(a: Any = None, b: Any = "c", *, day: Any = None) -> None: ...

    return typing.cast("str", keyed(f, key=template)(*args, **kwargs))


def test_a_template_is_the_key() -> None:
    """Plain fields, attributes, items, conversions, formats and doubled braces, as str.format."""
    assert filled("user:{a}:{b}", 7) == "user:7:c"
    assert filled("{a.x}-{a.y.x}", Point("p", Point(3))) == "p-3"
    assert filled("{a[0]}:{a[1]}", [1, 2]) == "1:2"
    assert filled("{day:%Y-%m}", day=NOON) == "2024-03"
    assert filled("{day:%Y-%m}-{a}", 1, day=NOON) == "2024%2D03-1"
    assert filled("{a!r}", "x") == "'x'"
    assert filled("{{{a}}}", 1) == "{1}"
    assert filled("all") == "all"


def test_a_template_identifies_by_text() -> None:
    """1 and "1" meet, as whoever writes a template wants; enums by their value."""
    assert filled("u:{a}", 1) == filled("u:{a}", "1") == filled("u:{a}", Level.LOW) == "u:1"
    assert filled("u:{a}", Name.RED) == "u:red"
    assert filled("u:{a}", None) == "u:None"
    assert filled("u {a}", uuid.UUID(int=1)) == f"u {uuid.UUID(int=1)}"
    assert filled("u {a}", Path("x/y")) == "u x/y"
    assert filled("u:{a}", (1, "x")) == 'u:(1,"x")'


def test_a_template_names_star_arguments_without_stars() -> None:
    """{args[0]} and {more[x]} are what lands in *args and **more."""

    def f(*args: Any, **more: Any) -> None: ...

    key = keyed(f, key="{args[0]}:{more[x]}")
    assert key("a", x="b") == "a:b"
    with pytest.raises(ValueError, match="names 'user', and the function has args, more"):
        keyed(f, key="{user}")
    with pytest.raises(ValueError, match="the function has no parameters"):
        keyed(lambda: 1, key="{user}", namespace="n")


def test_a_conversion_is_for_what_says_something() -> None:
    """{a!s} takes a class with a __str__ of its own, {a!r} and {a!a} one with a __repr__."""

    class Said:
        def __str__(self) -> str:
            return "said"

    class Shown:
        def __repr__(self) -> str:
            return "sh\u00f6wn"

    assert filled("{a!s}", Said()) == "said"
    for conversion in "ra":
        with pytest.raises(UnkeyableArgumentError):
            filled(f"{{a!{conversion}}}", Said())
    assert filled("{a!s}") == "None"
    assert [filled(f"{{a!{c}}}", Shown()) for c in "sra"] == [
        "sh\u00f6wn",
        "sh\u00f6wn",
        "sh\\xf6wn",
    ]
    assert filled("{a!r:>5}", "x") == "  'x'"


def test_what_is_text_by_itself_is_written_plainly() -> None:
    """Numbers, dates and paths as str() has them; anything else by the text that keys have."""

    class Folder:
        def __fspath__(self) -> str:
            return "not this"

        def __str__(self) -> str:
            return "folder"

    for value in (True, 1.5, decimal.Decimal("1.50"), NOON, NOON.date(), Path("a"), Folder()):
        assert filled("{a}", value) == str(value)
    for value in (b"x", (1,), NOON.time(), {"x"}, Point(1), Folder):
        assert filled("{a}", value) == text_of(value)


@pytest.mark.usefixtures("deep_stack")
def test_a_refusal_names_the_field() -> None:
    """The error names the field as the template does, and the class of what is in it."""
    with pytest.raises(
        UnkeyableArgumentError, match=r"The argument 'a\.x' of .* is a shapes\.Plain,"
    ):
        filled("{a.x}:{b}", Point(Plain()))
    with pytest.raises(
        UnkeyableArgumentError, match="is a builtins.list that holds a shapes.Plain,"
    ):
        filled("{b}", 1, [Plain()])
    with pytest.raises(UnkeyableArgumentError, match="contains itself, or is nested too deep"):
        filled("{a}", endless_list())


def test_separators_in_values_are_escaped() -> None:
    """("a:b", "c") and ("a", "b:c") are two calls."""
    assert filled("u:{a}:{b}", "a:b", "c") == "u:a%3Ab:c"
    assert filled("u:{a}:{b}", "a", "b:c") == "u:a:b%3Ac"
    assert filled("u:{a}", "100%") == "u:100%25"


# Marks, letters, digits, the escape's own sign, and characters whose number would look like it.
_SEPARATORS = [
    "::",
    ":",
    "%",
    "%%&",
    "x",
    "xy",
    "2",
    "25",
    "a:",
    ":a",
    "│",
    "●",
    "!",
    "→",
    "é",
    "{{",
]


@given(
    st.lists(st.sampled_from(_SEPARATORS), min_size=1, max_size=2),
    st.lists(st.text("x:%2│5aé!&0A→y●{", max_size=4), min_size=6, max_size=6),
)
def test_values_of_a_template_never_run_into_each_other(
    separators: List[str], texts: List[str]
) -> None:
    """Different texts in the fields give different keys, whatever stands between the fields."""
    names = ["a", "b", "c"][: len(separators) + 1]
    template = Template(
        "".join(f"{{{n}}}{s}" for n, s in itertools.zip_longest(names, separators, fillvalue="")),
        names,
    )
    one, other = (dict(zip(names, part)) for part in (texts[:3], texts[3:]))
    assert (template.fill("f", one) == template.fill("f", other)) == (one == other)


def test_escapes_of_rare_marks_stay_apart() -> None:
    """A mark beyond ASCII, and the text its escape would have if it were not escaped itself."""
    assert filled("{a}│{b}", "│", "") != filled("{a}│{b}", "%02", "")
    assert filled("{a}%{b}", "p", "25q%r") != filled("{a}%{b}", "p%q", "25r")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{user}", "names 'user', and the function has a, b, day"),
        ("{}", "a field without name"),
        ("{0}", "names '0'"),
        ("{a}{b}", "touch"),
        ("x{a}{b}y", "touch"),
        ("{a:{b}}", "inside the format"),
        ("{a", "'}'"),
    ],
)
def test_a_template_that_could_not_work_is_refused_at_decoration(template: str, why: str) -> None:
    """Unknown and nameless fields, fields that touch, fields in fields, broken braces."""
    with pytest.raises(ValueError, match=why):
        filled(template, 1)


@pytest.mark.usefixtures("deep_stack")
def test_a_template_refuses_what_has_no_identity() -> None:
    """Neither {a} nor {a!r} ever writes an address."""
    for template in ("{a}", "{a!r}", "{a!s}", "{a!a}"):
        with pytest.raises(UnkeyableArgumentError, match="The argument 'a' of"):
            filled(template, Plain())
    with pytest.raises(UnkeyableArgumentError):
        filled("{a}", endless_list())


# ---------------------------------------------------------------------- whose keys


def test_functions_keep_apart_by_module_and_name() -> None:
    """Each function has a namespace of its own; one that is shared has their names in its keys."""
    store = MemoryKVStore()

    def one(a: Any) -> str:
        return f"one {a}"

    def two(a: Any) -> str:
        return f"two {a}"

    assert (cached(store)(one)(1), cached(store)(two)(1)) == ("one 1", "two 1")
    place = cached(store)(one).cache_parameters()["namespace"]
    assert place == f"{__name__}.{one.__qualname__}"
    shared = [cached(store, namespace="n")(f) for f in (one, two)]
    assert [f(1) for f in shared] == ["one 1", "two 1"]
    assert len({f.cache_key(1) for f in shared}) == 2
    assert len(store.keys("n")) == 2


def test_two_lambdas_are_not_taken_for_one() -> None:
    """Lambdas have one name: the second one needs a namespace of its own."""
    store = MemoryKVStore()
    one, two = (lambda a: a + 1), (lambda a: a + 2)
    assert cached(store)(one)(1) == 2
    with pytest.raises(ValueError, match="namespace="):
        cached(store)(two)
    assert cached(store, namespace="two")(two)(1) == 3
    # Elsewhere, or by itself again, it does no harm.
    assert cached(MemoryKVStore())(two)(1) == 3
    assert cached(store)(one)(1) == 2


def test_lambdas_in_a_shared_namespace_are_not_taken_for_one() -> None:
    """Their names would not tell them apart there, either."""
    store = MemoryKVStore()
    one, two = (lambda a: a + 1), (lambda a: a + 2)
    cached(store, namespace="n")(one)
    with pytest.raises(ValueError, match="namespace="):
        cached(store, namespace="n")(two)


def test_functions_of_one_name_from_two_modules_are_not_taken_for_one() -> None:
    """In a shared namespace keys start with module and name; one template there is refused."""
    store = MemoryKVStore()
    one, two = (function_of("def f(a): return 1") for _ in range(2))
    two.__module__ = "elsewhere"
    keys = {cached(store, namespace="n")(each).cache_key(1) for each in (one, two)}
    assert len(keys) == 2
    cached(store, namespace="n", key="k:{a}")(one)
    with pytest.raises(ValueError, match=r"elsewhere\.f\(\) would store its results where"):
        cached(store, namespace="n", key="k:{a}")(two)
    assert cached(store, namespace="n", key="other:{a}")(two)(1) == 1
    assert cached(store)(one)(1) == cached(store)(two)(1) == 1


def test_views_of_one_store_are_places_apart() -> None:
    """Two lambdas in two views don't meet; in one view they do."""
    store = MemoryKVStore()
    one, two = (lambda a: a + 1), (lambda a: a + 2)
    assert cached(store.namespace("x"))(one)(1) == 2
    assert cached(store.namespace("y"))(two)(1) == 3
    with pytest.raises(ValueError, match="namespace="):
        cached(store.namespace("x"))(two)


def test_a_function_that_is_defined_anew_keeps_its_place() -> None:
    """A cell of a notebook that runs again is the same function, and finds its results."""
    store = MemoryKVStore()
    one, two = (function_of("def f(a): return a") for _ in range(2))
    first, second = cached(store)(one), cached(store)(two)
    assert first.cache_key(1) == second.cache_key(1)
    assert first.cache_parameters()["namespace"] == second.cache_parameters()["namespace"]


def test_functions_with_keys_of_their_own_may_share_a_namespace() -> None:
    """With key= the user says what the key is, and two functions may mean the same entry."""
    store = MemoryKVStore()
    one = cached(store, namespace="users", key="user:{a}")(lambda a: f"one {a}")
    two = cached(store, namespace="users", key="user:{b}")(lambda b: f"two {b}")
    assert one(1) == "one 1"
    assert two(1) == "one 1"


def test_a_callable_without_a_name_needs_a_namespace() -> None:
    """A partial has no name to store its results under."""
    partial = functools.partial(lambda a, b: a + b, 1)
    with pytest.raises(TypeError, match="namespace="):
        cached(MemoryKVStore())(partial)
    assert cached(MemoryKVStore(), namespace="n")(partial)(2) == 3


def test_the_ids_of_cached_many_are_keyed_one_by_one() -> None:
    """Each id has the key that a call with it alone would have; 1, "1" and True are three."""

    @cached_many(MemoryKVStore())
    def load(ids: Any, full: bool = False) -> Any:
        return {each: repr(each) for each in ids}

    assert len({load.cache_key([each]) for each in (1, "1", True, 1.0)}) == 4
    assert load.cache_key([1]) == load.cache_key((1,)) == load.cache_key(ids={1}, full=False)
    assert load.cache_key([1]) != load.cache_key([1], full=True)
