"""Functions of each element: the logistic function, and the rectifier max(x, 0)."""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_floating, check_gradients


def sigmoid(xp: Namespace, a: Array) -> Array:
    """Logistic function 1 / (1 + e^-a), written with tanh so that no exponential overflows."""
    return 0.5 * xp.tanh(0.5 * a) + 0.5


class ReLUCache(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x: Array


def relu_forward(x: Array) -> tuple[Array, ReLUCache]:
    """Set what is negative to zero: `max(x, 0)`, for `x` of any shape.

    Raises `ShapeError` unless `x` is floating.
    """
    xp = namespace(x)
    check_floating("relu_forward", x=x)
    return xp.maximum(x, 0), ReLUCache(x)


def relu_backward(dout: Array, cache: ReLUCache) -> Array:
    """Gradient of `relu_forward`: `dout` where `x > 0`, else 0."""
    xp = namespace(dout, cache.x)
    check_gradients("relu_backward", dout=(dout, cache.x.shape))
    return xp.where(cache.x > 0, dout, dout.dtype.type(0))
