"""Programs whose work is interrupted, at any moment, by an exception that a signal's handler raises."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

needs_timers = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="there are no timers here"
)
signals_spare_with = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="a signal may cost redis-py the locks of its pool there"
)

_ATTACK = """
import gc, random, signal, sys, threading

class Late(BaseException):
    pass

def late(*_):
    raise Late

def attack(work, rounds, most, after=lambda: None):
    # `work` ends by itself: Python drops what a handler raises while garbage is collected.
    raised = 0
    for _ in range(rounds):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, most))
                work()
            finally:
                # Work that was over before its time must not have `after` interrupted.
                signal.setitimer(signal.ITIMER_REAL, 0)
                for _ in range(3):
                    pass  # before 3.12 what is pending is seen at a jump, not after each call
        except Late:
            raised += 1
        after()
    assert raised > rounds * 0.8, raised

signal.signal(signal.SIGALRM, late)
chance = random.Random(1)
"""


def run_among_signals(program: str, *arguments: str) -> None:
    """Run a program that calls ``attack(work, rounds, most, after)``.

    `work` is begun `rounds` times, each time interrupted within `most` seconds, followed by
    `after`.
    """
    done = subprocess.run(
        [sys.executable, "-c", _ATTACK + textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
