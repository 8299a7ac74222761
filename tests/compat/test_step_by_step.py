"""The course "Building a recurrent network step by step": its own numbers, and the true gradients.

The numbers are those the course prints for `numpy.random.seed(1)` and `randn` in the order given.
Its numbers for `lstm_backward` are wrong in the 2018 edition; numerical gradients stand in.
"""

import inspect
import re

import numpy
import pytest

from xpcap.compat import step_by_step
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.gradcheck import eval_numerical_gradient_array, rel_error

INPUTS = {
    "rnn_cell": ["xt", "a_prev"],
    "rnn": ["x", "a0"],
    "lstm_cell": ["xt", "a_prev", "c_prev"],
    "lstm": ["x", "a0"],
}
OUTPUTS = {
    "rnn_cell": ["a_next", "yt_pred"],
    "rnn": ["a", "y_pred"],
    "lstm_cell": ["a_next", "c_next", "yt"],
    "lstm": ["a", "y", "c"],
}
ABOVE = {
    "rnn_cell": ["da_next"],
    "rnn": ["da"],
    "lstm_cell": ["da_next", "dc_next"],
    "lstm": ["da"],
}
WEIGHTS = {
    "rnn": ["Wax", "Waa", "ba"],
    "lstm": ["Wf", "bf", "Wi", "bi", "Wc", "bc", "Wo", "bo"],
}

# name and shape of each draw, and the values printed
CASES = {
    "rnn_cell_forward": (
        "xt(3,10) a_prev(5,10) Waa(5,5) Wax(5,3) Wya(2,5) ba(5,1) by(2,1)",
        {
            "a_next[4]": "0.59584544 0.18141802 0.61311866 0.99808218 0.85016201 0.99980978"
            " -0.18887155 0.99815551 0.6531151 0.82872037",
            "yt_pred[1]": "0.9888161 0.01682021 0.21140899 0.36817467 0.98988387 0.88945212"
            " 0.36920224 0.9966312 0.9982559 0.17746526",
        },
    ),
    "rnn_forward": (
        "x(3,10,4) a0(5,10) Waa(5,5) Wax(5,3) Wya(2,5) ba(5,1) by(2,1)",
        {
            "a[4,1]": "-0.99999375 0.77911235 -0.99861469 -0.99833267",
            "y_pred[1,3]": "0.79560373 0.86224861 0.11118257 0.81515947",
        },
    ),
    "lstm_cell_forward": (
        "xt(3,10) a_prev(5,10) c_prev(5,10) Wf(5,8) bf(5,1) Wi(5,8) bi(5,1) Wo(5,8) bo(5,1)"
        " Wc(5,8) bc(5,1) Wy(2,5) by(2,1)",
        {
            "a_next[4]": "-0.66408471 0.0036921 0.02088357 0.22834167 -0.85575339 0.00138482"
            " 0.76566531 0.34631421 -0.00215674 0.43827275",
            "c_next[2]": "0.63267805 1.00570849 0.35504474 0.20690913 -1.64566718 0.11832942"
            " 0.76449811 -0.0981561 -0.74348425 -0.26810932",
            "yt[1]": "0.79913913 0.15986619 0.22412122 0.15606108 0.97057211 0.31146381"
            " 0.00943007 0.12666353 0.39380172 0.07828381",
        },
    ),
    "lstm_forward": (
        "x(3,10,7) a0(5,10) Wf(5,8) bf(5,1) Wi(5,8) bi(5,1) Wo(5,8) bo(5,1) Wc(5,8) bc(5,1)"
        " Wy(2,5) by(2,1)",
        {
            "a[4,3,6]": "0.1721177675329167",
            "y[1,4,3]": "0.9508734618501101",
            "c[1,2,1]": "-0.8555449167181983",
        },
    ),
    "rnn_cell_backward": (
        "xt(3,10) a_prev(5,10) Wax(5,3) Waa(5,5) Wya(2,5) ba(5,1) by(2,1) da_next(5,10)",
        {
            "dxt[1,2]": "-1.3872130506020928",
            "da_prev[2,3]": "-0.1523994937739543",
            "dWax[3,1]": "0.41077282493545836",
            "dWaa[1,2]": "1.1503450668497135",
            "dba[4]": "0.2002349138798538",
        },
    ),
    "rnn_backward": (
        "x(3,10,4) a0(5,10) Wax(5,3) Waa(5,5) Wya(2,5) ba(5,1) by(2,1) da(5,10,4)",
        {
            "dx[1,2]": "-2.071016886851007 -0.592556274588873 0.02466854778006253"
            " 0.01483316637574825",
            "da0[2,3]": "-0.3149423751266506",
            "dWax[3,1]": "11.264104496527771",
            "dWaa[1,2]": "2.303333126579893",
            "dba[4]": "-0.7474772166221403",
        },
    ),
    "lstm_cell_backward": (
        "xt(3,10) a_prev(5,10) c_prev(5,10) Wf(5,8) bf(5,1) Wi(5,8) bi(5,1) Wo(5,8) bo(5,1)"
        " Wc(5,8) bc(5,1) Wy(2,5) by(2,1) da_next(5,10) dc_next(5,10)",
        {
            "dxt[1,2]": "3.230559115109188",
            "da_prev[2,3]": "-0.06396214197109236",
            "dc_prev[2,3]": "0.7975220387970015",
            "dWf[3,1]": "-0.1479548381644968",
            "dWi[1,2]": "1.0574980552259903",
            "dWc[3,1]": "2.304562163687667",
            "dWo[1,2]": "0.33131159528921084",
            "dbf[4]": "0.188646372403535",
            "dbi[4]": "-0.40142490909675665",
            "dbc[4]": "0.25587762583018464",
            "dbo[4]": "0.13893341676116255",
        },
    ),
}


