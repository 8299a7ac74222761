"""Dropout masks by NumPy's own Philox generator."""

from __future__ import annotations

from collections.abc import Iterable

import numpy

from xpcap.backend import Array, Namespace
from xpcap.layers.random import keep_mask

_WORD = 0xFFFFFFFFFFFFFFFF
_BLOCK = 65536  # elements: numbers and mask stay in the cache


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

    A part is the number of its first element, and booleans `(size,)` to be written.
    """
    stream = stream if isinstance(stream, int) else int(stream[0])
    before = (((stream & _WORD) << 64) - 1) % 2**256  # the generator counts up before it draws
    generator = numpy.random.Philox(
        key=numpy.array([seed & _WORD, 0], numpy.uint64),
        counter=numpy.array([before >> shift & _WORD for shift in (0, 64, 128, 192)], numpy.uint64),
    )
    counter = 0
    for first, out in parts:
        skipped = first % 16
        count = -(-(skipped + out.size) // 16)
        generator.advance(first // 16 - counter)
        words = generator.random_raw(4 * count).astype("<u8", copy=False)  # as four numbers each
        numbers = words.view("<u2")[skipped : skipped + out.size]
        numpy.greater_equal(numbers, threshold, out=out)
        counter = first // 16 + count
