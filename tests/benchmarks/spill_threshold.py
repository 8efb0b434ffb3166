"""From which size a value is better off in a file of its own: the figures behind `SPILL_THRESHOLD`.

Run: ``python tests/benchmarks/spill_threshold.py [FOLDER]``, with a folder on the disk in question.
"""

# ruff: noqa: T201  # a script that prints its table

from __future__ import annotations

import argparse
import os
import tempfile
from statistics import median
from time import perf_counter
from typing import Any, Callable, List, Tuple

from kv_store_adapter import DiskKVStore

SIZES = [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10]
ROUNDS = 3


class Raw:
    """Bytes as they are, so that only the storing is measured."""

    def dumps(self, value: Any) -> bytes:
        """The bytes themselves."""
        return bytes(value)

    def loads(self, data: bytes) -> Any:
        """The bytes themselves."""
        return data


def measure(root: str, size: int, threshold: int) -> Tuple[float, float, float]:
    """Median microseconds of a new set, an overwriting set and a get."""
    number = max(60, min(400, 20_000_000 // size))
    value = os.urandom(size)

    def each(work: Callable[[str], object]) -> float:
        times: List[float] = []
        for index in range(number):
            start = perf_counter()
            work(f"k{index}")
            times.append(perf_counter() - start)
        return median(times) * 1e6

    folder = tempfile.mkdtemp(dir=root)
    with DiskKVStore(folder, spill_threshold=threshold, serializer=Raw(), remember=0) as store:

        def put(key: str) -> None:
            store.set(key, value)

        return each(put), each(put), each(store.get)


def main() -> None:
    """Measure both ways in turn, and print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="where to measure; by default the system's own")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory(dir=folder) as root:
        print(
            f"{'bytes':>8}  in the database: new, over, get (us)   in a file: new, over, get (us)"
        )
        for size in SIZES:
            rounds = [(measure(root, size, 1 << 40), measure(root, size, 0)) for _ in range(ROUNDS)]
            inside, outside = ([median(column) for column in zip(*side)] for side in zip(*rounds))
            cells = [f"{figure:10.0f}" for figure in (*inside, *outside)]
            print(f"{size:8}  {''.join(cells[:3])}          {''.join(cells[3:])}")


if __name__ == "__main__":
    main()
