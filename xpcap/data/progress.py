"""The callback to which long-running functions report their progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, the amount done and the total."""


def no_progress(doing: str, done: int, total: int) -> None:
    """Ignore progress."""
