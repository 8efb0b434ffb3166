"""What `@cached` promises of plain functions, on every store."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import enum
import functools
import gc
import inspect
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, List, Optional, get_type_hints

import pytest
import time_machine

from kv_store_adapter import (
    KeyNotFoundError,
    KVStoreProtocol,
    MemoryKVStore,
    StoreClosedError,
    UnkeyableArgumentError,
    cached,
    caching_disabled,
)
from kv_store_adapter.caching import decorator, switch
from kv_store_adapter.testing.samples import at_once

_module_store = MemoryKVStore()


@cached(_module_store, ttl=60)
def at_module_level(number: int, factor: int = 2) -> int:
    """Multiply."""
    return number * factor


class Level(enum.IntEnum):
    TWO = 2


class Model:
    """A class whose methods are cached."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __cache_key__(self) -> str:
        return self.name

    @cached(_module_store)
    def scaled(self, factor: int) -> str:
        """Repeat."""
        return self.name * factor

    @cached(_module_store)
    @classmethod
    def named(cls, number: int) -> List[Any]:
        return [cls.__name__, number]

    @classmethod
    @cached(_module_store)
    def named_too(cls, number: int) -> List[Any]:
        return [cls.__name__, -number]

    @cached(_module_store)
    @staticmethod
    def negative(number: int) -> int:
        return -number

    @staticmethod
    @cached(_module_store)
    def negative_too(number: int) -> int:
        return -number


def test_one_call_is_one_entry(store: KVStoreProtocol) -> None:
    """f(1, 2), f(1, b=2) and f(a=1, b=2) are one entry; 1, 1.0, True and "1" are four."""
    calls: List[Any] = []

    @cached(store)
    def f(a: Any, b: int = 2) -> Any:
        calls.append(a)
        return [type(a).__name__, a, b]

    assert f(1) == f(1, 2) == f(1, b=2) == f(a=1, b=2) == f(b=2, a=1) == ["int", 1, 2]
    assert len(calls) == 1
    assert [f(1.0), f(True), f("1")] == [["float", 1.0, 2], ["bool", True, 2], ["str", "1", 2]]
    assert [f(1)[0], f(1.0)[0], f(True)[0], f("1")[0]] == ["int", "float", "bool", "str"]
    assert len(calls) == 4


def test_none_is_remembered(store: KVStoreProtocol) -> None:
    """A result of None is a result: it is not computed again."""
    calls: List[int] = []

    @cached(store)
    def f(x: int) -> Optional[int]:
        calls.append(x)
        return None

    assert f(1) is None
    assert f(1) is None
    assert calls == [1]


