"""The gated recurrent unit (Cho et al. 2014), in the form "reset after" of cuDNN and PyTorch.

r, z = sigma(x Wx + h Wh + b); n = tanh(x Wx_n + b_n + r (h Wh_n + bn)); h' = (1 - z) n + z h.
"""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, namespace
from xpcap.kernels.pointwise import gru_cell, gru_cell_gradient
from xpcap.layers._checks import check_shapes
from xpcap.layers._sequence import project_inputs, time_major, weight_gradients


class GRUStepCache(NamedTuple):
    """What the backward pass of one step needs.

    `gates` are the activated r, z, n `(N, 3H)`; `ah_n (N, H)` is h Wh_n + bn.
    """

    x: Array
    prev_h: Array
    Wx: Array
    Wh: Array
    gates: Array
    ah_n: Array


class GRUStepGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dprev_h: Array
    dWx: Array
    dWh: Array
    db: Array
    dbn: Array


class GRUCache(NamedTuple):
    """What the backward pass of a sequence needs, time first.

    `steps (T, N, D)`; `states (T+1, N, H)`; `gates (T, N, 3H)`; `ah_n (T, N, H)`.
    """

    steps: Array
    states: Array
    gates: Array
    ah_n: Array
    Wx: Array
    Wh: Array


class GRUGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dh0: Array
    dWx: Array
    dWh: Array
    db: Array
    dbn: Array


def gru_step_forward(
    x: Array, prev_h: Array, Wx: Array, Wh: Array, b: Array, bn: Array
) -> tuple[Array, GRUStepCache]:
    """Take one step.

    Parameters
    ----------
    x
        Inputs `(N, D)`.
    prev_h
        Hidden state `(N, H)`.
    Wx, Wh, b
        Weights `(D, 3H)`, `(H, 3H)` and biases `(3H,)`, in the order r, z, n.
    bn
        The hidden bias of n, `(H,)`.

    Returns
    -------
    next_h, cache
        The new hidden state `(N, H)`; and what `gru_step_backward` needs.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """
    xp = namespace(x, prev_h, Wx, Wh, b, bn)
    size = check_shapes(
        "gru_step_forward",
        x=(x, "N D"), prev_h=(prev_h, "N H"), Wx=(Wx, "D 3H"), Wh=(Wh, "H 3H"), b=(b, "3H"),
        bn=(bn, "H"),
    )  # fmt: skip
    ah = prev_h @ Wh
    ah[:, 2 * size["H"] :] += bn
    gates, next_h = gru_cell(xp, x @ Wx + b, ah, prev_h)
    return next_h, GRUStepCache(x, prev_h, Wx, Wh, gates, ah[:, 2 * size["H"] :])


def gru_step_backward(dnext_h: Array, cache: GRUStepCache) -> GRUStepGradients:
    """Gradients of `gru_step_forward`.

    With dn = dnext_h (1-z) (1-n^2), dr = dn ah_n r(1-r) and dz = dnext_h (h-n) z(1-z): the gradient
    of x Wx + b is dr, dz, dn side by side, that of h Wh is dr, dz, dn r.

    Parameters
    ----------
    dnext_h
        Gradient of the new hidden state, `(N, H)`.
    cache
        From the forward pass.

    Returns
    -------
    dx, dprev_h, dWx, dWh, db, dbn
        Of the shapes of the forward arguments.
    """
    x, prev_h, Wx, Wh, gates, ah_n = cache
    xp = namespace(dnext_h, gates)
    dax, dah, dprev_h = gru_cell_gradient(xp, dnext_h, gates, ah_n, prev_h)
    H = prev_h.shape[1]
    return GRUStepGradients(
        dax @ Wx.T,
        dprev_h + dah @ Wh.T,
        x.T @ dax,
        prev_h.T @ dah,
        dax.sum(axis=0),
        dah[:, 2 * H :].sum(axis=0),
    )


def gru_forward(
    x: Array, h0: Array, Wx: Array, Wh: Array, b: Array, bn: Array
) -> tuple[Array, GRUCache]:
    """Run over a sequence.

    Parameters
    ----------
    x
        Inputs `(N, T, D)`.
    h0
        First hidden state `(N, H)`.
    Wx, Wh, b
        Weights `(D, 3H)`, `(H, 3H)` and biases `(3H,)`, in the order r, z, n.
    bn
        The hidden bias of n, `(H,)`.

    Returns
    -------
    h, cache
        The hidden state after each step, `(N, T, H)`; and what `gru_backward` needs.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """
    xp = namespace(x, h0, Wx, Wh, b, bn)
    size = check_shapes(
        "gru_forward",
        x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D 3H"), Wh=(Wh, "H 3H"), b=(b, "3H"),
        bn=(bn, "H"),
    )  # fmt: skip
    T, N, H = size["T"], size["N"], size["H"]
    steps = time_major(x)
    gates = project_inputs(steps, Wx, b)  # pre-activations, until the loop activates them
    states = xp.empty((T + 1, N, H), dtype=gates.dtype)
    ah_n = xp.empty_like(states[1:])
    states[0] = h0
    for t in range(T):
        ah = states[t] @ Wh
        ah[:, 2 * H :] += bn
        ah_n[t] = ah[:, 2 * H :]
        gates[t], states[t + 1] = gru_cell(xp, gates[t], ah, states[t])
    return time_major(states[1:]), GRUCache(steps, states, gates, ah_n, Wx, Wh)


def gru_backward(dh: Array, cache: GRUCache) -> GRUGradients:
    """Backpropagation through time of `gru_forward`.

    Parameters
    ----------
    dh
        Gradient of every hidden state from the layer above, `(N, T, H)`; what comes back from
        the next step is added to it here.
    cache
        From the forward pass.

    Returns
    -------
    dx, dh0, dWx, dWh, db, dbn
        Of the shapes of the forward arguments.
    """
    steps, states, gates, ah_n, Wx, Wh = cache
    xp = namespace(dh, states)
    above = time_major(dh)
    dax, dah = xp.empty_like(gates), xp.empty_like(gates)
    dstate = xp.zeros_like(states[0])
    for t in reversed(range(above.shape[0])):
        dax[t], dah[t], through = gru_cell_gradient(
            xp, above[t] + dstate, gates[t], ah_n[t], states[t]
        )
        dstate = through + dah[t] @ Wh.T
    dx, dWx, dWh, db = weight_gradients(steps, Wx, states[:-1], dax, dah)
    dbn = dah[:, :, 2 * states.shape[2] :].sum(axis=(0, 1))
    return GRUGradients(dx, dstate, dWx, dWh, db, dbn)
