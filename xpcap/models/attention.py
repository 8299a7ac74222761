"""The captioner with attention: for each word another mean of the regions of the image.

Xu et al., "Show, attend and tell" (ICML 2015), soft attention, in a form close to that of
Michigan's EECS 498 course: the regions are projected once, to keys and values at the same time.

    p_l = a_l W_grid + b_grid                               regions a_l of the image
    h_0 = mean_l(a_l) W_proj + b_proj
    q_t = h_{t-1} W_query + b_query
    alpha_t = softmax over l of score(q_t, p_l)             dot-product, or additive with w_score
    z_t = sigma(h_{t-1} W_gate + b_gate) sum_l alpha_tl p_l
    x_t = W_embed[word_t]
    h_t = cell(x_t Wx + z_t Wz + b, h_{t-1} Wh)
    scores_t = (h_t + z_t W_context) W_vocab + b_vocab
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy

from xpcap.backend import Array, Backend, Namespace, is_host, namespace
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.kernels import fastest
from xpcap.layers._checks import check_numbers, check_shapes
from xpcap.layers.activations import sigmoid
from xpcap.layers.affine import affine_forward, column_sum, product, transposed
from xpcap.layers.attention import (
    additive_attention,
    additive_attention_gradient,
    dot_product_attention,
    dot_product_attention_gradient,
)
from xpcap.layers.recurrence import Packing, Unrolled, unroll, unroll_backward, weight_gradients
from xpcap.layers.regions import mean_of_present_backward
from xpcap.models.model import State
from xpcap.models.packed_batch import PackedBatch
from xpcap.models.recurrent import CaptioningRNN, Projected, mean_region
from xpcap.options import check_number
from xpcap.workspace import Workspace

SCORINGS = ("additive", "dot")


class AttentionRNN(CaptioningRNN):
    """A recurrent captioner that looks at regions of the image.

    Features are `(N, L, D)`: L regions, those that are all zero being absent.

    Parameters
    ----------
    word_to_idx, input_dim, wordvec_dim, hidden_dim, cell_type, dtype, dropout, seed, backend
        As for `CaptioningRNN`; `input_dim` is D.
    scoring
        `"additive"` or `"dot"`.
    doubly_stochastic
        lambda: what the attention that a region lacks costs in training. Xu et al. add to a
        caption's loss lambda sum_l (1 - sum_t alpha_tl)^2, so that all regions are looked at.
    """

    family = "attention"
    options = (*CaptioningRNN.options, "scoring", "doubly_stochastic")
    needs_regions = True

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "lstm",
        dtype: Any = numpy.float32,
        *,
        scoring: str = "additive",
        doubly_stochastic: float = 0.0,
        dropout: float = 0.0,
        seed: int | None = None,
        backend: Backend | str | None = None,
    ) -> None:
        check_number("doubly_stochastic", doubly_stochastic, "[0, inf)")
        super().__init__(
            word_to_idx, input_dim, wordvec_dim, hidden_dim, cell_type, dtype,
            dropout=dropout, seed=seed, backend=backend, scoring=scoring,
            doubly_stochastic=float(doubly_stochastic),
        )  # fmt: skip
        self.scoring = scoring
        self.doubly_stochastic = doubly_stochastic

    @classmethod
    def shapes(cls, words: int, **sizes: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `CaptioningRNN`'s parameters and of those of attention."""
        D, H, scoring = sizes["input_dim"], sizes["hidden_dim"], sizes["scoring"]
        if scoring not in SCORINGS:
            raise ConfigurationError(
                f"scoring '{scoring}' is unknown; expected {' or '.join(SCORINGS)}"
            )
        first = super().shapes(words, **sizes)
        return {
            **first,
            "W_grid": (D, H),
            "b_grid": (H,),
            "W_query": (H, H),
            "b_query": (H,),
            **({"w_score": (H,)} if scoring == "additive" else {}),
            "W_gate": (H, 1),
            "b_gate": (1,),
            "Wz": (H, first["Wx"][1]),
            "W_context": (H, H),
        }

    def initial(
        self, shapes: Mapping[str, tuple[int, ...]], rng: numpy.random.Generator
    ) -> dict[str, numpy.ndarray]:
        """Draw initial parameters as for `CaptioningRNN`; `w_score` is N(0, 1) / sqrt(H)."""
        found = super().initial(shapes, rng)
        if "w_score" in found:
            H = len(found["w_score"])
            found["w_score"] = rng.standard_normal(H) / numpy.sqrt(H)
        return found

    def scale_features(self, scale: float) -> None:
        """Divide `W_proj` and `W_grid` by the root mean square of the features."""
        super().scale_features(scale)
        with self.backend.activate():
            self.params["W_grid"] /= scale

    def forward(self, features: Array, batch: PackedBatch, space: Workspace) -> tuple[Array, Any]:
        """Run the cell over packed captions; see `CaptionModel.forward`."""
        self._check(features)
        mean, present = mean_region(features, space)
        grid = batch.to_captions(self._project_grid(features, space), "grid", space)
        there = batch.to_captions(present, "present", space)
        attended = AttentionInput(self.params, grid, there, batch.packing, space)
        h0 = self._first_state(mean, batch, space)
        ax, b, vectors = self._read_words(batch, space)
        weights = self.recurrent_weights()
        run = unroll(self.cell, ax, b, (h0,), weights, batch.packing, space, attended)
        hidden = batch.packing.empty(space, "hidden", run.h.shape[1])
        product(space.xp, attended.z, self.params["W_context"], hidden)
        hidden += run.h
        return hidden, _Cache(features, mean, present, vectors, run, batch, space, attended)

    def penalty(self, cache: Any) -> Array | None:
        """Return the doubly stochastic penalty of each caption; see `CaptionModel.penalty`."""
        if not self.doubly_stochastic:
            return None
        found: Array = cache.more_input.penalty(self.doubly_stochastic, cache.batch)
        return found

    def backward(
        self,
        dhidden: Array,
        cache: Any,
        gradients: Mapping[str, Array],
        dfeatures: Array | None = None,
    ) -> None:
        """Backpropagate through time; see `CaptionModel.backward`."""
        features, mean, present, vectors, run, batch, space, attended = cache
        params, xp, weights = self.params, space.xp, self.recurrent_weights()
        product(xp, attended.z.T, dhidden, gradients["W_context"])
        attended.from_above(dhidden)
        dax, dah, dh0 = unroll_backward(
            self.cell, dhidden, run, weights, batch.packing, space, attended
        )
        weight_gradients(self.cell, run, dah, gradients, xp)
        attended.parameter_gradients(dax, run.prev_h, gradients)
        self._read_words_backward(dax, vectors, batch, gradients, space)
        dh0 = self._first_state_backward(dh0, mean, batch, gradients, space)
        D, H = params["W_grid"].shape
        dgrid = batch.to_images(attended.dgrid, "grid", space).reshape(-1, H)
        product(xp, features.reshape(-1, D).T, dgrid, gradients["W_grid"])
        column_sum(xp, dgrid, gradients["b_grid"])
        if dfeatures is not None:
            product(xp, dgrid, params["W_grid"].T, dfeatures.reshape(-1, D))
            mean_of_present_backward(dh0 @ params["W_proj"].T, present, dfeatures)

    def attention(self, cache: Any) -> Array:
        """Return the weight of each region for each word read; see `inspection.Attends`."""
        found: Array = cache.more_input.weights
        return found[None, None]

    def start(self, features: Array) -> tuple[Any, State]:
        """Return projected words and regions, and the first states; see `CaptionModel.start`.

        The last part of the state is the image `(N,)` that a hypothesis looks at.
        """
        check_numbers("start", features=features)
        self._check(features)
        W_proj = self.params["W_proj"]
        xp = namespace(features, W_proj)
        features = features.astype(W_proj.dtype, copy=False)
        space = Workspace(fastest(xp), W_proj.dtype)
        grid = self._project_grid(features, space)
        mean, present = mean_region(features, space)
        h0, _ = affine_forward(mean, W_proj, self.params["b_proj"])
        zeros = (xp.zeros_like(h0) for _ in self.cell.states[1:])
        context = _Context(Projected(self.params), grid, present)
        return context, (h0, *zeros, xp.arange(len(h0)))

    def advance(
        self, words: Array, parents: Array | None, state: State, context: Any
    ) -> tuple[Array, State]:
        """Attend to the regions, and take one step of the cell; see `CaptionModel.advance`."""
        xp = namespace(words, *state)
        fast, params = fastest(xp), self.params
        if parents is not None:
            if is_host(xp):  # hypotheses of one parent attend to the same
                some, parents = numpy.unique(parents, return_inverse=True)
            else:
                some, parents = parents, None
            state = tuple(part[some] for part in state)
        *before, image = state
        space = Workspace(fast, before[0].dtype)
        R, H = before[0].shape
        weights = space.empty("weights", R, context.grid.shape[1])
        query, z = space.empty("query", R, H), space.empty("z", R, H)
        z *= attend(
            fast, params, before[0], context.grid, context.present, image, query, weights, z
        )
        ah = space.empty("ah", R, params["Wh"].shape[1])
        product(fast, before[0], params["Wh"], ah)
        az = space.empty("az", R, params["Wz"].shape[1])
        product(fast, z, params["Wz"], az)
        more = space.empty("more", R, H)
        product(fast, z, params["W_context"], more)
        ax, which = context.words(words)
        ax = (ax if which is None else ax[which]) + (az if parents is None else az[parents])
        after = tuple(xp.empty((len(words), H), dtype=part.dtype) for part in before)
        self.cell.advance(fast, ax, ah, before, self.recurrent_weights(), None, parents, after)
        if parents is not None:
            more, image = more[parents], image[parents]
        return after[0] + more, (*after, image)

    def _check(self, features: Array) -> None:
        if features.ndim != 3:
            raise ShapeError(
                f"a captioner with attention needs features (N, L, D), got {features.shape}"
            )

    def _project_grid(self, features: Array, space: Workspace) -> Array:
        """Return p of each region, `(N, L, H)`."""
        W_grid = self.params["W_grid"]
        size = check_shapes("attention", features=(features, "N L D"), W_grid=(W_grid, "D H"))
        grid = space.empty("grid", size["N"], size["L"], size["H"])
        product(space.xp, features.reshape(-1, size["D"]), W_grid, grid.reshape(-1, size["H"]))
        grid += self.params["b_grid"]
        return grid


