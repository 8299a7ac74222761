"""Softmax, and the loss of a captioner: cross entropy of every word that is not padding."""

from __future__ import annotations

from xpcap.backend import Array, Namespace, is_host, namespace
from xpcap.errors import ShapeError
from xpcap.layers._checks import check_floating, check_indices, check_numbers, check_shapes
from xpcap.operations import operation
from xpcap.subnormals import power


@operation
def softmax(xp: Namespace, scores: Array) -> Array:
    """Softmax over the last axis; the row's largest score is subtracted, so that e^x is finite."""
    powers = power(xp, scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@operation
def log_softmax(xp: Namespace, scores: Array) -> Array:
    """Logarithm of `softmax`: s - log(sum e^s), in nats."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))


@operation
def log_normalizer(xp: Namespace, scores: Array) -> Array:
    """Return what `log_softmax` takes from scores `(R, V)`, log(sum e^s), `(R,)`; scores stay."""
    largest = scores.max(axis=1)
    return largest + xp.log(xp.exp(scores - largest[:, None]).sum(axis=1))


@operation
def softmax_cross_entropy(
    xp: Namespace,
    scores: Array,
    bias: Array,
    targets: Array,
    scale: Array,
    losses: Array,
    smoothing: float = 0.0,
) -> None:
    """Cross entropy of each row of `scores (M, V)`, and its gradient in their place.

    With s = scores + bias, a weight for each row, `scale (M,)`, and the target distribution q,
    `losses (M,)` become scale (log(sum e^s) - sum q s), in nats, and the gradient is
    scale (softmax(s) - q). Both are 0 in a row of scale 0, whatever its scores.

    q is (1 - smoothing) onehot(target) + smoothing / V: label smoothing (Szegedy et al. 2016,
    "Rethinking the Inception Architecture for Computer Vision", section 7), by default none.
    """
    rows = xp.arange(scores.shape[0])
    scores += bias
    scores -= scores.max(axis=1, keepdims=True)
    expected = scores[rows, targets]  # of the scores, under q
    if smoothing:
        expected = (1 - smoothing) * expected + smoothing * scores.mean(axis=1)
    scores[...] = power(xp, scores)
    total = scores.sum(axis=1)
    zero = scores.dtype.type(0)
    losses[...] = xp.where(scale == 0, zero, scale * (xp.log(total) - expected))
    scores *= (scale / total)[:, None]
    if smoothing:
        scores -= (smoothing / scores.shape[1] * scale)[:, None]
    scores[rows, targets] -= (1 - smoothing) * scale
    scores[...] = xp.where((scale == 0)[:, None], zero, scores)


def temporal_softmax_loss(
    x: Array, y: Array, mask: Array, verbose: bool = False
) -> tuple[Array, Array]:
    """Cross entropy of scores against words, summed over time and averaged over the batch.

    Parameters
    ----------
    x
        Scores `(N, T, V)` of each word at each step.
    y
        The true words `(N, T)`, integers in 0..V-1.
    mask
        `(N, T)` booleans, or 0 and 1: whether a step counts, in the loss and in the gradient.
    verbose
        Print the shape of the gradient.

    Returns
    -------
    loss, dx
        In nats per caption, a 0-d array; and its gradient `(N, T, V)`.

    Raises
    ------
    ShapeError
        If the shapes do not fit, the batch is empty, the scores are not floating, a word lies
        outside 0..V-1 or the mask holds other numbers (the last two seen on the CPU only).
    """
    xp = namespace(x, y, mask)
    size = check_shapes("temporal_softmax_loss", x=(x, "N T V"), y=(y, "N T"), mask=(mask, "N T"))
    check_indices(xp, "temporal_softmax_loss", y, size["V"])
    check_floating("temporal_softmax_loss", x=x)
    check_numbers("temporal_softmax_loss", mask=mask)
    if not size["N"]:
        raise ShapeError(f"temporal_softmax_loss: expected N of at least 1, got x {tuple(x.shape)}")
    if is_host(xp) and mask.dtype.kind != "b" and ((mask != 0) & (mask != 1)).any():
        raise ShapeError("temporal_softmax_loss: expected booleans, or 0 and 1, in the mask")
    dx = x.reshape(-1, size["V"]).copy()
    scale = mask.reshape(-1).astype(bool).astype(dx.dtype) / size["N"]
    losses = xp.empty_like(scale)
    no_bias = xp.zeros(size["V"], dtype=dx.dtype)
    softmax_cross_entropy(xp, dx, no_bias, y.reshape(-1), scale, losses)
    dx = dx.reshape(x.shape)
    if verbose:
        print("dx:", dx.shape)
    return losses.sum(), dx
