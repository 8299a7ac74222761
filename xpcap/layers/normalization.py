"""Layer normalization: each row gets mean 0 and variance 1, then a gain and a shift of each column.

J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization" (2016).

    n = (x - mean(x)) / sqrt(var(x) + epsilon)          mean and variance of the row x (H,)
    out = w n + b
"""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_arguments, check_gradients
from xpcap.operations import operation

EPSILON = 1e-5


@operation
def layer_norm(
    xp: Namespace, x: Array, w: Array, b: Array, n: Array, scale: Array, out: Array
) -> None:
    """Write n `(R, H)`, its scale 1 / sqrt(var + epsilon) `(R, 1)`, and w n + b of `x (R, H)`."""
    centered = x - x.mean(axis=1, keepdims=True)
    scale[...] = 1 / xp.sqrt((centered**2).mean(axis=1, keepdims=True) + EPSILON)
    n[...] = centered * scale
    out[...] = w * n + b


@operation
def layer_norm_gradient(
    xp: Namespace,
    dout: Array,
    w: Array,
    n: Array,
    scale: Array,
    dx: Array,
    dw: Array,
    db: Array,
) -> None:
    """Add the gradient of `x` to `dx (R, H)`, and write `dw` and `db` `(H,)`."""
    dw[...] = (dout * n).sum(axis=0)
    db[...] = dout.sum(axis=0)
    dn = dout * w
    dx += scale * (dn - dn.mean(axis=1, keepdims=True) - n * (dn * n).mean(axis=1, keepdims=True))


class LayerNormCache(NamedTuple):
    """What the backward pass needs: n and its scale, and the gain."""

    n: Array
    scale: Array
    w: Array


class LayerNormGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dw: Array
    db: Array


def layer_norm_forward(x: Array, w: Array, b: Array) -> tuple[Array, LayerNormCache]:
    """Normalize each row: `w n + b`, `(N, H)`.

    Rows `x (N, H)`, gains `w (H,)`, shifts `b (H,)`; epsilon is 1e-5. Raises `ShapeError` if the
    shapes do not fit together, or arrays are not floating.
    """
    xp, _ = check_arguments("layer_norm_forward", x=(x, "N H"), w=(w, "H"), b=(b, "H"))
    n, out, scale = xp.empty_like(x), xp.empty_like(x), xp.empty((len(x), 1), dtype=x.dtype)
    layer_norm(xp, x, w, b, n, scale, out)
    return out, LayerNormCache(n, scale, w)


def layer_norm_backward(dout: Array, cache: LayerNormCache) -> LayerNormGradients:
    """Gradients of `layer_norm_forward`, from that of its output, `dout (N, H)`."""
    n, scale, w = cache
    xp = namespace(dout, n, w)
    check_gradients("layer_norm_backward", dout=(dout, n.shape))
    dx, dw, db = xp.zeros_like(n), xp.empty_like(w), xp.empty_like(w)
    layer_norm_gradient(xp, dout, w, n, scale, dx, dw, db)
    return LayerNormGradients(dx, dw, db)
