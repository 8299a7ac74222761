"""The captioning assignment of Michigan's EECS 498-007 / 598-005, with gradients by hand.

The course writes its forward passes in PyTorch and leaves most backward passes to it. Here each
function of its assignment has the course's arguments and results, for NumPy or CuPy arrays, and
beside it a `*_backward`: it takes the gradients of the results, then the arguments of the forward
pass, and returns the gradients of those, in their order. Feature maps are `(N, D, 4, 4)` or of
any other height and width; gates are in the order i, f, o, g.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy

from xpcap import layers
from xpcap.backend import Array, namespace
from xpcap.data.vocabulary import END, NULL, START
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.layers import (
    rnn_backward,
    rnn_forward,
    rnn_step_backward,
    rnn_step_forward,
    word_embedding_backward,
    word_embedding_forward,
)
from xpcap.layers._checks import check_gradients, check_indices, check_shapes
from xpcap.options import check_counts

__all__ = [
    "CaptioningRNN",
    "attention_backward",
    "attention_forward",
    "dot_product_attention",
    "dot_product_attention_backward",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "temporal_softmax_loss",
    "temporal_softmax_loss_backward",
    "word_embedding_backward",
    "word_embedding_forward",
]


class StepGradients(NamedTuple):
    """Gradients of `lstm_step_forward`; those of `attn` and `Wattn` are None without attention."""

    dx: Array
    dprev_h: Array
    dprev_c: Array
    dWx: Array
    dWh: Array
    db: Array
    dattn: Array | None
    dWattn: Array | None


class AttentionGradients(NamedTuple):
    """Gradients of `attention_forward`."""

    dx: Array
    dA: Array
    dWx: Array
    dWh: Array
    dWattn: Array
    db: Array


def _joined(
    function: str, x: Array, Wx: Array, attn: Array | None, Wattn: Array | None
) -> tuple[Array, Array]:
    """Return x Wx + attn Wattn as one product of wider factors."""
    if attn is None and Wattn is None:
        return x, Wx
    if attn is None or Wattn is None:
        missing = "attn" if attn is None else "Wattn"
        raise ShapeError(f"{function}: expected attn and Wattn, or neither; got no {missing}")
    xp = namespace(x, Wx, attn, Wattn)
    check_shapes(function, x=(x, "N D"), attn=(attn, "N H"), Wx=(Wx, "D 4H"), Wattn=(Wattn, "H 4H"))
    return xp.concatenate([x, attn], axis=1), xp.concatenate([Wx, Wattn])


def lstm_step_forward(
    x: Array, prev_h: Array, prev_c: Array, Wx: Array, Wh: Array, b: Array,
    attn: Array | None = None, Wattn: Array | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Take one step of an LSTM, with the input attn Wattn if there is attention.

    `x (N, D)`, states and `attn (N, H)`, `Wx (D, 4H)`, `Wh` and `Wattn (H, 4H)`, `b (4H,)`; returns
    the next states `(N, H)`. Raises `ShapeError` if shapes do not fit together.
    """
    wide, W = _joined("lstm_step_forward", x, Wx, attn, Wattn)
    next_h, next_c, _ = layers.lstm_step_forward(wide, prev_h, prev_c, W, Wh, b)
    return next_h, next_c


def lstm_step_backward(
    dnext_h: Array, dnext_c: Array,
    x: Array, prev_h: Array, prev_c: Array, Wx: Array, Wh: Array, b: Array,
    attn: Array | None = None, Wattn: Array | None = None,
) -> StepGradients:  # fmt: skip
    """Gradients of `lstm_step_forward`."""
    wide, W = _joined("lstm_step_backward", x, Wx, attn, Wattn)
    *_, cache = layers.lstm_step_forward(wide, prev_h, prev_c, W, Wh, b)
    dwide, dprev_h, dprev_c, dW, dWh, db = layers.lstm_step_backward(dnext_h, dnext_c, cache)
    D = x.shape[1]
    more = (None, None) if attn is None else (dwide[:, D:], dW[D:])
    return StepGradients(dwide[:, :D], dprev_h, dprev_c, dW[:D], dWh, db, *more)


def lstm_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> Array:
    """Run an LSTM over a sequence `(N, T, D)`, c0 being zero; return every `h (N, T, H)`."""
    return layers.lstm_forward(x, h0, Wx, Wh, b)[0]


