"""The captioner's loss without waste: the same numbers as `CaptioningRNN.loss`, in less time.

* No padding: captions are sorted by length, and each step takes those that still go on. Where all
  later targets are `<NULL>`, every gradient is exactly zero.
* Each distinct word is projected once: a batch of 128 COCO captions has 1,432 words to read, but
  only 358 different ones. (With dropout each place has a word vector of its own.)
* The memory of all large arrays is the same at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

from xpcap.backend import Array, is_host, namespace, to_host
from xpcap.data.minibatch import Share
from xpcap.errors import ShapeError
from xpcap.kernels import fastest
from xpcap.kernels.products import product
from xpcap.kernels.random import keep_mask, keep_parts
from xpcap.kernels.scatter import add_rows, take_rows
from xpcap.kernels.softmax import softmax_cross_entropy
from xpcap.kernels.sums import column_sum
from xpcap.layers import dropout
from xpcap.layers._checks import check_indices, check_shapes
from xpcap.layers._sequence import Packing
from xpcap.models.captioner import CaptioningRNN
from xpcap.workspace import Workspace, round_up, row_multiple


class PackedCaptions(NamedTuple):
    """A batch of N captions, packed to M rows, a row a word that is read.

    Parameters
    ----------
    packing
        Which rows are which step's.
    images
        `(N,)`: which row of the features belongs to each caption.
    words
        `(M,)`: the word read.
    targets, weight
        `(S,)`: the word to predict, and what that counts: 1/N, or 0.
    places
        `(M,)`: n T + t, where a row is in the batch as it was given; for dropout.
    distinct, which
        `(D,)` and `(M,)`: the words read, each once, and which of them is each row's; or None.
    scored
        `(S,)`: the rows that have a target, or None if all have.
    all_places
        N T of the whole minibatch, where this is a share of one.
    """

    packing: Packing
    images: Array
    words: Array
    targets: Array
    weight: Array
    places: Array
    distinct: Array | None = None
    which: Array | None = None
    scored: Array | None = None
    all_places: int | None = None


def pack_captions(
    captions: numpy.ndarray,
    null: int,
    dtype: Any,
    to_device: Callable[[numpy.ndarray], Array],
    share: Share | None = None,
) -> PackedCaptions:
    """Sort captions by length, longest first, and pack them, on the host.

    Parameters
    ----------
    captions
        Word indices `(N, T+1)` on the host.
    null
        The word that pads them.
    dtype
        Of the weights.
    to_device
        Takes the arrays to where they are needed.
    share
        Which part of a minibatch they are, if not a whole one: N is that of the whole then, in the
        weights and in the places.
    """
    N, T = captions.shape[0], captions.shape[1] - 1
    whole = N if share is None else share.captions
    counted = captions[:, 1:] != null
    lengths = ((T - counted[:, ::-1].argmax(axis=1)) * counted.any(axis=1)).astype(numpy.int64)
    order = numpy.argsort(-lengths, kind="stable")
    sizes = (lengths[None, :] > numpy.arange(lengths.max(initial=0))[:, None]).sum(axis=1)
    caption = numpy.concatenate([order[:size] for size in sizes] or [order[:0]])
    time = numpy.repeat(numpy.arange(len(sizes)), sizes)
    words, scored = captions[caption, time], counted[caption, time]
    distinct, which = numpy.unique(words, return_inverse=True)
    targets = captions[caption, time + 1][scored]
    return PackedCaptions(
        Packing(N, sizes.tolist(), capacity=N * T),
        to_device(order),
        to_device(words),
        to_device(targets),
        to_device(numpy.full(len(targets), 1 / whole, dtype)),
        to_device((caption if share is None else share.places[caption]) * T + time),
        to_device(distinct),
        to_device(which),
        None if scored.all() else to_device(numpy.flatnonzero(scored)),
        None if share is None else whole * T,
    )


def _runs(places: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the rows in the order of their places `(M,)`, and where in it places are left out."""
    order = numpy.argsort(places)
    return order, numpy.flatnonzero(numpy.diff(places[order], prepend=-2) > 1)


class _Forward(NamedTuple):
    """What the backward pass needs of the forward pass, beside the recurrent run itself.

    `images (N, D)`; `vectors`: of the distinct words, or of all rows; `hidden` and `dscores` of the
    rows scored. The masks are None without dropout.
    """

    images: Array
    vectors: Array
    kept_words: Array | None
    run: Any
    kept_hidden: Array | None
    hidden: Array
    dscores: Array


