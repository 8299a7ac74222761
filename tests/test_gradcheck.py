import math

import numpy
import pytest

from xpcap.backend import to_host
from xpcap.errors import BackendError, ConfigurationError, ShapeError
from xpcap.gradcheck import (
    directional_error,
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    gradcheck,
    rel_error,
)
from xpcap.layers import affine_backward, affine_forward, lstm_step_backward, lstm_step_forward
from xpcap.selfcheck.cases import LAYERS, SMALL, on_device


def test_rel_error():
    assert rel_error(numpy.array([1.0, 2.0]), numpy.array([1.0, 6.0])) == 0.5
    assert rel_error(numpy.array([0.0]), numpy.array([1e-9])) == pytest.approx(0.1)
    assert rel_error(numpy.zeros((0, 3)), numpy.zeros((0, 3))) == 0.0
    assert rel_error(1.0, 3.0) == 0.5
    assert rel_error(numpy.float64(1), numpy.float32(3)) == 0.5
    assert math.isnan(rel_error(numpy.array([math.nan]), numpy.array([1.0])))


def test_rel_error_of_arrays_on_different_devices(backend):
    x = numpy.array([1.0, 2.0])
    assert rel_error(backend.to_device(x), x) == 0.0
    assert rel_error(backend.to_device(x), backend.to_device(3 * x)) == 0.5


def test_numerical_gradient_of_a_scalar_function(backend):
    """The gradient of sum x^3 + x_0 is 3 x^2, and 1 more for x_0."""
    x = numpy.array([[1.0, -2.0], [0.5, 3.0]])
    expected = 3 * x**2
    expected[0, 0] += 1
    device = backend.to_device(x)
    gradient = eval_numerical_gradient(lambda x: (x**3).sum() + x[0, 0], device, verbose=False)
    assert type(gradient) is type(device)
    numpy.testing.assert_allclose(to_host(gradient), expected, rtol=1e-9)
    numpy.testing.assert_array_equal(to_host(device), x)


def test_numerical_gradient_of_an_array_function(backend):
    x, df = numpy.array([1.0, -2.0, 0.5]), numpy.array([10.0, 1.0, -3.0])
    gradient = eval_numerical_gradient_array(
        lambda x: x**2, backend.to_device(x), backend.to_device(df)
    )
    numpy.testing.assert_allclose(to_host(gradient), 2 * x * df, rtol=1e-9)


@pytest.mark.parametrize("f", [lambda x: x, lambda x: x.reshape(3, 1), lambda x: x[:]])
def test_numerical_gradient_of_functions_that_return_their_argument(f, backend):
    """The result of f may be x or a view of it, which changes when x is restored."""
    x = backend.to_device(numpy.array([1.0, 2.0, 3.0]))
    df = backend.xp.ones(f(x).shape)
    gradient = eval_numerical_gradient_array(f, x, df)
    numpy.testing.assert_allclose(to_host(gradient), numpy.ones(3), rtol=1e-9)


def test_the_step_of_differences_is_h():
    """The central difference of x^3 at 0 is h^2."""
    x = numpy.zeros(1)
    for h in (1e-1, 1e-2):
        gradient = eval_numerical_gradient(lambda x: (x**3).sum(), x, verbose=False, h=h)
        assert gradient[0] == pytest.approx(h**2)


def test_verbose_prints_each_slope(capsys):
    x = numpy.array([1.0, 2.0])
    eval_numerical_gradient(lambda x: (x * x).sum(), x)
    assert [line.split(")")[0] for line in capsys.readouterr().out.splitlines()] == ["(0,", "(1,"]
    eval_numerical_gradient_array(lambda x: x, x, x)
    assert capsys.readouterr().out == ""


def test_right_gradients_pass_and_arguments_are_not_changed(backend):
    rng = numpy.random.default_rng(0)
    host = {name: rng.standard_normal(shape) for name, shape in
            {"x": (3, 4), "w": (4, 2), "b": (2,)}.items()}  # fmt: skip
    arguments = on_device(backend, host)
    errors = gradcheck(affine_forward, affine_backward, arguments, ["x", "w", "b"])
    assert list(errors) == ["x", "w", "b"]
    assert max(errors.values()) < 1e-8
    for name, value in host.items():
        numpy.testing.assert_array_equal(to_host(arguments[name]), value)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_every_wrong_gradient_is_caught(case):
    """Each gradient in turn is wrong by a thousandth, or in one element."""
    arguments = case.make_args(numpy.random.default_rng(12), SMALL)
    names, forward = case.differentiable(arguments), case.differentiated or case.forward
    for broken in range(len(names)):
        for spoil in (lambda g: g * 1.001, lambda g: g + numpy.eye(1, g.size).reshape(g.shape)):

            def backward(*above_and_cache, broken=broken, spoil=spoil):
                gradients = case.backward(*above_and_cache)
                if not isinstance(gradients, tuple):
                    return spoil(gradients)
                return tuple(spoil(g) if k == broken else g for k, g in enumerate(gradients))

            errors = gradcheck(forward, backward, arguments, names)
            assert errors.pop(names[broken]) > 1e-4
            assert max(errors.values(), default=0.0) < case.limit


