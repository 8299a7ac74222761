"""Initial weights, always drawn on the host, so that a seed gives the same ones on every device."""

from __future__ import annotations

import math

import numpy


def scaled_normal(rng: numpy.random.Generator, fan_in: int, fan_out: int) -> numpy.ndarray:
    """Draw N(0, 1) / sqrt(fan_in), which keeps the variance of what passes through.

    Returns
    -------
    array
        `(fan_in, fan_out)` float64.
    """
    return rng.standard_normal((fan_in, fan_out)) / math.sqrt(fan_in)


def captioner_parameters(
    rng: numpy.random.Generator,
    vocabulary: int,
    input_dim: int,
    wordvec_dim: int,
    hidden_dim: int,
    gates: int,
) -> dict[str, numpy.ndarray]:
    """Draw the parameters that every captioner has, as the CS231n assignment does.

    Word vectors are N(0, 1) / 100, other weights N(0, 1) / sqrt(fan_in), biases zero.

    Parameters
    ----------
    rng
        Where the numbers come from.
    vocabulary, input_dim, wordvec_dim, hidden_dim
        V, D, W, H.
    gates
        How many blocks of H columns the recurrent weights have: 1 (rnn), 4 (lstm), 3 (gru).

    Returns
    -------
    dict
        `W_proj (D, H)`, `b_proj (H,)`, `W_embed (V, W)`, `Wx (W, gates H)`, `Wh (H, gates H)`,
        `b (gates H,)`, `W_vocab (H, V)`, `b_vocab (V,)`, float64.
    """
    return {
        "W_embed": rng.standard_normal((vocabulary, wordvec_dim)) / 100,
        "W_proj": scaled_normal(rng, input_dim, hidden_dim),
        "b_proj": numpy.zeros(hidden_dim),
        "Wx": scaled_normal(rng, wordvec_dim, gates * hidden_dim),
        "Wh": scaled_normal(rng, hidden_dim, gates * hidden_dim),
        "b": numpy.zeros(gates * hidden_dim),
        "W_vocab": scaled_normal(rng, hidden_dim, vocabulary),
        "b_vocab": numpy.zeros(vocabulary),
    }
