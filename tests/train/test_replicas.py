"""What ranks have in common is written by one when no other reads it any more."""

import sys
import time

import numpy
import pytest
from mpi import together

from xpcap.data.minibatch import Batch, Share
from xpcap.models import CaptioningRNN
from xpcap.optim import Optimizer
from xpcap.train import replicas
from xpcap.train.replicas import InCommon, Separate, replicate
from xpcap.train.step import TrainingStep

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3, "cat": 4, "sits": 5}
RNG = numpy.random.default_rng(6)
CAPTIONS, FEATURES = RNG.integers(1, len(WORDS), (6, 5)), RNG.standard_normal((6, 3))
LATE = 0.02  # seconds in which the other ranks have long gone on, if they do not wait


def separate(monkeypatch):
    monkeypatch.setattr(replicas, "share_memory", lambda *_: None)


def step_of(ranks):
    model = CaptioningRNN(WORDS, 3, 4, 5, "lstm", numpy.float64, seed=0, backend="cpu")
    return TrainingStep(model, Optimizer("adam", learning_rate=0.1), 0.5, ranks=ranks)


def take(step, number):
    ranks = step.ranks
    places = numpy.arange(6)[ranks.rank :: ranks.size]
    share = Share(places, 6, 0) if ranks.size > 1 else None
    step(Batch(CAPTIONS[places], FEATURES[places], None, share), number, 1.0)


def copies(params):
    return {name: value.copy() for name, value in params.items()}


def late(work):
    def done(*args):
        time.sleep(LATE)
        return work(*args)

    return done


SLOW = {
    "gradients": lambda step: setattr(step.packed, "loss", late(step.packed.loss)),
    "update": lambda step: setattr(step.optimizer, "update", late(step.optimizer.update)),
    "nothing": lambda step: None,
}


@pytest.mark.parametrize("what", SLOW)
@pytest.mark.parametrize("common", [True, False])
def test_ranks_of_another_pace_train_as_one(monkeypatch, common, what):
    if not common:
        separate(monkeypatch)

    def work(own):
        step, seen = step_of(own), []
        if own.rank == own.size - 1:
            SLOW[what](step)
        for number in range(4):
            take(step, number)
            if what == "nothing" and own.rank == own.size - 1:
                time.sleep(LATE)
            seen.append(copies(step.model.params))
        return seen

    expected = together(1, work)[0]
    for seen in together(3, work):
        for params, others in zip(expected, seen, strict=True):
            for name, value in params.items():
                numpy.testing.assert_allclose(others[name], value, rtol=1e-9, atol=1e-12)


def test_one_that_goes_back_waits_for_those_who_read():
    def work(own):
        step = step_of(own)
        first, _ = step.state()
        first = copies(first)
        take(step, 0)
        now = copies(step.model.params)
        if own.rank:
            time.sleep(LATE)
        same = all((now[name] == value).all() for name, value in step.model.params.items())
        step.restore(first, {}, {})
        assert all((first[name] == value).all() for name, value in step.model.params.items())
        return same

    assert together(2, work) == [True, True]


def test_a_new_array_in_place_of_a_parameter_is_taken_over():
    """Each rank puts one of its own there, made of what all had in common."""

    def work(own):
        step = step_of(own)
        take(step, 0)
        bias = step.model.params["b_vocab"]
        if own.rank:
            time.sleep(LATE)
        step.model.params["b_vocab"] = bias + 1
        take(step, 1)
        return copies(step.model.params)

    expected = together(1, work)[0]
    for found in together(2, work):
        for name, value in expected.items():
            numpy.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux only")
def test_parameters_are_one_memory_where_they_can_be(monkeypatch):
    def work(own):
        found = replicate(own, numpy.arange(4.0))
        own.wait()
        assert found.parameters.tolist() == [0, 1, 2, 3]
        assert found.gradients.tolist() == [0] * 4
        own.wait()
        if not own.rank:
            found.parameters[3] = 9
        own.wait()
        return type(found), found.parameters[3]

    assert together(2, work) == [(InCommon, 9)] * 2
    assert together(1, work) == [(Separate, 9)]
    separate(monkeypatch)
    assert together(2, work) == [(Separate, 9), (Separate, 3)]
