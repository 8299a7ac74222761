"""Softmax, and softmax with cross entropy in one pass."""

from __future__ import annotations

from xpcap.backend import Array, Namespace
from xpcap.kernels import kernel


@kernel
def softmax(xp: Namespace, scores: Array) -> Array:
    """Softmax over the last axis; the row's largest score is subtracted, so that e^x is finite."""
    powers = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@kernel
def softmax_cross_entropy(
    xp: Namespace, scores: Array, targets: Array, mask: Array
) -> tuple[Array, Array]:
    """Cross entropy of the rows that `mask` selects, summed, and its gradient.

    Parameters
    ----------
    scores
        `(M, V)` floating.
    targets
        `(M,)` integers in 0..V-1.
    mask
        `(M,)` booleans.

    Returns
    -------
    loss, dscores
        Sum of log(sum e^s) - s[target], a 0-d array in nats; softmax(s) - onehot(target) `(M, V)`,
        zero in rows that are not selected.
    """
    rows = xp.arange(scores.shape[0])
    shifted = scores - scores.max(axis=1, keepdims=True)
    dscores = xp.exp(shifted)
    total = dscores.sum(axis=1, keepdims=True)
    losses = xp.log(total[:, 0]) - shifted[rows, targets]
    dscores /= total
    dscores[rows, targets] -= 1
    zero = scores.dtype.type(0)
    return xp.where(mask, losses, zero).sum(), xp.where(mask[:, None], dscores, zero)
