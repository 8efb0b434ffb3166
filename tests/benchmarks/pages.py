"""``--write-docs``: the tables and pictures of docs/performance.md, between its two marks."""

from __future__ import annotations

import re
import textwrap
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import plots
from contest import Section
from report import Verdict, markdown, verdicts
from rounds import Outcome

__all__ = ["write"]

_WIDTH = 120
_BEGIN, _END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"

_NEW_PAGE = f"""\
# Performance

Every figure here is a ratio within one run on one machine. Smaller is better for "ours : theirs", larger for
"theirs : ours". `python tests/benchmarks/run.py` repeats it.

{_BEGIN}
{_END}
"""


def write(
    docs: Path,
    results: Sequence[Tuple[Section, Outcome]],
    about: Mapping[str, str],
    *,
    quick: bool,
) -> List[Path]:
    """Write the page and the pictures; return the files. What is outside of the marks stays."""
    page, folder = docs / "performance.md", docs / "performance"
    pictures: Dict[str, str] = {}
    files = [page]
    if plots.available():
        folder.mkdir(exist_ok=True)
        for section, outcome in results:
            picture = folder / f"{section.name}.svg"
            if plots.draw(section, outcome, picture):
                pictures[section.name] = f"performance/{picture.name}"
                files.append(picture)
    parts = [_heading(about, quick), _summary(results)]
    parts += [markdown(s, o, pictures.get(s.name, "")) for s, o in results]
    old = page.read_text("utf-8") if page.exists() else _NEW_PAGE
    if _BEGIN not in old or _END not in old:
        raise SystemExit(f"{page} has no marks {_BEGIN} and {_END} to write between.")
    between = _wrapped("\n".join([_BEGIN, "", *parts, _END]))
    marks = re.compile(re.escape(_BEGIN) + ".*" + re.escape(_END), re.DOTALL)
    page.write_text(marks.sub(lambda _: between, old), "utf-8")
    return files


def _wrapped(text: str) -> str:
    """Lines for a terminal; tables and pictures stay as they are."""
    lines: List[str] = []
    for line in text.split("\n"):
        if len(line) <= _WIDTH or line.startswith(("|", "!")):
            lines.append(line)
        else:
            indent = "  " if line.startswith("- ") else ""
            lines += textwrap.wrap(line, _WIDTH, subsequent_indent=indent)
    return "\n".join(lines)


def _heading(about: Mapping[str, str], quick: bool) -> str:
    kind = "a quick run, with smaller sizes" if quick else "a full run"
    lines = [f"## The run of {time.strftime('%Y-%m-%d')}", "", f"This is {kind}.", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    return "\n".join(lines) + "\n"


def _summary(results: Sequence[Tuple[Section, Outcome]]) -> str:
    judged: List[Tuple[Section, Verdict]] = [
        (section, verdict) for section, outcome in results for verdict in verdicts(section, outcome)
    ]
    missed: List[Any] = [(s, v) for s, v in judged if not v.met]
    lines = [f"{len(judged) - len(missed)} of {len(judged)} bars are met."]
    lines += [
        f"- Missed: {section.title}, {verdict.bar.what} against {verdict.bar.against}: "
        f"{verdict.cells()[2]}, where the bar is {verdict.cells()[4]}."
        for section, verdict in missed
    ]
    return "\n".join(lines) + "\n"
