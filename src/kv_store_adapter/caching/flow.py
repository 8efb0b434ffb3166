"""The one conversation of a cached call: look, compute once, keep.

Written as generators that yield what is to be done (``"read", (key,)``) and are sent what came of
it; `drivers` has the two that do it, plainly and with await. Nothing here waits, so nothing here is
written twice.
"""

from __future__ import annotations

import time
import types
import uuid
from typing import Any, Callable, Dict, Generator, Optional, Tuple

from ..exceptions import (
    InvalidKeyError,
    InvalidTTLError,
    SerializationError,
    StoreUnavailableError,
    where,
)
from ..interruption import interruption
from ..namespace import NamespaceView, root_of
from ..protocol import KVStoreProtocol
from ..rules import MISSING, NO_EXPIRY
from .declaration import Declaration, Options
from .flights import ALONE, LEAD, Board, Chain, Flight, Outcome, chain, flown_by_us
from .freshness import EARLY, FRESH, Envelope
from .health import Health, health_of, warn
from .switch import is_disabled, off
from .tally import Tally

__all__ = ["Flow", "Step"]

Step = Tuple[str, Tuple[Any, ...]]
Steps = Generator[Step, Any, Any]

# What these mean can be seen once only: storing one would give the next caller nothing.
_ONE_SHOT = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)


