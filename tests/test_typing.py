"""What type checkers say: the package is clean, and users' mistakes are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

if sys.version_info < (3, 10):
    pytest.skip("the mypy that we are checked with needs Python 3.10", allow_module_level=True)
pytest.importorskip("mypy", reason="mypy is not installed")

ROOT = Path(__file__).resolve().parent.parent

# Its cache goes nowhere, because tests write nowhere but in temporary folders.
MYPY = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "--no-pretty"]


def complaints(*arguments: str) -> List[str]:
    """What mypy --strict has to say, line by line."""
    done = subprocess.run(
        [*MYPY, "--no-error-summary", *arguments],
        cwd=ROOT,
        # mypy doesn't tell faults of installed packages, and takes PYTHONPATH's for installed ones.
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "MYPYPATH": "src"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_package_is_clean() -> None:
    """Mypy --strict finds nothing in what we ship."""
    assert complaints("src") == []


@pytest.mark.slow
def test_users_are_told_what_is_right_and_what_is_wrong() -> None:
    """Each line of api.py is right, but those with a "type: ignore", and these are all errors."""
    assert complaints("--warn-unused-ignores", "tests/typing/api.py") == []
