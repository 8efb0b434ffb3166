"""Faults: kills, full disks, dead servers, hostile data, long runs.

`pytest tests/faults` is the short run, `pytest tests/faults --long` the long one. A plain `pytest`
leaves this folder out. Every random choice comes from the seed in the header: `--seed N` repeats it.
"""

import collections
import random
import sys
import zlib

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("faults")
    group.addoption("--long", action="store_true", help="the long run of tests/faults")
    group.addoption("--seed", type=int, default=None, help="repeat the run with this seed")


def pytest_configure(config):
    if config.option.seed is None:  # set here, so that workers of xdist are sent the same
        config.option.seed = random.SystemRandom().randrange(2**32)


def pytest_collection_modifyitems(config, items):
    if config.option.long:
        for item in items:
            item.add_marker(pytest.mark.timeout(900))  # of the usual limit many would need more


def pytest_report_header(config):
    return f"faults: {'long' if config.option.long else 'short'} run, --seed {config.option.seed}"


@pytest.fixture
def rounds(request):
    """`rounds(short, long)`: the figure that belongs to this run's length."""
    return lambda short, long: long if request.config.option.long else short


@pytest.fixture
def seed(request):
    """This test's own seed: of the run's seed and the test's name."""
    mine = zlib.crc32(request.node.nodeid.encode(), request.config.option.seed & 0xFFFFFFFF)
    sys.stdout.write(f"--seed {request.config.option.seed} (this test's own: {mine})\n")
    return mine


@pytest.fixture
def count(record_property):
    """`count("kills")`, `count("operations", 500)`: added up over the run and printed at its end."""
    return lambda what, number=1: record_property(f"count {what}", number)


def pytest_terminal_summary(terminalreporter):
    totals = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, number in report.user_properties:
                    if name.startswith("count "):
                        totals[name[len("count ") :]] += number
    if totals:
        terminalreporter.section("faults that were injected, and what was counted")
        for name, number in sorted(totals.items()):
            terminalreporter.write_line(f"{number:>12,}  {name}")