def draw(backend, draws, dtype=numpy.float64):
    randn = numpy.random.RandomState(1).randn
    return {
        name: backend.to_device(randn(*(int(n) for n in shape.split(","))).astype(dtype))
        for name, shape in re.findall(r"(\w+)\(([\d,]+)\)", draws)
    }


def small(backend, network, T=None, m=2, dtype=numpy.float64):
    """Draw inputs, parameters and the gradients from above: n_x=3, n_a=4, n_y=2, T_x=5."""
    last = f"4,{m}" if network.endswith("_cell") else f"4,{m},{T or 5}"
    inputs = {"xt": f"3,{m}", "x": f"3,{m},5", "a_prev": f"4,{m}", "c_prev": f"4,{m}"}
    shapes = {**inputs, "a0": f"4,{m}", "da": last, "da_next": last, "dc_next": last}
    parameters = (
        "Waa(4,4) Wax(4,3) Wya(2,4) ba(4,1) by(2,1)"
        if network.startswith("rnn")
        else "Wf(4,7) bf(4,1) Wi(4,7) bi(4,1) Wo(4,7) bo(4,1) Wc(4,7) bc(4,1) Wy(2,4) by(2,1)"
    )
    names = [*INPUTS[network], *ABOVE[network]]
    draws = " ".join(f"{name}({shapes[name]})" for name in names)
    return draw(backend, f"{draws} {parameters}", dtype)


def parameters_of(arrays):
    return {name: array for name, array in arrays.items() if name[0] in "Wb"}


def run_forward(network, arrays):
    function = getattr(step_by_step, f"{network}_forward")
    return function(*(arrays[name] for name in INPUTS[network]), parameters_of(arrays))


def run_backward(network, arrays, cache=None):
    function = getattr(step_by_step, f"{network}_backward")
    cache = run_forward(network, arrays)[-1] if cache is None else cache
    return function(*(arrays[name] for name in ABOVE[network]), cache)


def assert_slope(backend, gradient, numerical, name):
    """The error of central differences is h^2 = 1e-10 and the values' rounding over h."""
    numpy.testing.assert_allclose(
        backend.to_host(gradient), backend.to_host(numerical), rtol=1e-8, atol=1e-9, err_msg=name
    )


@pytest.mark.parametrize("function", CASES)
def test_values_are_those_printed_by_the_course(backend, function):
    draws, printed = CASES[function]
    arrays = draw(backend, draws)
    network, direction = function.rsplit("_", 1)
    if direction == "forward":
        *outputs, _ = run_forward(network, arrays)
        results = dict(zip(OUTPUTS[network], outputs, strict=True))
    else:
        results = run_backward(network, arrays)
    for place, numbers in printed.items():
        name, index = re.fullmatch(r"(\w+)\[(.*)\]", place).groups()
        found = backend.to_host(results[name])[tuple(int(i) for i in index.split(","))]
        expected = numpy.array([float(number) for number in numbers.split()])
        decimals = max(len(number.partition(".")[2]) for number in numbers.split())
        tolerance = 5.01e-9 if decimals == 8 else 1e-12  # half a unit of what was printed, or eps
        numpy.testing.assert_allclose(
            numpy.ravel(found), expected, rtol=0, atol=tolerance, err_msg=place
        )


