"""A captioner's parameters as the state dict of PyTorch's own layers, and back.

A recurrent captioner:

    projection    nn.Linear(D, H)             W_projᵀ, b_proj
    embedding     nn.Embedding(V, W)          W_embed
    recurrent     nn.RNN, GRU or LSTM(W, H)   Wxᵀ, Whᵀ, b; one layer, tanh
    vocabulary    nn.Linear(H, V)             W_vocabᵀ, b_vocab

One with attention, whose cell is fed with the word and with what attention finds, side by side:

    projection, embedding, vocabulary         as above
    grid          nn.Linear(D, H)             W_gridᵀ, b_grid
    query         nn.Linear(H, H)             W_queryᵀ, b_query
    score         nn.Linear(H, 1), no bias    w_score, of additive attention
    gate          nn.Linear(H, 1)             W_gateᵀ, b_gate
    recurrent     nn.RNN-, GRU- or LSTMCell(W + H, H)    Wxᵀ and Wzᵀ, Whᵀ, b
    context       nn.Linear(H, H), no bias    W_contextᵀ

For a Transformer see `torch_transformer`.

PyTorch's linear maps are x Wᵀ, so matrices are transposed. The order of its gates is r, z, n in a
GRU, as ours, and i, f, g, o in an LSTM, where ours is i, f, o, g. It has two biases, b_ih + b_hh.
One is enough except for gate n of a GRU, n = tanh(x Wx_n + b_ih_n + r (h Wh_n + b_hh_n)), where
b_hh_n is our `bn`. So b is exported as b_ih, with zeros in b_hh, which changes no bit; on import,
b is their sum, rounded once. (Documentation of `torch.nn.LSTM`, `GRU`.)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy

from xpcap.errors import DataError
from xpcap.exchange.parameters import GATES, family_of, shown, sizes_of
from xpcap.exchange.torch_transformer import transformer_from_torch, transformer_to_torch

PROJECTION, EMBEDDING, RECURRENT, VOCABULARY = "projection", "embedding", "recurrent", "vocabulary"

_LOOKING: dict[str, tuple[str, str | None, int | None]] = {
    "grid": ("W_grid", "b_grid", None),
    "query": ("W_query", "b_query", None),
    "gate": ("W_gate", "b_gate", 1),
    "context": ("W_context", None, None),
    "score": ("w_score", None, 1),
}
"""The layers of attention: their weight, bias, and outputs, None for H."""

_CELL_OF = {gates: cell for cell, gates in GATES.items()}
_RECURRENT = re.compile(r"(.*\.)?((weight|bias)_(ih|hh|hr))(_l\d+)?(_reverse)?", re.DOTALL)
_OTHER = re.compile(r"(.*)\.(weight|bias)", re.DOTALL)

Tensors = Mapping[str, numpy.ndarray]
Sizes = Mapping[str, Any]


def to_torch(params: Tensors) -> dict[str, numpy.ndarray]:
    """Convert `CaptionModel.params`, on the host, to a state dict with the names above."""
    _, sizes = sizes_of("the model", params)
    state = CONVERTERS[family_of(params)].to_torch(params, sizes)
    return {name: numpy.ascontiguousarray(value) for name, value in state.items()}


def from_torch(state: Tensors, words: int) -> dict[str, numpy.ndarray]:
    """Convert a state dict to `CaptionModel.params` for V = `words`.

    With attention, and in a Transformer, layers must have the names of `to_torch`. Otherwise they
    may have any: the recurrent layer is found by the names of its parts, the others by their
    shapes; if these are ambiguous, they must have the names of `to_torch`. Missing biases become
    zeros. An nn.RNN is assumed to use tanh, and the layers of a Transformer the options of
    `to_torch`, since a state dict does not tell. Layers that are not those of a captioner raise a
    `DataError`.
    """
    layers = {name.rpartition(".")[0] for name in state}
    family = next(name for name, converter in CONVERTERS.items() if converter.knows(layers))
    return CONVERTERS[family].from_torch(state, words)


def _recurrent_to_torch(params: Tensors, sizes: Sizes) -> dict[str, numpy.ndarray]:
    cell = _cell_to_torch(params, params["Wx"], sizes["cell_type"], "_l0")
    return {**_common_to_torch(params), **cell}


def _attention_to_torch(params: Tensors, sizes: Sizes) -> dict[str, numpy.ndarray]:
    state = _common_to_torch(params)
    for layer, (weight, bias, _) in _LOOKING.items():
        if weight in params:
            value = params[weight]
            state[f"{layer}.weight"] = value.T if value.ndim == 2 else value[None]
        if bias is not None:
            state[f"{layer}.bias"] = params[bias]
    fed = numpy.concatenate([params["Wx"], params["Wz"]])
    return {**state, **_cell_to_torch(params, fed, sizes["cell_type"], "")}


def _common_to_torch(params: Tensors) -> dict[str, numpy.ndarray]:
    return {
        f"{PROJECTION}.weight": params["W_proj"].T,
        f"{PROJECTION}.bias": params["b_proj"],
        f"{EMBEDDING}.weight": params["W_embed"],
        f"{VOCABULARY}.weight": params["W_vocab"].T,
        f"{VOCABULARY}.bias": params["b_vocab"],
    }


def _cell_to_torch(
    params: Tensors, fed: numpy.ndarray, cell: str, ending: str
) -> dict[str, numpy.ndarray]:
    """Convert a cell, whose weights of what it is fed with are `fed`."""
    bias_hh = numpy.zeros_like(params["b"])
    if cell == "gru":
        bias_hh[2 * len(params["bn"]) :] = params["bn"]
    return {
        f"{RECURRENT}.weight_ih{ending}": _reordered(fed.T, cell),
        f"{RECURRENT}.weight_hh{ending}": _reordered(params["Wh"].T, cell),
        f"{RECURRENT}.bias_ih{ending}": _reordered(params["b"], cell),
        f"{RECURRENT}.bias_hh{ending}": bias_hh,
    }


def _recurrent_from_torch(
    state: Tensors, words: int, looks: bool = False
) -> dict[str, numpy.ndarray]:
    """Convert all layers but those of attention; a cell that `looks` is fed with H numbers more."""
    found = {name: match for name in state if (match := _RECURRENT.fullmatch(name))}
    recurrent = _recurrent({name: state[name] for name in found}, found)
    H = len(recurrent["Wh"])
    W = len(recurrent["Wx"]) - (H if looks else 0)
    others = {name: value for name, value in state.items() if name not in found}
    projection, embedding, vocabulary = _others(others, W, H, words)
    return {
        "W_proj": projection["weight"].T,
        "b_proj": projection.get("bias", numpy.zeros_like(recurrent["b"][:H])),
        "W_embed": embedding["weight"],
        **recurrent,
        "W_vocab": vocabulary["weight"].T,
        "b_vocab": vocabulary.get("bias", numpy.zeros(words, vocabulary["weight"].dtype)),
    }


def _attention_from_torch(state: Tensors, words: int) -> dict[str, numpy.ndarray]:
    names = [name for name in state if (match := _OTHER.fullmatch(name)) and match[1] in _LOOKING]
    looking = {name: state[name] for name in names}
    others = {name: value for name, value in state.items() if name not in looking}
    params = _recurrent_from_torch(others, words, looks=True)
    H, W = len(params["Wh"]), params["W_embed"].shape[1]
    params["Wx"], params["Wz"] = params["Wx"][:W], params["Wx"][W:]
    for name, layer in _layers(looking).items():
        weight, bias, size = _LOOKING[name]
        outputs = H if size is None else size
        if not _is_linear(layer, outputs) or (bias is None and "bias" in layer):
            raise DataError(
                f"its layer {name} has {shown(layer)}; expected the weight of an nn.Linear with"
                f" {outputs} outputs, {'without' if bias is None else 'and its'} bias"
            )
        params[weight] = layer["weight"].T if weight != "w_score" else layer["weight"][0]
        if bias is not None:
            params[bias] = layer.get("bias", numpy.zeros(outputs, layer["weight"].dtype))
    return params


class Converter(NamedTuple):
    """How a family's parameters become a state dict; it `knows` the layers of its own."""

    knows: Callable[[set[str]], bool]
    to_torch: Callable[[Tensors, Sizes], dict[str, numpy.ndarray]]
    from_torch: Callable[[Tensors, int], dict[str, numpy.ndarray]]


