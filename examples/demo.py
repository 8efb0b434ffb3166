"""Analyse the standard library of the Python that runs this, and remember every result.

::

    python examples/demo.py                                # on disk: the second run is warm at once
    python examples/demo.py --store memory://
    python examples/demo.py --store redis://localhost:6379/0
    python examples/demo.py --fresh                        # forget first

The folder of the disk store lies in the virtual environment, or else in the user's cache folder.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple

from kv_store_adapter import DiskKVStore, KVStoreError, KVStoreProtocol, cached, open_store

try:
    from tqdm import tqdm
except ImportError:  # it comes with the extra [dev]; without it there is no progress bar
    tqdm = None

Report = Dict[str, Any]
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.BoolOp, ast.comprehension)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
DAY = 24 * 60 * 60


def analyse(path: str) -> Report:
    """Parse one module and measure it."""
    source = Path(path).read_bytes()
    nodes = list(ast.walk(ast.parse(source)))
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    lengths = [((node.end_lineno or 0) - node.lineno + 1, node.name) for node in functions]
    longest, name = max(lengths, default=(0, "none"))
    return {
        "lines": source.count(b"\n"),
        "functions": len(functions),
        "branches": sum(isinstance(node, BRANCHES) for node in nodes),
        "longest": longest,
        "longest name": name,
    }


def library() -> List[Tuple[str, str, int]]:
    """The modules of the standard library: dotted name, path, time of last change."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if NOT_LIBRARY.isdisjoint(parts):
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append((name, str(path), path.stat().st_mtime_ns))
    return found


def place() -> Path:
    """Where the results stay between two runs: inside the virtual environment, if there is one."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix) / "demo-store"
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kv-store-adapter-demo"
    )


def progress(items: List[Any], title: str) -> Iterable[Any]:
    """Show a bar on a terminal; into a file or a pipe, nothing."""
    if tqdm is None or not (sys.stdout.isatty() and sys.stderr.isatty()):
        return items
    return tqdm(items, desc=title, unit=" modules", leave=False, ncols=80)


def run(measure: Any, modules: List[Tuple[str, str, int]], title: str) -> Dict[str, Report]:
    """Measure every module once, and say how long it took and how much was known already."""
    before, start = measure.cache_info(), time.perf_counter()
    reports = {name: measure(path, changed) for name, path, changed in progress(modules, title)}
    seconds, after = time.perf_counter() - start, measure.cache_info()
    hits, misses = after.hits - before.hits, after.misses - before.misses
    warmth = "cold" if misses > hits else "warm"
    print(f"{title:10} ({warmth}) {seconds:8.2f} s {hits:7} hits {misses:7} misses")
    return reports


def show(reports: Dict[str, Report]) -> None:
    """Print the biggest modules."""
    print(f"\n{'module':26}{'lines':>7}{'functions':>11}{'branches':>10}  longest function")
    for name, report in sorted(reports.items(), key=lambda item: -item[1]["lines"])[:10]:
        numbers = f"{report['lines']:7}{report['functions']:11}{report['branches']:10}"
        print(f"{name:26}{numbers}  {report['longest name']}, {report['longest']} lines")


def other_ways_in(store: KVStoreProtocol, reports: Dict[str, Report]) -> None:
    """The same store without the decorator: a scoped namespace, a mapping, and direct calls."""
    print("\nThe other three ways in, on the same store:")
    with store.namespace("demo-totals", ttl=DAY, clear_on_exit=True) as totals:
        totals.set("modules", len(reports))
        totals.set("lines", sum(report["lines"] for report in reports.values()))
        print(f"  with store.namespace(...)   {totals.get_many(['modules', 'lines'])}")
    longest = store.as_mapping("demo-longest", ttl=DAY)
    longest.update({name: report["longest"] for name, report in reports.items()})
    decoder = longest["json.decoder"]
    print(f"  store.as_mapping(...)       {len(longest)} items, json.decoder's is {decoder}")
    print(f"  store.keys(...)             {sorted(store.keys('demo-longest', 'json*'))}")
    gone = store.clear_namespace("demo-longest")
    print(f"  store.clear_namespace(...)  {gone} keys gone, {store.list_namespaces()} left")


def main() -> None:
    """Two passes over the library, a table, and the other ways in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--store", metavar="URL", help="memory://, disk:FOLDER, redis://HOST:PORT/DB"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs found")
    options = parser.parse_args()
    try:
        with open_store(options.store) if options.store else DiskKVStore(place()) as store:

            @cached(store, ttl=7 * DAY, namespace="demo-modules")
            def measure(path: str, modified_ns: int) -> Report:  # noqa: ARG001  # for the key
                """Parse a module, unless that was done. An edited file has a new `modified_ns`."""
                return analyse(path)

            if options.fresh:
                measure.cache_clear()
            # Asked first: @cached alone would go on without a server, and remember nothing.
            known = len(store.keys("demo-modules"))
            # Not the url: it may hold a password.
            where = "" if options.store else f" in {place()}"
            print(f"{type(store).__name__}{where}: {known} results are there already")
            modules = library()
            run(measure, modules, "first run")
            reports = run(measure, modules, "second run")
            show(reports)
            other_ways_in(store, reports)
    except (KVStoreError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
