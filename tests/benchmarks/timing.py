"""How a contestant's process measures: compiled loops over keys, the same for everybody.

The garbage collector stays on, with Python's own thresholds, because it is on where a cache is used;
it is emptied before each measurement, so that nobody pays for what came before.
"""

from __future__ import annotations

import asyncio
import gc
from functools import lru_cache
from statistics import median
from textwrap import indent
from time import perf_counter
from typing import Any, Callable, Dict, Mapping, Sequence, Tuple

__all__ = ["cycles", "loop", "repeated", "timed", "worst"]

_LOOP = """\
{color}def run(over, {names}):
    start = clock()
    for {variable} in over:
{statement}
    return clock() - start
"""
# As `_LOOP`, but the longest single time.
_WORST = """\
{color}def run(over, {names}):
    longest = 0.0
    for {variable} in over:
        start = clock()
{statement}
        spent = clock() - start
        if spent > longest:
            longest = spent
    return longest
"""


@lru_cache(maxsize=None)
def _compiled(
    template: str, statement: str, names: Tuple[str, ...], variable: str
) -> Callable[..., Any]:
    # The names are parameters, so that every contestant's objects are local variables.
    source = template.format(
        color="async " if "await " in statement else "",
        names=", ".join(names),
        variable=variable,
        statement=indent(statement, " " * 8),
    )
    scope: Dict[str, Any] = {"clock": perf_counter}
    exec(compile(source, "<loop>", "exec"), scope)
    run: Callable[..., Any] = scope["run"]
    return run


def loop(
    statement: str, over: Sequence[Any], names: Mapping[str, Any], variable: str = "key"
) -> float:
    """Run `statement` for each of `over`; return the seconds for all, and do nothing besides."""
    return _run(_LOOP, statement, over, names, variable)


def _run(
    template: str, statement: str, over: Sequence[Any], names: Mapping[str, Any], variable: str
) -> float:
    run = _compiled(template, statement, tuple(names), variable)
    result = run(over, *names.values())
    if asyncio.iscoroutine(result):
        result = asyncio.get_event_loop().run_until_complete(result)
    return float(result)


def timed(
    statement: str, over: Sequence[Any], names: Mapping[str, Any], variable: str = "key"
) -> float:
    """Run `statement` for each of `over`; return the seconds for one of them.

    A statement with ``await`` runs as one coroutine on this thread's event loop.
    """
    gc.collect()
    return loop(statement, over, names, variable) / len(over)


def worst(statement: str, over: Sequence[Any], names: Mapping[str, Any]) -> float:
    """The longest that `statement` took for one of `over`, in seconds."""
    gc.collect()
    return _run(_WORST, statement, over, names, "key")


def repeated(
    statement: str, over: Sequence[Any], names: Mapping[str, Any], *, passes: int = 7
) -> float:
    """The median of some passes of `timed`, after one to warm up."""
    timed(statement, over, names)
    return median(timed(statement, over, names) for _ in range(passes))


def cycles(
    phases: Mapping[str, str], keys: Sequence[Any], names: Mapping[str, Any], *, passes: int = 5
) -> Dict[str, float]:
    """Run the phases one after another, over and over: each one's median, after a pass to warm up.

    Phases whose names start with ``_`` are checks: they run, and are not reported.
    """
    times: Dict[str, list] = {name: [] for name in phases if not name.startswith("_")}
    for number in range(passes + 1):
        for name, statement in phases.items():
            spent = timed(statement, keys, names)
            if number and name in times:
                times[name].append(spent)
    return {name: median(spent) for name, spent in times.items()}
