"""The vanilla recurrent network in the layout of the course."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xpcap import layers
from xpcap.backend import Array
from xpcap.compat.step_by_step.layout import (
    Parameters,
    backward_through_time,
    check_arguments,
    first_steps,
)
from xpcap.layers.loss import softmax
from xpcap.layers.rnn import RNNStepCache

RNN_WEIGHTS = {"Wax": "n_a n_x", "Waa": "n_a n_a"}
RNN_PARAMETERS = {**RNN_WEIGHTS, "Wya": "n_y n_a", "ba": "n_a 1", "by": "n_y 1"}


class RNNCellCache(NamedTuple):
    """Cache of one step, in the course's order."""

    a_next: Array
    a_prev: Array
    xt: Array
    parameters: Parameters


def rnn_cell_forward(
    xt: Array, a_prev: Array, parameters: Parameters
) -> tuple[Array, Array, RNNCellCache]:
    """Take one step: `a_next = tanh(Wax xt + Waa a_prev + ba)`, `yt_pred = softmax(Wya a + by)`.

    Parameters
    ----------
    xt
        Inputs `(n_x, m)`.
    a_prev
        Hidden state `(n_a, m)`.
    parameters
        `Wax (n_a, n_x)`, `Waa (n_a, n_a)`, `Wya (n_y, n_a)`, `ba (n_a, 1)`, `by (n_y, 1)`.

    Returns
    -------
    a_next, yt_pred, cache
        The new hidden state `(n_a, m)`; the probability of each class `(n_y, m)`; and
        `(a_next, a_prev, xt, parameters)`.
    """
    xp = check_arguments(
        "rnn_cell_forward", parameters, RNN_PARAMETERS, xt=(xt, "n_x m"), a_prev=(a_prev, "n_a m")
    )
    b = parameters["ba"].reshape(-1)
    h, _ = layers.rnn_step_forward(xt.T, a_prev.T, *_rnn_weights(parameters), b)
    scores, _ = layers.affine_forward(h, parameters["Wya"].T, parameters["by"].reshape(-1))
    return h.T, softmax(xp, scores).T, RNNCellCache(h.T, a_prev, xt, parameters)


def rnn_forward(
    x: Array, a0: Array, parameters: Parameters
) -> tuple[Array, Array, tuple[list[RNNCellCache], Array]]:
    """Apply the network to a sequence.

    Parameters
    ----------
    x
        Inputs `(n_x, m, T_x)`.
    a0
        Initial hidden state `(n_a, m)`.
    parameters
        As for `rnn_cell_forward`.

    Returns
    -------
    a, y_pred, caches
        The hidden state after each step `(n_a, m, T_x)`; the probability of each class
        `(n_y, m, T_x)`; and `([the cache of each step], x)`.
    """
    xp = check_arguments(
        "rnn_forward", parameters, RNN_PARAMETERS, x=(x, "n_x m T_x"), a0=(a0, "n_a m")
    )
    a, steps, probabilities = a0, [], []
    for t in range(x.shape[2]):
        a, y, cache = rnn_cell_forward(x[:, :, t], a, parameters)
        steps.append(cache)
        probabilities.append(y)
    a = xp.stack([step.a_next for step in steps], axis=2)
    return a, xp.stack(probabilities, axis=2), (steps, x)


def rnn_cell_backward(da_next: Array, cache: Sequence[Any]) -> dict[str, Array]:
    """Gradients of `rnn_cell_forward`, given that of the new hidden state, `(n_a, m)`.

    Returns
    -------
    dict
        `dxt (n_x, m)`, `da_prev (n_a, m)`, `dWax (n_a, n_x)`, `dWaa (n_a, n_a)`, `dba (n_a, 1)`.
    """
    a_next, a_prev, xt, parameters = cache
    check_arguments(
        "rnn_cell_backward", parameters, RNN_WEIGHTS,
        xt=(xt, "n_x m"), a_next=(a_next, "n_a m"), da_next=(da_next, "n_a m"),
    )  # fmt: skip
    Wx, Wh = _rnn_weights(parameters)
    step = RNNStepCache(xt.T, a_prev.T, Wx, Wh, a_next.T)
    dx, dprev_h, dWx, dWh, db = layers.rnn_step_backward(da_next.T, step)
    return {"dxt": dx.T, "da_prev": dprev_h.T, **_rnn_gradients(dWx, dWh, db)}


def rnn_backward(da: Array, caches: tuple[Sequence[Sequence[Any]], Array]) -> dict[str, Array]:
    """Backpropagation through time of `rnn_forward`, over as many steps as `da` has.

    Parameters
    ----------
    da
        Gradient of the first T hidden states from above, `(n_a, m, T)` with T from 1 to T_x.
    caches
        From `rnn_forward`.

    Returns
    -------
    dict
        `dx (n_x, m, T)`, `da0 (n_a, m)`; the others as for `rnn_cell_backward`.
    """
    steps = first_steps("rnn_backward", da, caches)
    _, a0, xt, parameters = steps[0]
    check_arguments(
        "rnn_backward", parameters, RNN_WEIGHTS,
        xt=(xt, "n_x m"), a0=(a0, "n_a m"), da=(da, "n_a m T"),
    )  # fmt: skip
    return backward_through_time(rnn_cell_backward, da, steps)


def _rnn_weights(parameters: Parameters) -> tuple[Array, Array]:
    """Return the layers' `Wx (n_x, n_a)` and `Wh (n_a, n_a)`."""
    return parameters["Wax"].T, parameters["Waa"].T


def _rnn_gradients(dWx: Array, dWh: Array, db: Array) -> dict[str, Array]:
    return {"dWax": dWx.T, "dWaa": dWh.T, "dba": db[:, None]}
