"""The captioner of the notebooks: gradient checks without a dtype, and NumPy on any device."""

import numpy
import pytest

from xpcap import models
from xpcap.backend import CPU, namespace
from xpcap.compat.cs231n import CaptioningRNN, CaptioningSolver, eval_numerical_gradient
from xpcap.models.recurrent import CELLS

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "dog": 4}
SIZES = {"input_dim": 4, "wordvec_dim": 3, "hidden_dim": 2}
FEATURES = numpy.random.default_rng(231).standard_normal((2, 4))
CAPTIONS = numpy.array([[1, 3, 2, 0], [1, 4, 3, 2]])


def build(backend=CPU, cell_type="rnn", **settings):
    return CaptioningRNN(WORDS, **SIZES, cell_type=cell_type, seed=0, backend=backend, **settings)


@pytest.mark.parametrize("cell_type", CELLS)
def test_gradients_hold_without_a_dtype(cell_type, backend):
    model = build(backend, cell_type)
    _, gradients = model.loss(FEATURES, CAPTIONS)
    for name, gradient in gradients.items():
        numerical = eval_numerical_gradient(
            lambda _: model.loss(FEATURES, CAPTIONS)[0], model.params[name], verbose=False, h=1e-6
        )
        numpy.testing.assert_allclose(backend.to_host(numerical), gradient, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_dtype_is_what_was_asked_for(dtype):
    for model in (build(dtype=dtype), CaptioningRNN(WORDS, 4, 5, 6, "rnn", dtype)):
        assert {value.dtype for value in model.params.values()} == {numpy.dtype(dtype)}
        loss, gradients = model.loss(FEATURES, CAPTIONS)
        assert {loss.dtype, *(value.dtype for value in gradients.values())} == {numpy.dtype(dtype)}
    assert build().params["Wx"].dtype == "float64"
    assert models.CaptioningRNN(WORDS).params["Wx"].dtype == "float32"


@pytest.mark.parametrize("cell_type", CELLS)
def test_numpy_arrays_go_in_and_come_out_on_every_device(cell_type, elsewhere):
    here, there = build(CPU, cell_type), build(elsewhere, cell_type)
    (loss, gradients), (expected, expected_gradients) = (
        model.loss(FEATURES, CAPTIONS) for model in (there, here)
    )
    found = {"loss": loss, "evaluate": there.evaluate(FEATURES, CAPTIONS), **gradients}
    wanted = {"loss": expected, "evaluate": expected, **expected_gradients}
    for name, value in found.items():
        assert isinstance(value, (numpy.ndarray, numpy.floating))
        numpy.testing.assert_allclose(value, wanted[name], rtol=0, atol=1e-12)
    words = there.sample(FEATURES, 5)
    assert isinstance(words, numpy.ndarray)
    numpy.testing.assert_array_equal(words, here.sample(FEATURES, 5))
    assert all(namespace(value) is elsewhere.xp for value in there.params.values())


def test_arrays_of_the_device_stay_there(elsewhere):
    model, features = build(elsewhere), elsewhere.to_device(FEATURES)
    for captions in (CAPTIONS, elsewhere.to_device(CAPTIONS)):
        loss, gradients = model.loss(features, captions)
        assert namespace(loss, *gradients.values()) is elsewhere.xp
        assert namespace(model.evaluate(features, captions)) is elsewhere.xp
    assert namespace(model.sample(features, 3)) is elsewhere.xp


def test_parameters_may_be_numpy_arrays_that_change_in_place(elsewhere):
    here, there = build(), build(elsewhere)
    for model in (here, there):
        for name, value in model.params.items():
            model.params[name] = numpy.linspace(-1.4, 1.3, num=value.size).reshape(value.shape)
    for _ in range(2):
        found, _ = there.loss(FEATURES, CAPTIONS)
        expected, _ = here.loss(FEATURES, CAPTIONS)
        assert found == pytest.approx(float(expected), rel=1e-12)
        for model in (here, there):
            model.params["Wx"] += 0.1
    assert isinstance(there.params["Wx"], numpy.ndarray)


def test_the_solver_takes_numpy_data_and_parameters(elsewhere):
    data = {
        "train_captions": CAPTIONS, "train_features": FEATURES,
        "train_image_idxs": numpy.arange(2), "train_urls": numpy.array(["a", "b"]),
    }  # fmt: skip
    histories = []
    for backend in (CPU, elsewhere):
        numpy.random.seed(0)
        model = build(backend)
        model.params["b"] = numpy.zeros(SIZES["hidden_dim"])
        solver = CaptioningSolver(model, data, "adam", batch_size=2, num_epochs=3, verbose=False)
        solver.train()
        histories.append(solver.loss_history)
    numpy.testing.assert_allclose(*histories, rtol=1e-12)
