"""Recurrence: a cell applied step by step to a packed sequence, and backpropagation through time.

With ax = x Wx + b for the inputs of all steps, which is one product, the loops are (`_unroll` and
`_unroll_backward`; all else here is memory and names)

    for t = 0 ... T-1                               for t = T-1 ... 0, from back = 0
        ah = h_{t-1} Wh                                 dh_t = above_t + back
        h_t = forward(ax_t, ah)                         dax_t, dah_t = backward(dh_t)
                                                        back = dah_t Wh^T

h_t is used twice, so its gradient dh_t is a sum: `above` comes from the layer that reads h_t,
`back` from step t+1, which is therefore undone before. After the last iteration `back` is the
gradient of h_{-1}, the first state. A GRU reads h_{t-1} in h_t itself too, which adds a term to
`back` (`Cell.direct`); an LSTM passes its cell state and the gradient of it along in the same way.

Wh is the same at every step, and its gradient is the sum over steps of h_{t-1}^T dah_t. As the
rows of all steps lie below each other, that sum is one product, `prev_h.T @ dah`.

**Packed sequences.** The captions of a batch are sorted by length, longest first, and stored
time-major: the rows of all captions at step 0, then of those still active at step 1, and so forth.
For captions A, B, C of 3, 2 and 1 words the rows are A0 B0 C0, A1 B1, A2. So every step is one
contiguous block, and padding costs nothing. A batch `(N, T, K)` without padding is the packed
sequence whose steps have N rows each.

**Cells.** A cell is two operations, which take arrays by name and write some of them, see `Cell`.
`unroll` runs any cell over a packed sequence, `unroll_backward` is its gradient, and `advance` is a
single step in decoding.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_arguments, check_gradients
from xpcap.layers.affine import column_sum, product, transposed
from xpcap.operations import Operation
from xpcap.workspace import Workspace, passing

Weights = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Cell:
    """A recurrent cell: one step and its gradient, and the names of their arrays.

    The names of an operation's parameters say which arrays it takes; n is the number of captions at
    a step, H the number of hidden units, k that of gates. `LSTM`, for example, has k = 4 gates, the
    states h and c, and keeps tanh(c).

    * `gates (n, kH)`: x Wx + b; `forward` changes it to what `backward` needs.
    * `ah (n, kH)`: h Wh. `forward` may use it as scratch memory.
    * `prev_h`, `h` `(n, H)`, and the same of further states: before and after the step.
    * the names of `kept`, `(n, H)`: written by `forward` for `backward`.
    * the names of `biases`, `(H,)`.
    * `above (n, H)`: the gradient of `h` from the layer above.
    * `back (n, H)`: that from the next step; `backward` changes it to the part of the gradient of
      `prev_h` that does not pass through `ah`, if `direct`.
    * `dc`, for a further state c: the gradient of `c`; `backward` changes it to that of `prev_c`.
    * `dax`, `dah` `(n, kH)`, written: the gradients of x Wx + b and of h Wh; or `da`, if both are
      the same.

    `gates` says what the k blocks of H columns of `Wx`, `Wh` and `b` compute, such as `"forget"`;
    the last one is a tanh, the others are logistic.
    """

    forward: Operation[Any, None]
    backward: Operation[Any, None]
    gates: tuple[str, ...]
    states: tuple[str, ...] = ("h",)  # passed on to the next step, `h` first
    kept: tuple[str, ...] = ()
    biases: Mapping[str, int] = field(default_factory=dict)  # and the block of h Wh of each
    direct: bool = False  # whether `h` depends on `prev_h` in another way than through h Wh

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter, for `inputs` inputs and `hidden` hidden units."""
        width = len(self.gates) * hidden
        weights = {"Wx": (inputs, width), "Wh": (hidden, width), "b": (width,)}
        return {**weights, **dict.fromkeys(self.biases, (hidden,))}

    def check(self, function: str, inputs: str, **arrays: Array) -> Namespace:
        """Check the arguments of a public function by name, `x` of layout `inputs`.

        Returns their array namespace; raises `ShapeError` if the shapes do not fit together, or
        arrays are not floating.
        """
        width = f"{len(self.gates)}H" if len(self.gates) > 1 else "H"
        layouts = {"x": inputs, "Wx": f"D {width}", "Wh": f"H {width}", "b": width}
        layouts |= dict.fromkeys(self.biases, "H")
        given = {name: (array, layouts.get(name, "N H")) for name, array in arrays.items()}
        return check_arguments(function, **given)[0]

    @functools.cached_property
    def unroll(self) -> Operation[Any, None]:
        """The operation `unroll(xp, run, b, weights, packing)`: all steps of a sequence."""
        return Operation(functools.partial(_unroll, self))

    @functools.cached_property
    def unroll_backward(self) -> Operation[Any, None]:
        """The operation `unroll_backward(xp, dh, run, weights, dax, dah, back, packing)`."""
        return Operation(functools.partial(_unroll_backward, self))

    @functools.cached_property
    def advance(self) -> Operation[Any, None]:
        """The operation `advance(xp, ax, ah, state, weights, words, parents, next_state)`."""
        return Operation(functools.partial(_advance, self))

    @functools.cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        operations = self.forward.reference, self.backward.reference
        forward, backward = (list(inspect.signature(f).parameters)[1:] for f in operations)
        return forward, backward

    @property
    def separate(self) -> bool:
        """Whether the gradients of x Wx + b and of h Wh differ, and are not one `da`."""
        return "dax" in self._names[1]

    def step(self, xp: Namespace, arrays: Mapping[str, Array]) -> None:
        """Run `forward` on arrays given by name."""
        self.forward(xp, *(arrays[name] for name in self._names[0]))

    def step_backward(self, xp: Namespace, arrays: Mapping[str, Array]) -> None:
        """Run `backward` on arrays given by name."""
        self.backward(xp, *(arrays[name] for name in self._names[1]))