@pytest.mark.parametrize("T", [1, 3, 5])
@pytest.mark.parametrize("network", ["rnn", "lstm"])
def test_sequence_backward_is_the_numerical_gradient(backend, network, T):
    arrays = small(backend, network, T)
    gradients = run_backward(network, arrays)
    assert set(gradients) == {"dx", "da0", *(f"d{name}" for name in WEIGHTS[network])}
    assert gradients["dx"].shape == (3, 2, T)
    for name in ["x", "a0", *WEIGHTS[network]]:
        numerical = eval_numerical_gradient_array(
            lambda _: run_forward(network, arrays)[0][:, :, :T], arrays[name], arrays["da"]
        )
        if name == "x":
            assert float(abs(numerical[:, :, T:]).sum()) == 0
            numerical = numerical[:, :, :T]
        assert_slope(backend, gradients[f"d{name}"], numerical, name)


@pytest.mark.parametrize("network", ["rnn_cell", "lstm_cell"])
def test_step_backward_is_the_numerical_gradient(backend, network):
    arrays = small(backend, network)
    gradients = run_backward(network, arrays)
    weights = WEIGHTS[network.removesuffix("_cell")]
    assert set(gradients) == {f"d{name}" for name in [*INPUTS[network], *weights]}
    for name in [*INPUTS[network], *weights]:
        numerical = sum(
            eval_numerical_gradient_array(
                lambda _, k=k: run_forward(network, arrays)[k], arrays[name], arrays[above]
            )
            for k, above in enumerate(ABOVE[network])
        )
        assert_slope(backend, gradients[f"d{name}"], numerical, name)


def test_rnn_caches_are_those_of_the_course(backend):
    arrays = small(backend, "rnn")
    parameters = parameters_of(arrays)
    a, _, (steps, x) = step_by_step.rnn_forward(arrays["x"], arrays["a0"], parameters)
    assert x is arrays["x"]
    assert len(steps) == 5
    before = arrays["a0"]
    for t, (a_next, a_prev, xt, cached) in enumerate(steps):
        assert cached is parameters
        assert rel_error(xt, arrays["x"][:, :, t]) == 0
        assert rel_error(a_prev, before) == 0
        assert rel_error(a_next, a[:, :, t]) == 0
        before = a_next


def test_lstm_caches_are_those_of_the_course(backend):
    arrays = small(backend, "lstm")
    parameters = parameters_of(arrays)
    a, _, c, (steps, x) = step_by_step.lstm_forward(arrays["x"], arrays["a0"], parameters)
    assert x is arrays["x"]
    assert len(steps) == 5
    a_before, c_before = arrays["a0"], 0 * arrays["a0"]
    for t, cache in enumerate(steps):
        a_next, c_next, a_prev, c_prev, ft, it, cct, ot, xt, cached = cache
        assert cached is parameters
        assert rel_error(xt, arrays["x"][:, :, t]) == 0
        assert rel_error(a_prev, a_before) == 0
        assert rel_error(c_prev, c_before) == 0
        assert rel_error(a_next, a[:, :, t]) == 0
        assert rel_error(c_next, c[:, :, t]) == 0
        assert rel_error(c_next, ft * c_prev + it * cct) < 1e-12
        assert rel_error(a_next, ot * backend.xp.tanh(c_next)) < 1e-12
        a_before, c_before = a_next, c_next


@pytest.mark.parametrize("network", INPUTS)
def test_backward_takes_plain_tuples_as_caches(backend, network):
    arrays = small(backend, network)
    *_, cache = run_forward(network, arrays)
    by_hand = tuple(cache) if network.endswith("cell") else ([tuple(c) for c in cache[0]], cache[1])
    expected = run_backward(network, arrays)
    for name, gradient in run_backward(network, arrays, by_hand).items():
        assert rel_error(gradient, expected[name]) == 0


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("network", INPUTS)
def test_arguments_and_caches_are_not_modified(backend, network, m):
    arrays = small(backend, network, m=m)
    before = {name: backend.to_host(array).copy() for name, array in arrays.items()}
    *_, cache = run_forward(network, arrays)
    first = run_backward(network, arrays, cache)
    second = run_backward(network, arrays, cache)
    for name, array in arrays.items():
        numpy.testing.assert_array_equal(backend.to_host(array), before[name])
    for name, gradient in first.items():
        assert rel_error(gradient, second[name]) == 0


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("network", ["rnn", "lstm"])
def test_outputs_do_not_share_memory_with_caches(backend, network, m):
    arrays = small(backend, network, m=m)
    *outputs, caches = run_forward(network, arrays)
    expected = run_backward(network, arrays)
    for output in outputs:
        output[...] = 7
    for name, gradient in run_backward(network, arrays, caches).items():
        assert rel_error(gradient, expected[name]) == 0


