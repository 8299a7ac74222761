"""Parameters that come from elsewhere: which sizes they have, and whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy

from xpcap.errors import DataError
from xpcap.layers._checks import check_shapes

NAMES = ("W_proj", "b_proj", "W_embed", "Wx", "Wh", "b", "W_vocab", "b_vocab")

_SHOWN = 12  # arrays of a file, in a message


class Shaped(Protocol):
    """An array, or the header of one that is not read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""

    @property
    def dtype(self) -> Any:
        """The kind of its numbers."""


class Sizes(NamedTuple):
    """What the shapes of parameters say; all but `words`, V, are arguments of `CaptioningRNN`."""

    words: int
    input_dim: int
    wordvec_dim: int
    hidden_dim: int
    cell_type: str

    def model(self) -> dict[str, Any]:
        """Return the arguments of `CaptioningRNN`."""
        return {name: value for name, value in self._asdict().items() if name != "words"}


def sizes_of(source: str, params: Mapping[str, Shaped]) -> Sizes:
    """Check the names, kinds and shapes of parameters, and return the captioner's sizes.

    Parameters
    ----------
    source
        Where they come from, for messages.
    params
        Under the names of `CaptioningRNN.params`.

    Raises
    ------
    DataError
        If a name is missing or unknown, or an array is empty or not of floating numbers.
    ShapeError
        If shapes do not fit together.
    """
    gru = "bn" in params
    if set(params) != {*NAMES, *(["bn"] if gru else [])}:
        raise DataError(
            f"{source} holds {shown(params)}; expected {', '.join(NAMES)}, and bn for a GRU"
        )
    for name, value in params.items():
        if value.dtype.kind != "f" or not all(size > 0 for size in value.shape):
            raise DataError(
                f"{source}: '{name}' is {value.dtype} of shape {tuple(value.shape)}; expected"
                " floating numbers"
            )
    cell, gates = "lstm", 4
    if gru:
        cell, gates = "gru", 3
    elif params["b"].shape == params["b_proj"].shape:
        cell, gates = "rnn", 1
    wide = "H" if gates == 1 else f"{gates}H"
    layouts = {
        "b_proj": "H", "W_proj": "D H", "W_embed": "V W",
        "Wx": f"W {wide}", "Wh": f"H {wide}", "b": wide, "bn": "H",
        "W_vocab": "H V", "b_vocab": "V",
    }  # fmt: skip
    arrays = {name: (params[name], layout) for name, layout in layouts.items() if name in params}
    found = check_shapes(source, **arrays)
    return Sizes(found["V"], found["D"], found["W"], found["H"], cell)


def alike(source: str, params: Mapping[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    """Return parameters in one dtype: float64 if one is wider than float32, else float32.

    Raises
    ------
    DataError
        If one holds NaN or infinite numbers.
    """
    wide = any(value.dtype.itemsize > 4 for value in params.values())
    dtype = numpy.float64 if wide else numpy.float32
    with numpy.errstate(over="ignore"):  # of long doubles; they are infinite then
        same = {name: numpy.ascontiguousarray(value, dtype) for name, value in params.items()}
    for name, value in same.items():
        if not numpy.isfinite(value).all():
            raise DataError(f"{source}: '{name}' holds NaN or infinite numbers")
    return same


def shown(arrays: Mapping[str, Shaped]) -> str:
    """Name arrays and their shapes in one line, however many there are."""
    some = [f"{name!r:.60} {tuple(value.shape)}" for name, value in list(arrays.items())[:_SHOWN]]
    more = [f"{len(arrays) - _SHOWN} more"] if len(arrays) > _SHOWN else []
    return ", ".join([*some, *more]) or "nothing"
