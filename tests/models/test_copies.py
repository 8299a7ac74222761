"""Copies and pickles of a captioner."""

import copy
import pickle

import numpy
import pytest
from kinds import KINDS
from small_captioners import model_of, some_features
from tiny import make_tiny

import xpcap
import xpcap.compat.cs231n as cs231n
from xpcap.backend import CPU, Backend, namespace
from xpcap.data.dataset import open_dataset
from xpcap.errors import Stopped
from xpcap.metrics import evaluate_captions
from xpcap.operations import OPERATIONS
from xpcap.optim import Optimizer
from xpcap.training.trainer import StepDiverged

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
    assert getattr(twin, "cell", None) is getattr(model, "cell", None)
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


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trained", [False, True])
def test_a_copy_of_a_solver_trains_on_as_it_would(way, trained, tiny):
    data = cs231n.load_coco_data(str(tiny))
    model = cs231n.CaptioningRNN(data["word_to_idx"], 7, 4, 5, "lstm", seed=0)
    solver = cs231n.CaptioningSolver(
        model, data, "adam", {"learning_rate": 0.01}, num_epochs=1, batch_size=10, verbose=False
    )
    if trained:
        solver.train()
    twin = WAYS[way](solver)
    assert twin.model is not model
    assert (twin.epoch, twin.loss_history) == (solver.epoch, solver.loss_history)
    for one in (solver, twin):
        numpy.random.seed(0)
        one.train()
    assert twin.loss_history == solver.loss_history
    for name, value in model.params.items():
        numpy.testing.assert_array_equal(twin.model.params[name], value)
        assert twin.model.params[name] is not value


@pytest.mark.parametrize("way", WAYS)
def test_data_sets_runs_and_results_can_be_copied(way, tiny, tmp_path):
    copied = WAYS[way]
    for lazy in (False, True):
        dataset = open_dataset(tiny, lazy=lazy)
        numpy.testing.assert_array_equal(
            copied(dataset).splits["train"].features[:3], dataset.splits["train"].features[:3]
        )
    run = xpcap.train(
        tiny, out=tmp_path / "run", hidden=4, wordvec=4, epochs=1, device="cpu", verbose=False
    )
    images = numpy.eye(7, dtype=numpy.float32)
    assert copied(run).caption(images) == run.caption(images)
    assert copied(run.decode(images)).words.shape == run.decode(images).words.shape
    scores = evaluate_captions(["a b"], [["a b"]])
    assert copied(scores).corpus == scores.corpus


@pytest.mark.parametrize("way", WAYS)
def test_backends_optimizers_and_errors_can_be_copied(way):
    copied = WAYS[way]
    assert copied(CPU) is CPU
    assert copied(OPERATIONS["softmax"]) is OPERATIONS["softmax"]
    optimizer, w = Optimizer("adam"), numpy.ones(3)
    optimizer.update(numpy, w, w)
    numpy.testing.assert_array_equal(copied(optimizer).memory["m"], optimizer.memory["m"])
    stop, diverged = copied(Stopped("saved", 15)), copied(StepDiverged(3, "is nan"))
    assert (str(stop), stop.signal) == ("saved", 15)
    assert (str(diverged), diverged.step, diverged.reason) == ("step 3: is nan", 3, "is nan")
