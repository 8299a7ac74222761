"""Update rules against loops written here, one number at a time, and against PyTorch."""

import math

import numpy
import pytest
from guard import counters, open_guard

from xpcap.backend import to_host
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.optim import (
    RULES,
    Optimizer,
    adam,
    adamw,
    clip_by_global_norm,
    cosine,
    find_rule,
    rmsprop,
    sgd,
    sgd_momentum,
)
from xpcap.threads import use_threads

STEPS = 5
RNG = numpy.random.default_rng(0)
W = RNG.standard_normal((3, 4))
GRADIENTS = [RNG.standard_normal((3, 4)) for _ in range(STEPS)]


def plain_sgd(w, gradients, rate):
    for g in gradients:
        w -= rate * g
    return w


def plain_momentum(w, gradients, rate, momentum):
    v = 0.0
    for g in gradients:
        v = momentum * v - rate * g
        w += v
    return w


def plain_rmsprop(w, gradients, rate, decay, epsilon):
    s = 0.0
    for g in gradients:
        s = decay * s + (1 - decay) * g**2
        w -= rate * g / (math.sqrt(s) + epsilon)
    return w


def plain_adam(w, gradients, rate, b1, b2, epsilon, weight_decay):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        step = (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + epsilon)
        w -= rate * (step + weight_decay * w)
    return w


# the rule, its config, and the same in plain numbers: defaults are those of the specification
RUNS = {
    "sgd": ({}, plain_sgd, (1e-2,)),
    "sgd_momentum": ({}, plain_momentum, (1e-2, 0.9)),
    "rmsprop": ({}, plain_rmsprop, (1e-2, 0.99, 1e-8)),
    "adam": ({}, plain_adam, (1e-3, 0.9, 0.999, 1e-8, 0.0)),
    "adamw": ({}, plain_adam, (1e-3, 0.9, 0.999, 1e-8, 1e-2)),
}
OTHER_RUNS = {
    "sgd": ({"learning_rate": 0.3}, plain_sgd, (0.3,)),
    "sgd_momentum": ({"learning_rate": 0.3, "momentum": 0.5}, plain_momentum, (0.3, 0.5)),
    "rmsprop": (
        {"learning_rate": 0.3, "decay_rate": 0.8, "epsilon": 0.01}, plain_rmsprop, (0.3, 0.8, 0.01)
    ),
    "adam": (
        {"learning_rate": 0.3, "beta1": 0.5, "beta2": 0.7, "epsilon": 0.01},
        plain_adam, (0.3, 0.5, 0.7, 0.01, 0.0),
    ),
    "adamw": (
        {"learning_rate": 0.3, "beta1": 0.5, "beta2": 0.7, "epsilon": 0.01, "weight_decay": 0.2},
        plain_adam, (0.3, 0.5, 0.7, 0.01, 0.2),
    ),
}  # fmt: skip


FUNCTIONS = {
    "sgd": sgd, "sgd_momentum": sgd_momentum, "rmsprop": rmsprop, "adam": adam, "adamw": adamw
}  # fmt: skip


def run(rule, backend, config, dtype=numpy.float64):
    w = backend.to_device(W, dtype)
    for gradient in GRADIENTS:
        w, config = rule(w, backend.to_device(gradient, dtype), config)
    return w


