"""Residual connections: what a layer computes from its normalized input is added to the input.

    x + drop(layer(norm(x)))

K. He et al., "Deep residual learning for image recognition" (CVPR 2016); with the norm in front,
R. Xiong et al., "On layer normalization in the Transformer architecture" (ICML 2020). The gradient
of x is that of the sum, and what comes back through the layer and its norm is added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from xpcap.backend import Array
from xpcap.layers.normalization import layer_norm, layer_norm_gradient
from xpcap.layers.sequences import Sequences
from xpcap.workspace import Workspace

Drop = Callable[[Array, int], None]
"""Applies the dropout mask of a number to rows, or to their gradient, in place."""


def keep(values: Array, number: int) -> None:
    """Drop nothing."""


def part_of(arrays: Mapping[str, Array], name: str) -> dict[str, Array]:
    """Return the arrays of one layer, by their names in it."""
    return {
        key[len(name) + 1 :]: value for key, value in arrays.items() if key.startswith(name + ".")
    }


class Norm:
    """A layer norm with parameters `w_norm` and `b_norm`, and what its backward pass needs."""

    def __init__(
        self, params: Mapping[str, Array], rows: Sequences, space: Workspace, name: str
    ) -> None:
        self._w, self._b, self._space = params["w_norm"], params["b_norm"], space
        self._n = rows.empty(space, f"{name} n", len(self._w))
        self._scale = rows.empty(space, f"{name} scale", 1)

    def forward(self, x: Array, out: Array) -> None:
        """Write the normalized rows."""
        layer_norm(self._space.xp, x, self._w, self._b, self._n, self._scale, out)

    def again(self, out: Array) -> None:
        """Write the output of `forward` once more."""
        self._space.xp.multiply(self._n, self._w, out=out)
        out += self._b

    def backward(self, dout: Array, dx: Array, gradients: Mapping[str, Array]) -> None:
        """Add the gradient of the input to `dx`, and write those of the parameters."""
        dw, db = gradients["w_norm"], gradients["b_norm"]
        layer_norm_gradient(self._space.xp, dout, self._w, self._n, self._scale, dx, dw, db)


class Residual:
    """x + drop(layer(norm(x))), in place.

    The normalized input is not kept, as its backward pass has it again from the norm.
    """

    def __init__(
        self, layer: Any, params: Mapping[str, Array], rows: Sequences, space: Workspace, name: str
    ) -> None:
        self.layer, self.name = layer, name
        self._rows, self._space = rows, space
        self._norm = Norm(params, rows, space, name)

    def forward(self, x: Array, drop: Drop, number: int = 0) -> None:
        """Add to `x (M, H)` what the layer computes, with the dropout mask of this number."""
        self._add(x, self.layer.forward, drop, number)

    def advance(self, x: Array, *state: Array) -> None:
        """Do what `forward` does in decoding, for a layer with a state."""
        self._add(x, lambda normalized, out: self.layer.advance(normalized, *state, out), keep, 0)

    def _add(
        self, x: Array, layer: Callable[[Array, Array], None], drop: Drop, number: int
    ) -> None:
        normalized, out = self._scratch(x.shape[1])
        self._norm.forward(x, normalized)
        layer(normalized, out)
        drop(out, number)
        x += out

    def backward(
        self,
        dx: Array,
        drop: Drop,
        number: int,
        gradients: Mapping[str, Array],
        *more: Array,
    ) -> None:
        """Change the gradient of the output to that of the input, and write the parameters'."""
        normalized, dout = self._scratch(dx.shape[1])
        dnormalized = self._rows.empty(self._space, "dnormalized", dx.shape[1])
        own = part_of(gradients, self.name)
        dout[...] = dx
        drop(dout, number)
        self._norm.again(normalized)
        self.layer.backward(dout, normalized, dnormalized, own, *more)
        self._norm.backward(dnormalized, dx, own)

    def _scratch(self, width: int) -> Iterator[Array]:
        return (self._rows.empty(self._space, name, width) for name in ("normalized", "out"))


def stack(
    prefix: str,
    count: int,
    kinds: Mapping[str, tuple[Any, ...]],
    params: Mapping[str, Array],
    rows: Sequences,
    space: Workspace,
) -> list[Residual]:
    """Return `count` times the layers of these kinds, a class and what else it takes."""
    found = []
    for k in range(count):
        for key, (kind, *more) in kinds.items():
            name = f"{prefix}.{k}.{key}"
            own = part_of(params, name)
            found.append(Residual(kind(own, rows, space, name, *more), own, rows, space, name))
    return found
