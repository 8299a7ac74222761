"""Image features -> first hidden state -> a recurrent network that says one word after another.

Vinyals et al., "Show and tell" (CVPR 2015) and Karpathy and Fei-Fei (CVPR 2015), in the form of
Stanford's CS231n assignment: the image sets h0 and is seen no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy

from xpcap.backend import Array, Backend, as_backend, namespace
from xpcap.data.vocabulary import END, NULL, START
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.init import captioner_parameters
from xpcap.kernels import fastest
from xpcap.kernels.advance import gru_advance, lstm_advance, rnn_advance
from xpcap.kernels.products import product
from xpcap.layers import (
    affine_backward,
    affine_forward,
    dropout_backward,
    dropout_forward,
    gru_backward,
    gru_forward,
    gru_step_backward,
    gru_step_forward,
    lstm_backward,
    lstm_forward,
    lstm_step_backward,
    lstm_step_forward,
    rnn_backward,
    rnn_forward,
    rnn_step_backward,
    rnn_step_forward,
    temporal_affine_backward,
    temporal_affine_forward,
    temporal_softmax_loss,
    word_embedding_backward,
    word_embedding_forward,
)
from xpcap.layers.dropout import check_rate
from xpcap.layers.gru import gru_unroll, gru_unroll_backward
from xpcap.layers.lstm import lstm_unroll, lstm_unroll_backward
from xpcap.layers.rnn import rnn_unroll, rnn_unroll_backward
from xpcap.models.distinct import distinct
from xpcap.models.greedy import greedy
from xpcap.workspace import passing


class Cell(NamedTuple):
    """One kind of recurrent network, as the captioner uses it.

    `forward(x, h0, *weights)` and `backward(dh, cache)` run over a sequence;
    `step_forward(x, *state, *weights)` takes one step and returns the new state and a cache, and
    `step_backward(*dstate, cache)` the gradients of its arguments;
    `advance` takes one step of captions that share words and beginnings, see `kernels.advance`;
    `unroll` and `unroll_backward` are the recurrence alone, over a packed sequence.
    `gates` is the number of blocks of H columns in the weights, `weights` are their names, `states`
    how many arrays a state has.
    """

    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[[Array, Any], tuple[Array, ...]]
    step_forward: Callable[..., tuple[Any, ...]]
    step_backward: Callable[..., tuple[Array, ...]]
    advance: Callable[..., None]
    unroll: Callable[..., Any]
    unroll_backward: Callable[..., tuple[Array, ...]]
    gates: int
    weights: tuple[str, ...]
    states: int


CELLS = {
    "rnn": Cell(
        rnn_forward, rnn_backward, rnn_step_forward, rnn_step_backward,
        rnn_advance, rnn_unroll, rnn_unroll_backward,
        gates=1, weights=("Wx", "Wh", "b"), states=1,
    ),
    "lstm": Cell(
        lstm_forward, lstm_backward, lstm_step_forward, lstm_step_backward,
        lstm_advance, lstm_unroll, lstm_unroll_backward,
        gates=4, weights=("Wx", "Wh", "b"), states=2,
    ),
    "gru": Cell(
        gru_forward, gru_backward, gru_step_forward, gru_step_backward,
        gru_advance, gru_unroll, gru_unroll_backward,
        gates=3, weights=("Wx", "Wh", "b", "bn"), states=1,
    ),
}  # fmt: skip


def check_cell(cell_type: str) -> None:
    """Check the name of a cell.

    Raises
    ------
    ConfigurationError
        It names the cells there are.
    """
    if cell_type not in CELLS:
        raise ConfigurationError(f"cell type '{cell_type}' is unknown; expected {', '.join(CELLS)}")


class _Caches(NamedTuple):
    """What the backward pass needs of each layer of the forward pass."""

    projection: Any
    embedding: Any
    words: Any
    recurrent: Any
    hidden: Any
    vocabulary: Any


class CaptioningRNN:
    """A captioner: features `(N, D)` in, sentences out.

    Parameters
    ----------
    word_to_idx
        The index of each word, 0..V-1; `<NULL>` must be there, `<START>` and `<END>` to sample.
    input_dim, wordvec_dim, hidden_dim
        D, W and H: sizes of the image features, of a word's vector and of the hidden state.
    cell_type
        `"rnn"`, `"lstm"` or `"gru"`.
    dtype
        Of the initial parameters.
    dropout
        The share of word vectors' and of hidden states' elements that `loss` drops, in [0, 1).
    seed
        Of the initial parameters and of dropout; None takes it from NumPy's global generator.
    backend
        Where the parameters live: a device name, a `Backend`, or None for the default one.

    Attributes
    ----------
    null, start_word, end
        The indices of `<NULL>`, `<START>` and `<END>`; the last two may be None.
    params
        By name: `W_proj, b_proj, W_embed, Wx, Wh, b, W_vocab, b_vocab`, and `bn` for a GRU. A plain
        dict: assign to it what you like, in any floating dtype.

    Raises
    ------
    ConfigurationError
        If the cell is unknown, the rate not in [0, 1) or `<NULL>` missing.
    """

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
    ) -> None:
        check_cell(cell_type)
        check_rate(dropout)
        for name, size in (
            ("input_dim", input_dim),
            ("wordvec_dim", wordvec_dim),
            ("hidden_dim", hidden_dim),
        ):
            if size < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {size}")
        if numpy.dtype(dtype).kind != "f":
            raise ConfigurationError(f"dtype {numpy.dtype(dtype)} is not a floating one")
        if NULL not in word_to_idx:
            raise ConfigurationError(f"the vocabulary lacks {NULL}, the padding of captions")
        self.cell_type = cell_type
        self.cell = CELLS[cell_type]
        self.dtype = numpy.dtype(dtype)
        self.dropout = dropout
        self.seed = int(numpy.random.randint(2**31 - 1)) if seed is None else seed
        self.word_to_idx = dict(word_to_idx)
        self.idx_to_word = {index: word for word, index in word_to_idx.items()}
        self.null = word_to_idx[NULL]
        self.start_word = word_to_idx.get(START)
        self.end = word_to_idx.get(END)

        rng = numpy.random.default_rng(self.seed)
        params = captioner_parameters(
            rng, len(word_to_idx), input_dim, wordvec_dim, hidden_dim, self.cell.gates
        )
        if "bn" in self.cell.weights:
            params["bn"] = numpy.zeros(hidden_dim)
        self.backend = as_backend(backend)
        self.params: dict[str, Array] = {
            name: self.backend.to_device(value, dtype=self.dtype) for name, value in params.items()
        }

    def to(self, backend: Backend | str) -> Self:
        """Move the parameters to another device, and return the model itself."""
        self.backend = as_backend(backend)
        self.params = {name: self.backend.to_device(value) for name, value in self.params.items()}
        return self

    def loss(
        self, features: Array, captions: Array, step: int = 0
    ) -> tuple[Array, dict[str, Array]]:
        """Cross entropy of captions given their images' features, and its gradients.

        Parameters
        ----------
        features
            `(N, D)` floating, converted to the parameters' dtype.
        captions
            Word indices `(N, T+1)`: each word but the last is fed in, each but the first is to be
            predicted, and `<NULL>` is not counted.
        step
            The number of the training step: which dropout masks are drawn.

        Returns
        -------
        loss, gradients
            In nats, summed over a caption's words and averaged over captions, a 0-d array; and
            a dict with the keys of `params`.

        Raises
        ------
        ShapeError
            If shapes do not fit, or a word is not in the vocabulary (seen on the CPU only).
        BackendError
            If the arrays do not live where the parameters do.
        """
        with self.backend.activate():
            scores, caches = self._forward(features, captions, step if self.dropout else None)
            loss, dscores = self._compare(scores, captions)
            return loss, self._backward(dscores, caches)

    def evaluate(self, features: Array, captions: Array) -> Array:
        """Return the same loss without gradients and without dropout, as for held-out captions."""
        with self.backend.activate():
            scores, _ = self._forward(features, captions, None)
            return self._compare(scores, captions)[0]

    def _compare(self, scores: Array, captions: Array) -> tuple[Array, Array]:
        targets = captions[:, 1:]
        return temporal_softmax_loss(scores, targets, targets != self.null)

    def _forward(self, features: Array, captions: Array, step: int | None) -> tuple[Array, _Caches]:
        """Return scores `(N, T, V)`, with dropout masks of `step` (none if that is None)."""
        params = self.params
        namespace(features, captions, *params.values())
        if captions.ndim != 2 or captions.shape[1] < 2:
            raise ShapeError(f"expected captions (N, T+1) with T > 0, got {captions.shape}")
        h0, projection = self._project(features)
        x, embedding = word_embedding_forward(captions[:, :-1], params["W_embed"])
        words = hidden = None
        if step is not None:
            x, words = dropout_forward(x, self.dropout, self.seed, 2 * step)
        h, recurrent = self.cell.forward(x, h0, *self._weights())
        if step is not None:
            h, hidden = dropout_forward(h, self.dropout, self.seed, 2 * step + 1)
        scores, vocabulary = temporal_affine_forward(h, params["W_vocab"], params["b_vocab"])
        return scores, _Caches(projection, embedding, words, recurrent, hidden, vocabulary)

    def _backward(self, dscores: Array, caches: _Caches) -> dict[str, Array]:
        grads: dict[str, Array] = {}
        dh, grads["W_vocab"], grads["b_vocab"] = temporal_affine_backward(
            dscores, caches.vocabulary
        )
        if caches.hidden is not None:
            dh = dropout_backward(dh, caches.hidden)
        dx, dh0, *dweights = self.cell.backward(dh, caches.recurrent)
        grads.update(zip(self.cell.weights, dweights, strict=True))
        if caches.words is not None:
            dx = dropout_backward(dx, caches.words)
        grads["W_embed"] = word_embedding_backward(dx, caches.embedding)
        _, grads["W_proj"], grads["b_proj"] = affine_backward(dh0, caches.projection)
        return grads

    def _project(self, features: Array) -> tuple[Array, Any]:
        W_proj = self.params["W_proj"]
        features = features.astype(W_proj.dtype, copy=False)
        return affine_forward(features, W_proj, self.params["b_proj"])

    def _weights(self) -> list[Array]:
        return [self.params[name] for name in self.cell.weights]

    def start(self, features: Array) -> tuple[Array, ...]:
        """Return the state before the first word: arrays `(N, H)`, one or (for an LSTM) two."""
        h0, _ = self._project(features)
        xp = namespace(h0)
        return (h0, *(xp.zeros_like(h0) for _ in range(self.cell.states - 1)))

    def step(
        self, words: Array, state: tuple[Array, ...], rows: Array | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        """Feed one word to each caption.

        Parameters
        ----------
        words
            Indices `(N,)`.
        state
            From `start` or the step before, `(M, H)` each.
        rows
            The row of `state` that each word follows, `(N,)`; None: each its own, N = M.

        Returns
        -------
        scores, state
            Of every next word, `(N, V)`; and the new state.
        """
        params = self.params
        xp = namespace(words, *state)
        Wx, Wh, b = (params[name] for name in self.cell.weights[:3])
        some, which = distinct(xp, words)
        ax = params["W_embed"][some] @ Wx + b
        if rows is None:
            parents = xp.arange(len(words))
        else:
            some, parents = distinct(xp, rows)
            state = tuple(part[some] for part in state)
        shape = len(words), state[0].shape[1]
        new_state = tuple(xp.empty(shape, dtype=ax.dtype) for _ in state)
        biases = [params[name] for name in self.cell.weights[3:]]
        ah = passing(xp, ax.dtype).empty("ah", len(state[0]), Wh.shape[1])
        product(xp, state[0], Wh, ah)
        self.cell.advance(fastest(xp), ax, ah, state[-1], *biases, which, parents, *new_state)
        scores = new_state[0] @ params["W_vocab"]
        scores += params["b_vocab"]
        return scores, new_state

    def sample(self, features: Array, max_length: int = 30) -> Array:
        """Caption images greedily: always the most likely next word.

        Parameters
        ----------
        features
            `(N, D)` floating.
        max_length
            How many words at most, `<END>` included.

        Returns
        -------
        array
            Word indices `(N, max_length)` int32; after `<END>` all is `<NULL>`.

        Raises
        ------
        ConfigurationError
            If the vocabulary has no `<START>`, or `max_length` is negative.
        """
        if self.start_word is None:
            raise ConfigurationError(f"the vocabulary lacks {START}, with which captions begin")
        if max_length < 0:
            raise ConfigurationError(f"max_length must not be negative, got {max_length}")
        with self.backend.activate():
            return greedy(self, features, max_length)
