"""Drawing words, compiled for the CPU by numba; see `xpcap.kernels.compiled`."""

from __future__ import annotations

import numpy

from xpcap.backend import Array
from xpcap.kernels.compiled import F, _compiled, _power
from xpcap.layers.sampling import draw_words


@_compiled(draw_words)
def _draw_words(scores: Array, uniform: Array, words: Array, log_probs: Array) -> None:
    R, V = scores.shape
    for r in range(R):
        row = scores[r]
        top, total = row.max(), F(0)
        for j in range(V):
            row[j] -= top
        shifted = row.copy()
        for j in range(V):
            row[j] = _power(row[j])
            total += row[j]
        limit, reached, word = uniform[r] * total, F(0), 0
        for j in range(V):
            if row[j] > 0:
                reached += row[j]
                word = j
                if reached > limit:
                    break
        words[r] = word
        log_probs[r] = shifted[word] - numpy.log(total)