def test_exceptions_are_not_remembered(store: KVStoreProtocol) -> None:
    """What raises is computed again next time, and raises what the function raised."""
    calls: List[int] = []

    @cached(store)
    def f(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            raise StopIteration("first")
        return x

    with pytest.raises(StopIteration, match="first"):
        f(1)
    assert f(1) == 1
    assert calls == [1, 1]


def test_results_expire() -> None:
    """After its ttl a result is computed anew."""
    with time_machine.travel(1_700_000_000, tick=False) as clock:
        calls: List[int] = []

        @cached(MemoryKVStore(), ttl=30)
        def f(x: int) -> int:
            calls.append(x)
            return x

        f(1)
        clock.shift(29.999)
        f(1)
        assert calls == [1]
        clock.shift(0.001)
        f(1)
        assert calls == [1, 1]


def test_parameters_of_every_kind(store: KVStoreProtocol) -> None:
    """Positional-only, keyword-only, *args and **kwargs are bound as Python binds them."""

    @cached(store)
    def f(a: int, /, b: int = 2, *args: int, c: int, d: int = 4, **kwargs: int) -> List[Any]:
        return [a, b, list(args), c, d, kwargs]

    assert f(1, c=3) == [1, 2, [], 3, 4, {}]
    assert f(1, 2, c=3, d=4) == f(1, b=2, c=3) == [1, 2, [], 3, 4, {}]
    assert f(1, 2, 9, 8, c=3, x=1, y=2) == f(1, 2, 9, 8, c=3, y=2, x=1)
    assert f.cache_key(1, 2, 9, c=3) != f.cache_key(1, 2, c=3)
    # As it is stored, so that an upgrade finds what was stored before.
    assert (
        f.cache_key(1, 2, 9, c=3, x=1, a=5) == '(a=1,b=2,*args=(9),c=3,d=4,**kwargs={"a":5,"x":1})'
    )
    with pytest.raises(TypeError, match="argument"):
        f(c=3)
    assert f(1, c=3, a=5) == [1, 2, [], 3, 4, {"a": 5}]


def test_signature_and_hints_survive() -> None:
    """Signature, type hints, docstring, names and __wrapped__ are the function's own."""
    f = at_module_level
    assert str(inspect.signature(f)) == "(number: 'int', factor: 'int' = 2) -> 'int'"
    assert get_type_hints(f) == {"number": int, "factor": int, "return": int}
    assert (f.__name__, f.__qualname__, f.__module__) == (
        "at_module_level",
        "at_module_level",
        __name__,
    )
    assert f.__doc__ == "Multiply."
    assert inspect.unwrap(f) is f.__wrapped__
    assert f.__wrapped__(3) == 6
    assert not inspect.iscoroutinefunction(f)
    assert str(inspect.signature(Model("a").scaled)) == "(factor: 'int') -> 'str'"
    assert Model("a").scaled.__doc__ == "Repeat."


def test_pickles_by_name() -> None:
    """Decorated functions and bound methods pickle, copy, and stay what they are."""
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level
    assert copy.copy(at_module_level) is at_module_level
    assert copy.deepcopy(at_module_level) is at_module_level
    bound = pickle.loads(pickle.dumps(Model("ab").scaled))
    assert bound(2) == "abab"
    assert pickle.loads(pickle.dumps(Model.scaled)) is Model.__dict__["scaled"]


def test_what_stands_above_keeps_its_own_handles() -> None:
    """lru_cache above @cached has its own cache_clear(): ours would leave it as it is."""
    rows = {1: "old"}

    @functools.lru_cache(maxsize=None)
    @cached(MemoryKVStore())
    def load(number: int) -> str:
        return rows[number]

    assert load(1) == "old"
    rows[1] = "new"
    assert load(1) == "old"
    assert load.cache_info() == (1, 1, None, 1)
    load.__wrapped__.cache_clear()  # type: ignore[attr-defined]
    assert load(1) == "old"
    load.cache_clear()
    assert load(1) == "new"


@pytest.mark.parametrize("name", ["\ufb01", "größe", "__debug__", "None", "1", "<lambda>"])
def test_functions_of_any_name(name: str) -> None:
    """Also a name that Python's compiler would not take, or would take for another one."""

    def function(number: int) -> int:
        return number + 1

    function.__name__ = name
    decorated = cached(MemoryKVStore())(function)
    assert decorated(1) == decorated(1) == decorated.peek(1) == 2
    assert decorated.__name__ == name


def test_without_wrapt_s_part_in_c() -> None:
    """Where wrapt could not be compiled, or is told not to use it, all is the same."""
    program = """
from kv_store_adapter import MemoryKVStore, cached
import wrapt, types
assert isinstance(wrapt.CallableObjectProxy.__call__, types.FunctionType), "wrapt's part in C"

@cached(MemoryKVStore())
def double(number): return 2 * number

class Account:
    def __cache_key__(self): return "ann"
    @cached(MemoryKVStore())
    def balance(self, year): return [year]

assert double(2) == double(2) == double.peek(2) == 4
assert double.cache_info()[:2] == (1, 1)
ann = Account()
assert ann.balance(1) is ann.balance(1) is ann.balance.peek(1)
assert ann.balance.invalidate(1) is True
print(double.__name__, double.__wrapped__(3))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "WRAPT_DISABLE_EXTENSIONS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "double 6\n", "")


def test_methods_of_every_kind_pickle_by_name() -> None:
    """Class methods and static methods pickle as they are asked of a class, in either order."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for name in ("named", "named_too", "negative", "negative_too"):
            for owner in (Model, Model("ab")):
                method = getattr(owner, name)
                assert pickle.loads(pickle.dumps(method, protocol))(3) == method(3)
        for name in ("named", "negative"):
            itself = Model.__dict__[name]
            assert pickle.loads(pickle.dumps(itself, protocol)) is itself


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_works_in_a_process_pool(method: str) -> None:
    """A process pool runs decorated functions, forked and spawned."""
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        assert pool.submit(at_module_level, 21).result(60) == 42
        assert list(pool.map(Model("x").scaled, [1, 2], timeout=60)) == ["x", "xx"]


def test_generators_are_refused() -> None:
    """Generator functions are refused at decoration, with what to do instead."""

    def items() -> Any:
        yield 1

    async def aitems() -> Any:
        yield 1

    class Items:
        def __call__(self) -> Any:
            yield 1

    for function in (items, aitems, Items(), staticmethod(items)):
        with pytest.raises(TypeError, match=r"\(\) is a generator function.* Return a list"):
            cached(MemoryKVStore(), namespace="n")(function)  # type: ignore[arg-type]


def test_what_is_no_function_is_refused() -> None:
    """Forgotten parentheses, classes and properties are refused with a sentence."""
    with pytest.raises(TypeError, match=r"write @cached\(store\)"):
        cached(lambda: 1)  # type: ignore[arg-type]
    for no_store in (MemoryKVStore, {}, None):
        with pytest.raises(TypeError, match="takes a store, not"):
            cached(no_store)  # type: ignore[arg-type]
    for nothing in (5, None, "f"):
        with pytest.raises(TypeError, match="functions, not (int|NoneType|str)"):
            cached(MemoryKVStore(), namespace="n")(nothing)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="Model is a class"):
        cached(MemoryKVStore())(Model)
    with pytest.raises(TypeError, match="put @property above"):
        cached(MemoryKVStore())(property(lambda self: 1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ttl": 0}, ValueError, "above zero"),
        ({"ttl": True}, ValueError, "not True"),
        ({"ttl": "60"}, TypeError, "not str"),
        ({"stale": 5}, ValueError, "need a ttl"),
        ({"ttl": 5, "jitter": 1.5}, ValueError, "from 0 to 1"),
        ({"ttl": 5, "jitter": True}, TypeError, "not bool"),
        ({"lock": "redis"}, ValueError, "^lock= is one of None, 'store', not 'redis'"),
        ({"on_error": "ignore"}, ValueError, "^on_error= is one of 'compute', 'raise', not"),
        ({"version": 1.5}, TypeError, "str or an int"),
        ({"ignore": ("y",)}, ValueError, "does not have"),
        ({"key": "user:{y}"}, ValueError, "names 'y'"),
        ({"key": 5}, TypeError, "template or a function, not int"),
        ({"namespace": ""}, ValueError, "can't be empty"),
        ({"lock_ttl": None}, TypeError, "not None"),
    ],
)
def test_bad_options_are_refused(options: Any, error: Any, message: str) -> None:
    """Every bad option is refused at decoration, not at the first call at night."""
    with pytest.raises(error, match=message):
        cached(MemoryKVStore(), **options)(lambda x: x)


