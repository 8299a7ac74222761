import numpy
import oracle
import pytest
from tiny import make_tiny

import xpcap
from xpcap.compat.cs231n import CaptioningRNN
from xpcap.compat.solver import CaptioningSolver, CaptioningTrainer, adam
from xpcap.data.coco import load_coco_data
from xpcap.data.minibatch import sample_coco_minibatch
from xpcap.errors import ConfigurationError


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
    captions, features, _ = sample_coco_minibatch(data, 48)
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


def test_adam_adds_epsilon_before_the_bias_correction(backend):
    rng = numpy.random.default_rng(0)
    expected, m, v, config = rng.standard_normal((2, 3)), 0.0, 0.0, {"epsilon": 0.1}
    w = backend.to_device(expected)
    for t in range(1, 6):
        dw = rng.standard_normal((2, 3))
        expected, m, v = oracle.adam_of_the_course(expected, dw, m, v, t, 1e-3, epsilon=0.1)
        w, config = adam(w, backend.to_device(dw), config)
        numpy.testing.assert_allclose(backend.to_host(w), expected, rtol=1e-13)
    assert set(config) == {"learning_rate", "beta1", "beta2", "epsilon", "m", "v", "t"}
    dw = backend.to_device(dw)
    (ours, _), (other, _) = (rule(w, dw, {"epsilon": 0.1}) for rule in (adam, xpcap.optim.adam))
    assert float(abs(ours - other).max()) > 1e-4


def test_a_hundred_steps_are_those_of_the_course(data, backend):
    model, twin = (
        CaptioningRNN(data["word_to_idx"], 7, 8, 16, "lstm", seed=0, backend=backend)
        for _ in range(2)
    )
    solver = CaptioningSolver(
        model, data, update_rule="adam", optim_config={"learning_rate": 5e-3}, lr_decay=0.99,
        batch_size=20, num_epochs=50, verbose=False,
    )  # fmt: skip
    numpy.random.seed(0)
    solver.train()
    numpy.random.seed(0)
    m, v, losses = dict.fromkeys(twin.params, 0.0), dict.fromkeys(twin.params, 0.0), []
    for t in range(1, 101):
        captions, features, _ = sample_coco_minibatch(data, 20)
        loss, gradients = twin.loss(features, captions)
        losses.append(float(loss))
        for name, w in twin.params.items():
            w, m[name], v[name] = oracle.adam_of_the_course(
                backend.to_host(w), backend.to_host(gradients[name]), m[name], v[name], t,
                5e-3 * 0.99 ** ((t - 1) // 2),
            )  # fmt: skip
            twin.params[name] = backend.to_device(w)
    numpy.testing.assert_allclose(solver.loss_history, losses, rtol=1e-11)
    for name, value in model.params.items():
        expected = backend.to_host(twin.params[name])
        numpy.testing.assert_allclose(backend.to_host(value), expected, rtol=0, atol=1e-11)


def test_unknown_settings_are_named(data, backend):
    for rule, known in (("sgd", "learning_rate"), ("adam", "learning_rate, beta1, beta2, epsilon")):
        with pytest.raises(ConfigurationError) as caught:
            build(data, backend, update_rule=rule, optim_config={"lr": 1e-3})
        assert str(caught.value) == f"optimizer setting 'lr' is unknown; expected {known}"
