"""Drawing words from a model's distribution."""

from __future__ import annotations

from xpcap.backend import Array, Namespace
from xpcap.layers.random import philox
from xpcap.operations import operation
from xpcap.subnormals import power

_BITS = 24  # of a number, as many as float32 has


def uniform(xp: Namespace, count: int, seed: int, stream: int) -> Array:
    """Return numbers `(count,)` float32, uniform in [0, 1); the n-th is always the same."""
    words = philox(xp, 0, -(-count // 4), seed, stream).reshape(-1)[:count]
    return (words >> (64 - _BITS)).astype(xp.float32) * xp.float32(2.0**-_BITS)


@operation
def draw_words(
    xp: Namespace, scores: Array, uniform: Array, words: Array, log_probs: Array
) -> None:
    """Draw a word from each row of softmax(scores), `(R, V)`, and write its log-probability.

    It is the first whose cumulative probability exceeds `uniform (R,)`, in [0, 1), of the scores'
    dtype. `words (R,)` are int32; `scores` become e^(s - the largest of the row).
    """
    rows = xp.arange(len(scores))
    scores -= scores.max(axis=1, keepdims=True)
    drawn = scores.copy()
    scores[...] = power(xp, scores)
    sums = xp.cumsum(scores, axis=1)
    total = sums[:, -1:]
    found = (sums <= uniform[:, None] * total).sum(axis=1)
    words[...] = xp.minimum(found, (sums < total).sum(axis=1))  # where the product is rounded up
    log_probs[...] = drawn[rows, words] - xp.log(total[:, 0])
