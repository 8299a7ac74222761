"""The loss of a captioner: cross entropy of every word that is not padding."""

from __future__ import annotations

from xpcap.backend import Array, namespace
from xpcap.kernels.softmax import softmax_cross_entropy
from xpcap.layers._checks import check_indices, check_shapes


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
        `(N, T)` booleans: whether a step counts, in the loss and in the gradient.
    verbose
        Print the shape of the gradient.

    Returns
    -------
    loss, dx
        In nats a caption, a 0-d array; and its gradient `(N, T, V)`.

    Raises
    ------
    ShapeError
        If the shapes do not fit, or a word lies outside 0..V-1 (seen on the CPU only).
    """
    xp = namespace(x, y, mask)
    size = check_shapes("temporal_softmax_loss", x=(x, "N T V"), y=(y, "N T"), mask=(mask, "N T"))
    check_indices(xp, "temporal_softmax_loss", y, size["V"])
    dx = x.reshape(-1, size["V"]).copy()
    scale = mask.reshape(-1).astype(bool).astype(dx.dtype) / size["N"]
    losses = xp.empty_like(scale)
    no_bias = xp.zeros(size["V"], dtype=dx.dtype)
    softmax_cross_entropy(xp, dx, no_bias, y.reshape(-1), scale, losses)
    dx = dx.reshape(x.shape)
    if verbose:
        print("dx:", dx.shape)
    return losses.sum(), dx