@pytest.mark.parametrize("runs", [RUNS, OTHER_RUNS], ids=["defaults", "settings"])
@pytest.mark.parametrize("name", RULES)
def test_update_rules_equal_plain_loops(name, runs, backend):
    config, plain, settings = runs[name]
    found = to_host(run(FUNCTIONS[name], backend, dict(config) or None))
    for index in numpy.ndindex(W.shape):
        expected = plain(W[index], [g[index] for g in GRADIENTS], *settings)
        assert found[index] == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "optimizer", "settings"),
    [
        ("sgd", "SGD", {"lr": 0.01}),
        ("adam", "Adam", {"lr": 0.001}),
        ("adamw", "AdamW", {"lr": 0.001, "weight_decay": 0.01}),
        ("rmsprop", "RMSprop", {"lr": 0.01, "alpha": 0.99}),
    ],
)
def test_update_rules_equal_those_of_pytorch(name, optimizer, settings, backend):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w = torch.tensor(W, requires_grad=True)
    theirs = getattr(torch.optim, optimizer)([w], **settings)
    for gradient in GRADIENTS:
        w.grad = torch.tensor(gradient)
        theirs.step()
    ours = to_host(run(FUNCTIONS[name], backend, None))
    numpy.testing.assert_allclose(ours, w.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("name", RULES)
def test_update_rules_keep_the_dtype_and_do_not_change_arguments(name, dtype, backend):
    w, dw = backend.to_device(W, dtype), backend.to_device(GRADIENTS[0], dtype)
    next_w, config = FUNCTIONS[name](w, dw, None)
    after, config = FUNCTIONS[name](next_w, dw, config)
    assert after.dtype == dtype
    assert all(v.dtype == dtype for v in config.values() if hasattr(v, "shape"))
    numpy.testing.assert_array_equal(to_host(w), W.astype(dtype))
    numpy.testing.assert_array_equal(to_host(dw), GRADIENTS[0].astype(dtype))
    assert not numpy.array_equal(to_host(next_w), W.astype(dtype))


@pytest.mark.parametrize("name", RULES)
def test_update_rules_do_not_synchronize(name):
    guard = open_guard()
    w, dw = guard.to_device(W), guard.to_device(GRADIENTS[0])
    counters.reset()
    FUNCTIONS[name](*FUNCTIONS[name](w, dw, None)[:1], dw, None)
    clip_by_global_norm({"w": dw}, 1.0)
    assert counters.synchronizations == 0


@pytest.mark.parametrize("name", RULES)
def test_update_rules_take_fortran_order(name):
    w, dw = numpy.asfortranarray(W), numpy.asfortranarray(GRADIENTS[0])
    found = FUNCTIONS[name](*FUNCTIONS[name](w, dw, None)[:1], dw, None)[0]
    expected = FUNCTIONS[name](*FUNCTIONS[name](W, GRADIENTS[0], None)[:1], GRADIENTS[0], None)[0]
    numpy.testing.assert_array_equal(found, expected)


def test_unknown_update_rules_are_refused():
    assert find_rule("adam") is RULES["adam"]
    assert RULES.keys() == FUNCTIONS.keys()
    with pytest.raises(ConfigurationError, match=r"'lion' is unknown; expected sgd, sgd_momentum"):
        find_rule("lion")


@pytest.mark.parametrize("name", RULES)
def test_the_optimizer_equals_plain_loops_in_place(name, backend):
    settings, plain, numbers = OTHER_RUNS[name]
    optimizer = Optimizer(name, **settings)
    w = backend.to_device(W.reshape(-1).copy())
    for gradient in GRADIENTS:
        optimizer.update(backend.xp, w, backend.to_device(gradient.reshape(-1)))
    for k, start in enumerate(W.reshape(-1)):
        expected = plain(start, [gradient.reshape(-1)[k] for gradient in GRADIENTS], *numbers)
        assert to_host(w)[k] == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("decayed", [0, 5, 6, 9, 12])
def test_weight_decay_of_the_first_parameters_alone(decayed, backend, monkeypatch):
    """Wherever threads share them."""
    monkeypatch.setattr("xpcap.optim.SPAN", 3)
    optimizer = Optimizer("adamw", weight_decay=0.2)
    w = backend.to_device(W.reshape(-1).copy())
    with use_threads(2):
        for gradient in GRADIENTS:
            on_device = backend.to_device(gradient.reshape(-1))
            optimizer.update(backend.xp, w, on_device, decayed=decayed)
    for k, start in enumerate(W.reshape(-1)):
        gradients = [gradient.reshape(-1)[k] for gradient in GRADIENTS]
        expected = plain_adam(start, gradients, 1e-3, 0.9, 0.999, 1e-8, 0.2 * (k < decayed))
        assert to_host(w)[k] == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_the_optimizer_state_is_named_as_in_the_rule():
    optimizer = Optimizer("adam")
    assert optimizer.memory == {}
    optimizer.update(numpy, numpy.zeros(3), numpy.ones(3))
    assert optimizer.memory["m"].tolist() == pytest.approx([0.1] * 3)
    assert optimizer.memory["v"].tolist() == pytest.approx([0.001] * 3)
    assert optimizer.config["t"] == 1


def test_schedule_factor_and_clipping_scale_hold_for_one_step(backend):
    optimizer = Optimizer("sgd", learning_rate=0.5)
    w = backend.to_device(numpy.zeros(1))
    for factor, scale in ((1.0, 1.0), (0.1, 1.0), (1.0, backend.to_device(numpy.array(0.5)))):
        optimizer.update(backend.xp, w, backend.to_device(numpy.ones(1)), factor, scale)
    assert float(w[0]) == pytest.approx(-0.5 * 1.6)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_invalid_learning_rates_are_refused(rate):
    with pytest.raises(ConfigurationError, match="learning_rate must be a number in"):
        Optimizer("adam", learning_rate=rate)
    with pytest.raises(ConfigurationError, match="max_norm must be a number in"):
        clip_by_global_norm({"w": numpy.ones(2)}, rate)


def test_clipping_scales_gradients_to_the_norm(backend):
    host = {"a": numpy.array([3.0, 0.0]), "b": numpy.array([[0.0], [4.0]])}
    gradients = {name: backend.to_device(value) for name, value in host.items()}
    clipped, norm = clip_by_global_norm(gradients, 2.5)
    assert float(norm) == pytest.approx(5.0)
    assert to_host(clipped["a"]).tolist() == pytest.approx([1.5, 0.0])
    assert to_host(clipped["b"])[:, 0].tolist() == pytest.approx([0.0, 2.0])
    for name, value in host.items():
        numpy.testing.assert_array_equal(to_host(gradients[name]), value)


@pytest.mark.parametrize("max_norm", [5.0, 7.0])
def test_clipping_keeps_short_gradients(max_norm, backend):
    gradients = {"a": backend.to_device(numpy.array([3.0, 4.0]))}
    clipped, norm = clip_by_global_norm(gradients, max_norm)
    assert float(norm) == pytest.approx(5.0)
    assert to_host(clipped["a"]).tolist() == [3.0, 4.0]


def test_clipping_keeps_single_precision_and_takes_zeros(backend):
    zeros = {"a": backend.to_device(numpy.zeros(3, numpy.float32))}
    clipped, norm = clip_by_global_norm(zeros, 1.0)
    assert clipped["a"].dtype == numpy.float32
    assert to_host(clipped["a"]).tolist() == [0.0] * 3
    assert float(norm) == 0.0


def test_cosine_schedule():
    assert cosine(0.0) == 1.0
    assert cosine(0.5) == pytest.approx(0.5)
    assert cosine(1 / 3) == pytest.approx(0.75)
    assert cosine(1.0) == pytest.approx(0.0, abs=1e-16)


@pytest.mark.parametrize("name", RULES)
def test_unknown_settings_are_refused_and_the_known_ones_named(name):
    known = ", ".join(RULES[name].defaults)
    for call in (
        lambda: FUNCTIONS[name](W, GRADIENTS[0], {"lr": 0.1}),
        lambda: Optimizer(name, learning_rate=0.1, lr=0.1),
    ):
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert str(caught.value) == f"optimizer setting 'lr' is unknown; expected {known}"


@pytest.mark.parametrize("name", RULES)
def test_a_rules_own_state_is_a_setting(name):
    state = {key: numpy.zeros_like(W) for key in RULES[name].memory}
    found, _ = FUNCTIONS[name](W, GRADIENTS[0], {**state, "t": 0})
    numpy.testing.assert_array_equal(found, FUNCTIONS[name](W, GRADIENTS[0])[0])


RANGES = {
    "momentum": [-0.1, 1.1], "decay_rate": [-0.1, 1.0], "beta1": [-0.1, 1.0], "beta2": [-0.1, 1.0],
    "epsilon": [0.0, -1e-8, 1e-320, 1e308], "weight_decay": [-0.1, 1e308],
    "learning_rate": [-0.1],
}  # fmt: skip


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("rule", RULES)
def test_settings_out_of_range_are_refused_wherever_they_are_given(rule, name):
    if name not in RULES[rule].defaults:
        return
    step = {"sgd": sgd, "sgd_momentum": sgd_momentum, "rmsprop": rmsprop, "adam": adam,
            "adamw": adamw}[rule]  # fmt: skip
    for value in [*RANGES[name], math.nan, math.inf, "0.5", None, [0.5], True, 0.5j]:
        with pytest.raises(ConfigurationError, match=f"{name} must be a number in"):
            Optimizer(rule, **{name: value})
        with pytest.raises(ConfigurationError, match=f"{name} must be a number in"):
            step(numpy.ones(2), numpy.ones(2), {name: value})


@pytest.mark.parametrize("rule", [rmsprop, adam, adamw])
def test_the_least_epsilon_keeps_weights_without_a_gradient(rule):
    w, _ = rule(numpy.ones(2, "float32"), numpy.zeros(2, "float32"), {"epsilon": 1e-30})
    assert numpy.isfinite(w).all()


def test_arrays_and_states_that_a_rule_cannot_use_are_refused():
    ones = numpy.ones(3)
    for w, dw, config in (
        (ones, numpy.ones(2), {}), (ones.astype(int), ones, {}), (ones, ones.astype(int), {}),
        (ones, ones, {"m": numpy.ones(2)}),
    ):  # fmt: skip
        with pytest.raises(ShapeError, match=r"expected floating numbers \(3,\), as w"):
            adam(w, dw, config)
    for t in (-1, "a", 0.5):
        with pytest.raises(ConfigurationError, match="t must be at least 0"):
            adam(ones, ones, {"t": t})
    with pytest.raises(ConfigurationError, match="expected a dict of settings"):
        sgd(ones, ones, [0.1])
