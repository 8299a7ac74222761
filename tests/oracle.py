"""Naive versions of what the package computes, written for reading and not for speed.

Recurrent cells take one caption step by step, by the textbook's formulas, a variable for each gate.
Their gradients come from no rule of differentiation: with f analytic, f(x + i e) = f(x) + i e f'(x)
and e may be so small that nothing else is left (the complex step).
"""

from __future__ import annotations

import numpy

STEP = 1e-200


def logistic(a):
    return 1 / (1 + numpy.exp(-a))


def times(h, W):
    """Return h W; both may have further axes before theirs."""
    return (h[..., None, :] @ W)[..., 0, :]


def rnn_step(ax, state, Wh):
    (h,) = state
    return (numpy.tanh(ax + times(h, Wh)),)


def lstm_step(ax, state, Wh):
    h, c = state
    a_i, a_f, a_o, a_g = numpy.split(ax + times(h, Wh), 4, axis=-1)
    c = logistic(a_f) * c + logistic(a_i) * numpy.tanh(a_g)
    return logistic(a_o) * numpy.tanh(c), c


def gru_step(ax, state, Wh, bn):
    (h,) = state
    ax_r, ax_z, ax_n = numpy.split(ax, 3, axis=-1)
    ah_r, ah_z, ah_n = numpy.split(times(h, Wh), 3, axis=-1)
    r, z = logistic(ax_r + ah_r), logistic(ax_z + ah_z)
    n = numpy.tanh(ax_n + r * (ah_n + bn))
    return ((1 - z) * n + z * h,)


CELL_STEPS = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}


def hidden_states(cell, ax, state, weights):
    """Return the hidden states `(T, H)` of one caption.

    `ax (T, kH)`: x Wx + b of each step; `state`: h0 and further first states, `(H,)` each;
    `weights`: `Wh` and further biases of the cell, by name.
    """
    found = []
    for t in range(ax.shape[-2]):
        state = CELL_STEPS[cell](ax[..., t, :], state, **weights)
        found.append(state[0])
    return numpy.stack(found, axis=-2)


def gradient(function, x):
    """Return the gradient at the array `x` of a function with numbers as values.

    The function is called once, with as many arrays as `x` has elements, on a first axis.
    """
    steps = STEP * 1j * numpy.eye(x.size).reshape(x.size, *x.shape)
    return (function(x + steps).imag / STEP).reshape(x.shape)
