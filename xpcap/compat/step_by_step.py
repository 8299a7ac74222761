"""The recurrent networks of the course "Building a recurrent network step by step".

DeepLearning.AI, Sequence Models, week 1: features come first, weights stand on the left, biases are
columns, and the LSTM has one matrix per gate, applied to `a_prev` stacked on `xt`. The functions of
a step transpose their arguments for `xpcap.layers`, call the layer, and transpose the results;
those of a sequence call them for each step. n_x inputs, n_a hidden units, n_y classes, m examples,
T_x steps.

The gradients of a step are those with respect to `a_next` (and `c_next`) only; none comes through
`y`. A missing parameter raises a `ConfigurationError`; arrays that are empty or not floating, or
whose shapes do not fit, a `ShapeError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from xpcap import layers
from xpcap.backend import Array, Namespace, namespace
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.layers._checks import check_arguments
from xpcap.layers.loss import softmax
from xpcap.layers.lstm import LSTMStepCache
from xpcap.layers.recurrence import split_gates
from xpcap.layers.rnn import RNNStepCache

__all__ = [
    "lstm_backward",
    "lstm_cell_backward",
    "lstm_cell_forward",
    "lstm_forward",
    "rnn_backward",
    "rnn_cell_backward",
    "rnn_cell_forward",
    "rnn_forward",
]

Parameters: TypeAlias = Mapping[str, Array]

GATES = "ifoc"
"""Update, forget and output gate and the candidate, in the column order of `xpcap.layers`."""

RNN_WEIGHTS = {"Wax": "n_a n_x", "Waa": "n_a n_a"}
RNN_PARAMETERS = {**RNN_WEIGHTS, "Wya": "n_y n_a", "ba": "n_a 1", "by": "n_y 1"}
LSTM_WEIGHTS = {f"W{gate}": "n_a n_a+n_x" for gate in GATES}
LSTM_PARAMETERS = {
    **LSTM_WEIGHTS, **{f"b{gate}": "n_a 1" for gate in GATES}, "Wy": "n_y n_a", "by": "n_y 1",
}  # fmt: skip


class RNNCellCache(NamedTuple):
    """Cache of one step, in the course's order."""

    a_next: Array
    a_prev: Array
    xt: Array
    parameters: Parameters


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


def rnn_cell_forward(
    xt: Array, a_prev: Array, parameters: Parameters
) -> tuple[Array, Array, RNNCellCache]:
    """Take one step: `a_next = tanh(Wax xt + Waa a_prev + ba)`, `yt_pred = softmax(Wya a + by)`.

    `xt (n_x, m)` are the inputs, `a_prev (n_a, m)` is the hidden state; the parameters are
    `Wax (n_a, n_x)`, `Waa (n_a, n_a)`, `Wya (n_y, n_a)`, `ba (n_a, 1)`, `by (n_y, 1)`.

    Returns
    -------
    a_next, yt_pred, cache
        The new hidden state `(n_a, m)`; the probability of each class `(n_y, m)`; and
        `(a_next, a_prev, xt, parameters)`.
    """
    _check(
        "rnn_cell_forward", parameters, RNN_PARAMETERS, xt=(xt, "n_x m"), a_prev=(a_prev, "n_a m")
    )
    b = parameters["ba"].reshape(-1)
    h, _ = layers.rnn_step_forward(xt.T, a_prev.T, *_rnn_weights(parameters), b)
    y = _probabilities(h, parameters["Wya"], parameters["by"])
    return h.T, y, RNNCellCache(h.T, a_prev, xt, parameters)


def rnn_forward(
    x: Array, a0: Array, parameters: Parameters
) -> tuple[Array, Array, tuple[list[RNNCellCache], Array]]:
    """Apply `rnn_cell_forward` to a sequence `x (n_x, m, T_x)` from a hidden state `a0 (n_a, m)`.

    Returns
    -------
    a, y_pred, caches
        The hidden state after each step `(n_a, m, T_x)`; the probability of each class
        `(n_y, m, T_x)`; and `([the cache of each step], x)`.
    """
    _check("rnn_forward", parameters, RNN_PARAMETERS, x=(x, "n_x m T_x"), a0=(a0, "n_a m"))
    (a, y), steps = _each_step(rnn_cell_forward, x, [a0], parameters)
    return a, y, (steps, x)


