"""Every test here runs over the whole table of layers."""

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from guard import counters, open_guard

from xpcap.backend import CPU, to_host
from xpcap.gradcheck import directional_error
from xpcap.selfcheck.cases import (
    LAYERS,
    SMALL,
    SMALL_SEED,
    Sizes,
    as_tuple,
    gradients_above,
    on_device,
    run_layer,
    scaled_difference,
)

REAL = Sizes(N=8, T=16, D=64, H=64, V=500)
# seeds whose draws have no gradient so close to zero that its relative error is all rounding
EDGES = {
    "T=1": (SMALL._replace(T=1), 6),
    "N=1": (SMALL._replace(N=1), 5),
    "N=1 T=1": (SMALL._replace(N=1, T=1), 15),
}

every_layer = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
floating = pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])


def draw(case, sizes=SMALL, seed=SMALL_SEED):
    return case.make_args(numpy.random.default_rng(seed), sizes)


def arrays_in(value: Any) -> Iterator[Any]:
    """Go through the arrays of arguments, outputs, caches and gradients."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from arrays_in(part)
    elif hasattr(value, "shape"):
        yield value


def snapshot(value: Any) -> list[numpy.ndarray]:
    return [to_host(array).copy() for array in arrays_in(value)]


def assert_unchanged(value: Any, before: list[numpy.ndarray]) -> None:
    for now, then in zip(snapshot(value), before, strict=True):
        numpy.testing.assert_array_equal(now, then)


@every_layer
def test_numerical_gradients(case, backend):
    errors = case.gradient_errors(backend, draw(case))
    assert max(errors.values()) < case.limit, errors


@pytest.mark.parametrize("edge", EDGES)
@every_layer
def test_numerical_gradients_at_the_edge(case, edge, backend):
    errors = case.gradient_errors(backend, draw(case, *EDGES[edge]))
    assert max(errors.values()) < case.limit, errors


@every_layer
def test_one_direction_at_real_sizes(case, backend):
    """One argument is moved at a time, so that a failure names the gradient."""
    arguments = on_device(backend, draw(case, REAL))
    *outputs, cache = case.forward(**arguments)
    above = gradients_above(outputs, seed=1)
    gradients = as_tuple(case.backward(*above, cache))
    for name, gradient in zip(case.differentiable(arguments), gradients, strict=True):

        def f(value, name=name):
            *moved, _ = case.forward(**{**arguments, name: value})
            # summing differences keeps the rounding of the large sum out of the slope
            return sum(((m - o) * a).sum() for m, o, a in zip(moved, outputs, above, strict=True))

        error = directional_error(f, arguments[name], gradient, seed=2)
        assert error < 1e-8, f"d{name}: {error}"


@every_layer
def test_agreement_with_numpy(case, elsewhere):
    drawn = draw(case, Sizes(N=5, T=7, D=6, H=8, V=9))
    ours, expected = run_layer(case, on_device(elsewhere, drawn)), run_layer(case, drawn)
    for name, value in expected.items():
        assert scaled_difference(ours[name], value) < 1e-10, name


@every_layer
def test_single_precision_agrees_within_its_rounding(case, elsewhere):
    """As near to the float64 result as NumPy's own float32 is, twice over."""
    drawn = draw(case, Sizes(N=5, T=7, D=6, H=8, V=9))
    exact = run_layer(case, drawn)
    single = run_layer(case, on_device(CPU, drawn, numpy.float32))
    ours = run_layer(case, on_device(elsewhere, drawn, numpy.float32))
    eps = numpy.finfo(numpy.float32).eps
    for name, value in exact.items():
        limit = 2 * scaled_difference(single[name], value) + 8 * eps
        assert limit < 1e-5, name
        assert scaled_difference(ours[name], value) <= limit, name


@floating
@every_layer
def test_dtype_is_kept(case, dtype, backend):
    arguments = on_device(backend, draw(case), dtype)
    *outputs, cache = case.forward(**arguments)
    gradients = case.backward(*gradients_above(outputs, seed=1), cache)
    found = [a.dtype for a in arrays_in((outputs, cache, gradients)) if a.dtype.kind == "f"]
    assert found == [numpy.dtype(dtype)] * len(found)
    assert len(found) >= 2


