"""The recurrent captioner: image features set the first state of a network that predicts words.

Vinyals et al., "Show and tell" (CVPR 2015) and Karpathy and Fei-Fei (CVPR 2015), in the form of
Stanford's CS231n assignment: the image sets h0 and is not seen again.

    h0 = features W_proj + b_proj
    x_t = W_embed[word_t]
    h_t = cell(x_t Wx + b, h_{t-1} Wh)
    scores_t = h_t W_vocab + b_vocab
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy

from xpcap.backend import Array, Backend, is_host, namespace
from xpcap.errors import ConfigurationError, first_line
from xpcap.kernels import fastest
from xpcap.layers._checks import check_numbers, check_shapes
from xpcap.layers.affine import affine_forward, column_sum, product
from xpcap.layers.embedding import add_rows, take_rows
from xpcap.layers.gru import GRU
from xpcap.layers.lstm import LSTM
from xpcap.layers.recurrence import Cell, Unrolled, unroll, unroll_backward, weight_gradients
from xpcap.layers.regions import mean_of_present, mean_of_present_backward, present_regions
from xpcap.layers.rnn import RNN
from xpcap.models.inspection import Inspectable
from xpcap.models.model import State
from xpcap.models.packed_batch import PackedBatch
from xpcap.options import check_counts
from xpcap.workspace import Workspace, passing

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


def check_cell(cell_type: str) -> None:
    """Raise `ConfigurationError` unless this is one of `CELLS`, and its operations run."""
    if cell_type not in [*CELLS]:
        raise ConfigurationError(f"cell '{cell_type}' is unknown; expected {', '.join(CELLS)}")
    mistake = _mistake(CELLS[cell_type])
    if mistake:
        raise ConfigurationError(f"cell '{cell_type}': {mistake}; see layers.recurrence.Cell")


@functools.cache
def _mistake(cell: Any) -> str:
    """Run both operations of a cell once, on small arrays, and say what is wrong, if anything."""
    if not isinstance(cell, Cell):
        return f"expected a Cell, got {type(cell).__name__}"
    H, width, draw = 3, 3 * len(cell.gates), numpy.random.default_rng(0).standard_normal
    before = [f"prev_{name}" for name in cell.states]
    gradients = ["above", "back", *(f"d{name}" for name in cell.states[1:])]
    arrays = {name: draw((2, H)) for name in [*before, *gradients]}
    arrays |= {"gates": draw((2, width)), "ah": draw((2, width)), "Wh": draw((H, width))}
    arrays |= {name: draw(H) for name in cell.biases}
    arrays |= {name: numpy.full((2, H), numpy.nan) for name in (*cell.states, *cell.kept)}
    arrays |= {name: numpy.full((2, width), numpy.nan) for name in ("da", "dax", "dah")}
    what = "forward"
    try:
        both = "dax" in inspect.signature(cell.backward.reference).parameters
        for what, run, written in (
            ("forward", cell.step, [*cell.states, *cell.kept]),
            ("backward", cell.step_backward, ["dax", "dah"] if both else ["da"]),
        ):
            run(numpy, arrays)
            left = [name for name in written if not numpy.isfinite(arrays[name]).all()]
            if left:
                return f"{what} does not write {left[0]} in place, as {left[0]}[...] = ..."
    except KeyError as error:
        return f"{what} takes {error}; expected names among {', '.join(arrays)}"
    except Exception as error:  # in lines that are not ours
        return f"{what} fails: {type(error).__name__}: {first_line(error)}"
    return ""


class _Cache(NamedTuple):
    vector: Array
    present: Array | None
    vectors: Array
    run: Unrolled
    batch: PackedBatch
    space: Workspace
    more_input: None = None


class CaptioningRNN(Inspectable):
    """A captioner whose network is recurrent.

    Parameters
    ----------
    word_to_idx
        The index of each word, 0..V-1; `<NULL>` must be there, `<START>` and `<END>` to sample.
    input_dim, wordvec_dim, hidden_dim
        D, W and H: sizes of the image features, of a word's vector and of the hidden state.
    cell_type
        `"rnn"`, `"lstm"` or `"gru"`, a key of `CELLS`.
    dtype, dropout, seed, backend
        As for `CaptionModel`, with its errors.
    """

    family = "recurrent"
    options: ClassVar[tuple[str, ...]] = ("wordvec_dim", "cell_type")

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        dtype: Any = numpy.float32,
        *,
        dropout: float = 0.0,
        seed: int | None = None,
        backend: Backend | str | None = None,
        **more: Any,  # options of a family built on this one
    ) -> None:
        for name in more.keys() - set(self.options):
            raise TypeError(f"{type(self).__name__} got an unexpected argument '{name}'")
        super().__init__(
            word_to_idx, dtype=dtype, dropout=dropout, seed=seed, backend=backend,
            input_dim=input_dim, wordvec_dim=wordvec_dim, hidden_dim=hidden_dim,
            cell_type=cell_type, **more,
        )  # fmt: skip
        self.cell_type = cell_type

    @property
    def cell(self) -> Cell:
        """The cell of `cell_type`."""
        return CELLS[self.cell_type]

    @classmethod
    def shapes(cls, words: int, **sizes: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `W_proj (D, H)`, `W_embed (V, W)`, the cell's weights and so on."""
        check_cell(sizes["cell_type"])
        dims = {name: sizes[name] for name in ("input_dim", "wordvec_dim", "hidden_dim")}
        check_counts(**dims)
        D, W, H = dims.values()
        cell = CELLS[sizes["cell_type"]].shapes(W, H)
        weights = {name: cell.pop(name) for name in ("Wx", "Wh", "b")}
        first = {"W_embed": (words, W), "W_proj": (D, H), "b_proj": (H,)}
        return {**first, **weights, "W_vocab": (H, words), "b_vocab": (words,), **cell}

    def initial(
        self, shapes: Mapping[str, tuple[int, ...]], rng: numpy.random.Generator
    ) -> dict[str, numpy.ndarray]:
        """Draw initial parameters as CS231n does: word vectors are N(0, 1) / 100."""
        vectors = rng.standard_normal(shapes["W_embed"]) / 100
        others = {name: shape for name, shape in shapes.items() if name != "W_embed"}
        return {"W_embed": vectors, **super().initial(others, rng)}

    def scale_features(self, scale: float) -> None:
        """Divide `W_proj` by the root mean square of the features, so that h0 has unit variance."""
        with self.backend.activate():
            self.params["W_proj"] /= scale

    def forward(self, features: Array, batch: PackedBatch, space: Workspace) -> tuple[Array, Any]:
        """Run the cell over packed captions; see `CaptionModel.forward`."""
        vector, present = mean_region(features, space)
        h0 = self._first_state(vector, batch, space)
        ax, b, vectors = self._read_words(batch, space)
        weights = self.recurrent_weights()
        run = unroll(self.cell, ax, b, (h0,), weights, batch.packing, space)
        return run.h, _Cache(vector, present, vectors, run, batch, space)

    def backward(
        self,
        dhidden: Array,
        cache: Any,
        gradients: Mapping[str, Array],
        dfeatures: Array | None = None,
    ) -> None:
        """Backpropagate through time; see `CaptionModel.backward`."""
        vector, present, vectors, run, batch, space, _ = cache
        dax, dah, dh0 = unroll_backward(
            self.cell, dhidden, run, self.recurrent_weights(), batch.packing, space
        )
        weight_gradients(self.cell, run, dah, gradients, space.xp)
        self._read_words_backward(dax, vectors, batch, gradients, space)
        dh0 = self._first_state_backward(dh0, vector, batch, gradients, space)
        if dfeatures is not None:
            mean_region_backward(dh0 @ self.params["W_proj"].T, present, dfeatures)

    def _first_state(self, vector: Array, batch: PackedBatch, space: Workspace) -> Array:
        """Return h0 `(N, H)` of images' vectors `(I, D)`."""
        W_proj = self.params["W_proj"]
        size = check_shapes("loss", features=(vector, "N D"), W_proj=(W_proj, "D H"))
        h0 = space.empty("first state", size["N"], size["H"])
        product(space.xp, vector, W_proj, h0)
        h0 += self.params["b_proj"]
        return batch.to_captions(h0, "first state", space)

    def _first_state_backward(
        self,
        dh0: Array,
        vector: Array,
        batch: PackedBatch,
        gradients: Mapping[str, Array],
        space: Workspace,
    ) -> Array:
        """Write the gradients of W_proj and b_proj; return dh0 of images `(I, H)`."""
        dh0 = batch.to_images(dh0, "first state", space)
        product(space.xp, vector.T, dh0, gradients["W_proj"])
        column_sum(space.xp, dh0, gradients["b_proj"])
        return dh0

    def _read_words(
        self, batch: PackedBatch, space: Workspace
    ) -> tuple[Array, Array | None, Array]:
        """Return x Wx of each word read `(M, kH)`, b if it is to be added, and word vectors.

        Without dropout each distinct word is projected once: 128 COCO captions hold some 1,430
        words to read, but only 360 different ones.
        """
        params, packing, xp = self.params, batch.packing, space.xp
        check_shapes("loss", W_embed=(params["W_embed"], "V W"))
        V, W = params["W_embed"].shape
        ax, b = packing.empty(space, "gates", params["Wx"].shape[1]), params["b"]
        if batch.distinct is None:
            vectors = packing.empty(space, "vectors", W)
            take_rows(xp, params["W_embed"], batch.words, vectors)
            batch.drop(vectors)
            product(xp, vectors, params["Wx"], ax)
            return ax, b, vectors
        vectors = space.empty("vectors", len(batch.distinct), W, most=V)
        take_rows(xp, params["W_embed"], batch.distinct, vectors)
        projected = space.empty("projected", len(vectors), ax.shape[1], most=V)
        product(xp, vectors, params["Wx"], projected)
        projected += b
        take_rows(xp, projected, batch.which, ax)
        return ax, None, vectors

    def _read_words_backward(
        self,
        dax: Array,
        vectors: Array,
        batch: PackedBatch,
        gradients: Mapping[str, Array],
        space: Workspace,
    ) -> None:
        params, xp = self.params, space.xp
        if batch.distinct is not None:  # a word's gradient is the sum over all its rows
            dprojected = space.empty("projected", len(vectors), dax.shape[1])
            add_rows(xp, batch.which, dax, dprojected)
            dax = dprojected
        product(xp, vectors.T, dax, gradients["Wx"])
        column_sum(xp, dax, gradients["b"])
        dvectors = vectors  # in their memory
        product(xp, dax, params["Wx"].T, dvectors)
        if batch.distinct is not None:
            gradients["W_embed"][...] = 0
            gradients["W_embed"][batch.distinct] = dvectors
        else:
            batch.drop(dvectors)
            add_rows(xp, batch.words, dvectors, gradients["W_embed"])

    def start(self, features: Array) -> tuple[Any, State]:
        """Return projected words, and the first states `(N, H)`; see `CaptionModel.start`."""
        check_numbers("start", features=features)
        W_proj, b_proj = self.params["W_proj"], self.params["b_proj"]
        xp = namespace(features, W_proj)
        features = features.astype(W_proj.dtype, copy=False)
        vector, _ = mean_region(features, Workspace(fastest(xp), W_proj.dtype))
        h0, _ = affine_forward(vector, W_proj, b_proj)
        zeros = (xp.zeros_like(h0) for _ in self.cell.states[1:])
        return Projected(self.params), (h0, *zeros)

    def advance(
        self, words: Array, parents: Array | None, state: State, context: Any
    ) -> tuple[Array, State]:
        """Take one step of the cell; see `CaptionModel.advance`."""
        xp = namespace(words, *state)
        ax, which = context(words)
        if parents is not None and is_host(xp):  # who share a parent share its product
            some, parents = numpy.unique(parents, return_inverse=True)
            if len(some) < len(state[0]):
                state = tuple(part[some] for part in state)
        elif parents is not None:
            state, parents = tuple(part[parents] for part in state), None
        Wh = self.params["Wh"]
        ah = passing(xp, Wh.dtype).empty("ah", len(state[0]), Wh.shape[1])
        fast = fastest(xp)
        product(fast, state[0], Wh, ah)
        shape = len(words), state[0].shape[1]
        after = tuple(xp.empty(shape, dtype=state[0].dtype) for _ in state)
        self.cell.advance(fast, ax, ah, state, self.recurrent_weights(), which, parents, after)
        return after[0], after

    def recurrent_weights(self) -> dict[str, Array]:
        """Return `Wh` and the further biases of the cell."""
        return {name: self.params[name] for name in ("Wh", *self.cell.biases)}


