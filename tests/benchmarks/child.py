"""The fresh process of one contestant in one round: measures, and leaves a file with the figures.

Imports as little as it can, so that a round starts soon.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Dict

from contest import Figures, Run


def main(task: Dict[str, Any]) -> None:
    """Do one task of `rounds`: a round, or with number -1 the preparation before all of them."""
    sections = import_module(f"sections.{task.pop('group')}").SECTIONS
    name, number = task.pop("section"), task.pop("round")
    (section,) = (section for section in sections if section.name == name)
    contestant = section.contestants[task.pop("contestant")]
    run = Run(**task)
    figures: Figures = {}
    if number < 0 and contestant.prepare is not None:
        contestant.prepare(run)
    else:
        figures = contestant.measure(run)
    # Into a file: a contestant may print.
    Path(run.folder, "result.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