def rnn_cell_backward(da_next: Array, cache: Sequence[Any]) -> dict[str, Array]:
    """Gradients of `rnn_cell_forward`, given that of the new hidden state, `(n_a, m)`.

    Returns `dxt (n_x, m)`, `da_prev (n_a, m)`, `dWax (n_a, n_x)`, `dWaa (n_a, n_a)` and
    `dba (n_a, 1)`.
    """
    a_next, a_prev, xt, parameters = cache
    _check(
        "rnn_cell_backward", parameters, RNN_WEIGHTS,
        xt=(xt, "n_x m"), a_next=(a_next, "n_a m"), da_next=(da_next, "n_a m"),
    )  # fmt: skip
    step = RNNStepCache(xt.T, a_prev.T, *_rnn_weights(parameters), a_next.T)
    dx, dprev_h, dWx, dWh, db = layers.rnn_step_backward(da_next.T, step)
    return {"dxt": dx.T, "da_prev": dprev_h.T, "dWax": dWx.T, "dWaa": dWh.T, "dba": db[:, None]}


def rnn_backward(da: Array, caches: tuple[Sequence[Sequence[Any]], Array]) -> dict[str, Array]:
    """Backpropagation through time of `rnn_forward`, over as many steps as `da` has.

    `da (n_a, m, T)` is the gradient of the first T hidden states from above, with T from 1 to T_x.
    Returns `dx (n_x, m, T)`, `da0 (n_a, m)`, and the others as `rnn_cell_backward`.
    """
    return _backward_through_time(
        "rnn_backward", rnn_cell_backward, RNN_WEIGHTS, ["da_prev"], da, caches
    )


def lstm_cell_forward(
    xt: Array, a_prev: Array, c_prev: Array, parameters: Parameters
) -> tuple[Array, Array, Array, LSTMCellCache]:
    """Take one step of an LSTM.

    With z = [a_prev; xt]: f, i, o = sigmoid(Wf z + bf), ... for the forget, update and output gate;
    cc = tanh(Wc z + bc); `c_next = f c_prev + i cc`; `a_next = o tanh(c_next)`;
    `yt_pred = softmax(Wy a_next + by)`.

    `xt (n_x, m)` are the inputs, `a_prev` and `c_prev (n_a, m)` the hidden and the cell state; the
    parameters are `Wf`, `Wi`, `Wc`, `Wo (n_a, n_a + n_x)`; `bf`, `bi`, `bc`, `bo (n_a, 1)`;
    `Wy (n_y, n_a)`, `by (n_y, 1)`.

    Returns
    -------
    a_next, c_next, yt_pred, cache
        The new states `(n_a, m)`; the probability of each class `(n_y, m)`; and
        `(a_next, c_next, a_prev, c_prev, ft, it, cct, ot, xt, parameters)`.
    """
    xp = _check(
        "lstm_cell_forward", parameters, LSTM_PARAMETERS,
        xt=(xt, "n_x m"), a_prev=(a_prev, "n_a m"), c_prev=(c_prev, "n_a m"),
    )  # fmt: skip
    Wx, Wh = _lstm_weights(xp, parameters, a_prev.shape[0])
    b = xp.concatenate([parameters[f"b{gate}"].reshape(-1) for gate in GATES])
    h, c, step = layers.lstm_step_forward(xt.T, a_prev.T, c_prev.T, Wx, Wh, b)
    y = _probabilities(h, parameters["Wy"], parameters["by"])
    i, f, o, g = (gate.T for gate in split_gates(step.gates, 4))
    cache = LSTMCellCache(h.T, c.T, a_prev, c_prev, f, i, g, o, xt, parameters)
    return h.T, c.T, y, cache


def lstm_forward(
    x: Array, a0: Array, parameters: Parameters
) -> tuple[Array, Array, Array, tuple[list[LSTMCellCache], Array]]:
    """Apply `lstm_cell_forward` to a sequence `x (n_x, m, T_x)`.

    The initial hidden state is `a0 (n_a, m)`, the initial cell state zero.

    Returns
    -------
    a, y, c, caches
        The hidden state after each step `(n_a, m, T_x)`; the probability of each class
        `(n_y, m, T_x)`; the cell state `(n_a, m, T_x)`; and `([the cache of each step], x)`.
    """
    xp = _check("lstm_forward", parameters, LSTM_PARAMETERS, x=(x, "n_x m T_x"), a0=(a0, "n_a m"))
    (a, c, y), steps = _each_step(lstm_cell_forward, x, [a0, xp.zeros_like(a0)], parameters)
    return a, y, c, (steps, x)