def test_each_function_has_its_namespace(store: KVStoreProtocol) -> None:
    """Two functions never share entries, and clearing one leaves the other's."""

    @cached(store)
    def f(x: int) -> str:
        return "f"

    @cached(store)
    def g(x: int) -> str:
        return "g"

    assert [f(1), g(1), f(1), g(1)] == ["f", "g", "f", "g"]
    assert len(store.list_namespaces()) == 2
    f.cache_clear()
    assert g.peek(1) == "g"
    with pytest.raises(KeyNotFoundError) as info:
        f.peek(1)
    assert info.value.key == f.cache_key(1)
    assert info.value.namespace == f.cache_parameters()["namespace"]


def test_functions_in_one_namespace_stay_apart(store: KVStoreProtocol) -> None:
    """Two functions that were given one namespace have keys of their own in it."""

    @cached(store, namespace="shared")
    def f(x: int) -> str:
        return "f"

    @cached(store, namespace="shared")
    def g(x: int) -> str:
        return "g"

    assert [f(1), g(1), f(1), g(1)] == ["f", "g", "f", "g"]


def test_lambdas_of_one_name_are_refused() -> None:
    """Two lambdas of one module have one name: the second is refused, not confused."""
    store = MemoryKVStore()
    first = cached(store)(lambda x: "first")
    with pytest.raises(ValueError, match="namespace="):
        cached(store)(lambda x: "second")
    assert first(1) == "first"


