"""Softmax, its logarithm and the loss, where exponentials overflow, and where scores are bad."""

import math

import numpy
import oracle
import pytest

from xpcap.backend import to_host
from xpcap.layers.loss import log_normalizer, softmax, softmax_cross_entropy

RNG = numpy.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_softmax(shape, xp):
    scores = RNG.standard_normal(shape)
    found = to_host(softmax(xp, xp.asarray(scores)))
    numpy.testing.assert_allclose(found, numpy.exp(oracle.log_softmax(scores)), rtol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_smoothing_equals_that_of_pytorch(smoothing, xp):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    values, targets = 3 * RNG.standard_normal((6, 40)), RNG.integers(40, size=6)
    theirs = torch.tensor(values, requires_grad=True)
    loss = torch.nn.CrossEntropyLoss(reduction="sum", label_smoothing=smoothing)
    expected = loss(theirs, torch.tensor(targets))
    expected.backward()
    scores, losses, bias = xp.asarray(values), xp.asarray(numpy.empty(6)), xp.zeros(40)
    softmax_cross_entropy(xp, scores, bias, xp.asarray(targets), xp.ones(6), losses, smoothing)
    assert float(losses.sum()) == pytest.approx(expected.item(), rel=1e-13)
    numpy.testing.assert_allclose(to_host(scores), theirs.grad.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_powers_are_zero_from_a_bound_on(xp, dtype):
    """Of words 2^-80 times as likely as the likeliest, or 2^-918 times in double precision."""
    bits = {numpy.float32: 80, numpy.float64: 918}[dtype]
    scores = math.log(2) * numpy.array([[0, -bits + 0.01, -bits - 0.01, -bits - 50, -1]], dtype)
    gradient, losses = xp.array(scores), xp.asarray(numpy.zeros(1, dtype))
    bias, scale = xp.asarray(numpy.zeros(5, dtype)), xp.asarray(numpy.ones(1, dtype))
    of = xp.asarray(numpy.array([4]))
    softmax_cross_entropy(xp, gradient, bias, of, scale, losses)
    assert (to_host(gradient) != 0).tolist() == [[True, True, False, False, True]]
    assert (to_host(softmax(xp, xp.asarray(scores))) != 0).tolist() == [
        [True, True, False, False, True]
    ]


@pytest.mark.parametrize("scale_of_scores", [1e4, -1e4])
def test_extreme_scores_stay_finite(scale_of_scores, xp):
    large = scale_of_scores
    scores = xp.asarray(numpy.array([[large, 0.0, -large], [large, large, large]]))
    assert numpy.isfinite(to_host(softmax(xp, scores))).all()
    targets, scale = xp.asarray(numpy.array([2, 1])), xp.asarray(numpy.ones(2))
    losses, bias = xp.asarray(numpy.empty(2)), xp.asarray(numpy.zeros(3))
    softmax_cross_entropy(xp, scores, bias, targets, scale, losses)
    expected = (2e4 if scale_of_scores > 0 else 0.0) + math.log(3)
    assert float(losses.sum()) == pytest.approx(expected, rel=1e-14)
    assert numpy.isfinite(to_host(scores)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_does_not_count_is_zero_whatever_it_holds(bad, xp):
    scores = xp.asarray(numpy.array([[0.0, bad, 1.0], [0.0, 0.0, 0.0]]))
    targets, scale = xp.asarray(numpy.array([2, 1])), xp.asarray(numpy.array([0.0, 2.0]))
    losses, bias = xp.asarray(numpy.empty(2)), xp.asarray(numpy.zeros(3))
    with numpy.errstate(invalid="ignore"):
        softmax_cross_entropy(xp, scores, bias, targets, scale, losses)
    numpy.testing.assert_allclose(to_host(losses), [0.0, 2 * math.log(3)], rtol=1e-15)
    expected = [[0.0, 0.0, 0.0], [2 / 3, -4 / 3, 2 / 3]]
    numpy.testing.assert_allclose(to_host(scores), expected, rtol=1e-15)


@pytest.mark.parametrize(("words", "bad"), [(6, 3), (300, 280), (1004, 700)])
def test_a_score_that_is_nan_makes_the_loss_nan(words, bad, xp):
    scores = xp.zeros((2, words), dtype=numpy.float32)
    scores[0, bad] = math.nan
    bias, targets = xp.zeros(words, dtype=numpy.float32), xp.asarray(numpy.array([1, 1]))
    scale, losses = xp.ones(2, dtype=numpy.float32), xp.zeros(2, dtype=numpy.float32)
    softmax_cross_entropy(xp, scores, bias, targets, scale, losses)
    found = to_host(losses)
    assert math.isnan(found[0])
    assert float(found[1]) == pytest.approx(math.log(words), rel=1e-6)


def test_normalizers_of_large_and_forbidden_scores(xp):
    scores = numpy.array([[1e4, 1e4, -1e4], [-1e4, -numpy.inf, -1e4], [0, 1, 2]], numpy.float32)
    expected = [1e4 + math.log(2), -1e4 + math.log(2), math.log(1 + math.e + math.e**2)]
    found = to_host(log_normalizer(xp, xp.asarray(scores)))
    numpy.testing.assert_allclose(found, expected, rtol=2e-7)
