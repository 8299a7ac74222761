"""The LSTM in the layout of the course."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xpcap import layers
from xpcap.backend import Array, Namespace
from xpcap.compat.step_by_step.layout import (
    Parameters,
    backward_through_time,
    check_arguments,
    first_steps,
)
from xpcap.layers.loss import softmax
from xpcap.layers.lstm import LSTMStepCache
from xpcap.layers.recurrence import split_gates

GATES = "ifoc"
"""Update, forget and output gate and the candidate, in the column order of `xpcap.layers`."""

LSTM_WEIGHTS = {f"W{gate}": "n_a n_a+n_x" for gate in GATES}
LSTM_PARAMETERS = {
    **LSTM_WEIGHTS, **{f"b{gate}": "n_a 1" for gate in GATES}, "Wy": "n_y n_a", "by": "n_y 1",
}  # fmt: skip


class LSTMCellCache(NamedTuple):
    """Cache of one step, in the course's order: `ft`, `it`, `ot` are activated gates."""

    a_next: Array
    c_next: Array
    a_prev: Array
    c_prev: Array
    ft: Array
    it: Array
    cct: Array
    ot: Array
    xt: Array
    parameters: Parameters


def lstm_cell_forward(
    xt: Array, a_prev: Array, c_prev: Array, parameters: Parameters
) -> tuple[Array, Array, Array, LSTMCellCache]:
    """Take one step of an LSTM.

    With z = [a_prev; xt]: f, i, o = sigmoid(Wf z + bf), ... for the forget, update and output gate;
    cc = tanh(Wc z + bc); `c_next = f c_prev + i cc`; `a_next = o tanh(c_next)`;
    `yt_pred = softmax(Wy a_next + by)`.

    Parameters
    ----------
    xt
        Inputs `(n_x, m)`.
    a_prev, c_prev
        Hidden state and cell state, `(n_a, m)` each.
    parameters
        `Wf`, `Wi`, `Wc`, `Wo (n_a, n_a + n_x)`; `bf`, `bi`, `bc`, `bo (n_a, 1)`; `Wy (n_y, n_a)`,
        `by (n_y, 1)`.

    Returns
    -------
    a_next, c_next, yt_pred, cache
        The new states `(n_a, m)`; the probability of each class `(n_y, m)`; and
        `(a_next, c_next, a_prev, c_prev, ft, it, cct, ot, xt, parameters)`.
    """
    xp = check_arguments(
        "lstm_cell_forward", parameters, LSTM_PARAMETERS,
        xt=(xt, "n_x m"), a_prev=(a_prev, "n_a m"), c_prev=(c_prev, "n_a m"),
    )  # fmt: skip
    weights = _lstm_weights(xp, parameters, a_prev.shape[0])
    h, c, step = layers.lstm_step_forward(
        xt.T, a_prev.T, c_prev.T, *weights, _lstm_biases(xp, parameters)
    )
    scores, _ = layers.affine_forward(h, parameters["Wy"].T, parameters["by"].reshape(-1))
    i, f, o, g = (gate.T for gate in split_gates(step.gates, 4))
    cache = LSTMCellCache(h.T, c.T, a_prev, c_prev, f, i, g, o, xt, parameters)
    return h.T, c.T, softmax(xp, scores).T, cache


def lstm_forward(
    x: Array, a0: Array, parameters: Parameters
) -> tuple[Array, Array, Array, tuple[list[LSTMCellCache], Array]]:
    """Apply an LSTM to a sequence; the initial cell state is zero.

    Parameters
    ----------
    x
        Inputs `(n_x, m, T_x)`.
    a0
        Initial hidden state `(n_a, m)`.
    parameters
        As for `lstm_cell_forward`.

    Returns
    -------
    a, y, c, caches
        The hidden state after each step `(n_a, m, T_x)`; the probability of each class
        `(n_y, m, T_x)`; the cell state `(n_a, m, T_x)`; and `([the cache of each step], x)`.
    """
    xp = check_arguments(
        "lstm_forward", parameters, LSTM_PARAMETERS, x=(x, "n_x m T_x"), a0=(a0, "n_a m")
    )
    a, c, steps, probabilities = a0, xp.zeros_like(a0), [], []
    for t in range(x.shape[2]):
        a, c, y, cache = lstm_cell_forward(x[:, :, t], a, c, parameters)
        steps.append(cache)
        probabilities.append(y)
    states = [[step.a_next for step in steps], probabilities, [step.c_next for step in steps]]
    a, y, c = (xp.stack(arrays, axis=2) for arrays in states)
    return a, y, c, (steps, x)


