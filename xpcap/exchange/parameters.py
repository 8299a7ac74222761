"""Parameters of captioners from other programs: their family and sizes, and whether they fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy

from xpcap.errors import DataError
from xpcap.layers._checks import check_shapes
from xpcap.models import FAMILIES
from xpcap.options import LARGEST

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
"""The cells that other programs have too, and the number of their gates."""

COMMON = ("W_proj", "b_proj", "W_embed", "W_vocab", "b_vocab")
"""The parameters of all captioners."""

_OF_ATTENTION = {"W_grid", "W_query", "W_gate", "Wz", "W_context"}
_SHOWN = 20  # arrays of a file, in a message


def family_of(params: Mapping[str, Any]) -> str:
    """Return the family that some of these parameters belong to, else `"recurrent"`."""
    if stacked(params, "layer."):
        return "transformer"
    return "recurrent" if _OF_ATTENTION.isdisjoint(params) else "attention"


def sizes_of(source: str, params: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Check the names, dtypes and shapes of parameters, and derive the captioner's sizes.

    `params` are arrays, or their headers (`shape`, `dtype`), under the names of
    `CaptionModel.params`; `source` names them in messages. Returns V, and the arguments of the
    model that shapes tell: not the number of heads, nor how many sinusoids there are. Raises
    `DataError` if a name is missing or unknown, or an array is empty, not floating or of another
    shape; `ShapeError` if `W_proj`, `W_embed` and `W_vocab` do not fit together.
    """
    for name, value in params.items():
        if value.dtype.kind != "f" or not all(0 < n <= LARGEST for n in value.shape):
            raise DataError(
                f"{source}: {name!r:.60} is {value.dtype} of shape {tuple(value.shape)}; expected"
                f" floating numbers, from 1 to {LARGEST} a dimension"
            )
    if not set(COMMON) <= set(params):
        raise DataError(f"{source} holds {shown(params)}; expected {', '.join(COMMON)} too")
    layouts = {"W_proj": "D H", "W_vocab": "H V", "W_embed": "V W"}
    found = check_shapes(source, **{name: (params[name], of) for name, of in layouts.items()})
    V, H = found["V"], found["H"]
    sizes: dict[str, Any] = {"input_dim": found["D"], "hidden_dim": H}
    family = family_of(params)
    if family == "transformer":
        sizes |= {
            "layers": stacked(params, "layer."), "encoder_layers": stacked(params, "encoder."),
            "positions": "sinusoidal", "tie_embeddings": False,
        }  # fmt: skip
        if "W_position" in params:
            longest = max((1, *params["W_position"].shape[:1]))
            sizes |= {"positions": "learned", "max_length": longest}
    else:
        sizes |= {"wordvec_dim": found["W"], "cell_type": _cell(source, params, H)}
    if family == "attention":
        sizes["scoring"] = "additive" if "w_score" in params else "dot"
    shapes = FAMILIES[family].shapes(V, **{"heads": 1, "max_length": 1, **sizes})
    check_arrays(f"{source}: ", params, shapes)
    return V, sizes if family == "recurrent" else {"family": family, **sizes}


def _cell(source: str, params: Mapping[str, Any], H: int) -> str:
    gates = prod(params["b"].shape) / H if "b" in params else 0
    cell = "gru" if "bn" in params else {1: "rnn", 4: "lstm"}.get(gates)
    if cell is None:
        raise DataError(
            f"{source} holds {shown(params)}: a cell of {gates:g} gates; expected the weights of"
            f" {', '.join(f'{name} ({count})' for name, count in GATES.items())}, with bn of a GRU"
        )
    return cell


def stacked(names: Iterable[str], stack: str) -> int:
    """Return how many layers a stack has: how many names go on with another `number.`."""
    return len({name[len(stack) :].partition(".")[0] for name in names if name.startswith(stack)})


def check_arrays(
    source: str, arrays: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise `DataError` at the first array that is missing, unexpected or of another shape."""
    for name in {**expected, **arrays}:
        found = tuple(arrays[name].shape) if name in arrays else None
        if found != expected.get(name):
            what = "is missing" if found is None else f"is of shape {found}"
            raise DataError(
                f"{source}{name!r:.60} {what}; expected {expected.get(name, 'no such array')}"
            )


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