def lstm_backward(dh: Array, x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> Any:
    """Gradients of `lstm_forward`: `dx`, `dh0`, `dWx`, `dWh`, `db`."""
    return layers.lstm_backward(dh, layers.lstm_forward(x, h0, Wx, Wh, b)[1])


def _regions(A: Array) -> Array:
    """Return maps `(N, H, height, width)` as regions `(N, L, H)`, row by row."""
    if A.ndim != 4:
        raise ShapeError(f"expected a feature map (N, H, height, width), got {A.shape}")
    return A.reshape(*A.shape[:2], math.prod(A.shape[2:])).transpose(0, 2, 1)


def dot_product_attention(prev_h: Array, A: Array) -> tuple[Array, Array]:
    """Scaled dot-product attention of hidden states `(N, H)` to maps `A (N, H, height, width)`.

    Returns the mean `attn (N, H)` and its weights `(N, height, width)`.
    """
    regions = _regions(A)
    attn, weights, _ = layers.dot_product_attention_forward(prev_h, regions, regions)
    return attn, weights.reshape(len(A), *A.shape[2:])


def dot_product_attention_backward(
    dattn: Array, dattn_weights: Array | None, prev_h: Array, A: Array
) -> tuple[Array, Array]:
    """Gradients of `dot_product_attention`: `dprev_h`, `dA`; `dattn_weights` may be None."""
    regions = _regions(A)
    *_, cache = layers.dot_product_attention_forward(prev_h, regions, regions)
    above = None
    if dattn_weights is not None:
        maps = len(A), *A.shape[2:]
        check_gradients("dot_product_attention_backward", dattn_weights=(dattn_weights, maps))
        above = dattn_weights.reshape(len(A), regions.shape[1])
    dprev_h, dkeys, dvalues = layers.dot_product_attention_backward(dattn, above, cache)
    return dprev_h, (dkeys + dvalues).transpose(0, 2, 1).reshape(A.shape)


def attention_forward(x: Array, A: Array, Wx: Array, Wh: Array, Wattn: Array, b: Array) -> Array:
    """Run an LSTM with attention over a sequence `(N, T, D)`; return every `h (N, T, H)`.

    Both first states are the mean of the projected map `A (N, H, height, width)`.
    """
    return _attention_states(x, A, Wx, Wh, Wattn, b)[0]


def _attention_states(
    x: Array, A: Array, Wx: Array, Wh: Array, Wattn: Array, b: Array
) -> tuple[Array, list[tuple[Array, Array, Array]]]:
    """Return every h, and for each step the states before it and what attention gave."""
    check_shapes(
        "attention_forward", A=(A, "N H h w"), x=(x, "N T D"),
        Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), Wattn=(Wattn, "H 4H"), b=(b, "4H"),
    )  # fmt: skip
    h = c = A.mean(axis=(2, 3))
    found, before = [], []
    for t in range(x.shape[1]):
        attn, _ = dot_product_attention(h, A)
        before.append((h, c, attn))
        h, c = lstm_step_forward(x[:, t], h, c, Wx, Wh, b, attn, Wattn)
        found.append(h)
    return namespace(x).stack(found, axis=1), before


def attention_backward(
    dh: Array, x: Array, A: Array, Wx: Array, Wh: Array, Wattn: Array, b: Array
) -> AttentionGradients:
    """Gradients of `attention_forward`: the steps undone from last to first."""
    xp = namespace(dh, x, A)
    h, before = _attention_states(x, A, Wx, Wh, Wattn, b)
    check_gradients("attention_backward", dh=(dh, h.shape))
    dx, dA, dWx, dWh, dWattn, db = map(xp.zeros_like, (x, A, Wx, Wh, Wattn, b))
    back_h, back_c = xp.zeros_like(dh[:, 0]), xp.zeros_like(dh[:, 0])
    for t, (h, c, attn) in reversed(list(enumerate(before))):
        step = lstm_step_backward(dh[:, t] + back_h, back_c, x[:, t], h, c, Wx, Wh, b, attn, Wattn)
        through, of_A = dot_product_attention_backward(step.dattn, None, h, A)
        back_h, back_c = step.dprev_h + through, step.dprev_c
        dx[:, t] = step.dx
        dA += of_A
        dWx += step.dWx
        dWh += step.dWh
        dWattn += step.dWattn
        db += step.db
    dA += ((back_h + back_c) / math.prod(A.shape[2:]))[:, :, None, None]  # h0 = c0 = the mean
    return AttentionGradients(dx, dA, dWx, dWh, dWattn, db)


