"""Multi-head attention: several attentions side by side, each between its own projections.

Vaswani et al., "Attention is all you need" (2017). Head h of A looks from rows x at rows y, each of
which has a key and a value of d = H / A numbers:

    q = x W_query + b_query         k = y W_key + b_key         v = y W_value + b_value
    e_tl = q_t . k_l / sqrt(d)      alpha = softmax of e over l, 0 where a mask says so
    context_t = sum over l of alpha_tl v_l
    out = (contexts of all heads side by side) W_out + b_out

`SelfAttention` looks at the rows of its own sequence: y = x. `CrossAttention` looks at the regions
of an image, of which there are more than words. So it multiplies in another order, which is less
work if words times heads are fewer than the H numbers of two projections:

    q_t . k_l = q_t . (p_l W_key) = (q_t W_key^T) . p_l
    sum_l alpha_tl v_l = (sum_l alpha_tl p_l) W_value + b_value          as sum_l alpha_tl = 1

The bias of keys adds the same to all e_tl of a row, so the softmax does not see it. It is left out
of `CrossAttention`; `SelfAttention` has it, as others do, and its gradient is 0. Without a region
the context of `CrossAttention` is b_value.

The weights alpha are not kept: N A T L numbers, which the backward pass computes again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.errors import ShapeError
from xpcap.layers._checks import check_floating, check_gradients, check_shapes
from xpcap.layers.affine import column_sum, product
from xpcap.layers.sequences import Sequences
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


class _Heads:
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


class SelfAttention:
    """Attention of rows to those of their own sequence, and what its backward pass needs.

    `params` are `W_qkv (H, 3H)`, `b_qkv`, `W_out (H, H)` and `b_out`. Without `present`, a row
    looks at itself and at those before it, as words do; with it, at all rows of its sequence of
    which `present (N, L)` is True.
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        rows: Sequences,
        space: Workspace,
        name: str,
        heads: int,
        present: Array | None = None,
    ) -> None:
        self._params, self._count, self._present = params, heads, present
        self._rows, self._space = rows, space
        H = len(params["W_out"])
        self._heads = _Heads(1 / math.sqrt(H // heads), space)
        self._qkv = rows.empty(space, f"{name} qkv", 3 * H)
        self._context = rows.empty(space, f"{name} context", H)

    def forward(self, x: Array, out: Array) -> None:
        """Write the layer's output `(M, H)`."""
        p, xp = self._params, self._space.xp
        product(xp, x, p["W_qkv"], self._qkv)
        self._qkv += p["b_qkv"]
        for q, k, v, context, mask in self._groups(*self._split(self._qkv), self._context):
            self._heads.forward(q, k, v, mask, context)
        product(xp, self._context, p["W_out"], out)
        out += p["b_out"]

    def backward(self, dout: Array, x: Array, dx: Array, gradients: Mapping[str, Array]) -> None:
        """Write the gradients of the input `x` and of the parameters."""
        p, xp = self._params, self._space.xp
        dcontext = self._rows.empty(self._space, "dcontext", x.shape[1])
        dqkv = self._rows.empty(self._space, "dqkv", self._qkv.shape[1])
        product(xp, self._context.T, dout, gradients["W_out"])
        column_sum(xp, dout, gradients["b_out"])
        product(xp, dout, p["W_out"].T, dcontext)
        dqkv[...] = 0
        arrays = dcontext, *self._split(self._qkv), *self._split(dqkv)
        for dc, q, k, v, dq, dk, dv, mask in self._groups(*arrays):
            self._heads.backward(dc, q, k, v, mask, dq, dk, dv)
        product(xp, x.T, dqkv, gradients["W_qkv"])
        column_sum(xp, dqkv, gradients["b_qkv"])
        self._split(gradients["b_qkv"][None])[1][...] = 0  # exactly, which Adam would not ignore
        product(xp, dqkv, p["W_qkv"].T, dx)

    def advance(self, x: Array, keys: Array, values: Array, position: Array, out: Array) -> None:
        """Write the output `(R, H)` of one further row of each sequence.

        Its key and value are stored at `position (R,)` of `keys` and `values (R, P, H)`, behind
        those of the rows before it.
        """
        p, xp, (R, P, H), A = self._params, self._space.xp, keys.shape, self._count
        product(xp, x, p["W_qkv"], self._qkv)
        self._qkv += p["b_qkv"]
        query, key, value = self._split(self._qkv)
        sequence = xp.arange(R)
        keys[sequence, position], values[sequence, position] = key, value
        mask = (xp.arange(P) <= position[:, None])[:, None, None, :]
        stored = (part.reshape(R, P, A, H // A).swapaxes(1, 2) for part in (keys, values))
        one = (part.reshape(R, A, 1, H // A) for part in (query, self._context))
        (q, context), (k, v) = one, stored
        self._heads.forward(q, k, v, mask, context)
        product(xp, self._context, p["W_out"], out)
        out += p["b_out"]

    def weights(self) -> Iterator[Array]:
        """Yield alpha `(G, A, T, T)` of each group, after `forward`, until the next one."""
        for q, k, _, mask in self._groups(*self._split(self._qkv)):
            yield self._heads.weights(q, k, mask)

    def _split(self, qkv: Array) -> list[Array]:
        H = qkv.shape[1] // 3
        return [qkv[:, k * H : (k + 1) * H] for k in range(3)]

    def _groups(self, *arrays: Array) -> Iterator[list[Array]]:
        """Yield the heads of arrays `(M, H)`, and the mask, of each group."""
        xp = self._space.xp
        for (_, sequences, T), *parts in zip(
            self._rows.groups,
            *(self._rows.heads(part, self._count) for part in arrays),
            strict=True,
        ):
            if self._present is None:
                mask = (xp.arange(T)[:, None] >= xp.arange(T))[None, None]
            else:
                mask = self._present[sequences][:, None, None, :]
            yield [*parts, mask]


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
        self._heads = _Heads(1 / math.sqrt(H // heads), space)
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


class SelfAttentionCache(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x: Array
    layer: SelfAttention
    params: Mapping[str, Array]


class SelfAttentionGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dW_qkv: Array
    db_qkv: Array
    dW_out: Array
    db_out: Array


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


def self_attention_forward(
    x: Array,
    W_qkv: Array,
    b_qkv: Array,
    W_out: Array,
    b_out: Array,
    heads: int,
    mask: Array | None = None,
) -> tuple[Array, SelfAttentionCache]:
    """Multi-head attention of each row of sequences to those of the same sequence.

    Parameters
    ----------
    x
        `(N, T, H)`.
    W_qkv, b_qkv, W_out, b_out
        `(H, 3H)`, `(3H,)`, `(H, H)` and `(H,)`; the first two are those of query, key and value
        side by side.
    heads
        A, a divisor of H.
    mask
        Booleans `(N, T)`: the rows that all rows of the sequence look at. None is the causal mask:
        each row looks at itself and at those before it.

    Returns
    -------
    out, cache
        `(N, T, H)`.

    Raises
    ------
    ShapeError
        If shapes do not fit together, arrays are not floating, or the mask not one of booleans.
    """
    params = {"W_qkv": W_qkv, "b_qkv": b_qkv, "W_out": W_out, "b_out": b_out}
    layouts = {"W_qkv": "H 3H", "b_qkv": "3H", "W_out": "H H", "b_out": "H"}
    given = {"x": (x, "N T H"), **{n: (p, layouts[n]) for n, p in params.items()}}
    size = _check(
        "self_attention_forward", given, heads, {} if mask is None else {"mask": (mask, "N T")}
    )
    rows = x.reshape(-1, size["H"])
    layer = SelfAttention(
        params, Sequences.even(size["N"], size["T"]), _own(x), "self", heads, mask
    )
    out = namespace(x).empty(rows.shape, dtype=x.dtype)
    layer.forward(rows, out)
    return out.reshape(x.shape), SelfAttentionCache(x, layer, params)


def self_attention_backward(dout: Array, cache: SelfAttentionCache) -> SelfAttentionGradients:
    """Gradients of `self_attention_forward`, from that of its output, `dout (N, T, H)`."""
    x, layer, params = cache
    rows, dx, gradients = _above("self_attention_backward", dout, x, params)
    layer.backward(rows, x.reshape(rows.shape), dx.reshape(rows.shape), gradients)
    return SelfAttentionGradients(dx, *gradients.values())


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
    params = {
        "W_query": W_query, "b_query": b_query, "W_key": W_key, "W_value": W_value,
        "b_value": b_value, "W_out": W_out, "b_out": b_out,
    }  # fmt: skip
    layouts = ("H H", "H", "D H", "D H", "H", "H H", "H")
    given = {"x": (x, "N T H"), "regions": (regions, "N L D")}
    given |= {n: (p, layout) for (n, p), layout in zip(params.items(), layouts, strict=True)}
    size = _check(
        "cross_attention_forward", given, heads, {} if mask is None else {"mask": (mask, "N L")}
    )
    xp, rows = namespace(x), x.reshape(-1, size["H"])
    mask = xp.ones(regions.shape[:2], dtype=bool) if mask is None else mask
    layer = CrossAttention(
        params, Sequences.even(size["N"], size["T"]), _own(x), "cross", heads, regions, mask
    )
    out = xp.empty(rows.shape, dtype=x.dtype)
    layer.forward(rows, out)
    return out.reshape(x.shape), CrossAttentionCache(x, regions, layer, params)


def cross_attention_backward(dout: Array, cache: CrossAttentionCache) -> CrossAttentionGradients:
    """Gradients of `cross_attention_forward`, from that of its output, `dout (N, T, H)`."""
    x, regions, layer, params = cache
    rows, dx, gradients = _above("cross_attention_backward", dout, x, params)
    dregions = namespace(dout).zeros_like(regions)
    layer.backward(rows, x.reshape(rows.shape), dx.reshape(rows.shape), gradients, dregions)
    return CrossAttentionGradients(dx, dregions, *gradients.values())


def _own(x: Array) -> Workspace:
    return Workspace(namespace(x), x.dtype)


def _check(
    function: str,
    given: Mapping[str, tuple[Array, str]],
    heads: int,
    masks: Mapping[str, tuple[Array, str]],
) -> dict[str, int]:
    """Check the arguments of a public function; return the size of each letter."""
    namespace(*(array for array, _ in (*given.values(), *masks.values())))
    size = check_shapes(function, **given, **masks)
    check_floating(function, **{name: array for name, (array, _) in given.items()})
    for mask, _ in masks.values():
        if mask.dtype.kind != "b":
            raise ShapeError(f"{function}: expected booleans in mask, got {mask.dtype}")
    check_heads(function, heads, size["H"])
    return size


def check_heads(function: str, heads: int, H: int) -> None:
    """Raise `ShapeError` unless H numbers can be split among the heads."""
    check_counts(heads=heads)
    if H % heads:
        raise ShapeError(f"{function}: expected heads that divide H = {H}, got {heads}")


def _above(
    function: str, dout: Array, x: Array, params: Mapping[str, Array]
) -> tuple[Array, Array, dict[str, Array]]:
    """Check a gradient from above; return its rows, and memory for those of x and of parameters."""
    xp = namespace(dout, x)
    check_gradients(function, dout=(dout, x.shape))
    gradients = {name: xp.empty_like(p) for name, p in params.items()}
    return dout.reshape(-1, x.shape[2]), xp.empty(x.shape, dtype=x.dtype), gradients
