"""Rounds: every contestant in a fresh process, one after the other, round by round."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, List, Optional

from contest import Contestant, Figures, Run, Section

__all__ = ["SOURCE", "Outcome", "rounds"]

HERE = Path(__file__).resolve().parent
#: What is measured: this checkout, whatever is installed.
SOURCE = HERE.parent.parent / "src"

# No contestant takes nearly as long.
_LIMIT = 300

# Those that no bar is about need no more.
_GUEST_ROUNDS = 3


@dataclass
class Outcome:
    """What came of one section.

    Attributes:
        figures: Contestant to figure to one value a round.
        absent: Contestant to why it took no part.
    """

    name: str
    figures: Dict[str, Dict[str, List[float]]] = field(default_factory=dict)
    absent: Dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0

    def standing(self, number: Optional[int] = None) -> Dict[str, Figures]:
        """The medians over all rounds, or the figures of one."""
        take: Callable[[List[float]], float] = (
            median if number is None else lambda values: values[number]
        )
        return {
            name: {figure: take(values) for figure, values in figures.items()}
            for name, figures in self.figures.items()
            if number is None or all(len(values) > number for values in figures.values())
        }


def _missing(contestant: Contestant) -> Optional[str]:
    for module in contestant.needs:
        try:
            found = importlib.util.find_spec(module)
        except ImportError:
            found = None
        if found is None:
            return f"{module} is not installed"
    return None


def rounds(
    section: Section,
    *,
    quick: bool,
    folder: str,
    port: int,
    trace: str,
    tick: Callable[[str], None],
) -> Outcome:
    """Run a section: all rounds of all contestants that are installed.

    Args:
        section: What to run.
        quick: Whether sizes are small and rounds few.
        folder: Where the temporary folders go.
        port: The Redis server's; 0: there is none.
        trace: A file with requests for the eviction; empty: none.
        tick: Called with the contestant's name before each process.
    """
    outcome = Outcome(section.name)
    for name, contestant in section.contestants.items():
        why = _missing(contestant)
        if why:
            outcome.absent[name] = why
    if section.server and not port:
        outcome.absent = dict.fromkeys(section.contestants, "there is no Redis server")
    field_ = [one for name, one in section.contestants.items() if name not in outcome.absent]
    outcome.rounds = section.rounds[0 if quick else 1]
    guests = 1 if quick else min(_GUEST_ROUNDS, outcome.rounds)
    work = tempfile.mkdtemp(prefix="kv-bench-", dir=folder)
    try:
        for number in range(-1, outcome.rounds):
            # A new order each time: who comes first gets another weather than who comes last.
            turn = number % len(field_) if field_ and number > 0 else 0
            for contestant in field_[turn:] + field_[:turn]:
                if contestant.name in outcome.absent or (number < 0 and not contestant.prepare):
                    continue
                if section.is_guest(contestant.name) and number >= guests:
                    continue
                tick(contestant.name)
                shared = os.path.join(work, f"shared-{field_.index(contestant)}")
                own = tempfile.mkdtemp(dir=work)
                run = Run(quick, own, shared, port, trace)
                try:
                    result = _process(section, contestant, run, number)
                finally:
                    shutil.rmtree(own, ignore_errors=True)
                if "error" in result:
                    outcome.absent[contestant.name] = result["error"]
                    outcome.figures.pop(contestant.name, None)
                    continue
                for figure, value in result.items():
                    figures = outcome.figures.setdefault(contestant.name, {})
                    figures.setdefault(figure, []).append(value)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return outcome


def _process(section: Section, contestant: Contestant, run: Run, number: int) -> Dict[str, Any]:
    """One contestant in one fresh process; round -1 is its preparation."""
    task = {
        **asdict(run),
        "group": section.group,
        "section": section.name,
        "contestant": contestant.name,
        "round": number,
    }
    path = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        # The same for all of one round, another in the next: no luck with collisions.
        "PYTHONHASHSEED": str(number + 1),
    }
    command = [sys.executable, str(HERE / "child.py"), json.dumps(task)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {_LIMIT} s"}
    result = Path(run.folder, "result.json")
    if done.returncode or not result.exists():
        last = done.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
        return {"error": f"failed: {last[0]}"}
    found: Dict[str, Any] = json.loads(result.read_text())
    return found
