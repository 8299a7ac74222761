"""A captioner's parameters as the state dict of PyTorch's own layers, and back.

    projection    nn.Linear(D, H)             W_projᵀ, b_proj
    embedding     nn.Embedding(V, W)          W_embed
    recurrent     nn.RNN, GRU or LSTM(W, H)   Wxᵀ, Whᵀ, b; one layer, tanh
    vocabulary    nn.Linear(H, V)             W_vocabᵀ, b_vocab

PyTorch's linear maps are x Wᵀ, so matrices are transposed. The order of its gates is r, z, n in a
GRU, as ours, and i, f, g, o in an LSTM, where ours is i, f, o, g. It has two biases, b_ih + b_hh.
One is enough except for gate n of a GRU, n = tanh(x Wx_n + b_ih_n + r (h Wh_n + b_hh_n)), where
b_hh_n is our `bn`. So b is exported as b_ih, with zeros in b_hh, which changes no bit; on import,
b is their sum, rounded once. (Documentation of `torch.nn.LSTM`, `GRU`.)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import numpy

from xpcap.errors import DataError
from xpcap.exchange.parameters import GATES, shown, sizes_of

PROJECTION, EMBEDDING, RECURRENT, VOCABULARY = "projection", "embedding", "recurrent", "vocabulary"

_CELL_OF = {gates: cell for cell, gates in GATES.items()}
_RECURRENT = re.compile(r"(.*\.)?((weight|bias)_(ih|hh|hr))(_l\d+)?(_reverse)?", re.DOTALL)
_OTHER = re.compile(r"(.*)\.(weight|bias)", re.DOTALL)

Tensors = Mapping[str, numpy.ndarray]


def to_torch(params: Tensors) -> dict[str, numpy.ndarray]:
    """Convert `CaptioningRNN.params`, on the host, to a state dict with the names above."""
    _, sizes = sizes_of("the model", params)
    H, cell = sizes["hidden_dim"], sizes["cell_type"]
    bias_hh = numpy.zeros_like(params["b"])
    if cell == "gru":
        bias_hh[2 * H :] = params["bn"]
    state = {
        f"{PROJECTION}.weight": params["W_proj"].T,
        f"{PROJECTION}.bias": params["b_proj"],
        f"{EMBEDDING}.weight": params["W_embed"],
        f"{RECURRENT}.weight_ih_l0": _reordered(params["Wx"].T, cell),
        f"{RECURRENT}.weight_hh_l0": _reordered(params["Wh"].T, cell),
        f"{RECURRENT}.bias_ih_l0": _reordered(params["b"], cell),
        f"{RECURRENT}.bias_hh_l0": bias_hh,
        f"{VOCABULARY}.weight": params["W_vocab"].T,
        f"{VOCABULARY}.bias": params["b_vocab"],
    }
    return {name: numpy.ascontiguousarray(value) for name, value in state.items()}


def from_torch(state: Tensors, words: int) -> dict[str, numpy.ndarray]:
    """Convert a state dict, with layers of any names, to `CaptioningRNN.params` for V = `words`.

    The recurrent layer is found by the names of its parts, the others by their shapes; if these are
    ambiguous, they must have the names of `to_torch`. Missing biases become zeros. An nn.RNN is
    assumed to use tanh, since a state dict does not tell. Layers that are not those of a captioner
    raise a `DataError`.
    """
    found = {name: match for name in state if (match := _RECURRENT.fullmatch(name))}
    recurrent = _recurrent({name: state[name] for name in found}, found)
    H = len(recurrent["Wh"])
    others = {name: value for name, value in state.items() if name not in found}
    projection, embedding, vocabulary = _others(others, len(recurrent["Wx"]), H, words)
    return {
        "W_proj": projection["weight"].T,
        "b_proj": projection.get("bias", numpy.zeros_like(recurrent["b"][:H])),
        "W_embed": embedding["weight"],
        **recurrent,
        "W_vocab": vocabulary["weight"].T,
        "b_vocab": vocabulary.get("bias", numpy.zeros(words, vocabulary["weight"].dtype)),
    }


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
    layers: dict[str, dict[str, numpy.ndarray]] = {}
    for name, value in tensors.items():
        match = _OTHER.fullmatch(name)
        layers.setdefault(match[1] if match else name, {})[match[2] if match else ""] = value

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
