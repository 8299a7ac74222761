"""The largest values of each row."""

from __future__ import annotations

import numpy

from xpcap.backend import Array, Namespace
from xpcap.kernels import kernel

_FEW = 16  # up to here, looking for the largest again and again beats sorting


@kernel
def top(xp: Namespace, values: Array, count: int) -> tuple[Array, Array]:
    """Return the `count` largest values of each row, falling, and their places.

    Parameters
    ----------
    values
        `(R, M)` floating, without NaN; M is at least `count`.
    count
        How many.

    Returns
    -------
    values, places
        `(R, count)` each; of equal values the first ones, in their order. Where all that is
        left is minus infinity, places are any.
    """
    places = xp.argsort(-values, axis=1, kind="stable")[:, :count]
    return xp.take_along_axis(values, places, axis=1), places


@top.override("numpy")
def _top_by_largest(
    xp: Namespace, values: Array, count: int
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Take the largest, and the largest of the others, and so on."""
    if count > _FEW:
        return top.reference(xp, values, count)
    rest, rows = values.copy(), numpy.arange(len(values))
    found = numpy.empty((len(values), count), values.dtype)
    places = numpy.empty((len(values), count), numpy.int64)
    for k in range(count):
        places[:, k] = rest.argmax(axis=1)
        found[:, k] = rest[rows, places[:, k]]
        rest[rows, places[:, k]] = -numpy.inf
    return found, places
