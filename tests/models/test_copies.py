"""Copies and pickles of a captioner."""

import copy
import pickle

import numpy
import pytest
from kinds import KINDS
from small_captioners import model_of, some_features

import xpcap.compat.cs231n as cs231n
from xpcap.backend import Backend, namespace

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_the_same_captioner_with_its_own_parameters(kind, way, backend):
    model, features = model_of(kind, backend), backend.to_device(some_features(kind=kind))
    words = backend.to_host(model.sample(features, 5))
    twin = WAYS[way](model)
    assert twin.backend == backend
    assert twin.params.keys() == model.params.keys()
    assert vars(twin).keys() == vars(model).keys()
    assert twin.cell is model.cell
    for name, value in model.params.items():
        assert namespace(twin.params[name]) is backend.xp
        numpy.testing.assert_array_equal(backend.to_host(twin.params[name]), backend.to_host(value))
        value *= 0
    numpy.testing.assert_array_equal(backend.to_host(twin.sample(features, 5)), words)


@pytest.mark.parametrize("way", WAYS)
def test_the_captioner_of_the_notebooks_can_be_copied(way):
    model = cs231n.CaptioningRNN({"<NULL>": 0, "a": 1}, 3, 4, 5, "gru", seed=0)
    twin = WAYS[way](model)
    assert type(twin) is cs231n.CaptioningRNN
    numpy.testing.assert_array_equal(twin.params["bn"], model.params["bn"])


def test_a_pickle_holds_no_array_of_a_device(elsewhere):
    state = model_of("rnn", elsewhere).__getstate__()
    assert all(isinstance(value, numpy.ndarray) for value in state["params"].values())
    assert isinstance(state["backend"], Backend)
