"""All parameters side by side in one array, so that one kernel updates them all."""

from __future__ import annotations

import math
from collections.abc import Mapping

from xpcap.backend import Array, Namespace
from xpcap.errors import ShapeError
from xpcap.workspace import round_up

_ALIGNMENT = 16  # elements: 64 bytes of float32, a line of a cache


class FlatLayout:
    """Where each of several named arrays lies in one array `(P,)`.

    Between two of them, between the rows of one, and at the end, a few elements may be unused; they
    are zero and stay so.

    Parameters
    ----------
    shapes
        By name, in the order in which they shall lie.
    parts
        Into how many equal parts P can be divided.
    multiple
        Rows of matrices begin at multiples of so many elements.

    Attributes
    ----------
    size
        P.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], parts: int = 1, multiple: int = 1
    ) -> None:
        self._shapes = dict(shapes)
        self._stored: dict[str, tuple[slice, tuple[int, ...]]] = {}
        self.size = 0
        for name, shape in shapes.items():
            stored = (shape[0], round_up(shape[1], multiple)) if len(shape) == 2 else shape
            length = math.prod(stored)
            self._stored[name] = (slice(self.size, self.size + length), stored)
            self.size += round_up(length, _ALIGNMENT)
        self.size += -self.size % (parts * _ALIGNMENT)

    def check(self, arrays: Mapping[str, Array]) -> None:
        """Check that arrays have the names and the shapes of the layout.

        Raises
        ------
        ShapeError
            It says which one has not.
        """
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
