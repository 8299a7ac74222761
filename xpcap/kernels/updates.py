"""Update rules in place, and the gradients' norm, on flat arrays `(P,)` of all parameters.

What changes from step to step comes in an array `settings`, so that a device can keep it: the
factor that clipping puts on every gradient, the learning rate, and Adam's bias corrections.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import numpy

from xpcap import threads
from xpcap.backend import Array, Namespace
from xpcap.operations import Operation, operation
from xpcap.subnormals import flushed

SPAN = 2**17  # elements that are worth a thread
_CHUNK = 2**15  # elements: five arrays of float32 and a few temporary ones in a core's cache


@operation
def square_sum(xp: Namespace, values: Array, out: Array) -> None:
    """Write the sum of the squares of `values (P,)` into `out (1,)`, in one order."""
    out[...] = xp.dot(values, values)


@square_sum.version("numpy")
def _square_sum_in_spans(xp: Namespace, values: Array, out: Array) -> None:
    """The reference, a span on each thread."""
    parts = [values[part] for part in threads.spans(len(values), SPAN)]
    out[...] = sum(threads.run([partial(numpy.dot, part, part) for part in parts]))


def clip_scale(xp: Namespace, norm: Array, max_norm: float) -> Array:
    """Return min(1, max_norm / norm), by which gradients of this joint norm are multiplied.

    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013).
    """
    return float(max_norm) / xp.maximum(norm, float(max_norm))


@operation
def loss_and_norm(
    xp: Namespace,
    losses: Array,
    gradients: Array,
    max_norm: float | None,
    totals: Array,
    settings: Array,
) -> None:
    """Sum up a step: its loss, the joint norm of its gradients, and the factor of clipping.

    `totals (2,)` become the sum of `losses (S,)`, what each target word adds, and the norm of
    `gradients (P,)` before clipping. The first of `settings (K,)` becomes the factor, unless
    `max_norm` is None.
    """
    totals[0] = losses.sum()
    totals[1] = xp.sqrt(xp.dot(gradients, gradients))
    if max_norm is not None:
        settings[0] = clip_scale(xp, totals[1], max_norm)


@operation
def sgd_update(xp: Namespace, w: Array, dw: Array, settings: Array) -> None:
    """Take a step down the gradient; `settings` are scale and rate: w - rate scale dw."""
    scale, rate = settings[0], settings[1]
    with flushed(xp, w):
        w -= rate * scale * dw


@operation
def momentum_update(
    xp: Namespace, w: Array, dw: Array, velocity: Array, settings: Array, momentum: float
) -> None:
    """Gradient descent with momentum: v' = momentum v - rate scale dw; w + v'."""
    scale, rate = settings[0], settings[1]
    with flushed(xp, w, velocity):
        velocity *= momentum
        velocity -= rate * scale * dw
        w += velocity


@operation
def rmsprop_update(
    xp: Namespace,
    w: Array,
    dw: Array,
    cache: Array,
    settings: Array,
    decay_rate: float,
    epsilon: float,
) -> None:
    """Divide by a running root mean square (Tieleman and Hinton 2012).

    s' = decay s + (1 - decay) dw^2; w - rate dw / (sqrt(s') + epsilon), dw having been scaled.
    """
    scale, rate = settings[0], settings[1]
    with flushed(xp, w, cache):
        dw = scale * dw
        cache *= decay_rate
        cache += (1 - decay_rate) * dw * dw
        w -= rate * dw / (xp.sqrt(cache) + epsilon)


@operation
def adam_update(
    xp: Namespace,
    w: Array,
    dw: Array,
    m: Array,
    v: Array,
    settings: Array,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    """Adam (Kingma and Ba, ICLR 2015), with decoupled weight decay (Loshchilov and Hutter, 2019).

    m' = b1 m + (1 - b1) dw; v' = b2 v + (1 - b2) dw^2, dw having been scaled;
    w - rate ((m' / c1) / (sqrt(v' / c2) + epsilon) + decay w).

    `settings` are scale, rate, c1 = 1 - b1^t and c2 = 1 - b2^t.
    """
    scale, rate, c1, c2 = settings[0], settings[1], settings[2], settings[3]
    with flushed(xp, w, m, v):
        dw = scale * dw
        m *= beta1
        m += (1 - beta1) * dw
        v *= beta2
        v += (1 - beta2) * dw * dw
        direction = (m / c1) / (xp.sqrt(v / c2) + epsilon)
        if weight_decay:
            direction += weight_decay * w
        w -= rate * direction


def _in_chunks(rule: Operation[Any, None]) -> None:
    """Let NumPy update as many elements at a time as stay in a core's cache."""

    @functools.wraps(rule.reference)
    def update(xp: Namespace, w: Array, *others: Any, **named: Any) -> None:
        def cut(x: Any, first: int) -> Any:
            return x[first : first + _CHUNK] if getattr(x, "shape", ()) == w.shape else x

        for first in range(0, len(w), _CHUNK):
            arrays = (cut(x, first) for x in (w, *others))
            rule.reference(xp, *arrays, **{name: cut(x, first) for name, x in named.items()})

    rule.version("numpy")(update)


for _rule in (sgd_update, momentum_update, rmsprop_update, adam_update):
    _in_chunks(_rule)
