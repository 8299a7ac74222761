"""Softmax, and softmax with cross entropy in one pass."""

from __future__ import annotations

import numpy

from xpcap.backend import Array, Namespace
from xpcap.kernels import kernel
from xpcap.kernels.subnormals import lowest, power

_BLOCK = 2**18  # elements: 1 MB of float32, half of a core's cache


@kernel
def softmax(xp: Namespace, scores: Array) -> Array:
    """Softmax over the last axis; the row's largest score is subtracted, so that e^x is finite."""
    powers = power(xp, scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@kernel
def log_softmax(xp: Namespace, scores: Array) -> Array:
    """Logarithm of `softmax`: s - log(sum e^s), in nats."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))


@kernel
def log_normalizer(xp: Namespace, scores: Array) -> Array:
    """Return what `log_softmax` takes from the scores, log(sum e^s), `(R,)`; scores stay.

    Parameters
    ----------
    scores
        `(R, V)`.
    """
    largest = scores.max(axis=1)
    return largest + xp.log(xp.exp(scores - largest[:, None]).sum(axis=1))


@log_normalizer.override("numpy")
def _log_normalizer_in_blocks(xp: Namespace, scores: Array) -> Array:
    """The reference, on as many rows at a time as stay in a core's cache."""
    height = max(1, _BLOCK // scores.itemsize // max(1, scores.shape[1]))
    found = numpy.empty(len(scores), scores.dtype)
    for first in range(0, len(scores), height):
        rows = slice(first, first + height)
        found[rows] = log_normalizer.reference(xp, scores[rows])
    return found


@kernel
def softmax_cross_entropy(
    xp: Namespace, scores: Array, bias: Array, targets: Array, scale: Array, losses: Array
) -> None:
    """Cross entropy of each row of scores, and its gradient in their place.

    Parameters
    ----------
    scores
        `(M, V)`: h W_vocab; becomes the gradient, scale (softmax(s) - onehot(target)).
    bias
        `(V,)`: s = scores + bias.
    targets
        `(M,)` integers in 0..V-1.
    scale
        `(M,)`: what each row counts; a row of scale 0 has the loss 0 and the gradient 0, whatever
        its scores.
    losses
        `(M,)`, written: scale (log(sum e^s) - s[target]), in nats.
    """
    rows = xp.arange(scores.shape[0])
    scores += bias
    scores -= scores.max(axis=1, keepdims=True)
    of_target = scores[rows, targets]
    scores[...] = power(xp, scores)
    total = scores.sum(axis=1)
    zero = scores.dtype.type(0)
    losses[...] = xp.where(scale == 0, zero, scale * (xp.log(total) - of_target))
    scores *= (scale / total)[:, None]
    scores[rows, targets] -= scale
    scores[...] = xp.where((scale == 0)[:, None], zero, scores)


@softmax_cross_entropy.override("numpy")
def _softmax_cross_entropy_in_blocks(
    xp: Namespace, scores: Array, bias: Array, targets: Array, scale: Array, losses: Array
) -> None:
    """The reference, on as many rows at a time as stay in a core's cache."""
    height = max(1, _BLOCK // scores.shape[1])
    least = lowest(scores.dtype)
    for first in range(0, len(scores), height):
        rows = slice(first, first + height)
        part, weight, target = scores[rows], scale[rows], targets[rows]
        places = numpy.arange(len(part))
        part += bias
        part -= part.max(axis=1, keepdims=True)
        of_target = part[places, target]
        if part.min() < least:
            part[part < least] = -numpy.inf  # whose power is 0
        numpy.exp(part, out=part)
        total = part.sum(axis=1)
        numpy.multiply(weight, numpy.log(total) - of_target, out=losses[rows])
        part *= (weight / total)[:, None]
        part[places, target] -= weight
        silent = weight == 0
        if silent.any():
            part[silent] = 0
            losses[rows][silent] = 0
