"""A step's loss, norm and clipping, and what optimizers keep of gradients that have ended."""

import numpy
import pytest

from xpcap.backend import to_host
from xpcap.kernels.updates import adam_update, loss_and_norm, momentum_update, rmsprop_update


@pytest.mark.parametrize(("max_norm", "scale"), [(None, 1.0), (5.0, 1.0), (0.5, 0.1)])
def test_loss_norm_and_clipping_written_out(xp, max_norm, scale):
    losses, gradients = xp.asarray(numpy.array([1.0, 2.5])), xp.asarray(numpy.array([3.0, 4.0]))
    totals, settings = xp.asarray(numpy.full(2, numpy.nan)), xp.asarray(numpy.array([1.0, 0.3]))
    loss_and_norm(xp, losses, gradients, max_norm, totals, settings)
    assert to_host(totals).tolist() == [3.5, 5.0]
    assert to_host(settings).tolist() == pytest.approx([scale, 0.3])


def test_clipping_passes_on_a_norm_that_is_not_a_number(xp):
    gradients = xp.asarray(numpy.array([numpy.nan, 1.0]))
    totals, settings = xp.asarray(numpy.zeros(2)), xp.asarray(numpy.array([1.0, 0.3]))
    loss_and_norm(xp, xp.asarray(numpy.zeros(1)), gradients, 1.0, totals, settings)
    assert numpy.isnan([float(totals[1]), float(settings[0])]).all()


@pytest.mark.parametrize(
    ("update", "moments", "decaying", "constants"),
    [(momentum_update, 1, 0, [0.9]), (rmsprop_update, 1, 0, [0.9, 1e-8]),
     (adam_update, 2, 0, [0.9, 0.999, 1e-8, 0.01]), (adam_update, 2, 1, [0.9, 0.9, 1e-8, 0.01])],
    ids=["momentum", "rmsprop", "adam's first", "adam's second"],
)  # fmt: skip
def test_a_moment_decays_to_zero_without_gradients(update, moments, decaying, constants, xp):
    """Not to the subnormal number whose 0.9-fold rounds to itself; other moments lose nothing."""
    P, rng = 70_001, numpy.random.default_rng(0)
    arrays = [rng.standard_normal(P), numpy.zeros(P), *(rng.random(P) for _ in range(moments))]
    arrays[2 + decaying] = numpy.where(numpy.arange(P) % 2, 1e-37, 1e-3)
    arrays.append(numpy.array([0.7, 0.1, 0.3, 0.2]))
    arrays = [xp.asarray(array.astype(numpy.float32)) for array in arrays]
    for _ in range(60):
        update(xp, *arrays, *constants)
    found = to_host(arrays[2 + decaying])
    assert (found[1::2] == 0).all()
    numpy.testing.assert_allclose(found[::2], 1e-3 * 0.9**60, rtol=1e-4)
