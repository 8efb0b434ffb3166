"""One picture a section, on a log scale. Needs matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Dict, List

from contest import OURS, Section
from rounds import Outcome

__all__ = ["available", "draw"]


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(section: Section, outcome: Outcome, path: Path) -> bool:
    """Draw a section into an SVG file; return whether there was anything to draw."""
    import matplotlib as mpl

    mpl.use("Agg")
    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": section.name, "font.size": 9})
    from matplotlib import pyplot as plt

    standing = outcome.standing()
    growth = any(" @ " in figure for figure in standing.get(OURS, {}))
    shared = [
        f for f in standing.get(OURS, {}) if any(f in v for n, v in standing.items() if n != OURS)
    ]
    if not growth and not shared:
        return False
    figure, axes = plt.subplots(figsize=(8, 4 if growth else 1.2 + 0.22 * _bars(standing, shared)))
    if growth:
        _lines(axes, standing)
    elif section.name == "eviction":
        _columns(axes, standing, shared, linear=True)
    else:
        _columns(axes, standing, shared)
    axes.set_title(section.title, loc="left", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def _bars(standing: Dict[str, Dict[str, float]], shared: List[str]) -> int:
    return sum(figure in figures for figures in standing.values() for figure in shared)


def _columns(
    axes: Any, standing: Dict[str, Dict[str, float]], shared: List[str], *, linear: bool = False
) -> None:
    """Horizontal bars, those of one figure together; ours is 1, unless they are percentages."""
    at, ticks, labels = 0.0, [], []
    colours = {name: f"C{number}" for number, name in enumerate(standing)}
    for figure in shared:
        for name, figures in standing.items():
            if figure not in figures or not standing[OURS][figure]:
                continue
            value = figures[figure] / (1 if linear else standing[OURS][figure])
            axes.barh(at, value, color=colours[name], height=0.85)
            axes.annotate(
                f" {value:.1f} %" if linear else f" {value:.3g}",
                (value, at),
                va="center",
                fontsize=7,
            )
            ticks.append(at)
            labels.append(name if len(shared) == 1 else f"{figure}: {name}")
            at -= 1
        at -= 0.6
    axes.set_yticks(ticks, labels, fontsize=7)
    if linear:
        axes.set_xlabel("hits, percent")
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), high * 1.4)
    axes.set_xlabel(
        "as a multiple of ours (log scale; right of the line: slower or larger than ours)"
    )


def _lines(axes: Any, standing: Dict[str, Dict[str, float]]) -> None:
    """Time of an operation by the size of the store, as a multiple of the smallest."""
    for name, figures in standing.items():
        series: Dict[str, List[Any]] = {}
        for figure, value in figures.items():
            operation, _, size = figure.partition(" @ ")
            if size:
                series.setdefault(operation, []).append((int(size), value))
        for operation, points in series.items():
            points.sort()
            label = operation if name == OURS else f"{operation} ({name})"
            axes.plot(
                [size for size, _ in points],
                [value / points[0][1] for _, value in points],
                marker="o",
                linestyle="-" if name == OURS else "--",
                label=label,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("entries in the store (log scale)")
    axes.set_ylabel("time, as a multiple of the smallest")
    axes.axhline(1.5, color="black", linewidth=0.8, linestyle=":")
    axes.legend(fontsize=7)
