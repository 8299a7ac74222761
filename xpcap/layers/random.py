"""Random numbers without state: the n-th number is a function of n, so every device draws the same.

Philox4x64-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011), the generator `numpy.random.Philox`: a 256-bit counter and a 128-bit key give four
64-bit words. Here a counter is (n, stream, 0, 0) and a key is (seed, 0).
"""

from __future__ import annotations

from xpcap.backend import Array, Namespace
from xpcap.operations import operation

_HALF = 0xFFFFFFFF
_WORD = 0xFFFFFFFFFFFFFFFF
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10


def _multiply(a: Array, b: int) -> tuple[Array, Array]:
    """Return the upper and the lower 64 bits of the product of uint64 `a` and the number `b`."""
    a_low, a_high = a & _HALF, a >> 32
    b_low, b_high = b & _HALF, b >> 32
    middle = a_high * b_low + (a_low * b_low >> 32)
    carry = a_low * b_high + (middle & _HALF)
    return a_high * b_high + (middle >> 32) + (carry >> 32), a * b


@operation
def philox(xp: Namespace, start: int, count: int, seed: int, stream: int | Array) -> Array:
    """Draw `(count, 4)` random words of 64 bits from the counters `start ... start + count - 1`.

    Numbers of different seeds or streams (64 bits each) have nothing in common. The stream may be
    an array `(1,)` uint64 that the device keeps.
    """
    counter = xp.arange(count, dtype=xp.uint64) + start
    zeros = xp.zeros_like(counter)
    words = [counter, zeros + (stream & _WORD), zeros, zeros]
    key = [seed & _WORD, 0]
    for _ in range(_ROUNDS):
        left_high, left = _multiply(words[0], _MULTIPLIERS[0])
        right_high, right = _multiply(words[2], _MULTIPLIERS[1])
        words = [right_high ^ words[1] ^ key[0], right, left_high ^ words[3] ^ key[1], left]
        key = [(k + w) & _WORD for k, w in zip(key, _WEYL, strict=True)]
    return xp.stack(words, axis=1)


@operation
def keep_mask(xp: Namespace, threshold: int, seed: int, stream: int | Array, out: Array) -> None:
    """Draw which elements dropout keeps: `out (size,)` booleans, false in 65,536 `threshold` times.

    Element e is kept if its 16-bit number is at least `threshold`: counter e // 16 gives sixteen of
    them, the four quarters of its first word, lowest first, then those of the second, and so on.
    """
    words = philox(xp, 0, -(-out.size // 16), seed, stream)
    quarters = xp.stack([(words >> shift) & 0xFFFF for shift in (0, 16, 32, 48)], axis=2)
    out[...] = (quarters >= threshold).reshape(-1)[: out.size]
