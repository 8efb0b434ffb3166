"""What the benchmark is made of: sections, the contestants in them, and the bars ours is held to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, Callable, Dict, List, Optional, Tuple, TypeVar

__all__ = ["OURS", "Bar", "Contestant", "Figures", "Run", "Section"]

OURS = "ours"

#: What one contestant measures in one process: the name of a figure to its value. Times are seconds.
Figures = Dict[str, float]
#: The same for all contestants: contestant to figures.
Standing = Dict[str, Figures]

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What a contestant is told: how much to do, and where.

    Attributes:
        quick: Whether this is a ``--quick`` run.
        folder: A folder of this process alone.
        shared: A folder of this contestant, kept over all rounds of the section.
        port: Where the benchmark's own Redis server listens; 0 where there is none.
        trace: A file with a trace of requests, one key a line; empty: none.
    """

    quick: bool
    folder: str
    shared: str
    port: int = 0
    trace: str = ""

    def pick(self, quick: T, full: T) -> T:
        """The one that fits the run."""
        return quick if self.quick else full

    def path(self, *names: str) -> str:
        """A path in this process's folder."""
        return os.path.join(self.folder, *names)


@dataclass(frozen=True)
class Bar:
    """One line of the table of bars: a value that may be at most (or must be at least) `limit`.

    `value` gets the figures of all contestants and raises ``KeyError`` where one is missing.
    """

    what: str
    against: str
    value: Callable[[Standing], float]
    limit: float
    moonshot: Optional[float] = None
    at_least: bool = False
    unit: str = ""

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Contestant:
    """One library in one section. `prepare` runs once, in a process of its own, before all rounds."""

    name: str
    measure: Callable[[Run], Figures]
    needs: Tuple[str, ...] = ()
    prepare: Optional[Callable[[Run], None]] = None


@dataclass
class Section:
    """One panel: contestants that do the same work, and what ours must reach.

    Args:
        name: What ``--section`` takes.
        title: What is done, in words.
        conditions: What holds for all of them: sizes, ttl, durability, threads.
        rounds: How many rounds a quick and a full run has.
        server: Whether it needs the Redis server.

    Attributes:
        group: The file it is in.
    """

    name: str
    title: str
    conditions: str
    rounds: Tuple[int, int] = (3, 7)
    server: bool = False
    group: str = ""
    contestants: Dict[str, Contestant] = field(default_factory=dict)
    bars: List[Bar] = field(default_factory=list)

    def contestant(
        self, name: str, *needs: str, prepare: Optional[Callable[[Run], None]] = None
    ) -> Callable[[Callable[[Run], Figures]], Callable[[Run], Figures]]:
        """Enter the decorated function; it takes part where the modules it `needs` are installed."""

        def enter(measure: Callable[[Run], Figures]) -> Callable[[Run], Figures]:
            self.contestants[name] = Contestant(name, measure, needs, prepare)
            return measure

        return enter

    def is_guest(self, name: str) -> bool:
        """Whether no bar is about this contestant: it is shown for comparison, in fewer rounds."""
        return name != OURS and not any(bar.against.startswith(name) for bar in self.bars)

    def bar(
        self, figure: str, against: str, limit: float, moonshot: Optional[float] = None, **more: Any
    ) -> None:
        """Ours : theirs of one figure."""
        value = lambda standing: standing[OURS][figure] / standing[against][figure]
        self.bars.append(Bar(figure, against, value, limit, moonshot, **more))

    def within(self, figure: str, other: str, limit: float) -> None:
        """One of our figures : another of ours."""
        value = lambda standing: standing[OURS][figure] / standing[OURS][other]
        self.bars.append(Bar(figure, f"ours, {other}", value, limit))

    def cap(self, figure: str, limit: float, unit: str = "", scale: float = 1.0) -> None:
        """One of our figures, as it is: in `unit`, which is the figure times `scale`."""
        value = lambda standing: standing[OURS][figure] * scale
        self.bars.append(Bar(figure, "itself", value, limit, unit=unit))

    def lead(self, against: str) -> None:
        """All of our figures, which are percentages, against another's: never behind, often ahead."""

        def gains(standing: Standing) -> List[float]:
            return [ours - standing[against][name] for name, ours in standing[OURS].items()]

        self.bars += [
            Bar("worst", against, lambda s: min(gains(s)), -1.0, at_least=True, unit="points"),
            Bar("on average", against, lambda s: mean(gains(s)), 3.0, at_least=True, unit="points"),
        ]