def test_unkeyable_arguments_always_raise(store: KVStoreProtocol) -> None:
    """An argument without identity is a TypeError that names it and the ways out."""

    @cached(store)
    def f(connection: object) -> int:
        return 1

    with pytest.raises(
        UnkeyableArgumentError, match="'connection'.*__cache_key__.*ignore="
    ) as info:
        f(object())
    assert isinstance(info.value, TypeError)
    assert "0x" not in str(info.value)


def test_ignored_parameters_do_not_count(store: KVStoreProtocol) -> None:
    """ignore= leaves parameters out of the key, whatever they are."""

    @cached(store, ignore=("connection",))
    def f(x: int, connection: object = None) -> int:
        return x

    assert f(1, object()) == f(1, object()) == 1
    assert f.cache_info().hits == 1


def test_key_function_and_template(store: KVStoreProtocol) -> None:
    """key= takes a function of the bound arguments, or a template that escapes separators."""

    @cached(store, key=lambda a, b: f"{a}-{b}")
    def f(a: int, b: int = 2) -> int:
        return a * b

    @cached(store, key="{a}:{b}")
    def g(a: str, b: str) -> str:
        return a + "|" + b

    assert f(1) == f(1, b=2) == 2
    assert f.cache_key(1) == "1-2"
    assert g("a:b", "c") == "a:b|c"
    assert g("a", "b:c") == "a|b:c"
    assert g.cache_key("x", "y") == "x:y"


def test_key_function_must_give_text() -> None:
    """A key= that gives no str is a TypeError, under on_error="compute", too."""
    f = cached(MemoryKVStore(), key=lambda x: x, namespace="n")(lambda x: x)
    with pytest.raises(TypeError, match="gave a int; a key is a str"):
        f(1)


def test_version_abandons_old_entries(store: KVStoreProtocol) -> None:
    """Another version= sees none of the old results; 1 and "1" are two versions."""

    def f(x: int) -> str:
        return answer

    answer = "old"
    assert cached(store, version=1)(f)(1) == "old"
    answer = "new"
    assert cached(store, version=1)(f)(1) == "old"
    assert cached(store, version=2)(f)(1) == "new"
    answer = "text"
    assert cached(store, version="1")(f)(1) == "text"


@pytest.mark.parametrize("extra", [{}, {"tags": "t"}])
def test_versions_and_keys_of_ones_own_never_meet(store: KVStoreProtocol, extra: Any) -> None:
    """A key that looks like another version's is none, whatever a user makes keys of."""
    texts = ["a", "v2:a", "=a", "=v2:a", "~a", "~v2:a", "==a", "v'2':a", 'v"2":a', "v-2:a", "v2:"]
    versions: List[Any] = [None, 2, -2, "2", "a"]

    def f(x: str) -> str:
        return x

    functions = [
        cached(store, namespace="n", key="{x}", version=version, **extra)(f) for version in versions
    ]
    keys = [function.cache_key(text) for function in functions for text in texts]
    assert len(set(keys)) == len(texts) * len(versions)
    member = cached(store, namespace="n", key="{x}", version=Level.TWO, **extra)(f)
    assert member.cache_key("a") == functions[1].cache_key("a")  # a plain 2
    plain = cached(store, namespace="n", key="{x}")(f)
    for text in ("a", "user:7", "v", "vip:7", "version 2", "v2"):
        assert plain.cache_key(text) == text  # and others stay as they were made