class PackedLoss:
    """A captioner's loss and gradients, in memory that is kept from call to call.

    Parameters
    ----------
    model
        Whose parameters are read at each call; it stays on its device.

    Attributes
    ----------
    xp
        The array namespace, which chooses the kernels.
    """

    def __init__(self, model: CaptioningRNN) -> None:
        self.model = model
        self.xp = fastest(model.backend.xp)
        self._space = Workspace(self.xp, numpy.float32)

    def loss(
        self,
        features: Array,
        captions: Array,
        step: int,
        gradients: dict[str, Array],
        share: Share | None = None,
    ) -> Array:
        """Compute what `CaptioningRNN.loss` computes, and write the gradients where they shall be.

        Parameters
        ----------
        features, captions, step
            As for `CaptioningRNN.loss`; captions are packed on the host and best come from there.
        gradients
            By name, arrays of the parameters' shapes, written.
        share
            Which part of a minibatch the captions are: loss and gradients are then its part of
            those of the whole.

        Returns
        -------
        array
            The loss, of no axes.
        """
        streams = (2 * step, 2 * step + 1) if self.model.dropout else None
        batch = self._pack(features, captions, share)
        return self.compute(features, batch, streams, gradients).sum()

    def compute(
        self,
        features: Array,
        batch: PackedCaptions,
        streams: tuple[int | Array, int | Array] | None,
        gradients: dict[str, Array],
    ) -> Array:
        """Compute losses and gradients of a batch that is packed already.

        Parameters
        ----------
        features
            `(rows, D)`, of which `batch.images` names each caption's.
        batch
            On the device.
        streams
            Of the dropout masks of word vectors and of hidden states; None drops nothing.
        gradients
            By name, written.

        Returns
        -------
        array
            `(S,)`: what each target word adds to the loss; the next call writes there again.
        """
        losses, forward = self._forward(features, batch, streams)
        self._backward(batch, forward, gradients)
        return losses

    def evaluate(self, features: Array, captions: Array, share: Share | None = None) -> Array:
        """Return the loss without gradients and without dropout, as `CaptioningRNN.evaluate`."""
        return self._forward(features, self._pack(features, captions, share), None)[0].sum()

    def _pack(self, features: Array, captions: Array, share: Share | None = None) -> PackedCaptions:
        model, params, host = self.model, self.model.params, to_host(captions)
        if host.ndim != 2 or host.shape[1] < 2 or not len(host):
            raise ShapeError(f"expected captions (N, T+1) with N, T > 0, got {host.shape}")
        check_shapes(
            "loss", features=(features, "N D"), captions=(host[:, 0], "N"),
            W_proj=(params["W_proj"], "D H"), W_vocab=(params["W_vocab"], "H V"),
            b_vocab=(params["b_vocab"], "V"), W_embed=(params["W_embed"], "V W"),
        )  # fmt: skip
        check_indices(numpy, "captions", host, len(params["b_vocab"]))
        dtype = params["W_proj"].dtype
        return pack_captions(host, model.null, dtype, model.backend.to_device, share)

    def _forward(
        self,
        features: Array,
        batch: PackedCaptions,
        streams: tuple[int | Array, int | Array] | None,
    ) -> tuple[Array, _Forward]:
        params, cell, packing = self.model.params, self.model.cell, batch.packing
        namespace(features, *params.values())
        space, xp = self._workspace(params["W_proj"].dtype), self.xp
        H, V = params["W_vocab"].shape
        N, S = packing.captions, len(batch.targets)

        images = space.empty("images", N, features.shape[1])
        gathered = images
        if features.dtype != images.dtype:
            gathered = space.empty("gathered", *images.shape, dtype=features.dtype)
        take_rows(xp, features, batch.images, gathered)
        if gathered is not images:
            images[...] = gathered.astype(images.dtype)
        h0 = space.empty("h0", N, H)
        product(xp, images, params["W_proj"], h0)
        h0 += params["b_proj"]

        gates = packing.empty(space, "gates", cell.gates * H)
        kept_words = kept_hidden = None
        b = params["b"]
        if streams is None and batch.distinct is not None:
            vectors = self._vectors(batch.distinct, V)
            projected = space.empty("projected", len(vectors), gates.shape[1], most=V)
            product(xp, vectors, params["Wx"], projected)
            projected += b
            b = None
            take_rows(xp, projected, batch.which, gates)
        else:
            vectors = self._vectors(batch.words, packing.capacity)
            if streams is not None:
                kept_words = self._draw("kept_words", batch, vectors.shape[1], streams[0])
                self._drop(vectors, kept_words)
            product(xp, vectors, params["Wx"], gates)
        run = cell.unroll(gates, b, h0, *self._recurrent_weights(), packing, space)

        hidden = run.h
        if streams is not None:
            kept_hidden = self._draw("kept_hidden", batch, H, streams[1])
            hidden = packing.empty(space, "dropped", H)
            hidden[...] = run.h
            self._drop(hidden, kept_hidden)
        if batch.scored is not None:
            everywhere, hidden = hidden, space.empty("scored", S, H, most=packing.capacity)
            take_rows(xp, everywhere, batch.scored, hidden)
        stored = round_up(V, row_multiple(self.model.backend.xp))
        scores = space.empty("scores", S, stored, most=packing.capacity)[:, :V]
        product(xp, hidden, params["W_vocab"], scores)
        losses = space.empty("losses", S, most=packing.capacity)
        softmax_cross_entropy(xp, scores, params["b_vocab"], batch.targets, batch.weight, losses)
        return losses, _Forward(images, vectors, kept_words, run, kept_hidden, hidden, scores)

    def _backward(
        self, batch: PackedCaptions, forward: _Forward, gradients: dict[str, Array]
    ) -> None:
        params, cell, packing, space = (
            self.model.params,
            self.model.cell,
            batch.packing,
            self._space,
        )
        images, vectors, kept_words, run, kept_hidden, hidden, dscores = forward
        xp = space.xp

        product(xp, hidden.T, dscores, gradients["W_vocab"])
        column_sum(xp, dscores, gradients["b_vocab"])
        dh = packing.empty(space, "dh", hidden.shape[1])
        if batch.scored is None:
            product(xp, dscores, params["W_vocab"].T, dh)
        else:
            product(xp, dscores, params["W_vocab"].T, hidden)
            dh[...] = 0
            dh[batch.scored] = hidden
        if kept_hidden is not None:
            self._drop(dh, kept_hidden)

        weights = self._recurrent_weights()
        dax, dah, dh0, *others = cell.unroll_backward(dh, run, weights[0], packing, space)
        for name, gradient in zip(cell.weights[3:], others, strict=True):
            gradients[name][...] = gradient
        product(xp, run.prev_h.T, dah, gradients["Wh"])
        once = kept_words is None and batch.distinct is not None
        if once:
            dprojected = space.empty("projected", len(vectors), dax.shape[1])
            add_rows(xp, batch.which, dax, dprojected)
            dax = dprojected
        product(xp, vectors.T, dax, gradients["Wx"])
        column_sum(xp, dax, gradients["b"])
        product(xp, dax, params["Wx"].T, vectors)  # from here on the vectors' gradient
        if kept_words is not None:
            self._drop(vectors, kept_words)
        if once:
            gradients["W_embed"][...] = 0
            gradients["W_embed"][batch.distinct] = vectors
        else:
            add_rows(xp, batch.words, vectors, gradients["W_embed"])

        product(xp, images.T, dh0, gradients["W_proj"])
        column_sum(xp, dh0, gradients["b_proj"])

    def _workspace(self, dtype: numpy.dtype) -> Workspace:
        """Return the memory of the calls before, or new memory where the dtype has changed."""
        if self._space.dtype != dtype:
            self._space = Workspace(self.xp, dtype)
        return self._space

    def _recurrent_weights(self) -> list[Array]:
        """Return Wh and what else the cell has beside Wx and b."""
        names = self.model.cell.weights
        return [self.model.params[name] for name in (names[1], *names[3:])]

    def _vectors(self, words: Array, most: int) -> Array:
        """Return the vectors of words `(D, W)`."""
        W_embed = self.model.params["W_embed"]
        vectors = self._space.empty("vectors", len(words), W_embed.shape[1], most=most)
        take_rows(self.xp, W_embed, words, vectors)
        return vectors

    def _draw(self, name: str, batch: PackedCaptions, width: int, stream: int | Array) -> Array:
        """Return which elements `(M, width)` dropout keeps: those of the unpacked batch's mask."""
        space, packing = self._space, batch.packing
        which = dropout.threshold(self.model.dropout), self.model.seed, stream
        kept = packing.empty(space, name, width, dtype=bool)
        if batch.all_places is not None and is_host(self.model.backend.xp):
            order, starts = _runs(batch.places)  # the other ranks draw what is between
            drawn = space.empty("kept", len(order), width, most=packing.capacity, dtype=bool)
            firsts = (batch.places[order[starts]] * width).tolist()
            parts = numpy.split(drawn.reshape(-1), starts[1:] * width)
            keep_parts(*which, zip(firsts, parts, strict=False))  # without words there is one
            kept[order] = drawn
            return kept
        places = batch.all_places or packing.capacity
        everywhere = space.empty("kept", places, width, dtype=bool)
        keep_mask(space.xp, *which, everywhere.reshape(-1))
        take_rows(space.xp, everywhere, batch.places, kept)
        return kept

    def _drop(self, values: Array, kept: Array) -> None:
        values *= kept
        values *= dropout.scale(self.model.dropout)