@pytest.mark.parametrize("network", INPUTS)
def test_single_precision_stays_single(backend, network):
    arrays = small(backend, network, dtype=numpy.float32)
    *outputs, cache = run_forward(network, arrays)
    gradients = run_backward(network, arrays, cache)
    assert {array.dtype for array in [*outputs, *gradients.values()]} == {numpy.dtype("float32")}


@pytest.mark.parametrize(
    ("network", "name"), [("rnn_cell", "Wya"), ("rnn", "ba"), ("lstm_cell", "Wo"), ("lstm", "by")]
)
def test_a_missing_parameter_is_named(backend, network, name):
    arrays = small(backend, network)
    del arrays[name]
    with pytest.raises(ConfigurationError, match=rf"^{network}_forward: parameters lack {name};"):
        run_forward(network, arrays)


def test_a_missing_weight_is_named_by_backward(backend):
    arrays = small(backend, "lstm")
    *_, (steps, x) = run_forward("lstm", arrays)
    parameters = parameters_of(arrays)
    del parameters["Wc"]
    without = [step._replace(parameters=parameters) for step in steps]
    with pytest.raises(ConfigurationError, match=r"^lstm_backward: parameters lack Wc;"):
        run_backward("lstm", arrays, (without, x))


@pytest.mark.parametrize(
    ("network", "name", "given"),
    [
        ("rnn_cell", "xt", "x(2,2)"),
        ("rnn_cell", "by", "x(3,1)"),
        ("rnn", "x", "x(3,2)"),
        ("rnn", "Wax", "x(3,4)"),
        ("lstm_cell", "c_prev", "x(4,3)"),
        ("lstm_cell", "bf", "x(4)"),
        ("lstm", "Wi", "x(4,6)"),
        ("lstm", "bo", "x(4,2)"),
    ],
)
def test_shape_errors_name_every_array(backend, network, name, given):
    arrays = small(backend, network)
    arrays[name] = draw(backend, given)["x"]
    shape = re.escape(str(arrays[name].shape))
    with pytest.raises(ShapeError, match=rf"^{network}_forward: expected .*; got .*{name} {shape}"):
        run_forward(network, arrays)


@pytest.mark.parametrize("network", INPUTS)
def test_upstream_gradients_of_a_wrong_shape_are_refused(backend, network):
    arrays = small(backend, network)
    *_, cache = run_forward(network, arrays)
    name = ABOVE[network][-1]
    arrays[name] = arrays[name][:3]
    with pytest.raises(ShapeError, match=rf"^{network}_backward: expected .*{name} \(3, 2"):
        run_backward(network, arrays, cache)


@pytest.mark.parametrize("T", [0, 6])
@pytest.mark.parametrize("network", ["rnn", "lstm"])
def test_upstream_gradients_of_too_many_steps_are_refused(backend, network, T):
    arrays = small(backend, network)
    arrays["da"] = backend.to_device(numpy.zeros((4, 2, T)))
    with pytest.raises(ShapeError, match=rf"with T from 1 to 5, .*; got \(4, 2, {T}\)"):
        run_backward(network, arrays)


def test_names_and_arguments_are_those_of_the_course():
    found = {
        name: list(inspect.signature(getattr(step_by_step, name)).parameters)
        for name in step_by_step.__all__
    }
    assert found == {
        "rnn_cell_forward": ["xt", "a_prev", "parameters"],
        "rnn_forward": ["x", "a0", "parameters"],
        "rnn_cell_backward": ["da_next", "cache"],
        "rnn_backward": ["da", "caches"],
        "lstm_cell_forward": ["xt", "a_prev", "c_prev", "parameters"],
        "lstm_forward": ["x", "a0", "parameters"],
        "lstm_cell_backward": ["da_next", "dc_next", "cache"],
        "lstm_backward": ["da", "caches"],
    }