def test_what_can_be_used_once_is_not_stored(caplog: pytest.LogCaptureFixture) -> None:
    """A plain function that returns a generator keeps working, uncached, with a warning."""

    @cached(MemoryKVStore(), namespace="once")
    def f() -> Any:
        return (x for x in [1, 2])

    assert list(f()) == [1, 2]
    assert list(f()) == [1, 2]
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "f(): it returned a generator, which can be used once only and is not cached. "
        "Return a list."
    )


def test_caching_can_be_switched_off(store: KVStoreProtocol) -> None:
    """caching_disabled() runs bodies and stores nothing, for all stores or for one."""
    calls: List[int] = []

    @cached(store)
    def f(x: int) -> int:
        calls.append(x)
        return x

    with caching_disabled():
        f(1)
        with caching_disabled(store):
            f(1)
        f(1)
    with caching_disabled(MemoryKVStore()):
        f(1)
        f(1)
    assert calls == [1, 1, 1, 1]
    with caching_disabled(store):
        f(1)
    assert len(calls) == 5
    f(1)
    assert len(calls) == 5


def test_caching_is_off_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched off by another thread in the middle of a call, it is off for the next one."""
    calls: List[int] = []

    @cached(MemoryKVStore())
    def f(x: int) -> int:
        calls.append(x)
        return x

    f(1)
    with caching_disabled():  # as for every function, the next call makes its key anew
        pass
    flow = f._self_cached.flow  # type: ignore[attr-defined]
    real = flow.key
    with contextlib.ExitStack() as stack:

        def key(values: Any) -> Any:
            made = real(values)
            stack.enter_context(caching_disabled())
            return made

        with monkeypatch.context() as patch:
            patch.setattr(flow, "key", key)
            f(1)
        assert calls == [1, 1]
        f(1)
        assert calls == [1, 1, 1]
    f(1), f(1)
    assert calls == [1, 1, 1]


def test_a_hit_finds_its_key_without_comparing_letters() -> None:
    """What a function remembers is the very object under which the store has the result."""
    store = MemoryKVStore()

    @cached(store)
    def f(x: int) -> int:
        return x

    f(1)
    (stored,) = store.keys(f._self_cached.flow.namespace)  # type: ignore[attr-defined]
    remembered = [key for keys in switch._all_remembered.values() for key in keys.values()]
    assert any(key is stored for key in remembered)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_closed_view_gives_no_hits(store: KVStoreProtocol, is_async: bool) -> None:
    """A function that is cached in a view which was closed does as with any store that is closed."""
    view, other = store.namespace("v"), store.namespace("v")
    calls: List[int] = []

    def plain(x: int) -> int:
        calls.append(x)
        return x

    async def awaited(x: int) -> int:
        return plain(x)

    def do(function: Any) -> Any:
        return asyncio.run(function(1)) if is_async else function(1)

    f = awaited if is_async else plain
    raising = cached(view, namespace="n", on_error="raise")(f)
    computing = cached(view, namespace="n")(f)
    elsewhere = cached(other, namespace="n")(f)
    for function in (raising, computing, elsewhere) * 2:
        assert do(function) == 1
    assert calls == [1]
    view.close()
    for call in (raising, raising, raising.peek, computing.peek):
        with pytest.raises(StoreClosedError):
            do(call)
    assert calls == [1]
    assert do(computing) == do(computing) == 1
    assert calls == [1, 1, 1]
    assert do(elsewhere) == 1
    assert calls == [1, 1, 1]


@pytest.mark.parametrize("how", ["closed", "off"])
def test_threads_find_no_hits_where_there_are_none(how: str) -> None:
    """In many threads, too, no call finds a key that another one is about to forget again."""
    view, value = MemoryKVStore().namespace("v"), ["old"]

    @cached(view, namespace="n")
    def f(x: int) -> str:
        return value[0]

    f(1)
    with contextlib.ExitStack() as stack:
        if how == "closed":
            view.close()
        else:
            stack.enter_context(caching_disabled())
        value[0] = "new"
        found: List[str] = []
        at_once(4, lambda me: found.extend(f(1) for _ in range(2000)))
        assert set(found) == {"new"}


def test_functions_that_are_gone_are_forgotten() -> None:
    """A program that decorates functions for ever does not remember their keys."""
    before = len(switch._all_remembered)
    for _ in range(20):
        f = cached(MemoryKVStore())(lambda x: x)
        f(1)
    del f
    gc.collect()
    assert len(switch._all_remembered) <= before


def test_parameter_names_do_not_matter(store: KVStoreProtocol) -> None:
    """Parameters may have any name, that of a builtin or of ours included."""

    @cached(store)
    def f(type: int, _kv_find: int, len: int = 3, **self: int) -> List[Any]:
        return [type, _kv_find, len, self]

    assert f(1, 2) == f(1, 2) == [1, 2, 3, {}]
    assert f(1, _kv_find=2, len=4, x=5) == [1, 2, 4, {"x": 5}]


def test_wrong_calls_are_pythons_own_errors(store: KVStoreProtocol) -> None:
    """A wrong call is the TypeError that the function itself would raise, and computes nothing."""

    def bare(a: int, *, b: int, c: int = 3) -> List[int]:
        return [a, b, c]

    f = cached(store)(bare)
    assert f(1, b=2) == f(b=2, a=1, c=3) == [1, 2, 3]
    for args, kwargs in (((1, 2), {}), ((1,), {}), ((1, 2, 3), {"b": 4}), ((1,), {"b": 2, "d": 4})):
        with pytest.raises(TypeError) as expected:
            bare(*args, **kwargs)  # type: ignore[arg-type]
        for wrong in (f, f.peek, f.cache_key):
            with pytest.raises(TypeError) as info:
                wrong(*args, **kwargs)
            assert str(info.value) == str(expected.value)
    assert f.cache_info().misses == 1


@pytest.mark.parametrize("name", ["import", "<lambda>", "_kv_slow", "_kv_off", "größe", "a b"])
def test_functions_may_have_any_name(name: str) -> None:
    """A function whose name is a keyword, no name at all, or one of ours is cached like others."""

    def f(x: int) -> int:
        calls.append(x)
        return -x

    calls: List[int] = []
    f.__name__ = name
    for options in ({}, {"ttl": 9, "stale": 9}):
        g = cached(MemoryKVStore(), namespace="n", **options)(f)  # type: ignore[arg-type]
        assert [g(1), g(1), g.peek(x=1), g.__name__] == [-1, -1, -1, name]
    assert calls == [1, 1]


def test_what_has_no_signature_is_refused() -> None:
    """A builtin that does not say what it takes can't have keys; the error says what to do."""
    with pytest.raises(TypeError, match=r"dict.*no key.*function of your own"):
        cached(MemoryKVStore(), namespace="n")({}.update)


