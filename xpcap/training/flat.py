"""All parameters in one array, which one kernel updates and one all-reduce sums."""

from __future__ import annotations

import math
from collections.abc import Mapping

from xpcap.backend import Array, Namespace
from xpcap.errors import ShapeError
from xpcap.workspace import round_up

_ALIGNMENT = 16  # elements: 64 bytes of float32, a cache line


class FlatLayout:
    """The layout of several named arrays in one array `(P,)`.

    `shapes` are in storage order; rows of matrices begin at multiples of `multiple` elements.
    Padding between them, between the rows of one, and at the end is zero and stays so. `size` is P.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], multiple: int = 1) -> None:
        self._shapes = dict(shapes)
        self._stored: dict[str, tuple[slice, tuple[int, ...]]] = {}
        self.size = 0
        for name, shape in shapes.items():
            stored = (shape[0], round_up(shape[1], multiple)) if len(shape) == 2 else shape
            length = math.prod(stored)
            self._stored[name] = (slice(self.size, self.size + length), stored)
            self.size += round_up(length, _ALIGNMENT)

    def check(self, arrays: Mapping[str, Array]) -> None:
        """Raise `ShapeError` unless arrays have the names and the shapes of the layout."""
        given = {name: tuple(array.shape) for name, array in arrays.items()}
        for name in self._shapes | given:
            before, now = self._shapes.get(name, "none of that name"), given.get(name, "missing")
            if before != now:
                raise ShapeError(f"parameter {name}: training began with {before}, now it is {now}")

    def views(self, flat: Array) -> dict[str, Array]:
        """Return the named arrays in `flat (P,)`; writing to them writes to it."""
        views = {}
        for name, (place, stored) in self._stored.items():
            view, shape = flat[place].reshape(stored), self._shapes[name]
            views[name] = view[:, : shape[1]] if len(shape) == 2 else view
        return views

    def join(self, xp: Namespace, arrays: Mapping[str, Array], dtype: object) -> Array:
        """Return a new array `(P,)` with copies of the named arrays."""
        flat = xp.zeros(self.size, dtype=dtype)
        for name, view in self.views(flat).items():
            view[...] = arrays[name]
        return flat
