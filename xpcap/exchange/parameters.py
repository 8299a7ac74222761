"""Parameters of captioners from other programs: their family and sizes, and whether they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy

from xpcap.errors import DataError
from xpcap.layers._checks import check_shapes
from xpcap.models import Transformer

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
"""The cells that other programs have too, and the number of their gates."""

COMMON = ("W_proj", "b_proj", "W_embed", "W_vocab", "b_vocab")
"""The parameters of all captioners."""

_NAMES = ("W_proj", "b_proj", "W_embed", "Wx", "Wh", "b", "W_vocab", "b_vocab")
_SHOWN = 20  # arrays of a file, in a message


class _Family(NamedTuple):
    more: dict[str, str]  # parameters beyond _NAMES: their layouts, of G gates
    optional: dict[str, str]  # further ones, and what has them
    sizes: Callable[[Mapping[str, Any]], dict[str, Any]]  # arguments beyond those of CaptioningRNN


_FAMILIES = {
    "attention": _Family(
        {
            "W_grid": "D H", "b_grid": "H", "W_query": "H H", "b_query": "H", "W_gate": "H O",
            "b_gate": "O", "Wz": "H GH", "W_context": "H H",
        },
        {"bn": "a GRU", "w_score": "additive attention"},
        lambda params: {
            "family": "attention", "scoring": "additive" if "w_score" in params else "dot",
        },
    ),
    "recurrent": _Family({}, {"bn": "a GRU"}, lambda params: {}),
}  # fmt: skip


def family_of(params: Mapping[str, Any]) -> str:
    """Return the family that some of these parameters belong to, else `"recurrent"`."""
    if stacked(params, "layer."):
        return "transformer"
    own = (name for name, family in _FAMILIES.items() if not family.more.keys().isdisjoint(params))
    return next(own, "recurrent")


def sizes_of(source: str, params: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Check the names, dtypes and shapes of parameters, and derive the captioner's sizes.

    `params` are arrays, or their headers (`shape`, `dtype`), under the names of
    `CaptionModel.params`; `source` names them in messages. Returns V, and the arguments of the
    model that shapes tell: not the number of heads, nor how many sinusoids there are. Raises
    `DataError` if a name is missing or unknown, or an array is empty or not floating; `ShapeError`
    if shapes do not fit together.
    """
    for name, value in params.items():
        if value.dtype.kind != "f" or not all(size > 0 for size in value.shape):
            raise DataError(
                f"{source}: {name!r:.60} is {value.dtype} of shape {tuple(value.shape)}; expected"
                " floating numbers"
            )
    if (name := family_of(params)) == "transformer":
        return _sizes_of_transformer(source, params)
    family = _FAMILIES[name]
    needed = [*_NAMES, *family.more]
    if not set(needed) <= set(params) <= {*needed, *family.optional}:
        optional = ", ".join(f"{name} for {what}" for name, what in family.optional.items())
        raise DataError(
            f"{source} holds {shown(params)}; expected {', '.join(needed)}, and {optional}"
        )
    gates = prod(params["b"].shape) / prod(params["b_proj"].shape)
    cell = "gru" if "bn" in params else {1: "rnn", 4: "lstm"}.get(gates)
    if cell is None:
        raise DataError(
            f"{source} holds {shown(params)}: a cell of {gates:g} gates; expected the weights of"
            f" {', '.join(f'{name} ({count})' for name, count in GATES.items())}"
        )
    wide = "H" if GATES[cell] == 1 else f"{GATES[cell]}H"
    layouts = {
        "b_proj": "H", "W_proj": "D H", "W_embed": "V W",
        "Wx": f"W {wide}", "Wh": f"H {wide}", "b": wide, "bn": "H",
        "W_vocab": "H V", "b_vocab": "V", "w_score": "H",
        **{name: layout.replace("GH", wide) for name, layout in family.more.items()},
    }  # fmt: skip
    arrays = {name: (params[name], layout) for name, layout in layouts.items() if name in params}
    found = check_shapes(source, **arrays)
    sizes = {"input_dim": found["D"], "wordvec_dim": found["W"], "hidden_dim": found["H"]}
    return found["V"], {**family.sizes(params), **sizes, "cell_type": cell}


def _sizes_of_transformer(source: str, params: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    wanted = {"W_proj": "D H", "W_vocab": "H V"}
    if not wanted.keys() <= params.keys():
        raise DataError(f"{source} holds {shown(params)}; expected {', '.join(COMMON)} too")
    found = check_shapes(source, **{name: (params[name], wanted[name]) for name in wanted})
    sizes = {
        "input_dim": found["D"], "hidden_dim": found["H"], "layers": stacked(params, "layer."),
        "encoder_layers": stacked(params, "encoder."), "positions": "sinusoidal",
        "tie_embeddings": False,
    }  # fmt: skip
    if "W_position" in params:
        sizes |= {"positions": "learned", "max_length": max((1, *params["W_position"].shape[:1]))}
    shapes = Transformer.shapes(found["V"], heads=1, **{"max_length": 1, **sizes})
    check_arrays(f"{source}: ", params, shapes)
    return found["V"], {"family": "transformer", **sizes}


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