def test_its_parameters_are_told() -> None:
    """cache_parameters() has what the decorator was told, and where results are stored."""
    f = cached(MemoryKVStore())(Model.__cache_key__)
    defaults = {
        "maxsize": None,
        "typed": True,
        "ttl": None,
        "namespace": f"{__name__}.Model.__cache_key__",
        "key": None,
        "ignore": (),
        "version": None,
        "jitter": 0.0,
        "cache_if": None,
        "stale": None,
        "early": 0.0,
        "tags": (),
        "lock": None,
        "lock_ttl": 10.0,
        "lock_timeout": 60.0,
        "on_error": "compute",
    }
    assert f.cache_parameters() == defaults
    f.cache_parameters().clear()
    assert f.cache_parameters() == defaults
    told = {
        "ttl": 60,
        "namespace": "n",
        "key": "{x}",
        "ignore": ("y",),
        "version": 2,
        "jitter": 0.5,
        "cache_if": bool,
        "stale": 9,
        "early": 1.0,
        "tags": ("a", "b"),
        "lock": "store",
        "lock_ttl": 5,
        "lock_timeout": 6,
        "on_error": "raise",
    }
    g = cached(MemoryKVStore(), **told)(lambda x, y: x)  # type: ignore[arg-type]
    assert g.cache_parameters() == {"maxsize": None, "typed": True, **told}


