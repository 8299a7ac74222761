"""The largest values of each row."""

from __future__ import annotations

import numpy

from xpcap.backend import Array, Namespace
from xpcap.operations import operation

_FEW = 16  # up to here, looking for the largest again and again beats sorting


@operation
def top(xp: Namespace, values: Array, count: int) -> tuple[Array, Array]:
    """Return the `count` largest values of each row `(R, M)`, falling, and their places.

    Values are not NaN, and M is at least `count`. Of equal values the first ones, in their order.
    Where all that is left is minus infinity, places are any.
    """
    places = xp.argsort(-values, axis=1, kind="stable")[:, :count]
    return xp.take_along_axis(values, places, axis=1), places


@top.version("numpy")
def _top_by_largest(
    xp: Namespace, values: Array, count: int
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Take the largest, and the largest of the others, and so on, in `values` and then undone."""
    if count > _FEW:
        return top.reference(xp, values, count)
    rows = numpy.arange(len(values))
    found = numpy.empty((len(values), count), values.dtype)
    places = numpy.empty((len(values), count), numpy.int64)
    for k in range(count):
        places[:, k] = values.argmax(axis=1)
        found[:, k] = values[rows, places[:, k]]
        values[rows, places[:, k]] = -numpy.inf
    for k in reversed(range(count)):
        values[rows, places[:, k]] = found[:, k]
    return found, places


@operation
def best_continuations(
    xp: Namespace, values: Array, totals: Array, places: Array, images: int, width: int
) -> tuple[Array, Array, Array]:
    """Return the best continuations among all hypotheses of each image.

    Parameters
    ----------
    values
        `(R, V)` floating, without NaN: what each word adds to a hypothesis's total.
    totals, places
        `(R,)`; places, rising, are the image times `width` plus the slot in that image's beam.

    Returns
    -------
    values, places, words
        `(images, width)` each, falling: the sums, minus infinity where there is nothing left; the
        beam slot that each continues, and the word. Of equal sums the first.
    """
    best, word = top(xp, values + totals[:, None], min(width, values.shape[1]))
    few = best.shape[1]
    sums = xp.full((images * width, few), -xp.inf, dtype=best.dtype)
    words = xp.zeros((images * width, few), dtype=numpy.int64)
    sums[places], words[places] = best, word
    found, index = top(xp, sums.reshape(images, -1), width)
    return found, index // few, xp.take_along_axis(words.reshape(images, -1), index, axis=1)
