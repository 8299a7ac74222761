"""Gradient checks: a backward pass is compared with differences of its forward pass.

Central differences, (f(x + h) - f(x - h)) / 2h, are accurate to order h^2, and to eps / h, what
rounding leaves: with h = 1e-5, 2e-11 in float64 and 0.01 in float32. So use float64; a
`RuntimeWarning` says how far others can be trusted. The functions take NumPy or CuPy arrays and do
not depend on xpcap's layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy

from xpcap.backend import Array, namespace, to_host
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.options import check_number


def rel_error(x: Array, y: Array) -> float:
    """Return the largest relative difference, max |x - y| / max(1e-8, |x| + |y|).

    `x` and `y` are arrays of one shape, on any device, or numbers.
    """
    x, y = (_floating(to_host(value)) for value in (x, y))
    if numpy.shape(x) != numpy.shape(y):
        raise ShapeError(f"rel_error: expected one shape, got {numpy.shape(x)}, {numpy.shape(y)}")
    return float(numpy.max(abs(x - y) / numpy.maximum(1e-8, abs(x) + abs(y)), initial=0.0))


def _floating(value: Any) -> Any:
    """Convert integers and booleans to float64, in which their difference does not wrap."""
    array = numpy.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ShapeError(f"rel_error: expected numbers, got {array.dtype}")
    return array if array.dtype.kind == "f" else array.astype(float)


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
        Step of the differences, positive.

    Raises
    ------
    ShapeError
        If `x` is not floating, or `f(x)` is an array.
    ConfigurationError
        If `h` is not positive, or so small that `x + h` is `x`.
    """

    def difference(plus: Any, minus: Any) -> float:
        if getattr(plus, "shape", ()):
            raise ShapeError(
                f"expected f(x) to be a number, got an array {plus.shape}; for arrays there is"
                " eval_numerical_gradient_array"
            )
        return float(plus) - float(minus)

    return _differentiate(f, x, h, difference, verbose)


def eval_numerical_gradient_array(
    f: Callable[[Array], Array], x: Array, df: Array, h: float = 1e-5
) -> Array:
    """Return the numerical gradient of sum(f(x) df) for a function that returns an array.

    `df`, of the shape of `f(x)`, is the gradient of some loss with respect to `f(x)`; `x`, `h` and
    the result are as for `eval_numerical_gradient`.
    """

    def difference(plus: Array, minus: Array) -> float:
        if plus.shape != df.shape:
            raise ShapeError(f"expected df {plus.shape}, as f(x) is, got {df.shape}")
        return float(((plus - minus) * df).sum())

    return _differentiate(f, x, h, difference)


def _differentiate(
    f: Callable[[Array], Any],
    x: Array,
    h: float,
    difference: Callable[[Any, Any], float],
    verbose: bool = False,
) -> Array:
    check_step(x, h)
    gradient = numpy.zeros(x.shape)
    for index in numpy.ndindex(*x.shape):
        old = x[index].copy()
        x[index] = old + h
        if x[index] == old:
            raise ConfigurationError(
                f"h {h} does not change {float(old)}, {x.dtype}; expected a larger h"
            )
        plus = _detached(f(x), x)
        x[index] = old - h
        minus = _detached(f(x), x)
        x[index] = old
        gradient[index] = difference(plus, minus) / (2 * h)
        if verbose:
            print(index, gradient[index])
    return namespace(x).asarray(gradient)


def check_step(x: Array, h: float) -> None:
    """Raise `ShapeError` unless an array is floating, so that its elements can change by h.

    Warns of differences that cannot be accurate.
    """
    namespace(x)
    check_number("h", h, "(0, inf)")
    if x.dtype.kind != "f":
        raise ShapeError(
            f"expected a floating array to differentiate at, got {x.dtype}; convert it with"
            " x.astype(float)"
        )
    if x.dtype.itemsize < 8:
        warnings.warn(
            f"differences of {x.dtype} with h {h} are rounded to about"
            f" {numpy.finfo(x.dtype).eps / h:.1g}; float64 is accurate",
            RuntimeWarning,
            stacklevel=4,
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
    `differentiable` arguments in order, or a single array. Returns the `rel_error` of each of them:
    below 1e-7 for a right gradient of float64, but up to 0.1 for float32, of which a warning is
    given. `h` is the step of the differences.

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
    if len(gradients) != len(differentiable) or not {*differentiable} <= {*arguments}:
        raise ConfigurationError(
            f"{len(gradients)} gradients for {', '.join(differentiable)}; expected one for each of"
            f" these, which are among {', '.join(arguments)}"
        )
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