def test_functions_are_named_in_errors() -> None:
    """Errors name a function by its qualified name, and one that has none by its namespace."""
    store = MemoryKVStore()
    partial = functools.partial(divmod, 3)
    with pytest.raises(TypeError, match="^A partial has no name .* pass namespace="):
        cached(store)(partial)
    with pytest.raises(UnkeyableArgumentError, match=r" of place\(\) "):
        cached(store, namespace="place")(partial)(object())

    class Inner:
        @cached(store, ignore=("self",))
        def method(self, x: object) -> None:
            """Do nothing."""

    name = "test_functions_are_named_in_errors.<locals>.Inner.method"
    with pytest.raises(UnkeyableArgumentError, match=rf" of {name}\(\) "):
        Inner().method(object())
    assert f"<cached {name} in " in repr(Inner.method)


def test_two_functions_with_one_template_in_one_place_are_refused() -> None:
    """They would take each other's results: refused at decoration, by whatever way they meet."""
    store = MemoryKVStore()

    def f(x: int) -> str:
        return "f"

    def g(x: int) -> str:
        return "g"

    first = cached(store, namespace="a:b", key="{x}")(f)
    same = "{{{}}}".format("x")  # equal, but an object of its own, as in another module
    for place, namespace in ((store, "a:b"), (store.namespace("a"), "b")):
        with pytest.raises(
            ValueError, match=r"\.g\(\) would store its results where .*\.f\(\) does"
        ):
            cached(place, namespace=namespace, key=same)(g)
    assert cached(store, namespace="a:b", key="g{x}")(g)(1) == "g"
    assert cached(store.namespace("c"), namespace="b", key="{x}")(g)(1) == "g"
    assert cached(MemoryKVStore(), namespace="a:b", key="{x}")(g)(1) == "g"
    assert first(1) == "f"
    del first, f
    gc.collect()
    assert cached(store, namespace="a:b", key="{x}")(g)(1) == "f"  # who is gone is in nobody's way


def test_closures_that_share_their_results_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Made again by its outer function with something else in it: a warning says what to do."""
    store = MemoryKVStore()

    def scaler(factor: Any) -> Any:
        @cached(store)
        def scaled(n: int) -> Any:
            return factor(n)

        return scaled

    def recursion() -> Any:
        @cached(store)
        def factorial(n: int) -> int:
            return n * factorial(n - 1) if n else 1

        return factorial

    kept = [scaler(abs), scaler(abs), recursion(), recursion()]
    assert caplog.records == []  # what they captured is the same: of the latter each has itself
    kept.append(scaler(hash))
    (record,) = caplog.records
    assert record.name == "kv_store_adapter"
    message = record.getMessage()
    assert "scaler.<locals>.scaled() was decorated twice" in message
    assert "namespace=" in message


def test_functions_may_be_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    """Defined again in a notebook, or made again by an outer function: no error and no warning."""
    store = MemoryKVStore()

    def make() -> Any:
        return cached(store)(lambda x: x)

    def define(answer: int) -> Any:
        scope = {"__name__": "notebook"}
        exec(f"def f(x): return {answer}", scope)
        return cached(store)(scope["f"])

    kept = [make(), make(), define(1), define(2)]
    assert [f(7) for f in kept] == [7, 7, 1, 1]
    assert kept[3].invalidate(7) is True
    assert kept[3](7) == 2
    assert caplog.records == []


def test_objects_that_are_called_are_functions_too(store: KVStoreProtocol) -> None:
    """An object with __call__ is cached, and awaited where that is a coroutine function."""

    class Adds:
        def __call__(self, x: int, y: int = 1) -> int:
            calls.append(x)
            return x + y

    class AddsLater:
        async def __call__(self, x: int, y: int = 1) -> int:
            calls.append(x)
            return x + y

    calls: List[int] = []
    adds = cached(store, namespace="a")(Adds())
    later = cached(store, namespace="b")(AddsLater())

    async def main() -> List[int]:
        return [await later(3), await later(x=3, y=1), await later.peek(3)]

    assert [adds(1), adds(1, 1), adds.peek(x=1)] == [2, 2, 2]
    assert asyncio.run(main()) == [4, 4, 4]
    assert calls == [1, 3]


def test_currsize_is_told_where_nobody_has_to_be_asked(store: KVStoreProtocol) -> None:
    """cache_info() counts a memory store's results; asks no disk or server, nor a closed store."""

    @cached(store)
    def f(x: int) -> int:
        return x

    f(1), f(2), f(2)
    info = f.cache_info()
    assert info._asdict() == {
        "hits": 1,
        "misses": 2,
        "maxsize": None,
        "currsize": None if store.waits else 2,
        "stale": 0,
        "errors": 0,
        "waits": 0,
    }
    store.close()
    assert f.cache_info() == info._replace(currsize=None)


