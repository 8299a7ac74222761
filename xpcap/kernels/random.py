"""Random numbers without state: the n-th number is a function of n, so every device draws the same.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011): a 128-bit counter and a 64-bit key give four 32-bit words.
"""

from __future__ import annotations

import numpy

from xpcap.backend import Array, Namespace
from xpcap.kernels import kernel

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


@kernel
def philox(xp: Namespace, start: int, count: int, seed: int, stream: int) -> Array:
    """Draw `4 count` random words from the counters `start ... start + count - 1`.

    Parameters
    ----------
    start, count
        Which counters of the stream.
    seed
        The key, 64 bits.
    stream
        The upper half of the counter, 64 bits: numbers of different streams have nothing in common.

    Returns
    -------
    array
        `(count, 4)` uint64, each a 32-bit word.
    """
    counter = xp.arange(start, start + count, dtype=numpy.uint64)
    words = [
        counter & _WORD,
        counter >> 32,
        xp.full_like(counter, stream & _WORD),
        xp.full_like(counter, (stream >> 32) & _WORD),
    ]
    key = [seed & _WORD, (seed >> 32) & _WORD]
    for _ in range(_ROUNDS):
        left, right = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            (right >> 32) ^ words[1] ^ key[0],
            right & _WORD,
            (left >> 32) ^ words[3] ^ key[1],
            left & _WORD,
        ]
        key = [(k + w) & _WORD for k, w in zip(key, _WEYL, strict=True)]
    return xp.stack(words, axis=1)


@kernel
def keep_mask(xp: Namespace, size: int, threshold: int, seed: int, stream: int) -> Array:
    """Draw which elements dropout keeps: `(size,)` booleans, false `threshold` times in 65,536.

    Element e is kept if its 16-bit number is at least `threshold`: counter e // 8 gives eight of
    them, the lower halves of its four words and then the upper halves.
    """
    words = philox(xp, 0, -(-size // 8), seed, stream)
    halves = xp.concatenate([words & 0xFFFF, words >> 16], axis=1)
    return (halves >= threshold).reshape(-1)[:size]


@keep_mask.override("numpy")
def _keep_mask_in_blocks(
    xp: Namespace, size: int, threshold: int, seed: int, stream: int
) -> numpy.ndarray:
    """The reference, on as many counters at a time as stay in a core's cache."""
    block = 8192
    count = -(-size // 8)
    out = numpy.empty((count, 2, 4), numpy.bool_)
    for first in range(0, count, block):
        last = min(first + block, count)
        words = philox(xp, first, last - first, seed, stream)
        numpy.greater_equal(words & 0xFFFF, threshold, out=out[first:last, 0])
        numpy.greater_equal(words >> 16, threshold, out=out[first:last, 1])
    return out.reshape(-1)[:size]
