"""Timing several programs against each other on a machine that others may use too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SETTLE = 0.05  # seconds in which the threads of the one before fall asleep


@dataclass(frozen=True)
class Figures:
    """Seconds a call took: a median for each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between which the middle half of the rounds lies."""
        if len(self.rounds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return low, high

    def over(self, other: Figures) -> float:
        """How many times as long as `other`: the median of the rounds' ratios."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


@dataclass(frozen=True)
class Result:
    """One program's times for one task.

    Parameters
    ----------
    config, cell, task, program
        What was timed.
    batch_size
        Captions a call.
    figures
        How long it took.
    reference
        What that is compared with: `xpcap`'s own figures.
    """

    config: str
    cell: str
    task: str
    program: str
    batch_size: int
    figures: Figures
    reference: Figures

    def line(self) -> str:
        """Return milliseconds, quartiles, captions a second, and how many times as long."""
        low, high = (1e3 * q for q in self.figures.quartiles)
        return (
            f"  {self.program:<11} {1e3 * self.figures.median:9.2f} ms"
            f"  ({low:.2f} to {high:.2f})".ljust(22)
            + f" {self.batch_size / self.figures.median:9.0f} captions/s"
            + f"  x {self.figures.over(self.reference):.2f}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the same for a JSON file."""
        return {
            "config": self.config,
            "cell": self.cell,
            "task": self.task,
            "program": self.program,
            "ms": 1e3 * self.figures.median,
            "quartiles_ms": [1e3 * q for q in self.figures.quartiles],
            "captions_per_second": self.batch_size / self.figures.median,
            "times_xpcap": self.figures.over(self.reference),
        }


def interleave(
    contenders: Mapping[str, Callable[[int], None]],
    rounds: int,
    calls: int,
    synchronize: Callable[[], None] = lambda: None,
) -> dict[str, Figures]:
    """Time functions in turn, so that whatever else the machine does hits all of them alike.

    Parameters
    ----------
    contenders
        By name, what is called with the number of a batch.
    rounds
        How often each has its turn; who begins, changes.
    calls
        How many calls a turn has, of which the median counts, after one that does not.
    synchronize
        Called before each look at the clock; waits for a device.

    Returns
    -------
    dict
        By name, its times.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(SETTLE)
            contenders[name](turn * calls)
            taken = []
            for k in range(calls):
                synchronize()
                start = time.perf_counter()
                contenders[name](turn * calls + k)
                synchronize()
                taken.append(time.perf_counter() - start)
            times[name].append(statistics.median(taken))
    return {name: Figures(tuple(values)) for name, values in times.items()}