class _Context(NamedTuple):
    """What decoding needs of the images: words and regions `(N, L, H)`, projected."""

    words: Projected
    grid: Array
    present: Array


class _Cache(NamedTuple):
    features: Array
    mean: Array
    present: Array
    vectors: Array
    run: Unrolled
    batch: PackedBatch
    space: Workspace
    more_input: AttentionInput


def attend(
    xp: Namespace,
    params: Mapping[str, Array],
    prev_h: Array,
    grid: Array,
    present: Array,
    image: Array | None,
    query: Array,
    weights: Array,
    context: Array,
) -> Array:
    """Write q and sum alpha p `(n, H)` and alpha `(n, L)`; return the gate `(n, 1)`."""
    product(xp, prev_h, params["W_query"], query)
    query += params["b_query"]
    if "w_score" in params:
        additive_attention(
            xp, query, grid, grid, params["w_score"], present, image, weights, context
        )
    else:
        dot_product_attention(xp, query, grid, grid, present, image, weights, context)
    return sigmoid(xp, (prev_h * params["W_gate"][:, 0]).sum(axis=1) + params["b_gate"])[:, None]


class AttentionInput:
    """What attention finds, as an input of each step: z_t, a `StateInput`.

    Arrays have a row for each word read: `weights (M, L)` are alpha, `z (M, H)`.
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        grid: Array,
        present: Array,
        packing: Packing,
        space: Workspace,
    ) -> None:
        self._params, self._space = params, space
        self.grid, self.present = grid, present
        H = grid.shape[2]
        self.weights = packing.empty(space, "attention", grid.shape[1])
        self._query = packing.empty(space, "query", H)
        self._context = packing.empty(space, "context", H)
        self._gate = packing.empty(space, "gate", 1)
        self.z = packing.empty(space, "z", H)
        self._packing = packing
        self._dweights: Array | None = None

    def forward(self, rows: slice, prev_h: Array, gates: Array) -> None:
        """Add z_t Wz to the gates; see `StateInput.forward`."""
        xp, params = self._space.xp, self._params
        self._gate[rows] = attend(
            xp, params, prev_h, self.grid, self.present, None,
            self._query[rows], self.weights[rows], self._context[rows],
        )  # fmt: skip
        self.z[rows] = self._gate[rows] * self._context[rows]
        az = self._space.empty("az", *gates.shape, most=self._packing.captions)
        product(xp, self.z[rows], params["Wz"], az)
        gates += az

    def penalty(self, scale: float, batch: PackedBatch) -> Array:
        """Return scale sum_l (1 - sum_t alpha_tl)^2 of each caption `(N,)`, by what it counts."""
        space, rows = self._space, self._packing.rows
        counted = batch.counted()[:, None]
        lacking = space.empty("lacking", *self.present.shape)
        lacking[...] = self.present
        for part in rows:
            lacking[: part.stop - part.start] -= self.weights[part] * counted[part]
        share = scale * batch.of_captions()
        dsums = -2 * share[:, None] * lacking
        self._dweights = self._packing.empty(space, "dweights", lacking.shape[1])
        for part in rows:
            self._dweights[part] = dsums[: part.stop - part.start] * counted[part]
        return share * (lacking**2).sum(axis=1)

    def from_above(self, dhidden: Array) -> None:
        """Begin the backward pass, with the gradient of h_t + z_t W_context `(M, H)`."""
        xp, H = self._space.xp, dhidden.shape[1]
        empty = self._packing.empty
        self._dz = empty(self._space, "dz", H)
        product(xp, dhidden, self._params["W_context"].T, self._dz)
        self._dquery = empty(self._space, "dquery", H)
        self._dgate = empty(self._space, "dgate", 1)
        self._dw = empty(self._space, "dw", H) if "w_score" in self._params else None
        self.dgrid = self._space.zeros("dgrid", *self.grid.shape)
        self._WzT, self._W_queryT = (
            transposed(self._params[name], self._space, f"{name}T") for name in ("Wz", "W_query")
        )

    def backward(self, rows: slice, dax: Array, dprev_h: Array) -> None:
        """Take the gradient of x Wx + z Wz + b back to h_{t-1}; see `StateInput.backward`."""
        xp, params, grid, n = self._space.xp, self._params, self.grid, len(dax)
        through = self._space.empty("through z", *dprev_h.shape, most=self._packing.captions)
        product(xp, dax, self._WzT, through)
        dz = through
        dz += self._dz[rows]
        gate, context, dquery = self._gate[rows], self._context[rows], self._dquery[rows]
        dgate = (dz * context).sum(axis=1, keepdims=True) * gate * (1 - gate)
        self._dgate[rows] = dgate
        dz *= gate
        dweights = None if self._dweights is None else self._dweights[rows]
        given = dz, dweights, self._query[rows], grid[:n], grid[:n]
        found = dquery, self.dgrid[:n], self.dgrid[:n]
        if self._dw is None:
            dot_product_attention_gradient(xp, *given, self.weights[rows], *found)
        else:
            additive_attention_gradient(
                xp, *given, params["w_score"], self.weights[rows], *found, self._dw[rows]
            )
        product(xp, dquery, self._W_queryT, through)
        dprev_h += through
        dprev_h += dgate * params["W_gate"][:, 0]

    def parameter_gradients(
        self, dax: Array, prev_h: Array, gradients: Mapping[str, Array]
    ) -> None:
        """Write the gradients of the parameters of each step, sums over all steps."""
        xp = self._space.xp
        product(xp, self.z.T, dax, gradients["Wz"])
        product(xp, prev_h.T, self._dquery, gradients["W_query"])
        column_sum(xp, self._dquery, gradients["b_query"])
        product(xp, prev_h.T, self._dgate, gradients["W_gate"])
        column_sum(xp, self._dgate, gradients["b_gate"])
        if self._dw is not None:
            column_sum(xp, self._dw, gradients["w_score"])