class Packing:
    """Which rows of a packed sequence belong to which step.

    Of N `captions`, including those without a word, `sizes` are active at each step, none more than
    at the one before. `rows` has a slice for each step, `total` is M, the number of rows, and
    `even` says whether no caption ends before the last step. Memory is allocated for `capacity`
    rows, the most of any batch.
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

    def empty(self, space: Workspace, name: str, width: int, dtype: Any = None) -> Array:
        """Return an array `(M, width)` of a workspace, with memory for the largest batch."""
        return space.empty(name, self.total, width, most=self.capacity, dtype=dtype)


def _hidden_states(h0: Array, packing: Packing, space: Workspace) -> tuple[Array, Array]:
    """Return arrays `(M, H)` for the hidden states after and before each step, with the first ones.

    `prev_h` is a matrix of its own rows because the gradient of Wh is one product with it. Of an
    even packing both are views of one array, N rows apart, in which step t reads what step t-1
    wrote. Otherwise every step copies the active rows of the state before it.
    """
    N, H = h0.shape
    if packing.even:
        states = space.empty("states", N + packing.total, H, most=N + packing.capacity)
        states[:N] = h0
        return states[N:], states[: packing.total]
    h, prev_h = packing.empty(space, "h", H), packing.empty(space, "prev_h", H)
    for rows in packing.rows[:1]:
        prev_h[rows] = h0[rows]
    return h, prev_h


def split_gates(gates: Array, count: int) -> list[Array]:
    """Return `count` views `(n, H)` of gates that lie side by side in `(n, count H)`."""
    H = gates.shape[1] // count
    return [gates[:, k * H : (k + 1) * H] for k in range(count)]


class Unrolled(NamedTuple):
    """A packed sequence that a cell was run over, M rows.

    `gates (M, kH)` are as `Cell.forward` left them; `h`, `prev_h (M, H)` are the hidden states
    after and before each step. `more` has, by name, further states after each step and what the
    cell keeps, `(M, H)`, and the first of further states, `(N, H)`: `c` and `c0`.
    """

    gates: Array
    h: Array
    prev_h: Array
    more: dict[str, Array]

    def at(self, cell: Cell, packing: Packing, t: int) -> dict[str, Array]:
        """Return the arrays of step t by name; those of further states before it as `prev_c`."""
        rows = packing.rows[t]
        arrays = {"gates": self.gates[rows], "h": self.h[rows], "prev_h": self.prev_h[rows]}
        for name in cell.kept:
            arrays[name] = self.more[name][rows]
        for name in cell.states[1:]:
            before = self.more[name][packing.rows[t - 1]] if t else self.more[f"{name}0"]
            arrays[f"prev_{name}"] = before[: rows.stop - rows.start]
            arrays[name] = self.more[name][rows]
        return arrays


class StateInput(Protocol):
    """Input of a step that is computed from the state before it, such as what attention finds."""

    def forward(self, rows: slice, prev_h: Array, gates: Array) -> None:
        """Add what it contributes to x Wx + b `(n, kH)` of the step with these rows."""

    def backward(self, rows: slice, dax: Array, dprev_h: Array) -> None:
        """Add to the gradient of `prev_h (n, H)` what comes from that of x Wx + b `(n, kH)`."""


def unroll(
    cell: Cell,
    gates: Array,
    b: Array | None,
    start: Sequence[Array],
    weights: Weights,
    packing: Packing,
    space: Workspace,
    more_input: StateInput | None = None,
) -> Unrolled:
    """Run a cell over a packed sequence, in memory of `space`, whose namespace chooses the version.

    `gates (M, kH)` are x Wx of every row, and are changed to the gates; `b (kH,)` is the bias, or
    None if it is already added. First states `(N, H)` that are left out of `start` are zero.
    `weights` are `Wh (H, kH)` and the further biases of the cell `(H,)`. `more_input` adds to
    x Wx + b step by step.
    """
    (N, H), total = start[0].shape, packing.total
    h, prev_h = _hidden_states(start[0], packing, space)
    more = {name: packing.empty(space, f"{name} of the cell", H) for name in cell.kept}
    for k, name in enumerate(cell.states[1:], 1):
        states = space.empty(f"{name} of all steps", N + total, H, most=N + packing.capacity)
        states[:N] = start[k] if k < len(start) else 0
        more[f"{name}0"], more[name] = states[:N], states[N:]
    run = Unrolled(gates, h, prev_h, more)
    if more_input is None:
        cell.unroll(space.xp, run, b, weights, packing)
    else:
        _unroll(cell, space.xp, run, b, weights, packing, more_input)
    return run


def _unroll(
    cell: Cell,
    xp: Namespace,
    run: Unrolled,
    b: Array | None,
    weights: Weights,
    packing: Packing,
    more_input: StateInput | None = None,
) -> None:
    if b is not None:
        run.gates[...] += b
    ah = passing(xp, run.h.dtype).empty("ah", packing.captions, run.gates.shape[1])
    for t, rows in enumerate(packing.rows):
        arrays = run.at(cell, packing, t)
        prev_h = arrays["prev_h"]
        n = len(prev_h)
        if t > 0 and not packing.even:  # else it lies where h of step t-1 was written
            prev_h[...] = run.h[packing.rows[t - 1]][:n]
        product(xp, prev_h, weights["Wh"], ah[:n])
        if more_input is not None:
            more_input.forward(rows, prev_h, arrays["gates"])
        cell.step(xp, {**weights, **arrays, "ah": ah[:n]})


def unroll_backward(
    cell: Cell,
    dh: Array,
    run: Unrolled,
    weights: Weights,
    packing: Packing,
    space: Workspace,
    more_input: StateInput | None = None,
) -> tuple[Array, Array, Array]:
    """Backpropagate through time, with `dh (M, H)` of every hidden state from the layer above.

    Returns the gradients of x Wx + b and of h Wh, `(M, kH)`, one array if they are the same; and of
    the first hidden state.
    """
    H, width = weights["Wh"].shape
    dah = packing.empty(space, "dah", width)
    dax = packing.empty(space, "dax", width) if cell.separate else dah
    dh0 = space.zeros("dh0", packing.captions, H)
    if more_input is None:
        cell.unroll_backward(space.xp, dh, run, weights, dax, dah, dh0, packing)
    else:
        _unroll_backward(cell, space.xp, dh, run, weights, dax, dah, dh0, packing, more_input)
    return dax, dah, dh0


def _unroll_backward(
    cell: Cell,
    xp: Namespace,
    dh: Array,
    run: Unrolled,
    weights: Weights,
    dax: Array,
    dah: Array,
    back: Array,
    packing: Packing,
    more_input: StateInput | None = None,
) -> None:
    """Undo all steps; `back (N, H)` is zero, and becomes the gradient of the first state.

    Captions that end before step t have gradient zero there: their rows of `back`, which lie below
    those of the active ones, are first used at their last step.
    """
    memory = passing(xp, back.dtype)
    through = memory.empty("through", *back.shape)
    others = {f"d{name}": memory.zeros(f"d{name}", *back.shape) for name in cell.states[1:]}
    WhT = transposed(weights["Wh"], memory, "WhT")
    for t in reversed(range(len(packing.rows))):
        rows = packing.rows[t]
        n = rows.stop - rows.start
        gradients = {"dax": dax[rows], "dah": dah[rows], "da": dah[rows], "back": back[:n]}
        gradients |= {name: gradient[:n] for name, gradient in others.items()}
        arrays = {**weights, **run.at(cell, packing, t), **gradients, "above": dh[rows]}
        cell.step_backward(xp, arrays)
        if cell.direct:  # `back` holds the other part of the gradient of h_{t-1}
            product(xp, dah[rows], WhT, through[:n])
            back[:n] += through[:n]
        else:
            product(xp, dah[rows], WhT, back[:n])
        if more_input is not None:
            more_input.backward(rows, dax[rows], back[:n])


def weight_gradients(
    cell: Cell, run: Unrolled, dah: Array, gradients: Mapping[str, Array], xp: Namespace
) -> None:
    """Write the gradients of `Wh` and of the further biases, from that of h Wh `(M, kH)`."""
    product(xp, run.prev_h.T, dah, gradients["Wh"])
    blocks = split_gates(dah, len(cell.gates))
    for name, block in cell.biases.items():
        column_sum(xp, blocks[block], gradients[name])


def _advance(
    cell: Cell,
    xp: Namespace,
    ax: Array,
    ah: Array,
    state: Sequence[Array],
    weights: Weights,
    words: Array | None,
    parents: Array | None,
    next_state: Sequence[Array],
) -> None:
    """Take one step of R hypotheses, several of which may share a word or a parent.

    `ax (D, kH)` is x Wx + b of each distinct word, `ah (P, kH)` and `state (P, H)` are h Wh and the
    states of each parent. `words` and `parents` `(R,)` are the rows of these that each hypothesis
    takes; None: its own, and `ax` is changed. `next_state (R, H)` is written.
    """

    def rows(array: Array, which: Array | None) -> Array:
        return array if which is None else array[which]

    arrays = {**weights, "gates": rows(ax, words), "ah": rows(ah, parents)}
    for name, before, after in zip(cell.states, state, next_state, strict=True):
        arrays |= {f"prev_{name}": rows(before, parents), name: after}
    for name in cell.kept:
        arrays[name] = xp.empty_like(next_state[0])
    cell.step(xp, arrays)


class SequenceGradients(NamedTuple):
    """Gradients in the order of the forward arguments, of a cell without further biases."""

    dx: Array
    dh0: Array
    dWx: Array
    dWh: Array
    db: Array


class SequenceCache(NamedTuple):
    """What the backward pass of a sequence needs; `steps (T N, D)` are its inputs, packed."""

    steps: Array
    run: Unrolled
    Wx: Array
    weights: Weights
    packing: Packing


def sequence_forward(
    cell: Cell, function: str, x: Array, h0: Array, Wx: Array, Wh: Array, b: Array, **biases: Array
) -> tuple[Array, SequenceCache]:
    """Run a cell over inputs `(N, T, D)`; return every hidden state `(N, T, H)` and a cache."""
    cell.check(function, "N T D", x=x, h0=h0, Wx=Wx, Wh=Wh, b=b, **biases)
    N, T, _ = x.shape
    steps, packing, weights = _pack(x), Packing(N, [N] * T), {"Wh": Wh, **biases}
    ax = steps @ Wx + b
    space = Workspace(namespace(ax), ax.dtype)
    run = unroll(cell, ax, None, (h0,), weights, packing, space)
    return _unpack(run.h, N, T), SequenceCache(steps, run, Wx, weights, packing)


def sequence_backward(
    cell: Cell, function: str, dh: Array, cache: SequenceCache
) -> dict[str, Array]:
    """Return `dx`, `dh0` and the gradient of each parameter, from that of every hidden state."""
    steps, run, Wx, weights, packing = cache
    xp, N, T = namespace(dh, run.h), packing.captions, len(packing.rows)
    check_gradients(function, dh=(dh, (N, T, run.h.shape[1])))
    space = Workspace(xp, run.h.dtype)
    dax, dah, dh0 = unroll_backward(cell, _pack(dh), run, weights, packing, space)
    gradients = {name: xp.empty_like(value) for name, value in weights.items()}
    weight_gradients(cell, run, dah, gradients, xp)
    found = {"x": _unpack(dax @ Wx.T, N, T), "h0": dh0, "Wx": steps.T @ dax, "b": dax.sum(axis=0)}
    return {f"d{name}": value for name, value in {**found, **gradients}.items()}


def _pack(sequence: Array) -> Array:
    """Copy `(N, T, K)` to packed rows `(T N, K)`."""
    N, T, K = sequence.shape
    return sequence.transpose(1, 0, 2).copy().reshape(T * N, K)


def _unpack(rows: Array, N: int, T: int) -> Array:
    """Copy packed rows `(T N, K)` to `(N, T, K)`."""
    return rows.reshape(T, N, rows.shape[1]).transpose(1, 0, 2).copy()
