"""What both networks share: checks of symbolic shapes, and backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def backward_through_time(
    step_backward: Callable[..., dict[str, Array]],
    da: Array,
    steps: Sequence[Sequence[Any]],
    states: Sequence[str] = ("da_prev",),
) -> dict[str, Array]:
    """Sum the gradients of steps, from the last to the first, passing those of `states` back."""
    xp = namespace(da)
    passed = [xp.zeros_like(da[:, :, 0]) for _ in states]
    dx, total = [], dict[str, Array]()
    for t in reversed(range(len(steps))):
        passed[0] = passed[0] + da[:, :, t]
        gradients = step_backward(*passed, steps[t])
        dx.append(gradients.pop("dxt"))
        passed = [gradients.pop(name) for name in states]
        total = {name: total.get(name, 0) + value for name, value in gradients.items()}
    return {"dx": xp.stack(dx[::-1], axis=2), "da0": passed[0], **total}