def test_hits_are_those_of_the_call(store: KVStoreProtocol) -> None:
    """A hit is of these arguments and this function, whatever was asked before or lies elsewhere."""

    @cached(store, namespace="n")
    def one(x: Any) -> List[Any]:
        return [x]

    @cached(store, namespace="n")
    def two(x: Any, y: Any) -> List[Any]:
        return [x, y]

    arguments = [None, 1, "1", 0, "", "None", -1]
    for key in (one.cache_key(1), two.cache_key(1, 1)):
        store.set(key, "of nobody")
        store.set(key, "of somebody else", "m")
    for _ in range(3):
        for x in arguments:
            assert one(x) == [x]
            assert [two(x, y) for y in arguments] == [[x, y] for y in arguments]
    assert one.cache_info()[:2] == (14, 7)
    assert two.cache_info()[:2] == (98, 49)


def test_long_arguments_are_not_held_on_to() -> None:
    """Of a call whose key is a digest nothing is kept but the result."""
    f = cached(MemoryKVStore())(len)
    text = "x" * 10_000
    before = sys.getrefcount(text)
    assert f(text) == f(text) == 10_000
    assert sys.getrefcount(text) == before
    assert f.cache_info().hits == 1


def test_key_functions_are_the_callers_to_keep_apart() -> None:
    """Two functions with a key= function each may share a namespace; with the very same one not."""
    store = MemoryKVStore()

    def by_f(x: int) -> str:
        return f"f{x}"

    def f(x: int) -> str:
        return "f"

    def g(x: int) -> str:
        return "g"

    one = cached(store, namespace="n", key=by_f)(f)
    with pytest.raises(ValueError, match="namespace="):
        cached(store, namespace="n", key=by_f)(g)
    two = cached(store, namespace="n", key=lambda x: f"g{x}")(g)
    assert [one(1), two(1), one(1), two(1)] == ["f", "g", "f", "g"]


def test_of_functions_that_are_gone_nothing_is_left() -> None:
    """Their places are free again; the place of one that was defined anew is the new one's."""
    store = MemoryKVStore()

    def define(name: str) -> Any:
        scope = {"__name__": "notebook"}
        exec(f"def {name}(x): return x", scope)
        return cached(store, namespace="n", key="{x}")(scope[name])

    earlier = define("f")
    kept = define("f")
    del earlier
    gc.collect()
    with pytest.raises(ValueError, match="notebook.f"):
        define("g")
    del kept
    gc.collect()
    assert define("g")(1) == 1
    gc.collect()
    for number in range(50):
        cached(store, namespace=f"n{number}")(lambda x: x)
    gc.collect()
    assert not decorator._places[store]
