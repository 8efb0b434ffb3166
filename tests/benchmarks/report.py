"""Outcomes as tables: the bars with their verdicts, and everybody as a multiple of ours."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
from dataclasses import dataclass
from time import perf_counter
from typing import Dict, Iterable, List, Sequence, Tuple

from contest import OURS, Bar, Section
from rounds import Outcome

__all__ = ["Verdict", "machine", "markdown", "ratios", "text", "verdicts"]

_PACKAGES = (
    "aiocache cachebox cachelib cachetools cachier cashews diskcache dogpile.cache hiredis joblib "
    "moka-py py-key-value-aio redis theine wrapt"
).split()


@dataclass(frozen=True)
class Verdict:
    """A bar and how it went."""

    bar: Bar
    value: float
    low: float
    high: float

    @property
    def met(self) -> bool:
        return self.bar.met(self.value)

    def cells(self) -> List[str]:
        """The row of a table."""
        bar, sign = self.bar, ">= " if self.bar.at_least else ""
        met = "yes" if self.met else "NO"
        if self.met and bar.moonshot is not None and self.value <= bar.moonshot:
            met = "yes, and the moonshot"
        moonshot = "" if bar.moonshot is None else f" ({bar.moonshot:g})"
        unit = f" {bar.unit}" if bar.unit else ""
        spread = f"{_number(self.low)} to {_number(self.high)}"
        limit = f"{sign}{bar.limit:g}{unit}{moonshot}"
        return [bar.what, bar.against, _number(self.value) + unit, spread, limit, met]


HEAD = ["what", "against", "ours : theirs", "single rounds", "bar (moonshot)", "met"]


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def verdicts(section: Section, outcome: Outcome) -> List[Verdict]:
    """The section's bars; those whose contestants took no part are left out."""
    found = []
    for bar in section.bars:
        try:
            value = bar.value(outcome.standing())
            each = [bar.value(outcome.standing(number)) for number in range(outcome.rounds)]
        except (KeyError, IndexError):
            continue
        found.append(Verdict(bar, value, min(each), max(each)))
    return found


def ratios(outcome: Outcome) -> Tuple[List[str], List[List[str]]]:
    """Everybody's figures as multiples of ours; those that only we have are left as they are."""
    standing = outcome.standing()
    ours = standing.get(OURS, {})
    others = [name for name in standing if name != OURS]
    figures = [f for f in ours if any(f in standing[name] for name in others)]
    head = ["theirs : ours", *figures]
    rows = []
    for name in [OURS, *others] if figures else []:
        cells = [
            _number(standing[name][figure] / ours[figure])
            if figure in standing[name] and ours[figure]
            else ""
            for figure in figures
        ]
        rows.append([name, *cells])
    return head, rows


def percentages(outcome: Outcome) -> Tuple[List[str], List[List[str]]]:
    """Figures that are percentages are shown as such: a contestant a column."""
    standing = outcome.standing()
    names = list(standing)
    rows = [
        [figure, *(f"{standing[name][figure]:.1f}" for name in names)] for figure in standing[OURS]
    ]
    return ["%", *names], rows


def _details(outcome: Outcome) -> Tuple[List[str], List[List[str]]]:
    if outcome.name == "eviction" and OURS in outcome.figures:
        return percentages(outcome)
    return ratios(outcome)


def machine() -> Dict[str, str]:
    """Where and with what it ran."""
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} (not installed)")
    return {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "System": f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores",
        "Load": _load(),
        "Stalls": _stalls(),
        "SQLite": sqlite3.sqlite_version,
        "Packages": ", ".join(versions),
        "Garbage collector": "on, with Python's own thresholds; emptied before each measurement",
    }


def _stalls(seconds: float = 2.0) -> str:
    """What a loop sees that does nothing but look at the clock: whether others take the processor."""
    longest, count = 0.0, 0
    before = start = perf_counter()
    while before - start < seconds:
        now = perf_counter()
        if now - before > 0.001:
            count += 1
            longest = max(longest, now - before)
        before = now
    if not count:
        return f"none over 1 ms in {seconds:g} s before the start"
    return (
        f"{count} over 1 ms in {seconds:g} s before the start, the longest {longest * 1000:.0f} ms"
    )


def _load() -> str:
    """How busy the machine is with other work, as the run starts."""
    if not hasattr(os, "getloadavg"):
        return "not known"
    load = os.getloadavg()[0]
    busy = "; BUSY WITH OTHER WORK, so the figures say little" if load > 0.5 else ""
    return f"{load:.1f} at the start{busy}"


def _plain_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in table
    )


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _note(section: Section, outcome: Outcome) -> List[str]:
    rounds = f"{outcome.rounds} rounds" if outcome.rounds != 1 else "one round"
    if outcome.rounds > 1 and any(map(section.is_guest, outcome.figures)):
        rounds += "; fewer for those that no bar is about"
    notes = [f"{section.conditions} ({rounds})"]
    notes += [f"without {name}: {why}" for name, why in outcome.absent.items()]
    return notes


def text(section: Section, outcome: Outcome) -> str:
    """One section for the terminal."""
    parts = [f"{section.name}: {section.title} [{outcome.seconds:.0f} s]"]
    parts += [f"  {note}" for note in _note(section, outcome)]
    judged = verdicts(section, outcome)
    if judged:
        parts.append(_plain_table(HEAD, (verdict.cells() for verdict in judged)))
    head, rows = _details(outcome)
    if rows:
        parts += ["", _plain_table(head, rows)]
    return "\n".join(parts) + "\n"


def markdown(section: Section, outcome: Outcome, picture: str = "") -> str:
    """One section for docs/performance.md."""
    parts = [f"### {section.title}", ""]
    notes = _note(section, outcome)
    parts.append(". ".join(note[0].upper() + note[1:] for note in notes) + ".")
    judged = verdicts(section, outcome)
    if judged:
        parts += ["", _markdown_table(HEAD, (verdict.cells() for verdict in judged))]
    head, rows = _details(outcome)
    if rows:
        parts += ["", _markdown_table(head, rows)]
    if picture:
        parts += ["", f"![{section.title}]({picture})"]
    return "\n".join(parts) + "\n"
