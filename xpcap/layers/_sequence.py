"""What the three recurrent layers share: sequences of unequal length, packed.

The captions of a batch are sorted by length, longest first, and stored time-major: the rows of all
captions at step 0, then of those that go on at step 1, and so forth. So every step is one
contiguous block, all input products are one product, and padding costs nothing. A batch `(N, T, K)`
without padding is the packed sequence whose steps have N rows each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcap.backend import Array
from xpcap.workspace import Workspace


class Packing:
    """Which rows of a packed sequence belong to which step.

    Parameters
    ----------
    captions
        N, how many there are, those without a word counted.
    sizes
        How many captions go on at each step; none is larger than the one before.
    capacity
        The most rows that any batch of this kind has, for which memory is laid out.

    Attributes
    ----------
    rows
        A slice for each step.
    total
        M, how many rows there are.
    even
        Whether every step has all N rows: no caption ends before the last step.
    """

    def __init__(self, captions: int, sizes: Sequence[int], capacity: int | None = None) -> None:
        self.captions = captions
        self.rows: list[slice] = []
        self.total = 0
        for size in sizes:
            self.rows.append(slice(self.total, self.total + size))
            self.total += size
        self.capacity = self.total if capacity is None else capacity
        self.even = all(size == captions for size in sizes)

    def empty(self, workspace: Workspace, name: str, width: int, dtype: Any = None) -> Array:
        """Return an array `(M, width)` of a workspace, with memory for the largest batch."""
        return workspace.empty(name, self.total, width, most=self.capacity, dtype=dtype)


def hidden_states(h0: Array, packing: Packing, workspace: Workspace) -> tuple[Array, Array]:
    """Return arrays for the hidden states after and before each step; the first ones are there.

    Of an even packing both are views of one array in which step t reads what step t-1 wrote.
    Otherwise every step copies the active rows of the state before it.

    Parameters
    ----------
    h0
        First hidden state `(N, H)`.
    packing
        Which rows are which step's.
    workspace
        Where the arrays lie.

    Returns
    -------
    h, prev_h
        `(M, H)` each.
    """
    N, H = h0.shape
    if packing.even:
        states = workspace.empty("states", N + packing.total, H, most=N + packing.capacity)
        states[:N] = h0
        return states[N:], states[: packing.total]
    h, prev_h = packing.empty(workspace, "h", H), packing.empty(workspace, "prev_h", H)
    for rows in packing.rows[:1]:
        prev_h[rows] = h0[rows]
    return h, prev_h


def time_major(sequence: Array) -> Array:
    """Copy `(N, T, K)` to `(T, N, K)`, or back."""
    return sequence.transpose(1, 0, 2).copy()


def pack(sequence: Array) -> tuple[Array, Packing]:
    """Copy `(N, T, K)` to packed rows `(T N, K)`."""
    N, T, K = sequence.shape
    return time_major(sequence).reshape(T * N, K), Packing(N, [N] * T)


def unpack(rows: Array, N: int, T: int) -> Array:
    """Copy packed rows `(T N, K)` to `(N, T, K)`."""
    return time_major(rows.reshape(T, N, -1))
