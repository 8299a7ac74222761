"""What the three recurrent layers share: the products that need no loop over time.

Inside a layer a sequence is time-major, `(T, N, ·)`, so that each step is one contiguous block.
"""

from __future__ import annotations

from xpcap.backend import Array


def time_major(sequence: Array) -> Array:
    """Copy `(N, T, K)` to `(T, N, K)`, or back."""
    return sequence.transpose(1, 0, 2).copy()


def project_inputs(steps: Array, Wx: Array, b: Array) -> Array:
    """Return `x Wx + b` of all steps in one product: `(T, N, D)` -> `(T, N, K)`."""
    T, N, D = steps.shape
    return (steps.reshape(T * N, D) @ Wx + b).reshape(T, N, Wx.shape[1])


def weight_gradients(
    steps: Array, Wx: Array, prev_h: Array, dax: Array, dah: Array
) -> tuple[Array, Array, Array, Array]:
    """Turn the gradients of all pre-activations into those of input and weights.

    Parameters
    ----------
    steps, Wx
        The inputs `(T, N, D)` and their weights `(D, K)`.
    prev_h
        The hidden state before each step, `(T, N, H)`.
    dax, dah
        Gradients `(T, N, K)` of `x Wx + b` and of `prev_h Wh`.

    Returns
    -------
    dx, dWx, dWh, db
        `(N, T, D)`, `(D, K)`, `(H, K)`, `(K,)`.
    """
    T, N, D = steps.shape
    rows = dax.reshape(T * N, -1)
    dx = time_major((rows @ Wx.T).reshape(T, N, D))
    dWx = steps.reshape(T * N, D).T @ rows
    dWh = prev_h.reshape(T * N, -1).T @ dah.reshape(T * N, -1)
    return dx, dWx, dWh, rows.sum(axis=0)