def mean_region(features: Array, space: Workspace) -> tuple[Array, Array | None]:
    """Return vectors `(N, D)` of features, and of regions `(N, L, D)` which there are."""
    if features.ndim < 3:
        return features, None
    present = space.empty("present", *features.shape[:2], dtype=bool)
    present_regions(space.xp, features, present)
    mean = space.empty("mean region", len(features), features.shape[2])
    mean_of_present(space.xp, features, present, mean)
    return mean, present


def mean_region_backward(dvector: Array, present: Array | None, dfeatures: Array) -> None:
    """Write the gradient of features, from that of their vectors `(N, D)`."""
    if present is None:
        dfeatures[...] = dvector
    else:
        dfeatures[...] = 0
        mean_of_present_backward(dvector, present, dfeatures)


class Projected:
    """x Wx + b of words: on the CPU each word is projected once, when it is first needed."""

    def __init__(self, params: Mapping[str, Array]) -> None:
        self._params = params
        self._rows: Array = None
        self._known: Array = None

    def __call__(self, words: Array) -> tuple[Array, Array | None]:
        """Return projected words `(D, kH)`, and the row of each word `(R,)`; None: its own."""
        W_embed, Wx, b = (self._params[name] for name in ("W_embed", "Wx", "b"))
        xp = namespace(words, Wx)
        if not is_host(xp):
            fast, space = fastest(xp), passing(xp, Wx.dtype)
            vectors = space.empty("vectors", len(words), W_embed.shape[1])
            take_rows(fast, W_embed, words, vectors)
            ax = space.empty("ax", len(words), Wx.shape[1])
            product(fast, vectors, Wx, ax)  # which a graph can capture
            ax += b
            return ax, None
        if self._rows is None:
            self._rows = numpy.empty((len(W_embed), Wx.shape[1]), Wx.dtype)
            self._known = numpy.zeros(len(W_embed), bool)
        new = words[~self._known[words]]
        if len(new):
            new = numpy.unique(new)
            self._rows[new] = W_embed[new] @ Wx + b
            self._known[new] = True
        return self._rows, words
