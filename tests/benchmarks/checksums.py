"""What `verify=True` costs a disk store: sets and gets with checksums, as multiples of those without.

Run: ``python tests/benchmarks/checksums.py [FOLDER]``, with a folder on the disk in question.
"""

# ruff: noqa: T201  # a script that prints its table

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Callable, List, Tuple

from kv_store_adapter import DiskKVStore

SIZES = [100, 1 << 10, 100 << 10, 1 << 20]
ROUNDS = 5


def measure(store: DiskKVStore, size: int) -> Tuple[float, float]:
    """Median seconds of a set and of a get."""
    value, number = os.urandom(size), max(60, min(1000, 20_000_000 // size))

    def each(work: Callable[[str], object]) -> float:
        times: List[float] = []
        for index in range(number):
            start = perf_counter()
            work(f"k{index}")
            times.append(perf_counter() - start)
        return median(times)

    return each(lambda key: store.set(key, value, ttl=3600)), each(store.get)


def main() -> None:
    """Measure with and without in turn, and print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="where to measure; by default the system's own")
    folder = parser.parse_args().folder
    print(f"{'bytes':>8}  set   get   (with verify=True : without)")
    for size in SIZES:
        with tempfile.TemporaryDirectory(dir=folder) as root:
            with DiskKVStore(Path(root, "a"), remember=0) as plain, DiskKVStore(
                Path(root, "b"), verify=True, remember=0
            ) as checked:
                rounds = [(measure(checked, size), measure(plain, size)) for _ in range(ROUNDS)]
            ours, theirs = ([median(column) for column in zip(*side)] for side in zip(*rounds))
            print(f"{size:8}  {ours[0] / theirs[0]:.2f}  {ours[1] / theirs[1]:.2f}")


if __name__ == "__main__":
    main()
