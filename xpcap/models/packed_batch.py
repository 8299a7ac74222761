"""Captions of different lengths as rows, one for each word that is read, without padding.

Captions are sorted by length, and each step has those still active: where all later targets are
`<NULL>`, every gradient is exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

from xpcap.backend import Array, namespace
from xpcap.data.minibatch import Share
from xpcap.layers.embedding import add_rows, take_rows
from xpcap.layers.recurrence import Packing
from xpcap.workspace import Workspace


class PackedBatch(NamedTuple):
    """A batch of N captions, packed to M rows, one for each word that is read."""

    packing: Packing  # the rows of each step
    images: Array  # (N,): the row of the features that belongs to each caption
    words: Array  # (M,): the word read
    targets: Array  # (S,): the word to predict
    weight: Array  # (S,): what its cross entropy counts in the loss
    places: Array  # (M,): n T + t, the position of a row in the batch as it was given; for dropout
    distinct: Array | None = None  # (D,): the words read, each once
    which: Array | None = None  # (M,): which of them each row reads
    scored: Array | None = None  # (S,): the rows that have a target; None if all have
    all_places: int | None = None  # N T of the whole minibatch, if this is a share of one
    drop: Callable[..., None] = lambda values, number=0, order=None: None
    """Applies the dropout mask of a number to values `(M, W)`, or to their gradient, in place.

    With `order (M,)`, their rows are these rows of the batch.
    """
    share: Array | None = None  # (N,): what each caption counts; None: as its words do
    distinct_images: Array | None = None  # (I,): rows of the features, each once; None: `images`
    which_image: Array | None = None  # (N,): which of them each caption has; None: its own

    def to_captions(self, of_images: Array, name: str, space: Workspace) -> Array:
        """Return what belongs to images `(I, ...)` for each caption, `(N, ...)`."""
        if self.which_image is None:
            return of_images
        rows = of_images.reshape(len(of_images), -1)
        shape, dtype = (len(self.images), rows.shape[1]), of_images.dtype
        found = space.empty(f"{name} of captions", *shape, dtype=dtype)
        take_rows(space.xp, rows, self.which_image, found)
        return found.reshape(len(found), *of_images.shape[1:])

    def to_images(self, gradient: Array, name: str, space: Workspace) -> Array:
        """Return the gradient of what `to_captions` was given, `(I, ...)`."""
        if self.distinct_images is None:
            return gradient
        rows = gradient.reshape(len(gradient), -1)
        sums = space.empty(f"{name} of images", len(self.distinct_images), rows.shape[1])
        add_rows(space.xp, self.which_image, rows, sums)
        return sums.reshape(len(sums), *gradient.shape[1:])

    def of_captions(self) -> Array:
        """Return what each caption `(N,)` counts in the loss, 0 if it has no word to predict."""
        if self.share is not None:
            return self.share
        return self.weight.reshape(-1, self.packing.captions).max(axis=0)

    def counted(self) -> Array:
        """Return which of the rows `(M,)` have a word to predict."""
        found = namespace(self.words).zeros(self.packing.total, dtype=bool)
        found[slice(None) if self.scored is None else self.scored] = self.weight != 0
        return found


def pack_captions(
    captions: numpy.ndarray,
    null: int,
    dtype: Any,
    to_device: Callable[[numpy.ndarray], Array],
    share: Share | None = None,
    weights: numpy.ndarray | None = None,
    images: numpy.ndarray | None = None,
) -> PackedBatch:
    """Sort captions `(N, T+1)` by length, longest first, and pack them, on the host.

    They are padded with the word `null`; weights are of `dtype`. If the captions are a `share` of a
    minibatch, N is that of the whole in weights and places. `weights (N, T)` are what each target
    counts, instead of 1 for all that are not `null`; then there is no penalty. `images (N,)` are
    the captions' rows of features, if not 0..N-1.
    """
    N, T = captions.shape[0], captions.shape[1] - 1
    whole = max(1, N if share is None else share.captions)
    counted = captions[:, 1:] != null if weights is None else weights != 0
    lengths = ((T - counted[:, ::-1].argmax(axis=1)) * counted.any(axis=1)).astype(numpy.int64)
    order = numpy.argsort(-lengths, kind="stable")
    sizes = (lengths[None, :] > numpy.arange(lengths.max(initial=0))[:, None]).sum(axis=1)
    caption = numpy.concatenate([order[:size] for size in sizes] or [order[:0]])
    time = numpy.repeat(numpy.arange(len(sizes)), sizes)
    words, scored = captions[caption, time], counted[caption, time]
    distinct, which = numpy.unique(words, return_inverse=True)
    targets = captions[caption, time + 1][scored]
    if weights is None:
        weight, penalized = numpy.full(len(targets), 1 / whole, dtype), lengths[order] > 0
    else:
        weight = (weights[caption, time][scored] / whole).astype(dtype)
        penalized = numpy.zeros(N, dtype=bool)
    images = order if images is None else images[order]
    distinct_images, which_image = numpy.unique(images, return_inverse=True)
    shared = 0 < 2 * len(distinct_images) <= N  # else copies cost more than they save
    return PackedBatch(
        Packing(N, sizes.tolist(), capacity=N * T),
        to_device(images),
        to_device(words),
        to_device(targets),
        to_device(weight),
        to_device((caption if share is None else share.places[caption]) * T + time),
        to_device(distinct),
        to_device(which),
        None if scored.all() else to_device(numpy.flatnonzero(scored)),
        None if share is None else whole * T,
        share=to_device(penalized.astype(dtype) / whole),
        distinct_images=to_device(distinct_images) if shared else None,
        which_image=to_device(which_image) if shared else None,
    )


def keep_padding(captions: Array, null: int, dtype: Any) -> PackedBatch:
    """Pack captions `(N, T+1)` on a device without looking at them: all N have T steps."""
    xp, (N, T) = namespace(captions), (captions.shape[0], captions.shape[1] - 1)
    targets = captions[:, 1:].T.reshape(-1)
    places = xp.arange(N)[None, :] * T + xp.arange(T)[:, None]
    return PackedBatch(
        Packing(N, [N] * T),
        xp.arange(N),
        captions[:, :-1].T.reshape(-1),
        targets,
        (targets != null).astype(dtype) / max(N, 1),
        places.reshape(-1),
    )