def temporal_softmax_loss(x: Array, y: Array, ignore_index: int | None = None) -> Array:
    """Cross entropy of scores `(N, T, V)` against words `y (N, T)`, summed, over N.

    Words `ignore_index` do not count.
    """
    return _softmax_loss(x, y, ignore_index)[0]


def temporal_softmax_loss_backward(x: Array, y: Array, ignore_index: int | None = None) -> Array:
    """Gradient of `temporal_softmax_loss` with respect to the scores."""
    return _softmax_loss(x, y, ignore_index)[1]


def _softmax_loss(x: Array, y: Array, ignore_index: int | None) -> tuple[Array, Array]:
    counted = y != (-1 if ignore_index is None else ignore_index)
    return layers.temporal_softmax_loss(x, y, counted)


class CaptioningRNN:
    """The course's captioner, with the gradients of all its parameters.

    Parameters
    ----------
    word_to_idx
        The index of each word, with `<NULL>`, `<START>` and `<END>`.
    input_dim, wordvec_dim, hidden_dim
        D, W and H; D is the number of channels of a feature map.
    cell_type
        `"rnn"`, `"lstm"`, or `"attn"` (also `"attention"`): an LSTM with attention.
    ignore_index
        The word that does not count in the loss; `<NULL>` unless given.
    dtype, seed
        Of the initial parameters.

    Raises
    ------
    ConfigurationError
        If the cell is unknown, or a special word has no index.

    Attributes
    ----------
    params
        `W_proj (D, H)`, `b_proj`, `W_embed (V, W)`, `Wx`, `Wh`, `b`, with attention `Wattn`, and
        `W_vocab (H, V)`, `b_vocab`: plain arrays, to be replaced by those of your own module. The
        weights of its `nn.Linear` layers are theirs transposed.
    """

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        ignore_index: int | None = None,
        dtype: Any = numpy.float64,
        seed: int | None = None,
    ) -> None:
        if cell_type not in ("rnn", "lstm", "attn", "attention"):
            raise ConfigurationError(
                f"cell '{cell_type}' is unknown; expected rnn, lstm, attn or attention"
            )
        self.cell_type = "attn" if cell_type == "attention" else cell_type
        if missing := [word for word in (NULL, START, END) if word not in word_to_idx]:
            raise ConfigurationError(
                f"word_to_idx has no {', '.join(missing)}; expected {NULL}, {START} and {END}"
            )
        self.start, self.end, self.null = (word_to_idx[word] for word in (START, END, NULL))
        self.ignore_index = self.null if ignore_index is None else ignore_index
        rng, V, H = numpy.random.default_rng(seed), len(word_to_idx), hidden_dim
        wide = H if cell_type == "rnn" else 4 * H
        shapes = {"W_proj": (input_dim, H), "b_proj": (H,), "W_embed": (V, wordvec_dim)}
        shapes |= {"Wx": (wordvec_dim, wide), "Wh": (H, wide), "b": (wide,)}
        if self.cell_type == "attn":
            shapes["Wattn"] = (H, wide)
        shapes |= {"W_vocab": (H, V), "b_vocab": (V,)}
        self.params: dict[str, Array] = {
            name: (
                rng.standard_normal(shape) / math.sqrt(1 if name == "W_embed" else shape[0])
                if len(shape) == 2
                else numpy.zeros(shape)
            ).astype(dtype)
            for name, shape in shapes.items()
        }

    def loss(self, features: Array, captions: Array) -> tuple[Array, dict[str, Array]]:
        """Return the loss of captions `(N, T+1)`, and its gradients by the names of `params`.

        Features are maps `(N, D, height, width)`; without attention their mean is used, and vectors
        `(N, D)` are taken as well. Raises `ShapeError` if shapes do not fit together.
        """
        p = self.params
        namespace(features, captions, *p.values())
        check_shapes("loss", captions=(captions, "N T"))
        check_indices(namespace(captions), "loss", captions, len(p["b_vocab"]))
        x, of_words = word_embedding_forward(captions[:, :-1], p["W_embed"])
        attends = self.cell_type == "attn"
        projected, of_image = self._projected(features)
        h, of_cell = self._run(x, projected, features)
        scores, of_scores = layers.temporal_affine_forward(h, p["W_vocab"], p["b_vocab"])
        loss, dscores = _softmax_loss(scores, captions[:, 1:], self.ignore_index)
        dh, dW_vocab, db_vocab = layers.temporal_affine_backward(dscores, of_scores)
        found = {"W_vocab": dW_vocab, "b_vocab": db_vocab}
        if attends:
            dx, dA, *rest = attention_backward(dh, x, of_cell, *self._weights())
            found |= dict(zip(("Wx", "Wh", "Wattn", "b"), rest, strict=True))
            _, dW, db = layers.temporal_affine_backward(_regions(dA), of_image)
        else:
            backward = rnn_backward if self.cell_type == "rnn" else layers.lstm_backward
            dx, dh0, *rest = backward(dh, of_cell)
            found |= dict(zip(("Wx", "Wh", "b"), rest, strict=True))
            _, dW, db = layers.affine_backward(dh0, of_image)
        found |= {"W_proj": dW, "b_proj": db, "W_embed": word_embedding_backward(dx, of_words)}
        return loss, {name: found[name] for name in p}

    def sample(self, features: Array, max_length: int = 15) -> Any:
        """Caption images greedily: words `(N, max_length)`, `<NULL>` after `<END>`.

        With attention its weights `(N, max_length, height, width)` are returned as well. Raises
        `ShapeError` if shapes do not fit together, `ConfigurationError` if `max_length` is not at
        least 1.
        """
        check_counts(max_length=max_length)
        p, xp = self.params, namespace(features)
        captions = xp.full((len(features), max_length), self.null)
        projected, _ = self._projected(features)
        maps = self._map(projected, features) if self.cell_type == "attn" else None
        h = projected if maps is None else maps.mean(axis=(2, 3))
        c = xp.zeros_like(h) if maps is None else h
        words, ended = xp.full(len(features), self.start), xp.zeros(len(features), dtype=bool)
        looked = []
        for t in range(max_length):
            x, attention = p["W_embed"][words], tuple[Array, ...]()
            if maps is not None:
                attn, weights = dot_product_attention(h, maps)
                attention = (attn, p["Wattn"])
                looked.append(weights)
            if self.cell_type == "rnn":
                h, _ = rnn_step_forward(x, h, p["Wx"], p["Wh"], p["b"])
            else:
                h, c = lstm_step_forward(x, h, c, p["Wx"], p["Wh"], p["b"], *attention)
            words = layers.affine_forward(h, p["W_vocab"], p["b_vocab"])[0].argmax(axis=1)
            captions[:, t] = xp.where(ended, self.null, words)
            ended |= words == self.end
        return captions if maps is None else (captions, xp.stack(looked, axis=1))

    def _weights(self) -> list[Array]:
        return [self.params[name] for name in ("Wx", "Wh", "Wattn", "b")]

    def _projected(self, features: Array) -> tuple[Array, Any]:
        """Project regions `(N, L, D)` for attention, else vectors `(N, D)`; also the cache."""
        W, b = self.params["W_proj"], self.params["b_proj"]
        if self.cell_type == "attn":
            return layers.temporal_affine_forward(_regions(features), W, b)
        vectors = features if features.ndim == 2 else _regions(features).mean(axis=1)
        return layers.affine_forward(vectors, W, b)

    def _map(self, projected: Array, features: Array) -> Array:
        """Return projected regions `(N, L, H)` as a map `(N, H, height, width)`."""
        N, _, H = projected.shape
        return projected.transpose(0, 2, 1).reshape(N, H, *features.shape[2:])

    def _run(self, x: Array, projected: Array, features: Array) -> tuple[Array, Any]:
        """Return every hidden state, and what the backward pass needs."""
        if self.cell_type == "attn":
            maps = self._map(projected, features)
            return attention_forward(x, maps, *self._weights()), maps
        forward = rnn_forward if self.cell_type == "rnn" else layers.lstm_forward
        return forward(x, projected, *(self.params[name] for name in ("Wx", "Wh", "b")))
