"""The loss that all model families share: cross entropy of packed captions, weighted by word.

The objective owns what is not the model's: the vocabulary layer, softmax and dropout masks. The
memory of all large arrays is the same at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from xpcap.backend import Array, is_host, namespace
from xpcap.data.minibatch import Share
from xpcap.errors import ShapeError
from xpcap.kernels import fastest
from xpcap.kernels.random import keep_parts
from xpcap.layers import dropout
from xpcap.layers._checks import check_indices, check_numbers, check_shapes
from xpcap.layers.affine import column_sum, product
from xpcap.layers.embedding import take_rows
from xpcap.layers.loss import softmax_cross_entropy
from xpcap.layers.random import keep_mask
from xpcap.models.packed_batch import PackedBatch, keep_padding, pack_captions
from xpcap.models.scheduled_sampling import ScheduledSampling
from xpcap.workspace import Workspace, round_up, row_multiple

if TYPE_CHECKING:
    from xpcap.models.model import CaptionModel

_NUMBERED = 2**41  # between the streams of dropout masks with different numbers

Streams = tuple["int | Array", "int | Array"]
"""Numbers of the dropout masks of word vectors, and of hidden states."""


class _Forward(NamedTuple):
    """What the backward pass needs of the forward pass, `hidden` of the rows scored (S, H)."""

    cache: Any
    kept: Array | None
    hidden: Array
    dscores: Array


class Objective:
    """Loss and gradients of a model, in memory that is kept from call to call.

    The model's parameters are read at each call; it stays on its device. `xp` chooses the kernels.
    Where gradients are computed, `label_smoothing`, in [0, 1), is that of the loss; `evaluate` and
    `words` have none. With `scheduled` sampling `loss` reads some of the model's own words.
    """

    def __init__(
        self,
        model: CaptionModel,
        label_smoothing: float = 0.0,
        scheduled: ScheduledSampling | None = None,
    ) -> None:
        self.model = model
        self.label_smoothing = label_smoothing
        self.scheduled = scheduled
        self.xp = fastest(model.backend.xp)
        self.penalty: Array | None = None
        self._space = Workspace(self.xp, numpy.float32)

    def loss(
        self,
        features: Array,
        captions: Array,
        step: int,
        gradients: dict[str, Array],
        share: Share | None = None,
        images: numpy.ndarray | None = None,
        weights: numpy.ndarray | None = None,
    ) -> Array:
        """Compute cross entropy as `CaptionModel.loss` does, and write `gradients` by name.

        The gradients are those of the whole loss, with the `penalty`. Captions are packed on the
        host and best come from it. If they are a `share` of a minibatch, loss and gradients are its
        part of those of the whole. `images (N,)` are the captions' rows of features, if not 0..N-1.

        With `weights (N, T)`, of any sign, the loss is the mean over captions of the sum of the
        words' cross entropies times their weights, without dropout and penalty.
        """
        streams = (2 * step, 2 * step + 1) if self.model.dropout and weights is None else None
        batch = _some(self._pack(features, captions, share, images, weights))
        if self.scheduled is not None and weights is None:
            batch = self._read_own(features, batch, step, self.scheduled)
        return self.compute(features, batch, streams, gradients).sum()

    def evaluate(
        self,
        features: Array,
        captions: Array,
        share: Share | None = None,
        images: numpy.ndarray | None = None,
    ) -> Array:
        """Return the loss without gradients, dropout and label smoothing."""
        batch = _some(self._pack(features, captions, share, images))
        return self._forward(features, batch, None, 0.0)[0].sum()

    def read(self, features: Array, captions: Array) -> tuple[PackedBatch, Array, Any]:
        """Pack captions and run the model over them without dropout; see `CaptionModel.forward`."""
        batch, space = self._pack(features, captions), self._workspace()
        return batch, *self.model.forward(self._gather(features, batch), batch, space)

    def words(self, features: Array, captions: Array) -> tuple[PackedBatch, Array, Array, Any]:
        """Compute the cross entropy of each word, and its gradient at the hidden state.

        Returns
        -------
        batch, losses, dhidden, cache
            The packed captions; `(M,)` in nats, 0 in rows without a target; `(M, H)`, the gradient
            of each row's own loss; and the cache of `CaptionModel.forward`.
        """
        batch, hidden, cache = self.read(features, captions)
        xp, M = self.xp, batch.packing.total
        rows = xp.arange(M) if batch.scored is None else batch.scored
        targets, weight = xp.zeros(M, batch.targets.dtype), xp.zeros(M, hidden.dtype)
        targets[rows], weight[rows] = batch.targets, batch.weight > 0
        W, b = self.model.vocabulary_layer(self.model.params)
        scores, losses = hidden @ W, xp.empty(M, hidden.dtype)
        softmax_cross_entropy(xp, scores, b, targets, weight, losses, 0.0)
        return batch, losses, scores @ W.T, cache

    def compute(
        self,
        features: Array,
        batch: PackedBatch,
        streams: Streams | None,
        gradients: dict[str, Array],
    ) -> Array:
        """Compute the losses of a packed batch on the device, and write the gradients by name.

        Captions have the features of `batch.images`; `streams` are of the dropout masks, None drops
        nothing. Returns the loss of each target word `(S,)`; the next call writes there again.
        `penalty` becomes what each caption adds to it, `(N,)`, or None.
        """
        losses, forward = self._forward(features, batch, streams, self.label_smoothing)
        self.penalty = self.model.penalty(forward.cache)
        self._backward(batch, forward, gradients)
        return losses

    def _read_own(
        self, features: Array, batch: PackedBatch, step: int, scheduled: ScheduledSampling
    ) -> PackedBatch:
        """Replace some of the words to read by the model's own, without dropout."""
        model, space = self.model, self._workspace()
        hidden, _ = model.forward(self._gather(features, batch), batch, space)
        W, b = model.vocabulary_layer(model.params)
        scores = batch.packing.empty(space, "scores", len(b))
        product(self.xp, hidden, W, scores)
        scores += b
        kept = model.null, model.start_word, model.end
        return scheduled.draw(scores, batch, kept, model.seed, step)

    def _pack(
        self,
        features: Array,
        captions: Array,
        share: Share | None = None,
        images: numpy.ndarray | None = None,
        weights: numpy.ndarray | None = None,
    ) -> PackedBatch:
        """Pack captions; those that are on a device stay there, padding and all."""
        model, dtype = self.model, self._dtype()
        fits = images is not None or features.shape[:1] == captions.shape[:1]
        if captions.ndim != 2 or captions.shape[1] < 2 or not fits:
            raise ShapeError(
                "expected captions (N, T+1) with T > 0 and features (N, ...), got"
                f" {tuple(captions.shape)} and {tuple(features.shape)}"
            )
        W, b = model.vocabulary_layer(model.params)
        check_shapes("loss", W_vocab=(W, "H V"), b_vocab=(b, "V"))
        check_numbers("loss", features=features)
        check_indices(namespace(captions), "captions", captions, len(b))
        if not is_host(namespace(captions)):
            return keep_padding(captions, model.null, dtype)
        to_device = model.backend.to_device
        return pack_captions(captions, model.null, dtype, to_device, share, weights, images)

    def _forward(
        self, features: Array, batch: PackedBatch, streams: Streams | None, smoothing: float
    ) -> tuple[Array, _Forward]:
        model, packing = self.model, batch.packing
        namespace(features, *model.params.values())
        space, xp = self._workspace(), self.xp
        W, b = model.vocabulary_layer(model.params)
        S, (H, V) = len(batch.targets), W.shape
        images = self._gather(features, batch)
        kept = None
        if streams is not None:
            batch = batch._replace(
                distinct=None,
                drop=self._dropping(batch, streams[0]),
            )
        hidden, cache = model.forward(images, batch, space)
        if streams is not None:
            kept = self._draw("kept hidden", batch, H, streams[1])
            dropped = packing.empty(space, "dropped", H)
            dropped[...] = hidden
            self._drop(dropped, kept)
            hidden = dropped
        if batch.scored is not None:
            everywhere, hidden = hidden, space.empty("scored", S, H, most=packing.capacity)
            take_rows(xp, everywhere, batch.scored, hidden)
        stored = round_up(V, row_multiple(model.backend.xp))
        scores = space.empty("scores", S, stored, most=packing.capacity)[:, :V]
        product(xp, hidden, W, scores)
        losses = space.empty("losses", S, most=packing.capacity)
        softmax_cross_entropy(xp, scores, b, batch.targets, batch.weight, losses, smoothing)
        return losses, _Forward(cache, kept, hidden, scores)

    def _backward(self, batch: PackedBatch, forward: _Forward, gradients: dict[str, Array]) -> None:
        model, space, xp = self.model, self._space, self.xp
        cache, kept, hidden, dscores = forward
        (W, _), (dW, db) = map(model.vocabulary_layer, (model.params, gradients))
        if dW.strides[0] < dW.strides[1]:  # the transpose of an array
            product(xp, dscores.T, hidden, dW.T)
        else:
            product(xp, hidden.T, dscores, dW)
        column_sum(xp, dscores, db)
        dhidden = batch.packing.empty(space, "dhidden", hidden.shape[1])
        if batch.scored is None:
            product(xp, dscores, W.T, dhidden)
        else:
            product(xp, dscores, W.T, hidden)  # in its memory
            dhidden[...] = 0
            dhidden[batch.scored] = hidden
        if kept is not None:
            self._drop(dhidden, kept)
        model.backward(dhidden, cache, gradients)

    def _dtype(self) -> numpy.dtype:
        return numpy.result_type(*(value.dtype for value in self.model.params.values()))

    def _workspace(self) -> Workspace:
        """Return the memory of the calls before, or new memory where the dtype has changed."""
        if self._space.dtype != self._dtype():
            self._space = Workspace(self.xp, self._dtype())
        return self._space

    def _gather(self, features: Array, batch: PackedBatch) -> Array:
        """Return the features that `CaptionModel.forward` is given."""
        images = batch.images if batch.distinct_images is None else batch.distinct_images
        space, shape = self._space, (len(images), math.prod(features.shape[1:]))
        rows, found = features.reshape(len(features), shape[1]), space.empty("features", *shape)
        if features.dtype == found.dtype:
            take_rows(self.xp, rows, images, found)
        else:
            gathered = space.empty("gathered", *shape, dtype=features.dtype)
            take_rows(self.xp, rows, images, gathered)
            found[...] = gathered.astype(found.dtype)
        return found.reshape(len(images), *features.shape[1:])

    def _dropping(self, batch: PackedBatch, stream: int | Array) -> Callable[..., None]:
        """Return a function that applies the same dropout mask at each call with a number."""
        kept: dict[int, Array] = {}

        def drop(values: Array, number: int = 0, order: Array | None = None) -> None:
            if number not in kept:
                which = stream + number * _NUMBERED
                mask = self._draw(f"kept {number}", batch, values.shape[1], which)
                kept[number] = mask if order is None else mask[order]
            self._drop(values, kept[number])

        return drop

    def _draw(self, name: str, batch: PackedBatch, width: int, stream: int | Array) -> Array:
        """Return which elements `(M, width)` dropout keeps: those of the unpacked batch's mask."""
        space, packing = self._space, batch.packing
        which = dropout.threshold(self.model.dropout), self.model.seed, stream
        kept = packing.empty(space, name, width, dtype=bool)
        if batch.all_places is not None and is_host(self.xp):
            order, starts = _spans(batch.places)  # what is between belongs to other shares
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


def _some(batch: PackedBatch) -> PackedBatch:
    if not batch.packing.captions:
        raise ShapeError("expected captions (N, T+1) with N > 0, got none")
    return batch


def _spans(places: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return rows in the order of their places `(M,)`, and where in it places are left out."""
    order = numpy.argsort(places)
    return order, numpy.flatnonzero(numpy.diff(places[order], prepend=-2) > 1)
