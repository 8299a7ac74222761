"""The feed-forward layer of a Transformer: two affine layers with a GELU between them.

    out = gelu(x W_in + b_in) W_out + b_out

D. Hendrycks and K. Gimpel, "Gaussian error linear units" (2016), in their form with tanh, which
GPT-2 has and PyTorch calls `approximate="tanh"`:

    gelu(a) = a (1 + tanh u) / 2,   u = sqrt(2 / pi) a (1 + 0.044715 a^2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_arguments, check_gradients
from xpcap.layers.affine import column_sum, product
from xpcap.layers.sequences import Sequences
from xpcap.operations import operation
from xpcap.subnormals import flushed
from xpcap.workspace import Workspace

SLOPE, CUBIC = math.sqrt(2 / math.pi), 0.044715


@operation
def gelu(xp: Namespace, a: Array, out: Array) -> None:
    """Write the GELU of `a (R, F)`."""
    out[...] = 0.5 * a * (1 + xp.tanh(SLOPE * a * (1 + CUBIC * a * a)))


@operation
def gelu_gradient(xp: Namespace, dout: Array, a: Array, out: Array, da: Array) -> None:
    """Write gelu(a) once more, and the gradient of `a (R, F)`; `da` may be `dout`."""
    t = xp.tanh(SLOPE * a * (1 + CUBIC * a * a))
    out[...] = 0.5 * a * (1 + t)
    du = SLOPE * (1 + 3 * CUBIC * a * a)  # of u by a
    with flushed(xp, da):
        da[...] = dout * 0.5 * (1 + t + a * (1 - t * t) * du)


class FeedForward:
    """The layer, and what its backward pass needs of the forward pass: a = x W_in + b_in.

    gelu(a) is computed again. `params` are `W_in (H, F)`, `b_in`, `W_out (F, H)` and `b_out`.
    """

    def __init__(self, params: Mapping[str, Array], rows: Sequences, space: Workspace, name: str):
        self._params, self._rows, self._space = params, rows, space
        self._a = rows.empty(space, f"{name} a", params["W_in"].shape[1])

    def forward(self, x: Array, out: Array) -> None:
        """Write the layer's output `(R, H)`."""
        p, xp = self._params, self._space.xp
        active = self._rows.empty(self._space, "active", self._a.shape[1])
        product(xp, x, p["W_in"], self._a)
        self._a += p["b_in"]
        gelu(xp, self._a, active)
        product(xp, active, p["W_out"], out)
        out += p["b_out"]

    def backward(self, dout: Array, x: Array, dx: Array, gradients: Mapping[str, Array]) -> None:
        """Write the gradients of the input `x` and of the parameters."""
        p, xp, width = self._params, self._space.xp, self._a.shape[1]
        active, da = (self._rows.empty(self._space, name, width) for name in ("active", "da"))
        product(xp, dout, p["W_out"].T, da)
        gelu_gradient(xp, da, self._a, active, da)
        product(xp, active.T, dout, gradients["W_out"])
        column_sum(xp, dout, gradients["b_out"])
        product(xp, x.T, da, gradients["W_in"])
        column_sum(xp, da, gradients["b_in"])
        product(xp, da, p["W_in"].T, dx)


class FeedForwardCache(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x: Array
    layer: FeedForward
    params: Mapping[str, Array]


class FeedForwardGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dW_in: Array
    db_in: Array
    dW_out: Array
    db_out: Array


def feed_forward_forward(
    x: Array, W_in: Array, b_in: Array, W_out: Array, b_out: Array
) -> tuple[Array, FeedForwardCache]:
    """Apply both affine layers, and the GELU between them, to each row.

    Rows `x (N, H)`; `W_in (H, F)`, `b_in (F,)`, `W_out (F, M)`, `b_out (M,)` give `(N, M)`. Raises
    `ShapeError` if the shapes do not fit together, or arrays are not floating.
    """
    given = {
        "W_in": (W_in, "H F"), "b_in": (b_in, "F"), "W_out": (W_out, "F M"), "b_out": (b_out, "M"),
    }  # fmt: skip
    xp, _ = check_arguments("feed_forward_forward", x=(x, "N H"), **given)
    params = {name: array for name, (array, _) in given.items()}
    layer = FeedForward(params, Sequences.even(len(x), 1), Workspace(xp, x.dtype), "")
    out = xp.empty((len(x), W_out.shape[1]), dtype=x.dtype)
    layer.forward(x, out)
    return out, FeedForwardCache(x, layer, params)


def feed_forward_backward(dout: Array, cache: FeedForwardCache) -> FeedForwardGradients:
    """Gradients of `feed_forward_forward`, from that of its output, `dout (N, M)`."""
    x, layer, params = cache
    xp = namespace(dout, x)
    check_gradients("feed_forward_backward", dout=(dout, (len(x), len(params["b_out"]))))
    dx, gradients = xp.empty_like(x), {name: xp.empty_like(p) for name, p in params.items()}
    layer.backward(dout, x, dx, gradients)
    return FeedForwardGradients(dx, *gradients.values())
