"""Minibatches that are gathered on the device, written out."""

import numpy

from xpcap.backend import to_host
from xpcap.kernels.batches import next_batch


def test_next_batch_written_out(xp):
    """The last of three batches of an epoch of 8 captions: two captions and an empty place."""
    captions = numpy.array([[1, k, 2, 0] if k % 2 else [1, k, k, 2] for k in range(4, 12)])
    order = numpy.array([7, 6, 5, 4, 3, 2, 1, 0])
    host = [captions, 10 * numpy.arange(8), order]
    arrays = [xp.asarray(a.astype(numpy.int32)) for a in host]
    table, position = xp.asarray(numpy.arange(6.0).reshape(3, 2)), xp.asarray(numpy.array([2, 12]))
    words, targets = (xp.asarray(numpy.zeros(9, numpy.int32)) for _ in range(2))
    weight, images = xp.zeros(9), xp.asarray(numpy.zeros(3, numpy.int32))
    settings, streams = xp.zeros(2), xp.asarray(numpy.zeros(2, numpy.uint64))
    next_batch(xp, *arrays, table, position, 0, words, targets, weight, images, settings, streams)
    assert to_host(words).reshape(3, 3).tolist() == [[1, 1, -1], [5, 4, -1], [-1, 4, -1]]
    assert to_host(targets).reshape(3, 3)[:, :2].tolist() == [[5, 4], [2, 4], [0, 2]]
    assert to_host(weight).reshape(3, 3).tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0.5, 0]]
    assert to_host(images)[:2].tolist() == [10, 0]
    assert to_host(settings).tolist() == [4.0, 5.0]
    assert to_host(streams).tolist() == [24, 25]
    assert to_host(position).tolist() == [3, 13]


def test_next_batch_keeps_padding_before_the_last_target(xp):
    captions, zero = numpy.array([[1, 0, 3, 0, 0], [1, 0, 0, 0, 0]], numpy.int32), numpy.zeros
    words, targets, images = (xp.asarray(zero(size, numpy.int32)) for size in (8, 8, 2))
    next_batch(
        xp, xp.asarray(captions), xp.asarray(zero(2, numpy.int32)),
        xp.asarray(numpy.arange(2, dtype=numpy.int32)), xp.asarray(zero((1, 1))),
        xp.asarray(zero(2, numpy.int64)), 0, words, targets, xp.asarray(zero(8)), images,
        xp.asarray(zero(1)), xp.asarray(zero(2, numpy.uint64)),
    )  # fmt: skip
    assert to_host(words).reshape(4, 2).T.tolist() == [[1, 0, -1, -1], [-1, -1, -1, -1]]
