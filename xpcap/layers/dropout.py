"""Inverted dropout, with masks that are a function of the seed and the step alone.

Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting" (JMLR 2014).
"Inverted": what is kept is scaled up in training, so that nothing changes when it is switched off.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from xpcap.backend import Array, namespace
from xpcap.layers._checks import check_floating, check_gradients
from xpcap.layers.random import keep_mask
from xpcap.options import check_counts, check_number


class DropoutCache(NamedTuple):
    """What the backward pass needs: 0 where an element was dropped, else the scale."""

    mask: Array


def dropout_forward(
    x: Array, rate: float, seed: int, stream: int = 0
) -> tuple[Array, DropoutCache]:
    """Set a random share of the elements to zero and scale the others up: `x mask`.

    Parameters
    ----------
    x
        Floating inputs of any shape.
    rate
        The share that is dropped, in [0, 1), taken to the nearest of 65,536 levels; for others
        `ConfigurationError` is raised.
    seed, stream
        Which mask: the same two numbers (64 bits each) give the same mask on every device; another
        stream, the number of a training step say, gives an independent one. They are integers,
        else `ConfigurationError`.
    """
    xp = namespace(x)
    check_floating("dropout_forward", x=x)
    check_number("rate", rate, "[0, 1)")
    check_counts(-math.inf, math.inf, seed=seed, stream=stream)
    kept = xp.empty(x.size, dtype=bool)
    keep_mask(xp, threshold(rate), int(seed), int(stream), kept)
    mask = kept.reshape(x.shape).astype(x.dtype) * scale(rate)
    return x * mask, DropoutCache(mask)


def dropout_backward(dout: Array, cache: DropoutCache) -> Array:
    """Gradient of `dropout_forward` with respect to `x`: `dout mask`."""
    namespace(dout, cache.mask)
    check_gradients("dropout_backward", dout=(dout, cache.mask.shape))
    return dout * cache.mask


def threshold(rate: float) -> int:
    """Return how many of 65,536 levels are dropped."""
    return min(round(rate * 65536), 65535)


def scale(rate: float) -> float:
    """Return what the elements that are kept are multiplied by."""
    return 65536 / (65536 - threshold(rate))