def lstm_cell_backward(da_next: Array, dc_next: Array, cache: Sequence[Any]) -> dict[str, Array]:
    """Gradients of `lstm_cell_forward`, given those of the new states, `(n_a, m)` each.

    Returns `dxt (n_x, m)`; `da_prev`, `dc_prev (n_a, m)`; `dWf`, `dWi`, `dWc`,
    `dWo (n_a, n_a + n_x)`; `dbf`, `dbi`, `dbc`, `dbo (n_a, 1)`.
    """
    step = LSTMCellCache(*cache)
    xp = _check(
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
    gradients = {"dxt": dx.T, "da_prev": dh.T, "dc_prev": dc.T}
    for kind, columns in (("W", xp.concatenate([dWh, dWx])), ("b", db[None])):
        for gate, gradient in zip(GATES, split_gates(columns, 4), strict=True):
            gradients[f"d{kind}{gate}"] = gradient.T
    return gradients


def lstm_backward(da: Array, caches: tuple[Sequence[Sequence[Any]], Array]) -> dict[str, Array]:
    """Backpropagation through time of `lstm_forward`, over as many steps as `da` has.

    `da (n_a, m, T)` is the gradient of the first T hidden states from above, with T from 1 to T_x.
    The values that the 2018 edition of the course prints as expected are wrong: the gradients
    that come back from the next step are dropped there, and three bias sums are added to the
    wrong bias. The truth is the numerical gradient of `sum(a[:, :, :T] * da)`, and that is what
    this function returns: `dx (n_x, m, T)`, `da0 (n_a, m)`, and the others as `lstm_cell_backward`.
    """
    return _backward_through_time(
        "lstm_backward", lstm_cell_backward, LSTM_WEIGHTS, ["da_prev", "dc_prev"], da, caches
    )


def _rnn_weights(parameters: Parameters) -> tuple[Array, Array]:
    """Return the layers' `Wx (n_x, n_a)` and `Wh (n_a, n_a)`."""
    return parameters["Wax"].T, parameters["Waa"].T


def _lstm_weights(xp: Namespace, parameters: Parameters, n_a: int) -> tuple[Array, Array]:
    """Return the layers' `Wx (n_x, 4 n_a)` and `Wh (n_a, 4 n_a)`."""
    weights = xp.concatenate([parameters[f"W{gate}"] for gate in GATES]).T
    return weights[n_a:], weights[:n_a]


def _probabilities(h: Array, Wy: Array, by: Array) -> Array:
    scores, _ = layers.affine_forward(h, Wy.T, by.reshape(-1))
    return softmax(namespace(scores), scores).T


def _each_step(
    cell_forward: Callable[..., Any], x: Array, states: Sequence[Array], parameters: Parameters
) -> tuple[Sequence[Array], list[Any]]:
    """Return the outputs of a cell, its new states first, `(n, m, T_x)`, and its caches."""
    outputs, caches = [], []
    for t in range(x.shape[2]):
        *found, cache = cell_forward(x[:, :, t], *states, parameters)
        states = found[:-1]
        outputs.append(found)
        caches.append(cache)
    return [namespace(x).stack(steps, axis=2) for steps in zip(*outputs, strict=True)], caches


def _backward_through_time(
    function: str,
    cell_backward: Callable[..., dict[str, Array]],
    weights: Mapping[str, str],
    states: Sequence[str],
    da: Array,
    caches: tuple[Sequence[Sequence[Any]], Array],
) -> dict[str, Array]:
    """Sum the gradients of steps, from the last to the first, passing those of `states` back."""
    steps, _ = caches
    namespace(da)
    if da.ndim != 3 or not 1 <= da.shape[2] <= len(steps):
        raise ShapeError(
            f"{function}: expected da (n_a, m, T) with T from 1 to {len(steps)}, the steps of the"
            f" forward pass; got {da.shape}"
        )
    a_next, *_, xt, parameters = steps[0]
    xp = _check(
        function, parameters, weights,
        xt=(xt, "n_x m"), a_next=(a_next, "n_a m"), da=(da, "n_a m T"),
    )  # fmt: skip
    passed = [xp.zeros_like(da[:, :, 0]) for _ in states]
    dx, total = [], dict[str, Array]()
    for t in reversed(range(da.shape[2])):
        passed[0] = passed[0] + da[:, :, t]
        gradients = cell_backward(*passed, steps[t])
        dx.append(gradients.pop("dxt"))
        passed = [gradients.pop(name) for name in states]
        total = {name: total.get(name, 0) + value for name, value in gradients.items()}
    return {"dx": xp.stack(dx[::-1], axis=2), "da0": passed[0], **total}


def _check(
    function: str,
    parameters: Parameters,
    layouts: Mapping[str, str],
    **inputs: tuple[Array, str],
) -> Namespace:
    """Check the inputs, and the parameters named by `layouts`; return their namespace."""
    missing = [name for name in layouts if name not in parameters]
    if missing:
        raise ConfigurationError(
            f"{function}: parameters lack {', '.join(missing)}; expected {', '.join(layouts)}"
        )
    given = {name: (parameters[name], layout) for name, layout in layouts.items()}
    return check_arguments(function, **inputs, **given)[0]