@every_layer
def test_shapes_of_gradients_are_those_of_arguments(case, backend):
    arguments = on_device(backend, draw(case))
    results = run_layer(case, arguments)
    for name in case.differentiable(arguments):
        assert results[f"d{name}"].shape == arguments[name].shape, name


@every_layer
def test_gradients_are_named_after_arguments(case):
    arguments = draw(case)
    *outputs, cache = case.forward(**arguments)
    gradients = case.backward(*gradients_above(outputs, seed=1), cache)
    names = case.differentiable(arguments)
    if len(names) == 1:
        assert not isinstance(gradients, tuple)
    else:
        assert gradients._fields == tuple(f"d{name}" for name in names)


@every_layer
def test_nothing_given_is_changed(case, backend):
    """Neither forward changes its arguments, nor backward those, its own ones or the cache."""
    arguments = on_device(backend, draw(case))
    arguments_before = snapshot(arguments)
    *outputs, cache = case.forward(**arguments)
    assert_unchanged(arguments, arguments_before)
    above = gradients_above(outputs, seed=1)
    others = [above, outputs, cache]
    others_before = snapshot(others)
    first = snapshot(case.backward(*above, cache))
    assert_unchanged(arguments, arguments_before)
    assert_unchanged(others, others_before)
    assert_unchanged(case.backward(*above, cache), first)


@every_layer
def test_results_are_not_the_arguments(case, backend):
    """What is returned can be changed without a change to the arguments or the cache."""
    arguments = on_device(backend, draw(case))
    *outputs, cache = case.forward(**arguments)
    above = gradients_above(outputs, seed=1)
    before = snapshot([arguments, above])
    for gradient in as_tuple(case.backward(*above, cache)):
        gradient += 1.0
    for output in outputs:
        output += 1.0
    assert_unchanged([arguments, above], before)


def strided(xp, array):
    """Copy an array into every other place of a larger one, and return that view."""
    wide = xp.zeros((*array.shape, 2), dtype=array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


@pytest.mark.parametrize("lay_out", [strided, lambda xp, a: xp.ascontiguousarray(a.T).T])
@every_layer
def test_arguments_of_any_layout(case, lay_out, backend):
    arguments = on_device(backend, draw(case))
    odd = {
        name: lay_out(backend.xp, value) if hasattr(value, "shape") else value
        for name, value in arguments.items()
    }
    *outputs, cache = case.forward(**arguments)
    *odd_outputs, odd_cache = case.forward(**odd)
    above = gradients_above(outputs, seed=1)
    odd_above = [lay_out(backend.xp, gradient) for gradient in above]
    expected = [*outputs, *as_tuple(case.backward(*above, cache))]
    found = [*odd_outputs, *as_tuple(case.backward(*odd_above, odd_cache))]
    assert not all(a.flags.c_contiguous for a in arrays_in(odd) if a.ndim > 1)
    for ours, theirs in zip(found, expected, strict=True):
        assert scaled_difference(ours, theirs) < 1e-13


@every_layer
def test_the_device_never_waits(case):
    guard = open_guard()
    arguments = on_device(guard, draw(case), numpy.float32)
    *outputs, cache = case.forward(**arguments)
    above = gradients_above(outputs, seed=1)
    counters.reset()
    case.forward(**arguments)
    case.backward(*above, cache)
    assert counters.synchronizations == 0


@every_layer
def test_mixed_libraries_are_refused(case):
    guard = open_guard()
    arguments = draw(case)
    arrays = [name for name, value in arguments.items() if isinstance(value, numpy.ndarray)]
    for name in arrays[1:]:
        mixed = {**arguments, name: guard.to_device(arguments[name])}
        with pytest.raises(TypeError, match=r"arrays of \w+ and \w+ in one call"):
            case.forward(**mixed)
    *outputs, cache = case.forward(**arguments)
    above = [guard.to_device(gradient) for gradient in gradients_above(outputs, seed=1)]
    with pytest.raises(TypeError):
        case.backward(*above, cache)
