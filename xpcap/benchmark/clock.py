"""A captioner that need not be trained to generate captions of given lengths.

Hidden unit 0 is a clock: the image sets it, and each step moves it, without input from other units.
A recurrent network maps it from h to tanh(1.25 h) (an LSTM to the tanh of that). A Transformer
counts: unit 0 of x is 4 times the position, less what the first layer reads in the regions. Above a
threshold it makes `<END>` the most probable word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from xpcap.layers.normalization import EPSILON
from xpcap.models import CaptioningRNN, Transformer

_GROWTH, _THRESHOLD, _WEIGHT = 1.25, 0.3, 1000.0
_OPEN = {"input": 20.0, "output": 20.0, "reset": 20.0}
_CLOSED = {"forget": -20.0, "update": -20.0}
_TICK, _WIDEST = 4.0, 0.75  # of x a step; of sqrt(H), the largest element of a normalized region


def add_clock(
    model: CaptioningRNN | Transformer, frequencies: numpy.ndarray, weight: float
) -> None:
    """Make hidden unit 0 a clock, and the last words of the vocabulary probable by frequency.

    `weight` is that of the logarithms of frequencies.
    """
    if isinstance(model, Transformer):
        _count_positions(model)
        threshold = 0.0
    else:
        _grow(model)
        threshold = _THRESHOLD
    W, b = model.vocabulary_layer(model.params)
    W[0] = 0
    W[0, model.end] = _WEIGHT
    known = numpy.maximum(frequencies, frequencies[frequencies > 0].min())
    bias = weight * numpy.log(known)
    b[:] = -_WEIGHT  # bans all others
    b[-len(bias) :] = bias - bias.max()
    b[model.end] = -_WEIGHT * threshold


def _grow(model: CaptioningRNN) -> None:
    gates, H = model.cell.gates, model.sizes["hidden_dim"]
    wide = len(gates) * H
    biases = [{**_OPEN, **_CLOSED}.get(gate, 0.0) for gate in gates]
    for name in model.cell.shapes(model.sizes["wordvec_dim"], H):
        weights = model.params[name]
        if weights.shape[-1] == wide:
            weights[..., ::H] = biases if weights.ndim == 1 else 0
    for name in {"Wz", "W_context"} & model.params.keys():  # what attention finds does not move it
        model.params[name][:, ::H] = 0
    model.recurrent_weights()["Wh"][0, wide - H] = _GROWTH  # the last gate is a tanh


def _count_positions(model: Transformer) -> None:
    p, (most, H) = model.params, model.params["W_position"].shape
    for name in ("W_embed", *(name for name in p if name.endswith(("W_out", "b_out")))):
        p[name][..., 0] = 0
    p["W_position"][:, 0] = _TICK * numpy.arange(most) / math.sqrt(H)
    p["W_proj"][0], p["W_proj"][:, 0] = 0, 0
    p["layer.0.cross.W_value"][:, 0] = 0
    p["W_proj"][0, 0] = p["layer.0.cross.W_value"][0, 0] = 1
    p["layer.0.cross.W_out"][0, 0] = -_TICK * most / (_WIDEST * math.sqrt(H))


def set_clock(
    model: CaptioningRNN | Transformer, features: numpy.ndarray, lengths: Sequence[int]
) -> numpy.ndarray:
    """Change features `(N, D)` little, so that `<END>` comes after `lengths` words.

    Of regions `(N, L, D)` all are changed in the same way.
    """
    if isinstance(model, Transformer):
        return _with_counts(model, features, numpy.array(lengths))
    unit = numpy.zeros((1, model.sizes["hidden_dim"]), features.dtype)
    unit[0, 0] = 1
    (direction,) = unit @ model.params["W_proj"].T
    _, (h, *_) = model.start(features)
    missing = [_before(model.cell_type, length) for length in lengths] - h[:, 0]
    changes = numpy.outer(missing / (direction @ direction), direction)
    changes = changes.reshape(len(features), *(1,) * (features.ndim - 2), -1)
    return numpy.asarray(features + changes, features.dtype)


def _with_counts(
    model: Transformer, features: numpy.ndarray, lengths: numpy.ndarray
) -> numpy.ndarray:
    """Set feature 0, which alone moves unit 0 of projected regions, whose norm is n_0 then."""
    most, H = model.params["W_position"].shape
    n_0 = ((lengths - 0.5) / most * _WIDEST * math.sqrt(H)).reshape(-1, *[1] * (features.ndim - 2))
    others = (features @ model.params["W_proj"] + model.params["b_proj"])[..., 1:]
    share = (H - 1) / H
    variance = share * others.var(axis=-1) + EPSILON
    found = features.copy()
    distance = n_0 * numpy.sqrt(variance / (share**2 - n_0**2 * share / H))
    found[..., 0] = others.mean(axis=-1) + distance
    return found


def _before(cell: str, length: int) -> float:
    """Return the clock's value `length + 1` steps before it is above the threshold."""
    h = 1.1 * _THRESHOLD
    for _ in range(length + 1):
        h = math.atanh(math.atanh(h) if cell == "lstm" else h) / _GROWTH
    return h
