"""Gathering minibatches where the data are, so that nothing has to come from the host."""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, Namespace
from xpcap.operations import operation


class BatchArrays(NamedTuple):
    """What a training step reads, time-major, T N places; written by `next_batch`.

    `words`, `targets (T N,)` int32; `weight (T N,)`: what each place counts, 1 over the captions of
    the batch, or 0 where the target is padding. A word is -1 where neither its target nor any later
    one of its caption counts, so that its vector has no gradient. `images (N,)` int32;
    `settings (K,)` of the update rule; `streams (2,)` uint64 of the dropout masks.
    """

    words: Array
    targets: Array
    weight: Array
    images: Array
    settings: Array
    streams: Array


@operation
def next_batch(
    xp: Namespace,
    captions: Array,
    image_idxs: Array,
    order: Array,
    table: Array,
    position: Array,
    null: int,
    words: Array,
    targets: Array,
    weight: Array,
    images: Array,
    settings: Array,
    streams: Array,
) -> None:
    """Gather one minibatch of an epoch, as `BatchArrays` says, and advance to the next.

    Of all `captions (M, T+1)` int32, caption m belongs to image `image_idxs[m]`; `order (M,)` is
    the epoch's, and `table (batches, K)` has the settings of its steps. `position (2,)` int64 is
    the number of the batch in the epoch, and of the step in the run; both go up by one. In the last
    batch, places without a caption have weight 0. The streams are 2 step and 2 step + 1.
    """
    N, T, M = images.shape[0], captions.shape[1] - 1, order.shape[0]
    place = position[:1] * N + xp.arange(N)
    there = place < M
    rows = order[xp.minimum(place, M - 1)]
    batch = captions[rows].T
    counted = (batch[1:] != null) & there[None, :]
    read = xp.cumsum(counted[::-1], axis=0)[::-1] > 0
    words[...] = xp.where(read, batch[:-1], -1).reshape(-1)
    targets[...] = batch[1:].reshape(-1)
    share = xp.ones(1, dtype=weight.dtype) / there.sum().astype(weight.dtype)
    weight[...] = (counted * xp.broadcast_to(share, (T, N))).reshape(-1)
    images[...] = image_idxs[rows]
    settings[...] = table[position[:1]].reshape(-1)
    streams[...] = (2 * position[1:] + xp.arange(2)).astype(streams.dtype)
    position += 1
