"""Interleaved timing of several programs, on a machine that may be busy with others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SETTLE = 0.05  # seconds for the threads of the previous program to fall asleep


@dataclass(frozen=True)
class Times:
    """Seconds per call: the median of each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and upper quartile of the rounds."""
        if len(self.rounds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return low, high

    def over(self, other: Times) -> float:
        """The median of the rounds' ratios to `other`."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


@dataclass(frozen=True)
class Result:
    """The times of one program for one task, and the reference: `xpcap`'s own times."""

    config: str
    cell: str
    task: str
    program: str
    batch_size: int
    times: Times
    reference: Times

    def line(self) -> str:
        """Format milliseconds, quartiles, captions per second, and the ratio to the reference."""
        low, high = (1e3 * q for q in self.times.quartiles)
        return (
            f"  {self.program:<11} {1e3 * self.times.median:9.2f} ms"
            f"  ({low:.2f} to {high:.2f})".ljust(22)
            + f" {self.batch_size / self.times.median:9.0f} captions/s"
            + f"  x {self.times.over(self.reference):.2f}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the same for JSON."""
        return {
            "config": self.config,
            "cell": self.cell,
            "task": self.task,
            "program": self.program,
            "ms": 1e3 * self.times.median,
            "quartiles_ms": [1e3 * q for q in self.times.quartiles],
            "captions_per_second": self.batch_size / self.times.median,
            "times_xpcap": self.times.over(self.reference),
        }


def interleave(
    contenders: Mapping[str, Callable[[int], None]],
    rounds: int,
    calls: int,
    synchronize: Callable[[], None] = lambda: None,
) -> dict[str, Times]:
    """Time functions in turn, so that other load on the machine affects all of them alike.

    Each function has `rounds` turns, whose order rotates. In each turn it is called once untimed,
    then `calls` times with the number of a batch; the median counts. `synchronize` waits for a
    device, before each reading of the clock.
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
    return {name: Times(tuple(values)) for name, values in times.items()}