class Flow(Declaration):
    """One decorated function: its counters, its flights, and how a call goes."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        store: KVStoreProtocol,
        namespace: str,
        label: str,
        options: Options,
    ) -> None:
        super().__init__(function, name, store, namespace, label, options)
        self.root: KVStoreProtocol = root_of(store)
        self.tally: Tally = Tally()
        self.board: Board = Board()
        self.health: Health = health_of(self.root)

    # ------------------------------------------------------------------ a call

    def call(
        self,
        values: Tuple[Any, ...],
        trouble: Optional[Exception] = None,
        key: Optional[str] = None,
    ) -> Steps:
        """A call: from the store, or computed.

        Args:
            values: The bound arguments.
            trouble: What reading raised already, on the compiled path.
            key: The key, where it is known.
        """
        if off and is_disabled(self.root):
            return (yield "run", (values, ()))
        if key is None:
            key = self.key(values)
        landings = self.board.landings
        if trouble is None:
            grade, value = yield from self._look(key)
        else:
            self.in_trouble(trouble, key, "read")
            grade, value = None, None
        if grade is FRESH:
            self.tally.hits.add()
            return Outcome(value)
        if grade is not None:
            (self.tally.hits if grade is EARLY else self.tally.stale).add()
            yield "start", (self._refresh_behind, (key, values, landings))
            return Outcome(value)
        self.tally.misses.add()
        return (yield from self._compute_once(key, values, landings))

    def _look(self, key: str) -> Steps:
        """What the store holds: how good it is (``None``: nothing to serve), and the value."""
        reading = self.health.reading
        if not reading.allows():
            self.skipped()
            return None, None
        try:
            stored = yield "read", (key,)
        except Exception as error:  # a third party's store may raise anything
            self.in_trouble(error, key, "read")
            return None, None
        reading.worked()
        if stored is MISSING:
            return None, None
        if not self.enveloped:
            return FRESH, stored
        envelope = Envelope.unpack(stored)
        if envelope is None:
            return None, None
        if envelope.tags and not (yield from self._tags_hold(envelope.tags, key)):
            return None, None
        return self.options.freshness.judge(envelope), envelope.value

    def _compute_once(self, key: str, values: Tuple[Any, ...], landings: int) -> Steps:
        """Compute, or wait for whoever computes this key already."""
        inside = flown_by_us()
        rounds = 0
        while True:
            mine = Flight(key)
            try:
                role, flight = self.board.join(mine, inside)
                if role is LEAD:
                    return (yield from self._lead(mine, key, values, landings, inside))
            except BaseException:
                # A signal's handler may raise before the flight is led, or in the midst of landing.
                self.board.land(mine, None)
                raise
            if role is ALONE:
                return (yield from self._compute_alone(key, values, inside))
            self.tally.waits.add()
            # The one that was there when this call came may be out of date: a tag may have been
            # invalidated before. Those that it finds after that are younger than itself.
            rounds += 1
            try:
                landed = yield "wait", (flight, self.options.lock_timeout)
            finally:
                self.board.stop_waiting(flight, inside)
            if not landed:
                warn(
                    self.name,
                    "wait",
                    "another call computes %s for more than %g s; computing it here, too.",
                    where(key, self.namespace),
                    self.options.lock_timeout,
                )
                return (yield from self._compute_alone(key, values, inside))
            if flight.outcome is not None and not (
                rounds == 1 and (yield from self._outdated(flight, key))
            ):
                return flight.outcome
            # Its caller was cancelled, or a tag invalidated: one of us takes over.

    def _lead(
        self, flight: Flight, key: str, values: Tuple[Any, ...], landings: int, inside: Chain
    ) -> Steps:
        outcome: Optional[Outcome] = None
        try:
            if self.board.landings != landings:
                # Somebody landed between our look and our start: perhaps with this very key.
                grade, value = yield from self._look(key)
                if grade is not None:
                    outcome = Outcome(value)
                    return outcome
            if self.options.lock is not None:
                outcome = yield from self._compute_locked(flight, key, values, inside)
            else:
                outcome = yield from self._compute(key, values, (*inside, flight), flight)
            return outcome
        except Exception as error:  # cache_if= or ttl= raised: all who wait hear of it
            outcome = Outcome(error=error)
            return outcome
        finally:
            self.board.land(flight, _shared(outcome))

    def _compute_locked(
        self, flight: Flight, key: str, values: Tuple[Any, ...], inside: Chain
    ) -> Steps:
        """Compute under the store's lock, so that other processes wait for the result."""
        # Who holds a store's lock never waits for another one: that could go round in a circle.
        patience = 0.0 if any(f.locked for f in inside) else self.options.lock_timeout
        held = yield from self._lock(key, patience)
        try:
            if held is not None:
                grade, value = yield from self._look(key)
                if grade is not None:
                    return Outcome(value)
                flight.locked = True
            elif patience:
                warn(
                    self.name,
                    "lock",
                    "the lock on %s could not be had; computing without it.",
                    where(key, self.namespace),
                )
            return (yield from self._compute(key, values, (*inside, flight), flight))
        finally:
            if held is not None:
                yield from self._unlock(held, key)

    def _lock(self, key: str, patience: float) -> Steps:
        """The store's lock, or ``None`` where it can't be had."""
        # Taking it is a write: where a full disk refuses that, it can still be read.
        writing = self.health.writing
        if self.health.reading.open or not writing.allows():
            self.skipped()
            return None
        try:
            held = yield "lock", (key, patience)
        except Exception as error:  # a third party's store may raise anything
            self.in_trouble(error, key, "lock")
            return None
        if held is not None:
            writing.worked()
        return held

    def _unlock(self, held: Any, key: str) -> Steps:
        _stop_renewing(held)
        try:
            yield "unlock", (held,)
        except Exception as error:  # as above; the answer is there, and the lease ends by itself
            self.tally.errors.add()
            warn(
                self.name,
                "unlock",
                "the lock on %s could not be given back: %s: %s",
                where(key, self.namespace),
                type(error).__name__,
                error,
            )

    def _compute(self, key: str, values: Tuple[Any, ...], inside: Chain, flight: Flight) -> Steps:
        """Run the function and keep what it returned, unless it was invalidated meanwhile."""
        tokens = flight.tokens = (yield from self._tokens(values, key)) if self._tags else {}
        started = time.perf_counter()
        outcome: Outcome = yield "run", (values, inside)
        took = time.perf_counter() - started
        if outcome.error is not None:
            return outcome
        result = outcome.value
        if self.is_one_shot(result):
            return outcome
        # The user's functions run inside of this flight, like the body: they may call it again.
        token = chain.set(inside)
        try:
            if self.options.cache_if is not None and not self.options.cache_if(result):
                return outcome
            fresh, keep = self.options.freshness.lifetimes(
                self.name, result, lambda function: self.binding.call(function, values)
            )
        finally:
            chain.reset(token)
        if tokens is None or flight.doomed:
            return outcome
        stored = result
        if self.enveloped:
            fresh_until = None if fresh is None else time.time() + fresh
            stored = Envelope(result, fresh_until, took, tokens).pack()
        try:
            yield from self._keep(key, stored, keep, inside)
        except GeneratorExit:
            raise  # a coroutine that is being closed: nothing can be awaited any more
        except BaseException:
            if flight.doomed:  # it may have been written all the same
                yield from self._drop(key)
            raise
        if flight.doomed:
            # Invalidated while it was being written: at worst this drops a newer one, a miss.
            yield from self._drop(key)
        return outcome

    def is_one_shot(self, result: Any) -> bool:
        """Whether a result can be used once only, which is told in the log."""
        if not isinstance(result, _ONE_SHOT):
            return False
        warn(
            self.name,
            "one-shot",
            "it returned a %s, which can be used once only and is not cached. Return a list.",
            type(result).__name__,
        )
        return True

    def _compute_alone(self, key: str, values: Tuple[Any, ...], inside: Chain) -> Steps:
        """Compute without anybody waiting for it."""
        flight = self.board.begin(key)
        try:
            return (yield from self._compute(key, values, inside, flight))
        finally:
            self.board.end(flight)

    def _drop(self, key: str) -> Steps:
        try:
            yield "drop", (key,)
        except Exception as error:  # a third party's store may raise anything
            self.in_trouble(error, key, "write")

    def stored_ttl(self, ttl: Any) -> Any:
        """What the store is told: only views have a default ttl, and know `NO_EXPIRY`."""
        return None if ttl is NO_EXPIRY and not isinstance(self.store, NamespaceView) else ttl

    def _keep(self, key: str, stored: Any, ttl: Any, inside: Chain) -> Steps:
        writing = self.health.writing
        if self.health.reading.open or not writing.allows():
            self.skipped()
            return
        try:
            yield "write", (key, stored, self.stored_ttl(ttl), inside)
        except Exception as error:  # a third party's store may raise anything
            self.in_trouble(error, key, "write")
        else:
            writing.worked()

    # ------------------------------------------------------------------ refreshing

    def _refresh_behind(self, key: str, values: Tuple[Any, ...], landings: int) -> Steps:
        """Refresh an old result in the background, unless somebody does already."""
        flight = Flight(key)
        try:
            if self.board.join(flight, ())[0] is LEAD:
                yield from self._lead_refresh(flight, key, values, landings)
        except BaseException:
            self.board.land(flight, None)  # as in _compute_once()
            raise

    def _lead_refresh(
        self, flight: Flight, key: str, values: Tuple[Any, ...], landings: int
    ) -> Steps:
        outcome: Optional[Outcome] = None
        held = None
        try:
            if self.options.lock is not None:
                held = yield from self._lock(key, 0.0)
                if held is None:
                    return  # another process refreshes it, or the store is in trouble
                flight.locked = True
            if held is not None or self.board.landings != landings:
                # Somebody may have refreshed it since we looked.
                grade, value = yield from self._look(key)
                if grade is FRESH:
                    outcome = Outcome(value)
                    return
            outcome = yield from self._compute(key, values, (flight,), flight)
        except Exception as error:  # in the background nobody else would hear of it
            outcome = Outcome(error=error)
        finally:
            if outcome is not None and outcome.error is not None:
                self._refresh_failed(key, outcome.error)
            self.board.land(flight, _shared(outcome))
            if held is not None:
                yield from self._unlock(held, key)

    def _refresh_failed(self, key: str, error: BaseException) -> None:
        self.tally.errors.add()
        warn(
            self.name,
            "refresh",
            "refreshing %s failed, the old value stays for now: %s: %s",
            where(key, self.namespace),
            type(error).__name__,
            error,
        )

    def refresh(self, values: Tuple[Any, ...]) -> Steps:
        """Compute now and replace what is stored; if that fails, the old value stays."""
        key = self.key(values)
        # Who computes already began before this call: what comes of that is out of date.
        self.board.doom(key)
        return (yield from self._compute_alone(key, values, flown_by_us()))

    def peek(self, values: Tuple[Any, ...]) -> Steps:
        """What is stored, fresh or stale, or `MISSING`; nothing is computed or counted."""
        key = self.key(values)
        stored = yield "read", (key,)
        if stored is MISSING or not self.enveloped:
            return stored
        envelope = Envelope.unpack(stored)
        if envelope is None or self.options.freshness.judge(envelope) is None:
            return MISSING
        if envelope.tags and (yield "tokens", (list(envelope.tags),)) != envelope.tags:
            return MISSING
        return envelope.value

    # ------------------------------------------------------------------ tags

    def _tokens(self, values: Tuple[Any, ...], key: str) -> Steps:
        """The token of each tag of this call, made where there is none; ``None``: in trouble.

        Taken before the function runs: a tag invalidated meanwhile makes the result old at once.
        """
        names = self._tag_names(values)
        if not self.health.reading.allows():
            self.skipped()
            return None
        try:
            tokens: Dict[str, str] = yield "tokens", (names,)
            for name in names:
                if name not in tokens:
                    # Random, so that a tag that was invalidated or evicted never comes back.
                    yield "add_token", (name, uuid.uuid4().hex)
            if len(tokens) < len(set(names)):
                tokens = yield "tokens", (names,)
        except Exception as error:  # a third party's store may raise anything
            self.in_trouble(error, key, "read")
            return None
        # One that is missing still was invalidated this very moment.
        return {name: tokens.get(name, "") for name in names}

    def _tags_hold(self, tags: Dict[str, str], key: str) -> Steps:
        try:
            return (yield "tokens", (list(tags),)) == tags
        except Exception as error:  # a third party's store may raise anything
            self.in_trouble(error, key, "read")
            return False

    def _outdated(self, flight: Flight, key: str) -> Steps:
        """Whether a tag was invalidated while others waited for a result that carries it.

        Some of them may have come after that. Where the store can't say, it is good enough.
        """
        reading = self.health.reading
        if not flight.tokens or reading.open:
            return False
        try:
            tokens = yield "tokens", (list(flight.tokens),)
        except Exception as error:  # a third party's store may raise anything
            self.in_trouble(error, key, "read")
            return False
        return tokens != flight.tokens

    # ------------------------------------------------------------------ trouble

    def in_trouble(self, error: Exception, key: str, doing: str) -> None:
        """The store failed: raise, or warn, count, and go on without it."""
        if isinstance(error, (TypeError, InvalidKeyError, InvalidTTLError)):
            raise error  # the caller's mistake, or the declaration's
        unreadable = isinstance(error, SerializationError) and doing == "read"
        if isinstance(error, StoreUnavailableError):
            (self.health.reading if doing == "read" else self.health.writing).failed()
        if self.options.on_error == "raise" and not unreadable:
            raise error
        self.tally.errors.add()
        warn(
            self.name,
            f"{doing} {type(error).__name__}",
            "the store could not %s %s; %s. %s: %s",
            doing,
            where(key, self.namespace),
            "computed and overwritten" if unreadable else "the call was answered without it",
            type(error).__name__,
            error,
        )

    def skipped(self) -> None:
        """The breaker is open: the store is not asked."""
        if self.options.on_error == "raise":
            raise StoreUnavailableError(
                f"The store of {self.name}() failed a moment ago and is not asked again yet. "
                "Look for the first error in the log."
            )
        self.tally.errors.add()


def _shared(outcome: Optional[Outcome]) -> Optional[Outcome]:
    """What those who wait get to see: not that this caller was interrupted or cancelled."""
    if outcome is None or outcome.error is None:
        return outcome
    if isinstance(outcome.error, Exception) and interruption(outcome.error) is None:
        return outcome
    return None


def _stop_renewing(held: Any) -> None:
    """Let the lease end by itself, should the lock not be given back: a closed coroutine can't."""
    if hasattr(held, "watched"):
        held.watched = False
