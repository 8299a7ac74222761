"""Random numbers of NumPy's own Philox generator."""

from __future__ import annotations

from collections.abc import Iterable

import numpy

from xpcap.backend import Array, Namespace
from xpcap.layers.random import keep_mask, philox

_WORD = 0xFFFFFFFFFFFFFFFF
_BLOCK = 65536  # elements: numbers and mask stay in the cache


@philox.version("numpy")
def _philox_of_numpy(
    xp: Namespace, start: int, count: int, seed: int, stream: int | Array
) -> numpy.ndarray:
    """NumPy's own generator."""
    return _generator(start, seed, stream).random_raw(4 * count).reshape(count, 4)


def _generator(start: int, seed: int, stream: int | Array) -> numpy.random.Philox:
    """Return NumPy's generator, which counts up before it draws, at a counter of a stream."""
    stream = stream if isinstance(stream, int) else int(stream[0])
    before = (start - 1) & _WORD
    counter = [before, ((stream & _WORD) - (before == _WORD)) & _WORD, 0, 0]
    if before == _WORD and stream & _WORD == 0:
        counter = [_WORD] * 4
    return numpy.random.Philox(
        key=numpy.array([seed & _WORD, 0], numpy.uint64),
        counter=numpy.array(counter, numpy.uint64),
    )


@keep_mask.version("numpy")
def _keep_mask_in_blocks(
    xp: Namespace, threshold: int, seed: int, stream: int | Array, out: numpy.ndarray
) -> None:
    """The reference, some elements at a time."""
    blocks = range(0, out.size, _BLOCK)
    keep_parts(threshold, seed, stream, ((first, out[first : first + _BLOCK]) for first in blocks))


def keep_parts(
    threshold: int,
    seed: int,
    stream: int | Array,
    parts: Iterable[tuple[int, numpy.ndarray]],
) -> None:
    """Draw parts of what `keep_mask` draws, on the host.

    Parameters
    ----------
    threshold, seed, stream
        As there.
    parts
        The number of its first element, and `(size,)` booleans to be written, of each.
    """
    generator, counter = _generator(0, seed, stream), 0
    for first, out in parts:
        skipped = first % 16
        count = -(-(skipped + out.size) // 16)
        generator.advance(first // 16 - counter)
        words = generator.random_raw(4 * count).astype("<u8", copy=False)  # as four numbers each
        numbers = words.view("<u2")[skipped : skipped + out.size]
        numpy.greater_equal(numbers, threshold, out=out)
        counter = first // 16 + count
