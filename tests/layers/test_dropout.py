import numpy
import pytest

from xpcap.backend import CPU, to_host
from xpcap.errors import ConfigurationError
from xpcap.layers import dropout_backward, dropout_forward


def mask_of(backend, rate, seed, stream=0, shape=(500, 400)):
    ones = backend.to_device(numpy.ones(shape))
    return to_host(dropout_forward(ones, rate, seed, stream)[0])


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (9,), (3, 5, 7), (300, 300)])
def test_one_seed_one_mask_everywhere(shape, elsewhere):
    here, there = mask_of(CPU, 0.4, 11, 3, shape), mask_of(elsewhere, 0.4, 11, 3, shape)
    assert there.shape == shape
    numpy.testing.assert_array_equal(there, here)


def test_one_mask_in_every_dtype():
    x = numpy.ones((40, 30))
    double, _ = dropout_forward(x, 0.3, 5)
    single, _ = dropout_forward(x.astype(numpy.float32), 0.3, 5)
    assert single.dtype == numpy.float32
    numpy.testing.assert_array_equal(single == 0, double == 0)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_the_rate(rate):
    out = mask_of(CPU, rate, seed=1)
    spread = (rate * (1 - rate) / out.size) ** 0.5
    assert abs((out == 0).mean() - rate) < 4 * spread + 1 / 65536


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_what_is_kept_is_scaled(rate):
    out = mask_of(CPU, rate, seed=2)
    level = round(rate * 65536) / 65536
    numpy.testing.assert_allclose(numpy.unique(out), [0, 1 / (1 - level)], rtol=1e-15)
    assert abs(out.mean() - 1) < 4 * (rate / (1 - rate) / out.size) ** 0.5


def test_rate_zero_changes_nothing(backend):
    x = numpy.random.default_rng(0).standard_normal((20, 30))
    out, cache = dropout_forward(backend.to_device(x), 0.0, 1)
    numpy.testing.assert_array_equal(to_host(out), x)
    numpy.testing.assert_array_equal(to_host(dropout_backward(backend.to_device(x), cache)), x)


def test_rate_almost_one_stays_finite(backend):
    x = backend.to_device(numpy.ones(100_000))
    out = to_host(dropout_forward(x, 1 - 1e-9, 1)[0])
    assert numpy.isfinite(out).all()
    assert (out == 0).mean() > 0.999


def test_backward_uses_the_mask_of_forward(backend):
    rng = numpy.random.default_rng(0)
    x, dout = rng.standard_normal((20, 30)) + 9, rng.standard_normal((20, 30))
    out, cache = dropout_forward(backend.to_device(x), 0.5, 1)
    dx = to_host(dropout_backward(backend.to_device(dout), cache))
    numpy.testing.assert_allclose(dx, dout * (to_host(out) / x), rtol=1e-14)


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, 0), (1, 1)), ((1, 0), (2, 0)), ((0, 1), (0, 2**32)), ((2**32, 0), (0, 0))],
)
def test_other_seeds_and_streams_are_independent(one, other):
    first, second = mask_of(CPU, 0.5, *one) == 0, mask_of(CPU, 0.5, *other) == 0
    assert abs((first == second).mean() - 0.5) < 4 * 0.5 / first.size**0.5


def test_neighbours_are_independent():
    dropped = (mask_of(CPU, 0.5, 9) == 0).reshape(-1)
    for lag in (1, 2, 4, 8, 16, 400):
        same = (dropped[lag:] == dropped[:-lag]).mean()
        assert abs(same - 0.5) < 4 * 0.5 / dropped.size**0.5, lag


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_out_of_bounds(rate):
    with pytest.raises(ConfigurationError, match=r"rate must be a number in \[0, 1\)"):
        dropout_forward(numpy.ones(3), rate, 0)
