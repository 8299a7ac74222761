"""Multi-head attention of words to the regions of their images; see `multi_head.py`.

There are more regions than words. So the products are taken in another order, which is less work
if words times heads are fewer than the H numbers of two projections, and keeps no keys and values:

    q_t . k_l = q_t . (p_l W_key) = (q_t W_key^T) . p_l
    sum_l alpha_tl v_l = (sum_l alpha_tl p_l) W_value + b_value          as sum_l alpha_tl = 1

A bias of keys would add the same to all e_tl of a row, which the softmax does not see: there is
none. Without a region the context is b_value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from xpcap.backend import Array, namespace
from xpcap.layers._checks import check_arguments
from xpcap.layers.affine import column_sum, product
from xpcap.layers.multi_head import Heads, check_heads, from_above
from xpcap.layers.sequences import Sequences
from xpcap.workspace import Workspace


class CrossAttention:
    """Attention of the rows of captions to the regions of their images, with its cache.

    `regions` are p `(N, L, D)` and `present (N, L)`. `params` are `W_query (H, H)`, `b_query`,
    `W_key` and `W_value` `(D, H)`, `b_value`, `W_out (H, H)` and `b_out`.
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        rows: Sequences,
        space: Workspace,
        name: str,
        heads: int,
        regions: Array,
        present: Array,
    ) -> None:
        self._params, self._count, self._regions, self._present = params, heads, regions, present
        self._rows, self._space = rows, space
        D, H = params["W_key"].shape
        self._heads = Heads(1 / math.sqrt(H // heads), space)
        self._query = rows.empty(space, f"{name} query", H)
        self._asked = rows.empty(space, f"{name} asked", heads * D)  # q W_key^T
        self._mixed = rows.empty(space, f"{name} mixed", heads * D)  # sum of alpha p
        self._context = rows.empty(space, f"{name} context", H)

    def forward(self, x: Array, out: Array) -> None:
        """Write the layer's output `(M, H)`."""
        p, xp = self._params, self._space.xp
        product(xp, x, p["W_query"], self._query)
        self._query += p["b_query"]
        for q, asked, W_key in self._each(self._query, self._asked, p["W_key"]):
            product(xp, q, W_key.T, asked)
        for regions, mask, asked, mixed in self._groups(self._asked, self._mixed):
            self._heads.forward(asked, regions, regions, mask, mixed)
        for mixed, context, W_value in self._each(self._mixed, self._context, p["W_value"]):
            product(xp, mixed, W_value, context)
        self._context += p["b_value"]
        product(xp, self._context, p["W_out"], out)
        out += p["b_out"]

    def backward(
        self,
        dout: Array,
        x: Array,
        dx: Array,
        gradients: Mapping[str, Array],
        dregions: Array,
    ) -> None:
        """Write the gradients of the input `x` and of the parameters; add that of the regions."""
        p, xp, space = self._params, self._space.xp, self._space
        dcontext = self._rows.empty(space, "dcontext", x.shape[1])
        dmixed = self._rows.empty(space, "dmixed", self._mixed.shape[1])
        dasked = self._rows.empty(space, "dasked", self._mixed.shape[1])
        product(xp, self._context.T, dout, gradients["W_out"])
        column_sum(xp, dout, gradients["b_out"])
        product(xp, dout, p["W_out"].T, dcontext)
        column_sum(xp, dcontext, gradients["b_value"])
        for mixed, dm, dc, W_value, dW_value in self._each(
            self._mixed, dmixed, dcontext, p["W_value"], gradients["W_value"]
        ):
            product(xp, mixed.T, dc, dW_value)
            product(xp, dc, W_value.T, dm)
        for regions, mask, dm, asked, da, dp in self._groups(dmixed, self._asked, dasked, dregions):
            self._heads.backward(dm, asked, regions, regions, mask, da, dp, dp)
        dquery = dcontext
        for q, da, dq, W_key, dW_key in self._each(
            self._query, dasked, dquery, p["W_key"], gradients["W_key"]
        ):
            product(xp, da.T, q, dW_key)
            product(xp, da, W_key, dq)
        product(xp, x.T, dquery, gradients["W_query"])
        column_sum(xp, dquery, gradients["b_query"])
        product(xp, dquery, p["W_query"].T, dx)

    def weights(self) -> Iterator[Array]:
        """Yield alpha `(G, A, T, L)` of each group, after `forward`, until the next one."""
        for regions, mask, asked in self._groups(self._asked):
            found = self._heads.weights(asked, regions, mask)
            yield found.reshape(len(found), -1, self._count, found.shape[3]).swapaxes(1, 2)

    def _each(self, *arrays: Array) -> Iterator[list[Array]]:
        """Yield the columns of each head."""
        for k in range(self._count):
            parts = ((array, array.shape[1] // self._count) for array in arrays)
            yield [array[:, k * width : (k + 1) * width] for array, width in parts]

    def _groups(self, *arrays: Array) -> Iterator[list[Array]]:
        """Yield regions, mask, and the queries of all heads of arrays `(M, A D)`, of each group.

        The heads are further rows `(G, 1, T A, D)`, as all look at the same regions. Of an array
        `(N, L, D)` those of the group's images are yielded.
        """
        D = self._regions.shape[2]
        for rows, images, T in self._rows.groups:
            shape = images.stop - images.start, T * self._count, D
            own = (part[images] if part.ndim == 3 else part[rows].reshape(shape) for part in arrays)
            mask = self._present[images][:, None, None, :]
            yield [self._regions[images][:, None], mask, *(part[:, None] for part in own)]


class CrossAttentionCache(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x: Array
    regions: Array
    layer: CrossAttention
    params: Mapping[str, Array]


class CrossAttentionGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dregions: Array
    dW_query: Array
    db_query: Array
    dW_key: Array
    dW_value: Array
    db_value: Array
    dW_out: Array
    db_out: Array


def cross_attention_forward(
    x: Array,
    regions: Array,
    W_query: Array,
    b_query: Array,
    W_key: Array,
    W_value: Array,
    b_value: Array,
    W_out: Array,
    b_out: Array,
    heads: int,
    mask: Array | None = None,
) -> tuple[Array, CrossAttentionCache]:
    """Multi-head attention of each row of sequences to the regions of their images.

    Parameters
    ----------
    x, regions
        `(N, T, H)` and `(N, L, D)`.
    W_query, b_query, W_key, W_value, b_value, W_out, b_out
        `(H, H)`, `(H,)`, twice `(D, H)`, `(H,)`, `(H, H)` and `(H,)`.
    heads
        A, a divisor of H.
    mask
        Booleans `(N, L)`: which regions are present; None if all are.

    Returns
    -------
    out, cache
        `(N, T, H)`.

    Raises
    ------
    ShapeError
        As `self_attention_forward` does.
    """
    given = {
        "W_query": (W_query, "H H"), "b_query": (b_query, "H"), "W_key": (W_key, "D H"),
        "W_value": (W_value, "D H"), "b_value": (b_value, "H"), "W_out": (W_out, "H H"),
        "b_out": (b_out, "H"),
    }  # fmt: skip
    images = {"x": (x, "N T H"), "regions": (regions, "N L D"), "mask": (mask, "N L ?")}
    xp, size = check_arguments("cross_attention_forward", **images, **given)
    check_heads("cross_attention_forward", heads, size["H"])
    params = {name: array for name, (array, _) in given.items()}
    sequences, space = Sequences.even(size["N"], size["T"]), Workspace(xp, x.dtype)
    present = xp.ones(regions.shape[:2], dtype=bool) if mask is None else mask
    layer = CrossAttention(params, sequences, space, "cross", heads, regions, present)
    rows = x.reshape(-1, size["H"])
    out = xp.empty(rows.shape, dtype=x.dtype)
    layer.forward(rows, out)
    return out.reshape(x.shape), CrossAttentionCache(x, regions, layer, params)


def cross_attention_backward(dout: Array, cache: CrossAttentionCache) -> CrossAttentionGradients:
    """Gradients of `cross_attention_forward`, from that of its output, `dout (N, T, H)`."""
    x, regions, layer, params = cache
    rows, dx, gradients = from_above("cross_attention_backward", dout, x, params)
    dregions = namespace(dout).zeros_like(regions)
    layer.backward(rows, x.reshape(rows.shape), dx.reshape(rows.shape), gradients, dregions)
    return CrossAttentionGradients(dx, dregions, *gradients.values())
