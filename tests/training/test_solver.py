import numpy
import pytest
from tiny import make_tiny

import xpcap
from xpcap.data.coco import load_coco_data
from xpcap.errors import ConfigurationError
from xpcap.training import CaptioningSolver, CaptioningTrainer


@pytest.fixture
def data(tmp_path, backend):
    with xpcap.use_backend(backend):
        return load_coco_data(make_tiny(tmp_path / "tiny"), pca_features=False)


def build(data, backend, **settings):
    numpy.random.seed(0)
    model = xpcap.CaptioningRNN(data["word_to_idx"], 7, 8, 16, "lstm", seed=0, backend=backend)
    return CaptioningSolver(model, data, **settings)


def test_it_makes_the_iterations_of_the_course(data, backend, capsys):
    solver = build(
        data, backend, update_rule="adam", optim_config={"learning_rate": 5e-3}, lr_decay=0.5,
        batch_size=20, num_epochs=3, print_every=4,
    )  # fmt: skip
    solver.train()
    assert len(solver.loss_history) == 3 * (48 // 20)
    assert solver.epoch == 3
    assert solver.optim_configs["Wx"]["learning_rate"] == pytest.approx(5e-3 * 0.5**2)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"(Iteration {k} / 6) loss: {solver.loss_history[k - 1]:f}" for k in (1, 5)]


def test_a_batch_larger_than_the_data_is_one_iteration_an_epoch(data, backend):
    solver = build(data, backend, batch_size=100, num_epochs=2, verbose=False)
    solver.train()
    assert len(solver.loss_history) == 2


def test_sgd_takes_the_step_of_the_first_minibatch(data, backend):
    solver = build(data, backend, optim_config={"learning_rate": 0.1}, batch_size=48, num_epochs=1,
                   verbose=False)  # fmt: skip
    before = {name: backend.to_host(value).copy() for name, value in solver.model.params.items()}
    twin = build(data, backend).model
    captions, features, _ = xpcap.data.minibatch.sample_coco_minibatch(data, 48)
    _, grads = twin.loss(features, captions)
    numpy.random.seed(0)
    solver.train()
    for name, value in solver.model.params.items():
        expected = before[name] - 0.1 * backend.to_host(grads[name])
        numpy.testing.assert_allclose(backend.to_host(value), expected, rtol=1e-5, atol=1e-7)


def test_both_names_are_one_thing(data, backend):
    assert CaptioningTrainer is CaptioningSolver
    model = build(data, backend).model
    CaptioningTrainer(model, data, updater_config={"learning_rate": 1e-3})
    with pytest.raises(ConfigurationError, match="give one"):
        CaptioningTrainer(model, data, updater_config={"a": 1}, optim_config={"a": 1})
    with pytest.raises(
        ConfigurationError, match="'adagrad' is unknown; expected sgd, sgd_momentum"
    ):
        CaptioningSolver(model, data, update_rule="adagrad")
    with pytest.raises(ConfigurationError, match="batch_size must be at least 1"):
        CaptioningSolver(model, data, batch_size=0)