CONVERTERS = {
    "transformer": Converter(
        lambda layers: any(name.endswith(".multihead_attn.out_proj") for name in layers),
        transformer_to_torch,
        transformer_from_torch,
    ),
    "attention": Converter(
        {"grid", "query", "gate", "context"}.issubset, _attention_to_torch, _attention_from_torch
    ),
    "recurrent": Converter(lambda layers: True, _recurrent_to_torch, _recurrent_from_torch),
}
"""Converters by family; a state dict belongs to the first that knows its layers."""


def _reordered(rows: numpy.ndarray, cell: str) -> numpy.ndarray:
    """Convert `(G H, ...)` from our order of gates to PyTorch's, or back: swap o and g."""
    if cell != "lstm":
        return rows
    i, f, o, g = numpy.split(rows, 4)
    return numpy.concatenate([i, f, g, o])


def _recurrent(tensors: Tensors, matches: Mapping[str, re.Match[str]]) -> dict[str, numpy.ndarray]:
    """Convert the recurrent layer to `Wx`, `Wh`, `b` and, for a GRU, `bn`."""
    parts = {match[2]: tensors[name] for name, match in matches.items()}
    weights, biases = {"weight_ih", "weight_hh"}, {"bias_ih", "bias_hh"}
    if (
        len(parts) != len(matches)
        or set(parts) not in (weights, weights | biases)
        or len({match[1] for match in matches.values()}) > 1
        or any(match[5] not in (None, "_l0") or match[6] for match in matches.values())
    ):
        raise DataError(
            f"its recurrent layer has {shown(tensors)}; expected one nn.LSTM, nn.GRU or nn.RNN of"
            " one layer and one direction, without projections: weight_ih_l0, weight_hh_l0,"
            " bias_ih_l0, bias_hh_l0"
        )
    weight_ih, weight_hh = parts["weight_ih"], parts["weight_hh"]
    none = numpy.zeros(weight_hh.shape[:1], weight_hh.dtype)
    bias_ih, bias_hh = (parts.get(name, none) for name in ("bias_ih", "bias_hh"))
    size = weight_hh.shape[0] if weight_hh.ndim == 2 else 0
    H = weight_hh.shape[1] if size else 0
    fits = (
        H > 0
        and size % H == 0
        and size // H in _CELL_OF
        and weight_ih.ndim == 2
        and len(weight_ih) == size
        and bias_ih.shape == bias_hh.shape == (size,)
    )
    if not fits:
        raise DataError(
            f"its recurrent layer has {shown(tensors)}; expected (G H, W), (G H, H), (G H,) and"
            " (G H,) with G = 4 for an LSTM, 3 for a GRU, 1 for an RNN"
        )
    cell = _CELL_OF[size // H]
    with numpy.errstate(over="ignore"):
        b = bias_ih + bias_hh
    hidden = {}
    if cell == "gru":
        b[2 * H :], hidden["bn"] = bias_ih[2 * H :], bias_hh[2 * H :]
    return {
        "Wx": _reordered(weight_ih, cell).T,
        "Wh": _reordered(weight_hh, cell).T,
        "b": _reordered(b, cell),
        **hidden,
    }


def _others(tensors: Tensors, W: int, H: int, words: int) -> list[dict[str, numpy.ndarray]]:
    """Find projection, embedding and vocabulary: the `weight` of each, and its `bias` if any."""
    layers = _layers(tensors)

    def fits(names: tuple[str, ...]) -> bool:
        projection, embedding, vocabulary = (layers[name] for name in names)
        return (
            _is_linear(projection, H)
            and set(embedding) == {"weight"}
            and embedding["weight"].shape == (words, W)
            and _is_linear(vocabulary, words)
            and vocabulary["weight"].shape[1] == H
        )

    ours = (PROJECTION, EMBEDDING, VOCABULARY)
    orders = [ours] if set(ours) == set(layers) else itertools.permutations(layers, 3)
    fitting = [names for names in orders if fits(names)] if len(layers) == 3 else []
    if len(fitting) != 1:
        raise DataError(
            f"besides its recurrent layer it has {shown(tensors)}; expected the weights of an"
            f" nn.Embedding ({words}, {W}) for {words} words, of an nn.Linear ({H}, D) from the"
            f" features to the first hidden state, and of an nn.Linear ({words}, {H}) to the words"
            + (f"; as shapes are ambiguous, called {', '.join(ours)}" if fitting else "")
        )
    return [layers[name] for name in fitting[0]]


def _layers(tensors: Tensors) -> dict[str, dict[str, numpy.ndarray]]:
    """Return layers by name: the `weight` and the `bias` of each; parts of other names as ""."""
    layers: dict[str, dict[str, numpy.ndarray]] = {}
    for name, value in tensors.items():
        match = _OTHER.fullmatch(name)
        layers.setdefault(match[1] if match else name, {})[match[2] if match else ""] = value
    return layers


def _is_linear(layer: Tensors, size: int) -> bool:
    """Whether a layer is an nn.Linear with `size` outputs."""
    weight = layer.get("weight")
    return (
        weight is not None
        and weight.ndim == 2
        and len(weight) == size
        and layer.keys() <= {"weight", "bias"}
        and ("bias" not in layer or layer["bias"].shape == (size,))
    )
