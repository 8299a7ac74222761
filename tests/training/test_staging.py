"""Features on their way to a GPU, against a CUDA that keeps a diary instead."""

from types import SimpleNamespace

import numpy
import pytest
from tiny import make_tiny

from xpcap.backend import Backend
from xpcap.data.dataset import open_dataset
from xpcap.data.minibatch import EpochBatches
from xpcap.training.staging import StagedBatches


class DeviceArray(numpy.ndarray):
    def set(self, values, stream):
        self.diary.append(("copy", stream.name, int(self.buffer)))
        self[...] = values

    def __array_finalize__(self, parent):
        self.diary, self.buffer = getattr(parent, "diary", None), getattr(parent, "buffer", None)


class FakeCUDA:
    """Streams and events that write down what waits for what."""

    def __init__(self):
        self.diary, self.events, self.buffers = [], 0, 0
        self.main = self._stream("main")

    def _stream(self, name):
        return SimpleNamespace(
            name=name, wait_event=lambda event: self.diary.append(("wait", name, event.number))
        )

    def Stream(self, non_blocking):
        assert non_blocking
        return self._stream("copies")

    def get_current_stream(self):
        return self.main

    def Event(self, disable_timing):
        self.events += 1
        number = self.events
        return SimpleNamespace(
            number=number,
            record=lambda stream: self.diary.append(("record", stream.name, number)),
            synchronize=lambda: self.diary.append(("synchronize", number)),
        )

    def alloc_pinned_memory(self, size):
        return bytearray(size)

    def Device(self, number):
        return SimpleNamespace(__enter__=None)

    def empty(self, shape, dtype):
        array = numpy.full(shape, numpy.nan, dtype).view(DeviceArray)
        array.diary, array.buffer = self.diary, self.buffers
        self.buffers += 1
        return array


@pytest.fixture(params=[False, True], ids=["vectors", "regions"])
def split(tmp_path, request):
    return open_dataset(make_tiny(tmp_path / "tiny", regions=request.param)).splits["train"]


def staged(split, size):
    cuda = FakeCUDA()
    backend = Backend("gpu:0", SimpleNamespace(cuda=cuda, empty=cuda.empty))
    return StagedBatches(EpochBatches(split, size, seed=3), backend), cuda.diary


@pytest.mark.parametrize("size", [7, 1000])
def test_each_batch_has_its_own_features(size, split):
    size = min(size, len(split))
    batches, _ = staged(split, size)
    plain = EpochBatches(split, size, seed=3)
    assert len(batches) == len(plain)
    for epoch in range(2):
        for ours, theirs in zip(batches.epoch(epoch), plain.epoch(epoch), strict=True):
            numpy.testing.assert_array_equal(numpy.asarray(ours.features), theirs.features)
            numpy.testing.assert_array_equal(ours.captions, theirs.captions)


def test_the_next_copy_begins_before_a_batch_is_handed_out_and_each_waits_for_its_own(split):
    batches, diary = staged(split, 7)
    sent = {buffer: buffer + 1 for buffer in range(2)}  # the event of each buffer's copy
    for k, _ in enumerate(batches.epoch(0)):
        diary.append(("compute", k))
    copies = [n for n, entry in enumerate(diary) if entry[0] == "copy"]
    steps = [n for n, entry in enumerate(diary) if entry[0] == "compute"]
    assert len(copies) == len(steps) == len(batches)
    for k, (copy, step) in enumerate(zip(copies, steps, strict=True)):
        event = sent[k % 2]
        assert diary[copy] == ("copy", "copies", k % 2)
        # the pinned memory is free, and what was launched before has been done with the buffer
        assert diary[copy - 3] == ("synchronize", event)
        assert diary[copy - 2][:2] == ("record", "main")
        assert diary[copy - 1] == ("wait", "copies", diary[copy - 2][2])
        assert diary[copy + 1] == ("record", "copies", event)
        # what is computed next waits for this copy, and the next copy has begun
        assert diary[step - 1] == ("wait", "main", event)
        assert k + 1 == len(copies) or copies[k + 1] < step
        assert k < 2 or steps[k - 2] < copy
