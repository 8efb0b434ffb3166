"""One computation per cold key: the first caller flies, the others wait for it to land.

A flight that would wait for itself is found out before it waits, across functions and threads: then
the call just computes. No lock is held while anybody's code runs.
"""

from __future__ import annotations

import sys
import weakref
from contextvars import ContextVar
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from .. import forking
from ..guard import Guard

__all__ = ["ALONE", "LEAD", "WAIT", "Board", "Flight", "Outcome", "chain", "flown_by_us"]

#: What `Board.join` answers: compute for all, wait for somebody, or compute for yourself.
LEAD, WAIT, ALONE = "lead", "wait", "alone"


class Outcome:
    """What a function did: returned a value, or raised an exception.

    Passed around as a value, because a ``StopIteration`` of the user's could not pass through a
    generator as an exception.
    """

    __slots__ = ("error", "value")

    def __init__(self, value: Any = None, error: Optional[BaseException] = None) -> None:
        self.value: Any = value
        self.error: Optional[BaseException] = error

    def unwrap(self) -> Any:
        """The value, or raise."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                # The traceback holds this frame, which must not hold the error in turn.
                self = None  # type: ignore[assignment]  # noqa: PLW0642
        return self.value


class Flight:
    """One computation under way.

    Attributes:
        outcome: How it ended; ``None``: it was abandoned (its task was cancelled, say).
        doomed: Its key was invalidated meanwhile: the result is for those who wait, not to keep.
        locked: It holds the store's lock, so nothing inside of it may wait.
        tokens: The tags of its result, with the token that each had before it was computed.
    """

    __slots__ = (
        "__weakref__",
        "callbacks",
        "doomed",
        "key",
        "landed",
        "locked",
        "loop",
        "outcome",
        "tokens",
        "waits_for",
    )

    def __init__(self, key: str) -> None:
        self.key: str = key
        self.landed: bool = False
        self.outcome: Optional[Outcome] = None
        self.doomed: bool = False
        self.locked: bool = False
        self.tokens: Optional[Dict[str, str]] = None
        self.callbacks: List[Callable[[], None]] = []
        # The event loop that it runs on, if any.
        self.loop: Any = _running_loop()
        # The flights that code inside of this one is waiting for; more than once, if several do.
        self.waits_for: List[Flight] = []

    def is_stranded(self) -> bool:
        """Whether it can never land: its event loop was closed while it was awaiting something."""
        return self.loop is not None and bool(self.loop.is_closed())


def _running_loop() -> Any:
    # Whoever runs a loop has imported asyncio; nobody else should have to.
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


Chain = Tuple[Flight, ...]

#: The flights that the running code is inside of, outermost first. A context variable, so that it
#: follows into tasks and into threads started with the context.
chain: ContextVar[Chain] = ContextVar("kv_store_adapter_chain", default=())


def flown_by_us() -> Chain:
    """The flights that the running code is inside of.

    One that has landed may be left in `chain`, by a signal's handler that raised between two steps.
    """
    flights = chain.get()
    return tuple(flight for flight in flights if not flight.landed) if flights else flights


# Guards all boards: who waits for whom goes across functions. Held for microseconds, on misses.
_guard = Guard()
_boards: weakref.WeakSet[Board] = weakref.WeakSet()


class Board:
    """The flights of one cached function."""

    def __init__(self) -> None:
        self._flights: Dict[str, Flight] = {}
        self._alone: Set[Flight] = set()
        #: How many have landed: who saw a miss before the last landing looks again.
        self.landings: int = 0
        _boards.add(self)

    def __len__(self) -> int:
        return len(self._flights) + len(self._alone)

    @_guard
    def join(self, mine: Flight, inside: Chain) -> Tuple[str, Flight]:
        """Take part in the computation of a key, from code that is `inside` of other flights.

        Who is to `LEAD` does so with the flight that was brought along: it is in the caller's hands
        before it is on the board, and the caller lands it, whatever comes in between.
        """
        flight = self._flights.get(mine.key)
        if flight is None or flight.is_stranded():
            self._flights[mine.key] = mine
            return LEAD, mine
        if any(outer.locked for outer in inside) or _leads_back(flight, inside):
            return ALONE, flight
        for outer in inside:
            outer.waits_for.append(flight)
        return WAIT, flight

    @_guard
    def stop_waiting(self, flight: Flight, inside: Chain) -> None:
        """The end of a `WAIT`, however it ended."""
        for outer in inside:
            if flight in outer.waits_for:
                outer.waits_for.remove(flight)

    def land(self, flight: Flight, outcome: Optional[Outcome]) -> None:
        """Tell all who wait; ``None``: nothing came of it, one of them shall try.

        A second time ends what was left undone: a signal's handler may raise in the middle.
        """
        self._take_off_the_board(flight, outcome)
        for callback in flight.callbacks:
            callback()
        flight.callbacks = []

    @_guard
    def _take_off_the_board(self, flight: Flight, outcome: Optional[Outcome]) -> None:
        if not flight.landed:
            self.landings += 1
            flight.outcome = outcome
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            flight.landed = True

    def when_landed(self, flight: Flight, callback: Callable[[], None]) -> None:
        """Call `callback` once the flight has landed, perhaps twice; now, if it has."""
        if not self._told_later(flight, callback):
            callback()

    @_guard
    def _told_later(self, flight: Flight, callback: Callable[[], None]) -> bool:
        if not flight.landed:
            flight.callbacks.append(callback)
        return not flight.landed

    @_guard
    def begin(self, key: str) -> Flight:
        """A computation that nobody waits for, but that `doom` reaches; `end` ends it."""
        flight = Flight(key)
        self._alone.add(flight)
        return flight

    @_guard
    def end(self, flight: Flight) -> None:
        """The end of what `begin` began."""
        self._alone.discard(flight)

    @_guard
    def doom(self, key: Optional[str]) -> None:
        """What is being computed for `key` (``None``: all keys) is out of date already."""
        for flight in [*self._flights.values(), *self._alone]:
            if key is None or flight.key == key:
                flight.doomed = True
                if self._flights.get(flight.key) is flight:
                    # Who comes from now on computes anew.
                    del self._flights[flight.key]


def _leads_back(flight: Flight, inside: Chain) -> bool:
    """Whether waiting for `flight` would, in the end, be waiting for ourselves."""
    if not inside:
        return False
    seen = set()
    todo = [flight]
    while todo:
        one = todo.pop()
        if one in inside:
            return True
        if id(one) not in seen:
            seen.add(id(one))
            todo += one.waits_for
    return False


def _after_fork() -> None:
    # The threads that were flying are not in the child: nobody would ever land.
    for board in list(_boards):
        board._flights.clear()
        board._alone.clear()


forking.after_in_child(_after_fork)
