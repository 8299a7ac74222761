"""What layers refuse in one line: arrays of other types, empty ones, and those of other shapes."""

import numpy
import pytest

from xpcap import layers
from xpcap.compat import step_by_step
from xpcap.compat.cs231n import blur_image, deprocess_image, preprocess_image, sigmoid
from xpcap.errors import ConfigurationError, ShapeError, XpcapError
from xpcap.selfcheck.cases import LAYERS, SMALL, gradients_above, on_device

every_layer = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)


def draw(case, sizes=SMALL):
    return case.make_args(numpy.random.default_rng(0), sizes)


def one_line(case, message, call, *arguments, **named):
    with pytest.raises(ShapeError, match=message) as caught:
        call(*arguments, **named)
    assert str(caught.value).startswith(case.name.split()[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex128", "O", "U3"])
@every_layer
def test_arrays_of_other_types_are_refused(case, dtype, backend):
    if dtype in ("O", "U3") and backend.xp is not numpy:
        return  # devices have no such arrays
    arguments = draw(case)
    names = case.differentiable(arguments)
    for name in names:
        changed = {**arguments, name: arguments[name].astype(dtype)}
        message = f"expected floating numbers in {name}, got .*; convert it with"
        one_line(case, message, case.forward, **on_device(backend, changed))


@pytest.mark.parametrize("case", [c for c in LAYERS if " masked" in c.name], ids=lambda c: c.name)
def test_masks_of_numbers_are_refused(case):
    arguments = draw(case)
    arguments["mask"] = arguments["mask"].astype(int)
    one_line(case, "expected booleans in mask, got int64", case.forward, **arguments)


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex128", "O"])
@every_layer
def test_gradients_of_other_types_are_refused(case, dtype):
    *outputs, cache = case.forward(**draw(case))
    if case.name == "temporal_softmax_loss":
        return  # has no backward pass
    above = gradients_above(outputs, 1)
    for k in range(len(above)):
        changed = [g.astype(dtype) if j == k else g for j, g in enumerate(above)]
        one_line(case, r"_backward: expected floating numbers in d", case.backward, *changed, cache)


@every_layer
def test_gradients_of_another_shape_are_refused(case, backend):
    """Another T, N or H, one axis less or more, or a broadcasting shape."""
    *outputs, cache = case.forward(**on_device(backend, draw(case)))
    if case.name == "temporal_softmax_loss":
        return
    above = gradients_above(outputs, 1)
    for k, gradient in enumerate(above):
        others = [gradient[0], gradient[None], gradient[..., :-1], gradient[:1]]
        if gradient.ndim == 3:
            others += [gradient[:, :-1], gradient.swapaxes(0, 1)]
        for other in others:
            changed = [other if j == k else g for j, g in enumerate(above)]
            one_line(
                case, r"_backward: expected d\w+ \(.*\), as the", case.backward, *changed, cache
            )


@pytest.mark.parametrize("size", "TDHV")
@every_layer
def test_empty_arrays_are_refused(case, size):
    if case.name in ("relu", "dropout"):
        return  # of any shape
    arguments = draw(case, SMALL._replace(**{size: 0}) if size != "V" else SMALL)
    if size == "V":
        empty = {name: value[..., :0] for name, value in arguments.items() if name == "x"}
        if case.name != "temporal_softmax_loss":
            return
        arguments |= empty
    if all(value.size for value in arguments.values() if hasattr(value, "size")):
        return
    one_line(case, "of at least 1, got|expected", case.forward, **arguments)


@every_layer
def test_an_empty_batch_has_no_gradient(case):
    arguments = draw(case, SMALL._replace(N=0))
    if case.name == "temporal_softmax_loss":
        return one_line(case, "expected N of at least 1", case.forward, **arguments)
    *outputs, cache = case.forward(**arguments)
    gradients = case.backward(*gradients_above(outputs, 1), cache)
    for gradient in gradients if isinstance(gradients, tuple) else (gradients,):
        assert not gradient.any()
    return None


@every_layer
def test_numbers_and_lists_for_arrays_are_refused(case):
    arguments = draw(case)
    arrays = [name for name, value in arguments.items() if hasattr(value, "shape")]
    for name in arrays:
        with pytest.raises(XpcapError, match="expected a NumPy or CuPy array, got list"):
            case.forward(**{**arguments, name: arguments[name].tolist()})
        with pytest.raises(XpcapError, match=f"{name} \\(\\)|got only scalars"):
            case.forward(**{**arguments, name: 0.5})


@pytest.mark.parametrize("setting", [{"seed": 0.5}, {"seed": None}, {"seed": 0, "stream": "a"}])
def test_masks_of_dropout_are_numbered_by_integers(setting):
    with pytest.raises(ConfigurationError, match="must be at least -inf, a whole number"):
        layers.dropout_forward(numpy.ones(3), 0.5, **setting)


def rnn_of_the_course(**changes):
    sizes = {"Wax": (5, 3), "Waa": (5, 5), "Wya": (2, 5), "ba": (5, 1), "by": (2, 1)}
    arrays = {name: numpy.ones(shape) for name, shape in sizes.items()}
    arrays |= {"x": numpy.ones((3, 4, 6)), "a0": numpy.ones((5, 4)), **changes}
    return step_by_step.rnn_forward(arrays.pop("x"), arrays.pop("a0"), arrays)


def test_course_functions_refuse_what_layers_refuse():
    with pytest.raises(
        ShapeError, match="rnn_forward: expected floating numbers in Wax, got int64"
    ):
        rnn_of_the_course(Wax=numpy.ones((5, 3), int))
    for changes, expected in (
        ({"x": numpy.ones((3, 4, 0))}, "T_x of at least 1, got x"),
        ({"x": numpy.ones((3, 0, 6)), "a0": numpy.ones((5, 0))}, "m of at least 1, got x"),
        ({"ba": 0.5}, r"x \(n_x, m, T_x\)"),
    ):
        with pytest.raises(ShapeError, match=f"rnn_forward: expected {expected}"):
            rnn_of_the_course(**changes)
    *_, caches = rnn_of_the_course()
    with pytest.raises(
        ShapeError, match="rnn_backward: expected floating numbers in da, got int64"
    ):
        step_by_step.rnn_backward(numpy.ones((5, 4, 6), int), caches)
    with pytest.raises(XpcapError, match="expected a NumPy or CuPy array, got list"):
        step_by_step.rnn_backward([1.0], caches)


@pytest.mark.parametrize(
    ("call", "image", "message"),
    [
        (
            deprocess_image,
            numpy.ones((2, 2, 3), int),
            "expected floating numbers in img, got int64",
        ),
        (deprocess_image, numpy.ones((3, 2, 2)), r"expected img \(\.\.\., 3\), got \(3, 2, 2\)"),
        (preprocess_image, numpy.ones((2, 2, 4)), r"expected img \(\.\.\., 3\), got \(2, 2, 4\)"),
        (preprocess_image, numpy.ones((2, 2, 3), "U3"), "expected numbers in img, got <U3"),
        (
            blur_image,
            numpy.ones((1, 3, 2, 2), "uint8"),
            "expected floating numbers in X, got uint8",
        ),
        (sigmoid, numpy.array([None]), "expected numbers in x, got object"),
    ],
)
def test_image_functions_refuse_what_they_would_turn_into_nonsense(call, image, message):
    with pytest.raises(ShapeError, match=message):
        call(image)
