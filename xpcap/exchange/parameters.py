"""Parameters of recurrent captioners from other programs: their sizes, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy

from xpcap.errors import DataError
from xpcap.layers._checks import check_shapes

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
"""The cells that other programs have too, and the number of their gates."""

NAMES = ("W_proj", "b_proj", "W_embed", "Wx", "Wh", "b", "W_vocab", "b_vocab")

_SHOWN = 12  # arrays of a file, in a message


def sizes_of(source: str, params: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Check the names, dtypes and shapes of parameters, and derive the captioner's sizes.

    `params` are arrays, or their headers (`shape`, `dtype`), under the names of
    `CaptioningRNN.params`; `source` names them in messages. Returns V, and `input_dim`,
    `wordvec_dim`, `hidden_dim` and `cell_type` of `CaptioningRNN`. Raises `DataError` if a name is
    missing or unknown, or an array is empty or not floating; `ShapeError` if shapes do not fit
    together.
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
    gates = prod(params["b"].shape) / prod(params["b_proj"].shape)
    cell = "gru" if gru else {1: "rnn", 4: "lstm"}.get(gates)
    if cell is None:
        raise DataError(
            f"{source} holds {shown(params)}: a cell of {gates:g} gates; expected the weights of"
            f" {', '.join(f'{name} ({count})' for name, count in GATES.items())}"
        )
    wide = "H" if GATES[cell] == 1 else f"{GATES[cell]}H"
    layouts = {
        "b_proj": "H", "W_proj": "D H", "W_embed": "V W",
        "Wx": f"W {wide}", "Wh": f"H {wide}", "b": wide, "bn": "H",
        "W_vocab": "H V", "b_vocab": "V",
    }  # fmt: skip
    arrays = {name: (params[name], layout) for name, layout in layouts.items() if name in params}
    found = check_shapes(source, **arrays)
    sizes = {"input_dim": found["D"], "wordvec_dim": found["W"], "hidden_dim": found["H"]}
    return found["V"], {**sizes, "cell_type": cell}


def unified(source: str, params: Mapping[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    """Convert finite parameters to float64 if one is wider than float32, else to float32."""
    wide = any(value.dtype.itemsize > 4 for value in params.values())
    dtype = numpy.float64 if wide else numpy.float32
    with numpy.errstate(over="ignore"):  # long doubles may overflow to infinity
        same = {name: numpy.ascontiguousarray(value, dtype) for name, value in params.items()}
    for name, value in same.items():
        if not numpy.isfinite(value).all():
            raise DataError(f"{source}: '{name}' holds NaN or infinite numbers")
    return same


def shown(arrays: Mapping[str, Any]) -> str:
    """Name some arrays and their shapes in one line."""
    some = [f"{name!r:.60} {tuple(value.shape)}" for name, value in list(arrays.items())[:_SHOWN]]
    more = [f"{len(arrays) - _SHOWN} more"] if len(arrays) > _SHOWN else []
    return ", ".join([*some, *more]) or "nothing"
