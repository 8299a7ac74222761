"""Word embedding: each word gets its vector, and each vector the gradients of all its places."""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_floating, check_gradients, check_indices, check_shapes
from xpcap.operations import operation


@operation
def take_rows(xp: Namespace, table: Array, indices: Array, out: Array) -> None:
    """Write `table[indices]` into `out (M, D)`; `table (size, D)`, `indices (M,)` below size.

    For the index -1, which stands for no row, it is some row of the table.
    """
    out[...] = table[indices]


@operation
def add_rows(xp: Namespace, indices: Array, rows: Array, out: Array) -> None:
    """Write the sum of the `rows (M, D)` of each index into `out (size, D)`; others become 0.

    Rows of the index -1 are ignored.

    The product with a one-hot matrix, because its order of summation is the same every time;
    atomic additions are not, and fancy `out[indices] += rows` loses the repeated ones.
    """
    one_hot = (xp.arange(len(out))[:, None] == indices[None, :]).astype(rows.dtype)
    out[...] = one_hot @ rows


class EmbeddingCache(NamedTuple):
    """What the backward pass needs: the words, how many there can be, and the size of a vector."""

    x: Array
    V: int
    D: int


def word_embedding_forward(x: Array, W: Array) -> tuple[Array, EmbeddingCache]:
    """Give each word its vector: `W[x]`, `(N, T, D)`.

    Words `x (N, T)` are integers in 0..V-1, `W (V, D)` has a vector for each. Raises `ShapeError`
    if the shapes do not fit, `W` is not floating, or an index lies outside the vocabulary (seen on
    the CPU only).
    """
    xp = namespace(x, W)
    size = check_shapes("word_embedding_forward", x=(x, "N T"), W=(W, "V D"))
    check_indices(xp, "word_embedding_forward", x, size["V"])
    check_floating("word_embedding_forward", W=W)
    return W[x], EmbeddingCache(x, size["V"], size["D"])


def word_embedding_backward(dout: Array, cache: EmbeddingCache) -> Array:
    """Gradient of `word_embedding_forward`: each word's row is the sum over all its places.

    The same bits every time, since the order of summation is fixed.
    """
    xp = namespace(dout, cache.x)
    check_gradients("word_embedding_backward", dout=(dout, (*cache.x.shape, cache.D)))
    rows = dout.reshape(-1, cache.D)
    dW = xp.empty((cache.V, cache.D), dtype=rows.dtype)
    add_rows(xp, cache.x.reshape(-1), rows, dW)
    return dW
