"""`cached_many`: for functions that take many ids and return a dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from ..protocol import KVStoreProtocol
from ..rules import TTL, NoExpiry, check_namespace
from .declaration import Options
from .decorator import check_store, check_version, one_of, place_of, unwrapped
from .flights import Flight, Outcome, flown_by_us
from .flow import Flow, Steps
from .freshness import Freshness

if TYPE_CHECKING:
    from .surface import Decorator

__all__ = ["cached_many"]


def cached_many(
    store: KVStoreProtocol,
    *,
    ttl: Union[TTL, NoExpiry, None] = None,
    ids: Optional[str] = None,
    namespace: Optional[str] = None,
    ignore: Iterable[str] = (),
    version: Union[str, int, None] = None,
    jitter: float = 0.0,
    on_error: str = "compute",
) -> Decorator:
    """Remember each item that a function returns for a list of ids.

    For functions, methods and coroutine functions that take many ids and return a dictionary by id.
    The ids that are stored come from the store in one round trip; only the missing ones reach the
    function, in one call (none, if nothing is missing); what it returned goes back in one. Ids
    that it leaves out of its result are asked for again next time.

    Callers at the same time do not wait for each other here.

    Args:
        store: Any store or view.
        ttl: Seconds (or a ``timedelta``) to remember an item; ``None``: until it is dropped, or
            for the default ttl of a view; `NO_EXPIRY`: until it is dropped, also in such a view.
        ids: The parameter that takes the ids; by default the first one that is not ``self`` or
            ``cls``. All other parameters are part of each item's key.
        namespace: As for `cached`.
        ignore: As for `cached`.
        version: As for `cached`.
        jitter: As for `cached`; one draw for each call.
        on_error: As for `cached`.

    Returns:
        A decorator. What it makes has the handles of `cached`: ``invalidate([1, 2])``,
        ``refresh([1, 2])``, ``peek([1, 2])`` (those that are stored), ``cache_key([1])``.

    Example:
        >>> from kv_store_adapter import MemoryKVStore, cached_many
        >>> @cached_many(MemoryKVStore(), ttl=60)
        ... def load(ids):
        ...     print("loading", ids)
        ...     return {i: i * i for i in ids}
        >>> load([1, 2]), load([2, 3])
        loading [1, 2]
        loading [3]
        ({1: 1, 2: 4}, {2: 4, 3: 9})
    """
    check_store(store)
    if callable(ttl):
        raise TypeError("ttl= of @cached_many is seconds or a timedelta, not a function.")
    ignored = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    options = Options(
        freshness=Freshness(ttl, jitter, None, 0.0),
        cache_if=None,
        key=None,
        ignore=ignored,
        version=check_version(version),
        tags=(),
        lock=None,
        lock_ttl=10.0,
        lock_timeout=60.0,
        on_error=one_of("on_error", on_error, ("compute", "raise")),
    )
    check_namespace(namespace)

    def decorate(function: Any) -> Any:
        from .wrapper import decorate as wrap

        plain, kind, is_async = unwrapped(function)
        place, label = place_of(plain, store, namespace, None)
        name = getattr(plain, "__qualname__", place)
        flow = _ManyFlow(plain, name, store, place, label, options, ids)
        parameters = {
            "maxsize": None,
            "typed": True,
            "ttl": ttl,
            "ids": flow.ids,
            "namespace": place,
            "ignore": ignored,
            "version": version,
            "jitter": jitter,
            "on_error": on_error,
        }
        return wrap(flow, kind, is_async, parameters)

    return decorate


class _ManyFlow(Flow):
    """A function of many ids: a key for each, a round trip for all."""

    def __init__(self, *args: Any) -> None:
        *plain, ids = args
        super().__init__(*plain)
        names = self.binding.plain_names
        if ids is None:
            rest = [name for name in names if name not in ("self", "cls")]
            if not rest:
                raise TypeError(f"{self.name}() has no parameter that could take the ids.")
            ids = rest[0]
        if ids not in names:
            raise ValueError(f"ids= names {ids!r}, which {self.name}() does not have.")
        if ids in self.options.ignore:
            raise ValueError("The ids can't be ignored: they tell the items apart.")
        self.ids: str = ids
        self._index = names.index(ids)

    @property
    def hits_are_raw(self) -> bool:
        return False

    def _with(self, values: Tuple[Any, ...], ids: Any) -> Tuple[Any, ...]:
        return (*values[: self._index], ids, *values[self._index + 1 :])

    def _wanted(self, values: Tuple[Any, ...]) -> Dict[Any, str]:
        """The ids of a call, in order and without repeats, and the key of each."""
        given = values[self._index]
        if isinstance(given, (str, bytes)):
            raise TypeError(f"{self.name}() takes a list of ids, not one id. Write [id].")
        one_key = super().key
        wanted: Dict[Any, str] = {}
        for each in given:
            key = one_key(self._with(values, each))
            if wanted.setdefault(each, key) != key:
                raise TypeError(
                    f"{self.name}() was asked for {each!r:.80} twice, as two types that are equal: "
                    "one dictionary can't hold both. Pass ids of one type."
                )
        return wanted

    def key(self, values: Tuple[Any, ...]) -> str:
        """The key of a call with exactly one id."""
        keys = self.keys(values)
        if len(keys) != 1:
            raise ValueError(f"Each id has a key of its own: ask for one, not {len(keys)}.")
        return keys[0]

    def keys(self, values: Tuple[Any, ...]) -> List[str]:
        """The key of each id."""
        return list(self._wanted(values).values())

    def call(
        self,
        values: Tuple[Any, ...],
        trouble: Optional[Exception] = None,
        key: Optional[str] = None,
    ) -> Steps:
        """A call: what is stored from the store, the rest from the function. `key` says nothing."""
        from .switch import is_disabled, off

        wanted = self._wanted(values)
        if off and is_disabled(self.root):
            return (yield "run", (self._with(values, list(wanted)), ()))
        found: Dict[str, Any] = {}
        if wanted:
            found = yield from self._look_many(list(wanted.values()))
        missing = [each for each, key in wanted.items() if key not in found]
        for _ in range(len(wanted) - len(missing)):
            self.tally.hits.add()
        if not missing:
            return Outcome({each: found[key] for each, key in wanted.items()})
        for _ in missing:
            self.tally.misses.add()
        outcome = yield from self._compute_many(values, {each: wanted[each] for each in missing})
        if outcome.error is not None:
            return outcome
        fresh = outcome.value
        return Outcome(
            {
                each: found[key] if key in found else fresh[each]
                for each, key in wanted.items()
                if key in found or each in fresh
            }
        )

    def _look_many(self, keys: List[str]) -> Steps:
        reading = self.health.reading
        if not reading.allows():
            self.skipped()
            return {}
        try:
            found = yield "read_many", (keys,)
        except Exception as error:  # a third party's store may raise anything
            self.in_trouble(error, keys[0], "read")
            return {}
        reading.worked()
        return found

    def _compute_many(self, values: Tuple[Any, ...], missing: Dict[Any, str]) -> Steps:
        flights = {each: self.board.begin(key) for each, key in missing.items()}
        try:
            return (yield from self._run_and_keep(values, missing, flights))
        finally:
            for flight in flights.values():
                self.board.end(flight)

    def _run_and_keep(
        self, values: Tuple[Any, ...], missing: Dict[Any, str], flights: Dict[Any, Flight]
    ) -> Steps:
        outcome: Outcome = yield "run", (self._with(values, list(missing)), flown_by_us())
        if outcome.error is not None:
            return outcome
        if not isinstance(outcome.value, Mapping):
            what = type(outcome.value).__name__
            return Outcome(error=TypeError(f"{self.name}() returned a {what}, not a dictionary."))
        fresh = {each: outcome.value[each] for each in missing if each in outcome.value}
        _, keep = self.options.freshness.lifetimes(self.name, None, lambda function: None)
        # What was invalidated meanwhile goes to the caller, not into the store; and so does what
        # can be used once only.
        kept = {missing[each]: v for each, v in fresh.items() if not flights[each].doomed}
        kept = {key: value for key, value in kept.items() if not self.is_one_shot(value)}
        if kept:
            written = [flight for flight in flights.values() if flight.key in kept]
            try:
                yield from self._keep_many(kept, keep)
            except GeneratorExit:
                raise  # a coroutine that is being closed: nothing can be awaited any more
            except BaseException:
                yield from self._drop_doomed(written)  # they may have been written all the same
                raise
            yield from self._drop_doomed(written)
        return Outcome(fresh)

    def _keep_many(self, kept: Dict[str, Any], ttl: Any) -> Steps:
        writing = self.health.writing
        if self.health.reading.open or not writing.allows():
            self.skipped()
            return
        try:
            yield "write_many", (kept, self.stored_ttl(ttl))
        except Exception as error:  # a third party's store may raise anything
            self.in_trouble(error, next(iter(kept)), "write")
        else:
            writing.worked()

    def _drop_doomed(self, flights: List[Flight]) -> Steps:
        """Drop what was invalidated while it was written: at worst newer ones, a miss each."""
        doomed = [flight.key for flight in flights if flight.doomed]
        if doomed:
            try:
                yield "drop_many", (doomed,)
            except Exception as error:  # a third party's store may raise anything
                self.in_trouble(error, doomed[0], "write")

    def refresh(self, values: Tuple[Any, ...]) -> Steps:
        """Compute all of them now, and replace what is stored."""
        wanted = self._wanted(values)
        for key in wanted.values():
            # Who computes already began before this call: what comes of that is out of date.
            self.board.doom(key)
        return (yield from self._compute_many(values, wanted))

    def peek(self, values: Tuple[Any, ...]) -> Steps:
        """Those that are stored; nothing is computed."""
        wanted = self._wanted(values)
        found = yield "read_many", (list(wanted.values()),)
        return {each: found[key] for each, key in wanted.items() if key in found}
