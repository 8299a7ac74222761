"""Gradient checks: a backward pass is compared with differences of its forward pass.

Central differences, (f(x + h) - f(x - h)) / 2h, are accurate to order h^2; use float64. The
functions take NumPy or CuPy arrays and do not depend on xpcap's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy

from xpcap.backend import Array, namespace, to_host
from xpcap.errors import ShapeError


def rel_error(x: Array, y: Array) -> float:
    """Return the largest relative difference, max |x - y| / max(1e-8, |x| + |y|).

    `x` and `y` are arrays of one shape, on any device, or numbers.
    """
    x, y = to_host(x), to_host(y)
    if numpy.shape(x) != numpy.shape(y):
        raise ShapeError(f"rel_error: expected one shape, got {numpy.shape(x)}, {numpy.shape(y)}")
    return float(numpy.max(abs(x - y) / numpy.maximum(1e-8, abs(x) + abs(y)), initial=0.0))


def eval_numerical_gradient(
    f: Callable[[Array], Any], x: Array, verbose: bool = True, h: float = 1e-5
) -> Array:
    """Return the numerical gradient of a scalar function, float64, of `x`'s shape, on its device.

    Parameters
    ----------
    f
        Takes `x` and returns a number or a 0-d array.
    x
        Where to differentiate, floating; its elements are changed in place by `h` and restored.
    verbose
        Print each element's index and slope.
    h
        Step of the differences.

    Raises
    ------
    ShapeError
        If `x` is not floating.
    """
    return _differentiate(f, x, h, lambda plus, minus: float(plus) - float(minus), verbose)


def eval_numerical_gradient_array(
    f: Callable[[Array], Array], x: Array, df: Array, h: float = 1e-5
) -> Array:
    """Return the numerical gradient of sum(f(x) df) for a function that returns an array.

    `df`, of the shape of `f(x)`, is the gradient of some loss with respect to `f(x)`; `x`, `h` and
    the result are as for `eval_numerical_gradient`.
    """
    return _differentiate(f, x, h, lambda plus, minus: float(((plus - minus) * df).sum()))


def _differentiate(
    f: Callable[[Array], Any],
    x: Array,
    h: float,
    difference: Callable[[Any, Any], float],
    verbose: bool = False,
) -> Array:
    check_floating(x)
    gradient = numpy.zeros(x.shape)
    for index in numpy.ndindex(*x.shape):
        old = x[index].copy()
        x[index] = old + h
        plus = _detached(f(x), x)
        x[index] = old - h
        minus = _detached(f(x), x)
        x[index] = old
        gradient[index] = difference(plus, minus) / (2 * h)
        if verbose:
            print(index, gradient[index])
    return namespace(x).asarray(gradient)


def check_floating(x: Array) -> None:
    """Raise `ShapeError` unless an array is floating, so that its elements can change by h."""
    namespace(x)
    if x.dtype.kind != "f":
        raise ShapeError(
            f"expected a floating array to differentiate at, got {x.dtype}; convert it with"
            " x.astype(float)"
        )


def _detached(value: Any, x: Array) -> Any:
    """Copy `f(x)` if it is `x` or a view of it, which is about to change."""
    return value.copy() if value is x or getattr(value, "base", None) is x else value


def gradcheck(
    forward: Callable[..., tuple[Any, ...]],
    backward: Callable[..., Any],
    arguments: Mapping[str, Any],
    differentiable: Sequence[str],
    seed: int = 0,
    h: float = 1e-5,
) -> dict[str, float]:
    """Compare a backward pass with central differences of its forward pass, element by element.

    `forward` takes `arguments` by name and returns one or more arrays and a cache; `backward` takes
    a gradient for each array, drawn with `seed`, and the cache, and returns the gradients of the
    `differentiable` arguments in order, or a single array. Returns the `rel_error` of each of them.
    Arrays are float64; `h` is the step of the differences.

    >>> import numpy
    >>> from xpcap.layers import rnn_step_forward, rnn_step_backward
    >>> draw = numpy.random.default_rng(0).standard_normal
    >>> arguments = dict(x=draw((2, 3)), prev_h=draw((2, 4)), Wx=draw((3, 4)), Wh=draw((4, 4)),
    ...                  b=draw(4))
    >>> errors = gradcheck(rnn_step_forward, rnn_step_backward, arguments, list(arguments))
    >>> max(errors.values()) < 1e-7
    True
    """
    *outputs, cache = forward(**arguments)
    gradients_above = [_random_like(output, seed + k) for k, output in enumerate(outputs)]
    gradients = backward(*gradients_above, cache)
    if not isinstance(gradients, tuple):
        gradients = (gradients,)
    errors = {}
    for name, gradient in zip(differentiable, gradients, strict=True):
        numerical = sum(
            eval_numerical_gradient_array(
                lambda x, k=k, name=name: forward(**{**arguments, name: x})[k],  # type: ignore[misc]
                arguments[name].copy(),
                above,
                h,
            )
            for k, above in enumerate(gradients_above)
        )
        errors[name] = rel_error(numerical, gradient)
    return errors


def directional_error(
    f: Callable[[Array], Any], x: Array, gradient: Array, seed: int = 0, h: float = 1e-6
) -> float:
    """Compare the gradient of a scalar function at `x` with its slope in one random direction.

    Cheap at any size. Returns |slope - gradient · direction| relative to the gradient's norm, for a
    direction of length 1, drawn with `seed`, and steps of `h`.
    """
    direction = _random_like(x, seed)
    direction /= float((direction * direction).sum()) ** 0.5
    slope = (float(f(x + h * direction)) - float(f(x - h * direction))) / (2 * h)
    norm = float((gradient * gradient).sum()) ** 0.5
    return float(abs(slope - float((gradient * direction).sum())) / max(norm, 1e-8))


def _random_like(array: Array, seed: int) -> Array:
    draw = numpy.random.default_rng(seed).standard_normal(array.shape)
    return namespace(array).asarray(draw)