def test_a_backward_pass_that_ignores_an_output_is_caught():
    """An LSTM step whose backward pass forgets dnext_c."""
    case = next(case for case in LAYERS if case.name == "lstm_step")
    arguments = case.make_args(numpy.random.default_rng(12), SMALL)

    def backward(dnext_h, dnext_c, cache):
        return lstm_step_backward(dnext_h, 0 * dnext_c, cache)

    errors = gradcheck(lstm_step_forward, backward, arguments, list(arguments))
    assert min(errors.values()) > 1e-2


def test_a_missing_gradient_is_an_error():
    arguments = {"x": numpy.ones((1, 2)), "w": numpy.ones((2, 2)), "b": numpy.ones(2)}
    with pytest.raises(ConfigurationError, match="2 gradients for x, w, b; expected one for each"):
        gradcheck(
            affine_forward, lambda d, c: affine_backward(d, c)[:2], arguments, list(arguments)
        )


def test_directional_error(backend):
    x = backend.to_device(numpy.random.default_rng(0).standard_normal((30, 40)))

    def f(x):
        return (x**3).sum()

    assert directional_error(f, x, 3 * x**2) < 1e-8
    assert directional_error(f, x, 3.01 * x**2) > 1e-6
    wrong = 3 * x**2
    wrong[:3] = 0.0
    assert directional_error(f, x, wrong) > 1e-4


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex128", "object"])
def test_arrays_that_are_not_floating_are_refused(dtype):
    x = numpy.ones(3, dtype)
    message = f"expected a floating array to differentiate at, got {dtype}; convert it with"
    with pytest.raises(ShapeError, match=message):
        eval_numerical_gradient(lambda x: (x * x).sum(), x, verbose=False)
    with pytest.raises(ShapeError, match=message):
        eval_numerical_gradient_array(lambda x: x * x, x, numpy.ones(3))
    with pytest.raises(BackendError, match="expected a NumPy or CuPy array, got list"):
        eval_numerical_gradient(sum, [1.0, 2.0])


def square(x):
    return (x * x).sum()


@pytest.mark.parametrize("h", [0, -1e-5, math.nan, math.inf, "a", None, True])
def test_steps_that_are_no_positive_numbers_are_refused(h):
    with pytest.raises(ConfigurationError, match=r"h must be a number in \(0, inf\)"):
        eval_numerical_gradient(square, numpy.ones(2), verbose=False, h=h)


@pytest.mark.parametrize("h", [1e-320, 1e-17])
def test_steps_that_change_nothing_are_refused(h, backend):
    x = backend.to_device(numpy.ones(2))
    with pytest.raises(ConfigurationError, match=rf"h {h} does not change 1.0, float64; expected"):
        eval_numerical_gradient(square, x, verbose=False, h=h)


def test_single_precision_warns_how_accurate_differences_are():
    x = numpy.ones((2, 2), "float32")
    message = "differences of float32 with h 1e-05 are rounded to about 0.01; float64 is accurate"
    with pytest.warns(RuntimeWarning, match=message):
        eval_numerical_gradient(square, x, verbose=False)
    arguments = {"x": x, "w": x, "b": x[0]}
    with pytest.warns(RuntimeWarning, match=message):
        errors = gradcheck(affine_forward, affine_backward, arguments, list(arguments))
    assert max(errors.values()) < 0.1


def test_functions_of_another_kind_are_refused():
    with pytest.raises(ShapeError, match=r"to be a number, got an array \(2,\); for arrays there"):
        eval_numerical_gradient(lambda x: x * x, numpy.ones(2), verbose=False)
    with pytest.raises(ShapeError, match=r"expected df \(2,\), as f\(x\) is, got \(1,\)"):
        eval_numerical_gradient_array(lambda x: x * x, numpy.ones(2), numpy.ones(1))
    with pytest.raises(ConfigurationError, match="which are among x, w, b"):
        arguments = {"x": numpy.ones((1, 2)), "w": numpy.ones((2, 2)), "b": numpy.ones(2)}
        gradcheck(affine_forward, affine_backward, arguments, ["x", "w", "bias"])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "bool", "float64"])
def test_errors_of_integers_do_not_wrap(dtype):
    x, y = numpy.array([100, 1], dtype), numpy.array([100, 0], dtype)
    assert rel_error(x, y) == 1.0
    with pytest.raises(ShapeError, match="expected numbers, got <U1"):
        rel_error(numpy.array(["a"]), numpy.array(["b"]))
