"""Multi-head attention of the rows of a sequence to each other; see `multi_head.py`.

Words look at themselves and at the words before them (a causal mask), regions at all regions that
are present. The bias of keys adds the same to all e_tl of a row, which the softmax does not see.
So its gradient is 0; it is there because others have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from xpcap.backend import Array
from xpcap.layers._checks import check_arguments
from xpcap.layers.affine import column_sum, product
from xpcap.layers.multi_head import Heads, attention_step, check_heads, from_above
from xpcap.layers.sequences import Sequences
from xpcap.workspace import Workspace


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
        self._heads = Heads(1 / math.sqrt(H // heads), space)
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
        p, xp, (R, P, _) = self._params, self._space.xp, keys.shape
        product(xp, x, p["W_qkv"], self._qkv)
        self._qkv += p["b_qkv"]
        weights = self._space.empty("weights of step", R, self._count, P)
        attention_step(xp, self._qkv, position, keys, values, weights, self._context)
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
    given = {
        "W_qkv": (W_qkv, "H 3H"), "b_qkv": (b_qkv, "3H"), "W_out": (W_out, "H H"),
        "b_out": (b_out, "H"),
    }  # fmt: skip
    words = {"x": (x, "N T H"), "mask": (mask, "N T ?")}
    xp, size = check_arguments("self_attention_forward", **words, **given)
    check_heads("self_attention_forward", heads, size["H"])
    params = {name: array for name, (array, _) in given.items()}
    sequences, space = Sequences.even(size["N"], size["T"]), Workspace(xp, x.dtype)
    layer = SelfAttention(params, sequences, space, "self", heads, mask)
    rows = x.reshape(-1, size["H"])
    out = xp.empty(rows.shape, dtype=x.dtype)
    layer.forward(rows, out)
    return out.reshape(x.shape), SelfAttentionCache(x, layer, params)


def self_attention_backward(dout: Array, cache: SelfAttentionCache) -> SelfAttentionGradients:
    """Gradients of `self_attention_forward`, from that of its output, `dout (N, T, H)`."""
    x, layer, params = cache
    rows, dx, gradients = from_above("self_attention_backward", dout, x, params)
    layer.backward(rows, x.reshape(rows.shape), dx.reshape(rows.shape), gradients)
    return SelfAttentionGradients(dx, *gradients.values())