def lstm_cell_backward(da_next: Array, dc_next: Array, cache: Sequence[Any]) -> dict[str, Array]:
    """Gradients of `lstm_cell_forward`, given those of the new states, `(n_a, m)` each.

    Returns
    -------
    dict
        `dxt (n_x, m)`; `da_prev`, `dc_prev (n_a, m)`; `dWf`, `dWi`, `dWc`, `dWo (n_a, n_a + n_x)`;
        `dbf`, `dbi`, `dbc`, `dbo (n_a, 1)`.
    """
    step = LSTMCellCache(*cache)
    xp = check_arguments(
        "lstm_cell_backward", step.parameters, LSTM_WEIGHTS,
        xt=(step.xt, "n_x m"), a_next=(step.a_next, "n_a m"),
        da_next=(da_next, "n_a m"), dc_next=(dc_next, "n_a m"),
    )  # fmt: skip
    Wx, Wh = _lstm_weights(xp, step.parameters, step.a_next.shape[0])
    gates = xp.concatenate([step.it, step.ft, step.ot, step.cct]).T
    layer = LSTMStepCache(
        step.xt.T, step.a_prev.T, step.c_prev.T, Wx, Wh, gates, xp.tanh(step.c_next.T)
    )
    dx, dh, dc, dWx, dWh, db = layers.lstm_step_backward(da_next.T, dc_next.T, layer)
    return {"dxt": dx.T, "da_prev": dh.T, "dc_prev": dc.T, **_lstm_gradients(xp, dWx, dWh, db)}


def lstm_backward(da: Array, caches: tuple[Sequence[Sequence[Any]], Array]) -> dict[str, Array]:
    """Backpropagation through time of `lstm_forward`, over as many steps as `da` has.

    The values that the 2018 edition of the course prints as expected are wrong: the gradients
    that come back from the next step are dropped there, and three bias sums are added to the
    wrong bias. The truth is the numerical gradient of `sum(a[:, :, :T] * da)`, and that is what
    this function returns.

    Parameters
    ----------
    da
        Gradient of the first T hidden states from above, `(n_a, m, T)` with T from 1 to T_x.
    caches
        From `lstm_forward`.

    Returns
    -------
    dict
        `dx (n_x, m, T)`; `da0 (n_a, m)`; the others as for `lstm_cell_backward`.
    """
    steps = first_steps("lstm_backward", da, caches)
    first = LSTMCellCache(*steps[0])
    check_arguments(
        "lstm_backward", first.parameters, LSTM_WEIGHTS,
        xt=(first.xt, "n_x m"), a0=(first.a_prev, "n_a m"), da=(da, "n_a m T"),
    )  # fmt: skip
    return backward_through_time(lstm_cell_backward, da, steps, ("da_prev", "dc_prev"))


def _lstm_weights(xp: Namespace, parameters: Parameters, n_a: int) -> tuple[Array, Array]:
    """Return the layers' `Wx (n_x, 4 n_a)` and `Wh (n_a, 4 n_a)`."""
    weights = xp.concatenate([parameters[f"W{gate}"] for gate in GATES]).T
    return weights[n_a:], weights[:n_a]


def _lstm_biases(xp: Namespace, parameters: Parameters) -> Array:
    return xp.concatenate([parameters[f"b{gate}"].reshape(-1) for gate in GATES])


def _lstm_gradients(xp: Namespace, dWx: Array, dWh: Array, db: Array) -> dict[str, Array]:
    weights = split_gates(xp.concatenate([dWh, dWx]), 4)
    biases = split_gates(db[None], 4)
    return {
        f"d{kind}{gate}": gradient.T
        for kind, gradients in (("W", weights), ("b", biases))
        for gate, gradient in zip(GATES, gradients, strict=True)
    }
