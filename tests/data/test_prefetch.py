"""Batches made ahead are the same batches, and their thread never outlives its epoch."""

import itertools
import threading
from dataclasses import replace

import numpy
import pytest
from tiny import make_tiny

from xpcap.data.dataset import open_dataset
from xpcap.data.features import LazyFeatures
from xpcap.data.minibatch import EpochBatches, made_ahead
from xpcap.errors import DataError
from xpcap.models import CaptioningRNN
from xpcap.optim import Optimizer
from xpcap.training import Schedule, Trainer


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def split(tmp_path):
    return open_dataset(make_tiny(tmp_path / "tiny"), lazy=True).splits["train"]


@pytest.mark.parametrize("options", [{"seed": 3}, {}, {"seed": 0, "with_features": False}])
@pytest.mark.parametrize("size", [7, 48])
def test_prefetched_batches_are_the_same(size, options, split):
    in_memory = replace(split, features=split.features[:])
    plain, ahead = (EpochBatches(of, size, **options) for of in (in_memory, split))
    for epoch in (0, 1):
        numpy.testing.assert_array_equal(ahead.order(epoch), plain.order(epoch))
        for ours, theirs in zip(ahead.epoch(epoch), plain.epoch(epoch), strict=True):
            for one, other in zip(ours, theirs, strict=True):
                if other is None:
                    assert one is None
                else:
                    assert one.dtype == other.dtype
                    numpy.testing.assert_array_equal(one, other)


def test_features_are_read_by_another_thread(split, monkeypatch):
    original, readers = LazyFeatures.__getitem__, []

    def read(features, rows):
        readers.append(threading.get_ident())
        return original(features, rows)

    monkeypatch.setattr(LazyFeatures, "__getitem__", read)
    assert len(list(EpochBatches(split, 8).epoch(0))) == len(readers) == 6
    assert len(set(readers)) == 1
    assert threading.get_ident() not in readers


def test_one_other_thread_is_at_most_two_items_ahead():
    made, makers = threading.Semaphore(0), set()

    def items():
        for k in range(10):
            makers.add(threading.get_ident())
            made.release()
            yield k

    for k in made_ahead(items()):
        for _ in range(3 if k == 0 else 1 if k < 8 else 0):
            assert made.acquire(timeout=10)
        assert not made.acquire(timeout=0.02)
    assert k == 9
    assert len(makers) == 1
    assert makers != {threading.get_ident()}


def test_prefetching_starts_with_the_first_item():
    made_ahead(iter([1]))
    assert list(made_ahead(iter([]))) == []


@pytest.mark.parametrize("error", [DataError("damaged"), KeyboardInterrupt(), SystemExit(3)])
def test_exceptions_are_raised_in_order(error):
    def items():
        yield from range(3)
        raise error

    ahead = made_ahead(items())
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)) as caught:
        next(ahead)
    assert caught.value is error


def test_damage_in_the_file_reaches_the_trainer(tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    split = open_dataset(folder, lazy=True).splits["train"]
    path = folder / "train2014_vgg16_fc7.h5"
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(DataError, match="'features' cannot be read"):
        list(EpochBatches(split, 8, seed=0).epoch(0))


def endless():
    yield from itertools.count()


def test_a_consumer_may_stop_early():
    items = made_ahead(endless())
    assert [next(items), next(items)] == [0, 1]
    items.close()
    for item in made_ahead(endless()):
        if item == 2:
            break
    del items


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_trainer_that_is_interrupted_leaves_no_thread(error, split, tmp_path):
    dataset = open_dataset(tmp_path / "tiny", lazy=True)
    model = CaptioningRNN(dataset.vocabulary.word_to_idx, 7, 8, 8, "rnn", seed=0)
    trainer = Trainer(model, EpochBatches(split, 4, seed=0), Optimizer("sgd"), Schedule(epochs=2))

    def interrupt(trainer):
        if trainer.step == 15:
            raise error

    trainer.on("step", interrupt)
    before = threading.active_count()
    with pytest.raises(error) as caught:
        trainer.run()
    assert (trainer.epoch, trainer.step) == (1, 15)
    assert threading.active_count() == before, caught  # while the traceback still has its frames


def test_closing_waits_for_the_current_item():
    begun, go_on = threading.Event(), threading.Event()
    finished = []

    def items():
        yield 0
        begun.set()
        go_on.wait(10)
        finished.append(True)
        yield 1
        finished.append("more")

    ahead = made_ahead(items())
    assert next(ahead) == 0
    assert begun.wait(10)
    timer = threading.Timer(0.05, go_on.set)
    timer.start()
    ahead.close()
    timer.join()
    assert finished == [True]
