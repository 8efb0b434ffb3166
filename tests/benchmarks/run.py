"""The benchmark: ours beside its peers, in one run.

::

    python tests/benchmarks/run.py                        # everything, under 15 minutes
    python tests/benchmarks/run.py --quick                # smaller sizes, fewer rounds
    python tests/benchmarks/run.py --section hits         # a section or a group; may be repeated
    python tests/benchmarks/run.py --json figures.json    # all figures of all rounds, in seconds
    python tests/benchmarks/run.py --write-docs           # docs/performance.md and its pictures

The peers come with ``pip install -e '.[bench]'``; who is not installed is left out. What is
measured is this checkout's ``src``. Leave the machine alone while it runs.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

HERE = Path(__file__).resolve().parent
# For server.py; our own folder is there already.
sys.path.append(str(HERE.parent))

import pages  # noqa: E402  # after the path is set
import report  # noqa: E402
from contest import OURS, Section  # noqa: E402
from plots import available as can_draw  # noqa: E402
from rounds import SOURCE, Outcome, rounds  # noqa: E402
from sections import load  # noqa: E402

try:
    from tqdm import tqdm
except ImportError:  # it comes with the extra [dev]
    tqdm = None


def say(words: str = "") -> None:
    """One line, or one table, on standard output."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def chosen(groups: Dict[str, List[Section]], names: Optional[List[str]]) -> List[Section]:
    """The sections with these names; a group's name stands for all of its sections."""
    every = [section for sections in groups.values() for section in sections]
    if not names:
        return every
    known = {section.name: [section] for section in every}
    found: List[Section] = []
    for name in names:
        # A group of one name with a section of it means the group.
        sections = groups.get(name) or known.get(name)
        if sections is None:
            listed = ", ".join([*groups, *(n for n in known if n not in groups)])
            raise SystemExit(f"There is no section {name!r}. There are: {listed}.")
        found += [section for section in sections if section not in found]
    return found


def progress(sections: List[Section], quick: bool) -> Tuple[Callable[[str], None], Any]:
    """A bar over all processes on a terminal; nothing in a pipe."""
    if tqdm is None or not sys.stderr.isatty():
        return (lambda words: None), None
    total = sum(len(s.contestants) * s.rounds[0 if quick else 1] for s in sections)
    bar = tqdm(total=total, unit=" runs", leave=False, ncols=90)

    def tick(words: str) -> None:
        bar.set_description(words[:36])
        bar.update()

    return tick, bar


def measure(sections: List[Section], options: argparse.Namespace) -> List[Tuple[Section, Outcome]]:
    """Run the sections one after another, and show each as it ends."""
    from server import Server, find_server

    server = None
    binary = find_server() if any(section.server for section in sections) else None
    tick, bar = progress(sections, options.quick)
    results = []
    try:
        server = Server(binary) if binary else None
        for section in sections:
            start = time.monotonic()
            outcome = rounds(
                section,
                quick=options.quick,
                folder=options.folder,
                port=server.port if server else 0,
                trace=options.trace,
                tick=lambda name, section=section: tick(f"{section.name}: {name}"),
            )
            outcome.seconds = time.monotonic() - start
            results.append((section, outcome))
            if bar is not None:
                bar.clear()
            say(report.text(section, outcome))
    finally:
        if bar is not None:
            bar.close()
        if server is not None:
            server.stop()
    return results


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    parser.add_argument("--section", action="append", metavar="NAME", help="only this one")
    parser.add_argument("--list", action="store_true", help="name the sections and end")
    parser.add_argument("--json", metavar="FILE", help="write all figures of all rounds")
    parser.add_argument("--write-docs", action="store_true", help="write docs/performance.md")
    parser.add_argument("--trace", metavar="FILE", default="", help="requests, a key a line")
    parser.add_argument(
        "--folder", default=tempfile.gettempdir(), help="where the disk stores go; not a tmpfs"
    )
    return parser.parse_args()


def main() -> int:
    """Run what is asked for; 1 when something of ours failed, whatever the bars say."""
    options = arguments()
    groups = load()
    if options.list:
        for group, sections in groups.items():
            say(f"{group}: {', '.join(section.name for section in sections)}")
        return 0
    if options.trace:
        options.trace = str(Path(options.trace).resolve())
    about = report.machine()
    say(f"Measured: {SOURCE}{' (quick: sizes are small)' if options.quick else ''}")
    for name, value in about.items():
        say(f"{name}: {value}")
    say()
    # So that the server and the folders go when it is told to end, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    start = time.monotonic()
    results = measure(chosen(groups, options.section), options)
    judged = [v for section, outcome in results for v in report.verdicts(section, outcome)]
    met = sum(verdict.met for verdict in judged)
    say(f"{met} of {len(judged)} bars are met; {time.monotonic() - start:.0f} s.")
    if options.json:
        figures = {
            "about": about,
            "quick": options.quick,
            "sections": [asdict(o) for _, o in results],
        }
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    if options.write_docs:
        if not can_draw():
            say("No pictures: matplotlib is not installed.")
        for path in pages.write(HERE.parent.parent / "docs", results, about, quick=options.quick):
            say(f"wrote {path}")
    return int(
        any(OURS in o.absent and not o.absent[OURS].startswith("there is") for _, o in results)
    )


if __name__ == "__main__":
    sys.exit(main())
