"""What it costs to import the package: an interpreter that does nothing else, timed from within."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import List

from contest import OURS, Bar, Figures, Run, Section

_WHAT, _HEAVY = "import", "of redis, sqlite3, asyncio imported"
# So much longer than importing cachetools it may take, in seconds.
_ALLOWED = 0.015

imports = Section(
    "import",
    "Import time",
    "a fresh interpreter for every import, compiled files there; the time of the import statement",
    rounds=(3, 7),
)
imports.bars.append(
    Bar(
        _WHAT,
        "cachetools + 15 ms",
        lambda standing: standing[OURS][_WHAT] / (standing["cachetools"][_WHAT] + _ALLOWED),
        1.0,
    )
)
imports.cap(_HEAVY, 0)

SECTIONS = [imports]

_PROGRAM = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
{statement}
spent = time.perf_counter() - start
new = set(sys.modules) - before
import json
print(json.dumps([spent, sorted({{"redis", "sqlite3", "asyncio"}} & new)]))
"""


def _time(run: Run, statement: str) -> Figures:
    times: List[float] = []
    for _ in range(run.pick(3, 6)):
        program = [sys.executable, "-c", _PROGRAM.format(statement=statement)]
        spent, heavy = json.loads(subprocess.run(program, stdout=-1, check=True).stdout)
        times.append(spent)
    # The first may have to compile.
    return {_WHAT: median(times[1:]), _HEAVY: float(len(heavy))}


@imports.contestant(OURS)
def _(run: Run) -> Figures:
    return _time(run, "import kv_store_adapter")


@imports.contestant("ours, with cached and MemoryKVStore")
def _(run: Run) -> Figures:
    return _time(run, "from kv_store_adapter import MemoryKVStore, cached")


def _peer(name: str, *needs: str) -> None:
    imports.contestant(name, *needs)(lambda run: _time(run, f"import {name}"))


_peer("cachetools", "cachetools")
_peer("cachebox", "cachebox")
_peer("diskcache", "diskcache")
_peer("joblib", "joblib")
_peer("dogpile.cache", "dogpile.cache")
