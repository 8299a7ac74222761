"""One comparison of the self-check."""

from __future__ import annotations

from typing import NamedTuple

import numpy

from xpcap.backend import Array, to_host


class Check(NamedTuple):
    """What was compared, the error, and its limit."""

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.limit


def scaled_difference(ours: Array, expected: Array) -> float:
    """Return the largest difference of two arrays relative to the largest expected value.

    Each may be on any device, or a number; for different shapes the result is infinite.
    """
    ours, expected = numpy.asarray(to_host(ours)), numpy.asarray(to_host(expected))
    if ours.shape != expected.shape:
        return float("inf")
    scale = numpy.max(abs(expected), initial=0.0)
    difference = numpy.max(abs(ours - expected), initial=0.0)
    return float(difference / scale if scale > 0 else difference)
