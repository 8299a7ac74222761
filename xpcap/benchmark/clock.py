"""A recurrent captioner that need not be trained to generate captions of given lengths.

Hidden unit 0 is a clock: feature 0 sets it, and each step maps it from h to tanh(1.25 h) (an LSTM
to the tanh of that), without input from other units. Above 0.3 it makes `<END>` the most probable
word.
"""

from __future__ import annotations

import math

import numpy

from xpcap.models import CaptioningRNN

_GROWTH, _THRESHOLD, _WEIGHT = 1.25, 0.3, 1000.0
_FREQUENCY_WEIGHT = 0.05


def set_vocabulary_bias(model: CaptioningRNN, frequencies: numpy.ndarray) -> None:
    """Make the last words of the vocabulary probable by their frequencies; ban all but `<END>`."""
    bias = _FREQUENCY_WEIGHT * numpy.log(
        numpy.maximum(frequencies, frequencies[frequencies > 0].min())
    )
    b_vocab = model.params["b_vocab"]
    b_vocab[:] = -_WEIGHT
    b_vocab[-len(bias) :] = bias - bias.max()
    b_vocab[model.end] = -_WEIGHT * _THRESHOLD


def add_clock(model: CaptioningRNN) -> None:
    """Make hidden unit 0 a clock."""
    p, H = model.params, model.params["Wh"].shape[0]
    own, closed, open_ = {"rnn": (0, [], []), "gru": (2, [1], [0]), "lstm": (3, [1], [0, 2])}[
        model.cell_type
    ]
    for block in range(p["Wh"].shape[1] // H):
        p["Wh"][:, block * H] = p["Wx"][:, block * H] = p["b"][block * H] = 0
    p["Wh"][0, own * H] = _GROWTH
    for blocks, bias in ((closed, -20.0), (open_, 20.0)):
        for block in blocks:
            p["b"][block * H] = bias
    p["W_proj"][:, 0] = 0
    p["W_proj"][0, 0] = 1
    p["W_vocab"][0] = 0
    p["W_vocab"][0, model.end] = _WEIGHT


def clock_feature(cell: str, length: int) -> float:
    """Return the value of feature 0 for which `<END>` comes after `length` words."""
    h = 1.1 * _THRESHOLD
    for _ in range(length + 1):
        h = math.atanh(math.atanh(h) if cell == "lstm" else h) / _GROWTH
    return h
