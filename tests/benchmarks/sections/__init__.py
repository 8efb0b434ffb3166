"""The sections, in the order of docs/performance.md. A file of this folder is a group of them."""

from __future__ import annotations

from importlib import import_module
from typing import Dict, List

from contest import Section

GROUPS = ("hits", "memory", "eviction", "disk", "redis", "imports", "growth")


def load() -> Dict[str, List[Section]]:
    """All sections by group."""
    groups = {group: list(import_module(f"sections.{group}").SECTIONS) for group in GROUPS}
    for group, sections in groups.items():
        for section in sections:
            section.group = group
    return groups
