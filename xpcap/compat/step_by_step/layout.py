"""Conversion between the course's layout, features first, and that of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from xpcap.backend import Array, Namespace, namespace
from xpcap.errors import ConfigurationError, ShapeError

Parameters: TypeAlias = Mapping[str, Array]


def check_arguments(
    function: str,
    parameters: Parameters,
    layouts: Mapping[str, str],
    **inputs: tuple[Array, str],
) -> Namespace:
    """Check the inputs, and the parameters named by `layouts`, against symbolic shapes.

    A size is 1, a symbol (`n_a`), or a sum of symbols of earlier arrays (`n_a+n_x`).
    """
    missing = [name for name in layouts if name not in parameters]
    if missing:
        raise ConfigurationError(
            f"{function}: parameters lack {', '.join(missing)}; expected {', '.join(layouts)}"
        )
    arrays = {**inputs, **{name: (parameters[name], layout) for name, layout in layouts.items()}}
    xp = namespace(*(array for array, _ in arrays.values()))
    sizes = {"1": 1}
    for array, layout in arrays.values():
        symbols = layout.split()
        fits = len(symbols) == array.ndim
        for symbol, size in zip(symbols, array.shape, strict=False):
            fits = fits and size == sum(sizes.setdefault(part, size) for part in symbol.split("+"))
        if not fits:
            wanted = ", ".join(f"{k} ({v.replace(' ', ', ')})" for k, (_, v) in arrays.items())
            given = ", ".join(f"{name} {array.shape}" for name, (array, _) in arrays.items())
            raise ShapeError(f"{function}: expected {wanted}; got {given}")
    return xp


def first_steps(
    function: str, da: Array, caches: tuple[Sequence[Sequence[Any]], Array]
) -> Sequence[Sequence[Any]]:
    """Return the caches of the steps that `da` has a gradient for."""
    steps, _ = caches
    if da.ndim != 3 or not 1 <= da.shape[2] <= len(steps):
        raise ShapeError(
            f"{function}: expected da (n_a, m, T) with T from 1 to {len(steps)}, the steps of the"
            f" forward pass; got {da.shape}"
        )
    return steps[: da.shape[2]]


def batch_first(x: Array) -> Array:
    """View `(K, m, T)` as the layers' `(m, T, K)`."""
    return x.transpose(1, 2, 0)


def features_first(h: Array) -> Array:
    """View the layers' `(m, T, K)` as `(K, m, T)`."""
    return h.transpose(2, 0, 1)


def packed(xp: Namespace, steps: Sequence[Array]) -> Array:
    """Copy T arrays `(K, m)` into the layers' packed rows `(T m, K)`."""
    return xp.concatenate([step.T for step in steps])
