"""What happens when the process forks: nothing inherited is used, nothing is left locked.

`os.fork` copies memory, not threads. A lock that another thread held stays locked for ever in the
child, and a connection to a database or a server would be used from both sides. Everything of ours
that owns either registers here.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Callable, List

__all__ = ["Forkable", "after_in_child", "register"]


class Forkable:
    """Three hooks, called in this order around every `os.fork` of the process."""

    # Without a slot for weak references a subclass with __slots__ could not register.
    __slots__ = ("__weakref__",)

    def _before_fork(self) -> None:
        """Come to rest: take the locks, close what must not be shared. Never raises."""

    def _after_fork_in_parent(self) -> None:
        """Go on as before."""

    def _after_fork_in_child(self) -> None:
        """Start afresh: new locks, nothing inherited in use."""


_registered: weakref.WeakSet[Any] = weakref.WeakSet()
_resting: List[Forkable] = []
_in_child: List[Callable[[], None]] = []


def register(forkable: Forkable) -> None:
    """Call the hooks of `forkable` for as long as it is alive."""
    _registered.add(forkable)


def after_in_child(function: Callable[[], None]) -> None:
    """Call `function` in the child after every fork. For module state; it is never forgotten."""
    _in_child.append(function)


def _before() -> None:
    # Kept in a list, so that the very same objects are woken again.
    _resting[:] = list(_registered)
    for forkable in _resting:
        forkable._before_fork()


def _after_in_parent() -> None:
    for forkable in reversed(_resting):
        forkable._after_fork_in_parent()
    _resting.clear()


def _after_in_child() -> None:
    for function in _in_child:
        function()
    for forkable in reversed(_resting):
        forkable._after_fork_in_child()
    _resting.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
