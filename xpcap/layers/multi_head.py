"""Multi-head attention: several attentions side by side, each between its own projections.

Vaswani et al., "Attention is all you need" (2017). Head h of A looks from rows x at rows y, each of
which has a key and a value of d = H / A numbers:

    q = x W_query + b_query         k = y W_key + b_key         v = y W_value + b_value
    e_tl = q_t . k_l / sqrt(d)      alpha = softmax of e over l, 0 where a mask says so
    context_t = sum over l of alpha_tl v_l
    out = (contexts of all heads side by side) W_out + b_out

This is what `self_attention.py` and `cross_attention.py` share: everything between the projections.
The weights alpha are not kept: N A T L numbers, which the backward pass computes again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from xpcap.backend import Array, Namespace, namespace
from xpcap.errors import ShapeError
from xpcap.layers._checks import check_gradients
from xpcap.operations import operation
from xpcap.options import check_counts
from xpcap.subnormals import flushed, power
from xpcap.workspace import Workspace


@operation
def stacked_product(xp: Namespace, a: Array, b: Array, out: Array) -> None:
    """Write the product of each two matrices of `a (..., M, K)` and `b (..., K, N)`."""
    out[...] = a @ b


@operation
def masked_softmax(xp: Namespace, scores: Array, scale: float, mask: Array | None) -> None:
    """Replace scores `(G, A, T, L)` by the softmax over L of scale times what the mask leaves.

    It is 0 where the mask is False, booleans `(G, 1, T, L)` in which G and T may be 1; without a
    mask, nowhere. A row of which nothing is left becomes 0.
    """
    zero, one = scores.dtype.type(0), scores.dtype.type(1)
    scores *= scores.dtype.type(scale)
    mask = xp.ones(1, dtype=bool) if mask is None else mask
    top = xp.where(mask, scores, -xp.inf).max(axis=-1, keepdims=True)
    powers = xp.where(mask, power(xp, xp.where(mask, scores - top, zero)), zero)
    total = powers.sum(axis=-1, keepdims=True)
    scores[...] = powers / xp.where(total > 0, total, one)


@operation
def softmax_gradient(xp: Namespace, weights: Array, scale: float, dweights: Array) -> None:
    """Replace the gradient of `masked_softmax`'s weights `(G, A, T, L)` by that of its scores."""
    inner = (weights * dweights).sum(axis=-1, keepdims=True)
    with flushed(xp, dweights):
        dweights[...] = weights.dtype.type(scale) * weights * (dweights - inner)


@operation
def attention_step(
    xp: Namespace,
    qkv: Array,
    position: Array,
    keys: Array,
    values: Array,
    weights: Array,
    context: Array,
) -> None:
    """Store key and value of one further row of each sequence, and write its context `(R, H)`.

    Its query, key and value are `qkv (R, 3H)`. They are stored at `position (R,)` of `keys` and
    `values (R, P, H)`, behind those of the rows before it, at which it looks; what comes behind may
    be anything finite. `weights (R, A, P)` is scratch memory, and tells the number of heads.
    """
    (R, A, P), H, sequence = weights.shape, context.shape[1], xp.arange(len(qkv))
    keys[sequence, position], values[sequence, position] = qkv[:, H : 2 * H], qkv[:, 2 * H :]
    query, k, v = (
        part.reshape(R, rows, A, H // A).swapaxes(1, 2)
        for part, rows in ((qkv[:, :H], 1), (keys, P), (values, P))
    )
    mask = (xp.arange(P) <= position[:, None])[:, None, None]
    found = weights[:, :, None]
    stacked_product(xp, query, k.swapaxes(2, 3), found)
    masked_softmax(xp, found, 1 / math.sqrt(H // A), mask)
    stacked_product(xp, found, v, context.reshape(R, A, 1, H // A))


class Heads:
    """Attention of queries `(G, A, T, d)` to keys and values `(G, A, L, d)`, group by group."""

    def __init__(self, scale: float, space: Workspace) -> None:
        self._scale, self._space = scale, space

    def weights(self, query: Array, keys: Array, mask: Array | None) -> Array:
        """Return alpha `(G, A, T, L)`, until the next call."""
        xp = self._space.xp
        found = self._space.empty("weights", *query.shape[:3], keys.shape[2])
        stacked_product(xp, query, keys.swapaxes(2, 3), found)
        masked_softmax(xp, found, self._scale, mask)
        return found

    def forward(
        self, query: Array, keys: Array, values: Array, mask: Array | None, context: Array
    ) -> None:
        """Write the context of each query."""
        stacked_product(self._space.xp, self.weights(query, keys, mask), values, context)

    def backward(
        self,
        dcontext: Array,
        query: Array,
        keys: Array,
        values: Array,
        mask: Array | None,
        dquery: Array,
        dkeys: Array,
        dvalues: Array,
    ) -> None:
        """Write the gradient of the query; add those of keys and values."""
        xp, weights = self._space.xp, self.weights(query, keys, mask)
        dscores = self._space.empty("dscores", *weights.shape)
        part = self._space.empty("part", *keys.shape)
        stacked_product(xp, weights.swapaxes(2, 3), dcontext, part)
        dvalues += part
        stacked_product(xp, dcontext, values.swapaxes(2, 3), dscores)
        softmax_gradient(xp, weights, self._scale, dscores)
        stacked_product(xp, dscores, keys, dquery)
        stacked_product(xp, dscores.swapaxes(2, 3), query, part)
        dkeys += part


def check_heads(function: str, heads: int, H: int) -> None:
    """Raise `ShapeError` unless H numbers can be split among the heads."""
    check_counts(heads=heads)
    if H % heads:
        raise ShapeError(f"{function}: expected heads that divide H = {H}, got {heads}")


def from_above(
    function: str, dout: Array, x: Array, params: Mapping[str, Array]
) -> tuple[Array, Array, dict[str, Array]]:
    """Check a gradient from above; return its rows, and memory for those of x and of parameters."""
    xp = namespace(dout, x)
    check_gradients(function, dout=(dout, x.shape))
    gradients = {name: xp.empty_like(p) for name, p in params.items()}
    return dout.reshape(-1, x.shape[2]), xp.empty(x.shape, dtype=x.dtype), gradients
