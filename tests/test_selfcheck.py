import math

import guard
import numpy
import pytest
from guard import open_guard

import xpcap.selfcheck
from xpcap.backend import CPU
from xpcap.selfcheck import Check
from xpcap.selfcheck.cases import LAYERS, scaled_difference
from xpcap.selfcheck.reference import load_cases, reference_checks


def failing(prefix=""):
    names = [check.name for check in xpcap.selfcheck.run(CPU) if not check.passed]
    return [name for name in names if name.startswith(prefix)]


@pytest.mark.parametrize("backend", ["numpy", "cupy"], indirect=True)  # guard: in other tests
def test_all_checks_pass(backend):
    checks = xpcap.selfcheck.run(backend)
    assert [check for check in checks if not check.passed] == []
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert all(check.error >= 0 and check.limit > 0 for check in checks)


def test_all_layers_and_worked_cases_are_checked():
    names = [check.name for check in xpcap.selfcheck.run(CPU)]
    assert not any(name.startswith("agreement") for name in names)  # with itself it could not fail
    names += [check.name for check in xpcap.selfcheck._agreement(open_guard())]
    for case in LAYERS:
        arguments = case.make_args(numpy.random.default_rng(0), xpcap.selfcheck.SMALL)
        for argument in case.differentiable(arguments):
            assert f"gradient {case.name} d{argument}" in names
            assert f"agreement with cpu {case.name} d{argument}" in names
    for captioner in ("rnn", "lstm", "gru", "attention additive", "attention dot"):
        for rate in ("0.0", "0.25"):
            assert f"gradient captioner {captioner} dropout={rate} dWx" in names
    assert "gradient captioner attention additive dropout=0.0 dw_score" in names
    for parameter in ("W_position", "encoder.0.self.W_qkv", "layer.0.cross.W_key"):
        assert f"gradient captioner transformer dropout=0.25 d{parameter}" in names
    cases = load_cases()
    worked = {*cases, *cases["gradient_checks"]} - {
        "_about", "gradient_checks", "captioning_rnn_parameters",
    }  # fmt: skip
    assert len(worked) == 13
    for name in worked:
        assert any(check.startswith(f"reference {name} ") for check in names), name
    assert "reference captioning_rnn dW_embed" in names
    assert "reference temporal_softmax_loss dx" in names


def test_limits_are_those_of_the_worked_cases():
    limits = {check.name: check.limit for check in reference_checks(CPU)}
    assert limits["reference rnn_step_forward next_h"] == 1e-8
    assert limits["reference lstm_step_forward next_c"] == 1e-8
    assert limits["reference lstm_forward h"] == 1e-7
    assert limits["reference word_embedding_backward dW"] == 1e-10
    assert limits["reference temporal_affine_backward dw"] == 1e-8
    assert limits["reference captioning_rnn_loss rnn"] == 1e-10
    assert limits["reference captioning_rnn dWx"] == 1e-5


@pytest.mark.parametrize(
    ("error", "passed"),
    [(0.0, True), (1e-7, True), (1.1e-7, False), (math.inf, False), (math.nan, False)],
)
def test_errors_above_the_limit_and_nan_fail(error, passed):
    assert Check("name", error, 1e-7).passed is passed


def test_scaled_difference():
    assert scaled_difference(numpy.array([1.0, 4.0]), numpy.array([2.0, 4.0])) == 0.25
    assert scaled_difference(numpy.array([0.5]), numpy.array([0.0])) == 0.5
    assert scaled_difference(numpy.ones(2), numpy.ones((2, 1))) == math.inf
    assert math.isnan(scaled_difference(numpy.array([1.0, math.nan]), numpy.ones(2)))
    assert scaled_difference(2.0, numpy.float64(4.0)) == 0.5


def replace(monkeypatch, operation, wrong):
    """Let an operation compute something else, whatever version is asked for."""
    monkeypatch.setattr(operation, "reference", wrong)
    monkeypatch.setattr(operation, "versions", {})


def test_a_broken_gradient_is_found(monkeypatch):
    """The derivative of tanh is wrong: every gradient through a vanilla cell, and nothing else."""

    def wrong(xp, above, back, next_h, da):
        da[...] = (above + back) * (1 - next_h)

    replace(monkeypatch, xpcap.layers.rnn.rnn_cell_gradient, wrong)
    names = failing()
    assert "gradient rnn_step dx" in names
    assert "gradient rnn dh0" in names
    assert "gradient captioner rnn dropout=0.25 dW_proj" in names
    assert "reference rnn_backward dWx" in names
    assert not any("lstm" in name or "gru" in name or "_forward" in name for name in names)


def test_a_broken_gradient_of_attention_is_found(monkeypatch):
    """Softmax without the part that keeps the sum of the weights."""
    monkeypatch.setattr(
        xpcap.layers.attention,
        "_score_gradient",
        lambda dcontext, dweights, values, weights, dvalues: (
            weights * (values @ dcontext[:, :, None])[:, :, 0]
        ),
    )
    names = failing()
    for scoring in ("additive", "dot"):
        assert f"gradient captioner attention {scoring} dropout=0.0 dW_grid" in names
    assert "gradient dot_product_attention masked dkeys" in names
    assert all("attention" in name for name in names)


def test_a_broken_forward_pass_is_found(monkeypatch):
    """Gates in another order: gradients agree with it, the worked cases do not."""

    def i_f_g_o(xp, gates, ah, *rest):
        for a in (gates, ah):
            i, f, g, o = numpy.split(a, 4, axis=1)
            a[...] = numpy.concatenate([i, f, o, g], axis=1)
        original(xp, gates, ah, *rest)

    original = xpcap.layers.lstm.lstm_cell.reference
    replace(monkeypatch, xpcap.layers.lstm.lstm_cell, i_f_g_o)
    names = failing("reference")
    assert "reference lstm_step_forward next_h" in names
    assert "reference lstm_step_forward next_c" in names
    assert "reference lstm_forward h" in names


def test_a_gradient_of_nan_is_found(monkeypatch):
    replace(
        monkeypatch,
        xpcap.layers.embedding.add_rows,
        lambda xp, indices, rows, out: out.fill(math.nan),
    )
    names = failing()
    assert "gradient word_embedding dW" in names
    assert "reference word_embedding_backward dW" in names
    assert "gradient captioner gru dropout=0.0 dW_embed" in names


def test_a_changed_loss_is_found(monkeypatch):
    original = xpcap.layers.loss.softmax_cross_entropy.reference

    def mean_over_steps(xp, scores, bias, targets, scale, losses, *smoothing):
        original(xp, scores, bias, targets, scale / len(scores), losses)

    replace(monkeypatch, xpcap.layers.loss.softmax_cross_entropy, mean_over_steps)
    names = failing()
    assert "reference captioning_rnn_loss rnn" in names
    assert (
        len([name for name in names if name.startswith("reference temporal_softmax_loss N")]) == 3
    )


def test_a_wrong_device_result_is_found(monkeypatch):
    """The agreement check sees an operation that is wrong on one device only."""
    tanh = guard.xp.tanh
    monkeypatch.setattr(guard.xp, "tanh", lambda a: tanh(a) * 1.001, raising=False)
    checks = xpcap.selfcheck._agreement(open_guard())
    broken = {check.name.split()[3] for check in checks if not check.passed}
    recurrent = {"rnn_step", "rnn", "lstm_step", "lstm", "gru_step", "gru"}
    assert broken == {*recurrent, "additive_attention", "feed_forward"}
