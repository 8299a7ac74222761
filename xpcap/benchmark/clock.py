"""A recurrent captioner that need not be trained to generate captions of given lengths.

Hidden unit 0 is a clock: the image sets it, and each step maps it from h to tanh(1.25 h) (an LSTM
to the tanh of that), without input from other units. Above 0.3 it makes `<END>` the most probable
word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from xpcap.models import CaptioningRNN

_GROWTH, _THRESHOLD, _WEIGHT = 1.25, 0.3, 1000.0
_FREQUENCY_WEIGHT = 0.05
_OPEN = {"input": 20.0, "output": 20.0, "reset": 20.0}
_CLOSED = {"forget": -20.0, "update": -20.0}


def add_clock(model: CaptioningRNN, frequencies: numpy.ndarray) -> None:
    """Make hidden unit 0 a clock, and the last words of the vocabulary probable by frequency."""
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
    W, b = model.vocabulary_layer(model.params)
    W[0] = 0
    W[0, model.end] = _WEIGHT
    known = numpy.maximum(frequencies, frequencies[frequencies > 0].min())
    bias = _FREQUENCY_WEIGHT * numpy.log(known)
    b[:] = -_WEIGHT  # bans all others
    b[-len(bias) :] = bias - bias.max()
    b[model.end] = -_WEIGHT * _THRESHOLD


def set_clock(
    model: CaptioningRNN, features: numpy.ndarray, lengths: Sequence[int]
) -> numpy.ndarray:
    """Change features `(N, D)` the least, so that `<END>` comes after `lengths` words.

    Of regions `(N, L, D)` all are changed in the same way.
    """
    unit = numpy.zeros((1, model.sizes["hidden_dim"]), features.dtype)
    unit[0, 0] = 1
    (direction,) = unit @ model.params["W_proj"].T
    _, (h, *_) = model.start(features)
    missing = [_before(model.cell_type, length) for length in lengths] - h[:, 0]
    changes = numpy.outer(missing / (direction @ direction), direction)
    changes = changes.reshape(len(features), *(1,) * (features.ndim - 2), -1)
    return numpy.asarray(features + changes, features.dtype)


def _before(cell: str, length: int) -> float:
    """Return the clock's value `length + 1` steps before it is above the threshold."""
    h = 1.1 * _THRESHOLD
    for _ in range(length + 1):
        h = math.atanh(math.atanh(h) if cell == "lstm" else h) / _GROWTH
    return h
