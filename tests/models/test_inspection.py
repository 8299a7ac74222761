"""Looking inside a captioner: against central differences and plain loops."""

import math

import numpy
import pytest

from xpcap import CaptioningRNN
from xpcap.backend import CPU, namespace, to_host
from xpcap.decoding import Beam, Constraints, beam_search
from xpcap.errors import BackendError, ConfigurationError, ShapeError
from xpcap.models.inspection import gate_saturation, gradient_flow, word_gradients
from xpcap.selfcheck.cases import scaled_difference

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "dog": 4, "sits": 5}
NULL, START = 0, 1
D, W, H = 4, 3, 5
STEP = 1e-5  # of central differences
every_cell = pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])

ONE_LONGEST = numpy.array([[1, 3, 5, 2, 0, 0], [1, 4, 2, 0, 0, 0], [1, 4, 4, 5, 2, 0]], numpy.int32)
ONE_CAPTION = numpy.array([[1, 4, 3, 2]], numpy.int32)
ONE_WORD = numpy.array([[1, 2], [1, 4], [1, 3]], numpy.int32)
WITH_A_GAP = numpy.array([[1, 3, 0, 5, 2], [1, 4, 0, 2, 0]], numpy.int32)
every_shape = pytest.mark.parametrize(
    "captions",
    [ONE_LONGEST, ONE_CAPTION, ONE_WORD, WITH_A_GAP],
    ids=["padded", "N=1", "T=1", "gap"],
)


def lively(cell_type, backend=CPU, scale=0.9, dtype=numpy.float64):
    """Build a captioner whose biases and word vectors are not nearly zero."""
    model = CaptioningRNN(WORDS, D, W, H, cell_type, dtype, seed=0, backend=backend)
    rng = numpy.random.default_rng(3)
    for name, value in model.params.items():
        model.params[name] = backend.to_device(scale * rng.standard_normal(value.shape), dtype)
    return model


def images(captions):
    return numpy.random.default_rng(5).standard_normal((len(captions), D))


def cross_entropy(model, h, words):
    """Return how unlikely each word `(N,)` is after hidden states; 0 for no word."""
    scores = h @ model.params["W_vocab"] + model.params["b_vocab"]
    losses = numpy.log(numpy.exp(scores).sum(axis=1)) - scores[range(len(words)), words]
    return losses * (words != NULL)


def losses_of(model, features, captions, move=lambda state, t: state):
    """Return the cross entropy of each word `(N, T)`, by `CaptioningRNN.step`.

    `move` may change the state after step t; -1 is before the first.
    """
    context, first = model.start(features)
    state, found = move(first, -1), []
    for t in range(captions.shape[1] - 1):
        state = move(model.step(captions[:, t], None, state, context)[1], t)
        found.append(cross_entropy(model, state[0], captions[:, t + 1]))
    return numpy.stack(found, axis=1)


def moved_hidden(unit, step):
    def move(state):
        h = state[0].copy()
        h[:, unit] += step
        return (h, *state[1:])

    return move


def moved_cell(unit, step):
    def move(state):
        h, c = (part.copy() for part in state)
        o = h[:, unit] / numpy.tanh(c[:, unit])
        c[:, unit] += step
        h[:, unit] = o * numpy.tanh(c[:, unit])
        return h, c

    return move


def numerical_norms(model, features, captions, at, moved):
    """Return the norm of dL/d(state after step `at`) of each caption, by central differences."""

    def losses(move):
        return losses_of(
            model, features, captions, lambda state, t: move(state) if t == at else state
        ).sum(axis=1)

    slopes = [
        (losses(moved(unit, STEP)) - losses(moved(unit, -STEP))) / (2 * STEP) for unit in range(H)
    ]
    return numpy.sqrt(numpy.square(slopes).sum(axis=0))


def steps_of(captions):
    """Return which captions have a word to predict, for each step up to the longest one's."""
    counted = [captions[:, t + 1] != NULL for t in range(captions.shape[1] - 1)]
    while not counted[-1].any():
        counted.pop()
    return counted


def mean_of(values, counted):
    return values[counted].mean() if counted.any() else 0


@every_shape
@every_cell
def test_word_gradients_are_the_slopes_of_log_probabilities(cell_type, captions, backend):
    words, features = captions[:, 1:], images(captions)
    log_probs, gradients = word_gradients(
        lively(cell_type, backend), backend.to_device(features), backend.to_device(words)
    )
    assert namespace(log_probs, gradients) is backend.xp
    assert log_probs.shape == words.shape
    assert gradients.shape == (*words.shape, D)
    model = lively(cell_type)
    numpy.testing.assert_allclose(
        to_host(log_probs), -losses_of(model, features, captions), rtol=1e-12, atol=1e-12
    )
    for d, direction in enumerate(STEP * numpy.eye(D)):
        ahead, behind = (
            -losses_of(model, features + shift, captions) for shift in (direction, -direction)
        )
        slope = (ahead - behind) / (2 * STEP)
        assert abs(slope).max() > 1e-3
        numpy.testing.assert_allclose(to_host(gradients)[:, :, d], slope, rtol=1e-6, atol=1e-9)
    absent = words == NULL
    assert not to_host(log_probs)[absent].any()
    assert not to_host(gradients)[absent].any()


@every_cell
def test_the_words_gradients_together_are_that_of_the_loss(cell_type, backend):
    """With x the features: dW_proj = xᵀ dh0 and dx = dh0 W_projᵀ, so xᵀ dx = dW_proj W_projᵀ."""
    model, features = lively(cell_type, backend), images(ONE_LONGEST)
    x, captions = backend.to_device(features), backend.to_device(ONE_LONGEST)
    log_probs, gradients = word_gradients(model, x, captions[:, 1:])
    loss, parameters = model.loss(x, captions)
    N = len(features)
    assert float(log_probs.sum()) == pytest.approx(-N * float(loss), rel=1e-12)
    found = features.T @ to_host(gradients.sum(axis=1))
    expected = -N * to_host(parameters["W_proj"] @ model.params["W_proj"].T)
    assert scaled_difference(found, expected) < 1e-12


@every_cell
def test_words_of_decoding_can_be_given_as_they_are(cell_type, backend):
    model, features = lively(cell_type, backend), images(range(6))
    beam = Beam(width=3, n_best=3, constraints=Constraints(max_length=7, banned=(NULL,)))
    decoded = beam_search(model, backend.to_device(features), beam)
    words = decoded.words.reshape(18, 8)
    log_probs, _ = word_gradients(model, backend.to_device(features.repeat(3, axis=0)), words)
    assert len(set((to_host(words) != NULL).sum(axis=1))) > 1
    numpy.testing.assert_allclose(
        to_host(log_probs), to_host(decoded.log_probs).reshape(18, 8), rtol=1e-12, atol=1e-12
    )


@every_shape
@every_cell
def test_the_gradients_of_hidden_states_are_slopes_of_the_loss(cell_type, captions, backend):
    features = images(captions)
    flow = gradient_flow(
        lively(cell_type, backend), backend.to_device(features), backend.to_device(captions)
    )
    assert namespace(flow.captions, flow.hidden, flow.first) is backend.xp
    counted, model = steps_of(captions), lively(cell_type)
    assert to_host(flow.captions).tolist() == [here.sum() for here in counted]
    expected = [
        mean_of(numerical_norms(model, features, captions, t, moved_hidden), here)
        for t, here in enumerate(counted)
    ]
    numpy.testing.assert_allclose(to_host(flow.hidden), expected, rtol=1e-7)
    first = numerical_norms(model, features, captions, -1, moved_hidden).mean()
    assert float(flow.first) == pytest.approx(first, rel=1e-7)
    assert (flow.cell is not None) == (cell_type == "lstm")


@every_shape
def test_the_gradients_of_cell_states_are_slopes_of_the_loss(captions, backend):
    features = images(captions)
    flow = gradient_flow(
        lively("lstm", backend), backend.to_device(features), backend.to_device(captions)
    )
    expected = [
        mean_of(numerical_norms(lively("lstm"), features, captions, t, moved_cell), here)
        for t, here in enumerate(steps_of(captions))
    ]
    numpy.testing.assert_allclose(to_host(flow.cell), expected, rtol=1e-7)


def test_a_gradient_that_vanishes_is_not_zero(backend):
    model = lively("rnn", backend, dtype=numpy.float32)
    model.params["Wh"] *= 1e-25
    features, captions = images(ONE_CAPTION), ONE_CAPTION
    flow = gradient_flow(model, backend.to_device(features), backend.to_device(captions))
    assert 1e-28 < float(flow.first) < 1e-23


def sigma(a):
    return 1 / (1 + math.exp(-a))


def plain_gates(cell_type, p, x, h, c):
    """One step of one caption: the units of each gate, and the new state."""

    def sums(block, vector, weights):
        columns = range(block * H, (block + 1) * H)
        return [sum(vector[k] * p[weights][k, j] for k in range(len(vector))) for j in columns]

    def of(block, activate):
        ax, ah = sums(block, x, "Wx"), sums(block, h, "Wh")
        return [activate(ax[j] + ah[j] + p["b"][block * H + j]) for j in range(H)]

    if cell_type == "rnn":
        gates = [of(0, math.tanh)]
        return gates, gates[0], c
    if cell_type == "lstm":
        i, f, o, g = gates = [*(of(block, sigma) for block in range(3)), of(3, math.tanh)]
        c = [f[j] * c[j] + i[j] * g[j] for j in range(H)]
        return gates, [o[j] * math.tanh(c[j]) for j in range(H)], c
    r, z = of(0, sigma), of(1, sigma)
    ax, ah = sums(2, x, "Wx"), sums(2, h, "Wh")
    n = [math.tanh(ax[j] + p["b"][2 * H + j] + r[j] * (ah[j] + p["bn"][j])) for j in range(H)]
    return [r, z, n], [(1 - z[j]) * n[j] + z[j] * h[j] for j in range(H)], c


NAMES = {
    "rnn": ("hidden state",),
    "lstm": ("input", "forget", "output", "candidate"),
    "gru": ("reset", "update", "candidate"),
}


@every_shape
@every_cell
def test_saturated_gates_are_those_of_plain_loops(cell_type, captions, backend):
    features = images(captions)
    saturation = gate_saturation(
        lively(cell_type, backend, scale=1.3),
        backend.to_device(features),
        backend.to_device(captions),
    )
    assert saturation.names == NAMES[cell_type]
    p, counted = lively(cell_type, scale=1.3).params, steps_of(captions)
    units = [[[] for _ in counted] for _ in saturation.names]
    for n, image in enumerate(features):
        h, c = image @ p["W_proj"] + p["b_proj"], [0.0] * H
        for t, here in enumerate(counted):
            gates, h, c = plain_gates(cell_type, p, p["W_embed"][captions[n, t]], h, c)
            for of_gate, activations in zip(units, gates, strict=True):
                of_gate[t] += activations if here[n] else []
    judges = {
        "low": lambda a, tanh: a < (-0.9 if tanh else 0.1),
        "high": lambda a, tanh: a > 0.9,
        "mean": lambda a, tanh: a,
    }
    for name, judge in judges.items():
        expected = [
            [
                sum(judge(a, gate == len(units) - 1) for a in some) / max(len(some), 1)
                for some in of_gate
            ]
            for gate, of_gate in enumerate(units)
        ]
        found = getattr(saturation, name)
        assert namespace(found) is backend.xp
        numpy.testing.assert_allclose(to_host(found), expected, rtol=1e-12, err_msg=name)
        if name != "mean":
            assert 0.01 < numpy.mean(expected) < 0.9


def results(model, features, captions):
    flow = gradient_flow(model, features, captions)
    _, *shares = gate_saturation(model, features, captions)
    return [
        *(value for value in flow if value is not None),
        *shares,
        *word_gradients(model, features, captions[:, 1:]),
    ]


@every_cell
def test_padding_changes_nothing(cell_type, backend):
    model, features = lively(cell_type, backend), backend.to_device(images(ONE_LONGEST))
    tight, padded = (
        results(model, features, backend.to_device(captions))
        for captions in (ONE_LONGEST[:, :5], numpy.pad(ONE_LONGEST, ((0, 0), (0, 3))))
    )
    *averages, log_probs, gradients = map(to_host, padded)
    for one, other in zip(tight, [*averages, log_probs[:, :4], gradients[:, :4]], strict=True):
        numpy.testing.assert_array_equal(to_host(one), other)
    assert log_probs.shape == (3, 8)
    assert not log_probs[:, 4:].any()
    assert not gradients[:, 4:].any()


@every_cell
def test_captions_without_a_word(cell_type, backend):
    model, features = lively(cell_type, backend), backend.to_device(images(range(2)))
    captions = backend.to_device(numpy.array([[1, 0, 0], [1, 0, 0]]))
    flow = gradient_flow(model, features, captions)
    assert flow.captions.shape == flow.hidden.shape == (0,)
    assert float(flow.first) == 0
    assert gate_saturation(model, features, captions).low.shape == (len(NAMES[cell_type]), 0)
    log_probs, gradients = map(to_host, word_gradients(model, features, captions[:, 1:]))
    assert log_probs.tolist() == [[0, 0], [0, 0]]
    assert gradients.shape == (2, 2, D)
    assert not gradients.any()


@every_cell
def test_no_captions_at_all(cell_type, backend):
    model, features = lively(cell_type, backend), backend.to_device(numpy.zeros((0, D)))
    captions = backend.to_device(numpy.zeros((0, 4), int))
    assert gradient_flow(model, features, captions).hidden.shape == (0,)
    assert word_gradients(model, features, captions)[1].shape == (0, 4, D)


@every_cell
def test_float32_parameters_give_what_float64_ones_give(cell_type, backend):
    features = images(ONE_LONGEST)
    captions = backend.to_device(ONE_LONGEST)
    single = lively(cell_type, backend, dtype=numpy.float32)
    double = lively(cell_type, backend)
    for name, value in single.params.items():
        double.params[name] = value.astype(numpy.float64)
    of_single = results(single, backend.to_device(features, numpy.float32), captions)
    of_double = results(double, backend.to_device(features.astype(numpy.float32)), captions)
    for found, expected in zip(of_single, of_double, strict=True):
        assert scaled_difference(found, expected) < 1e-5
    assert {value.dtype for value in of_single[-2:]} == {numpy.dtype(numpy.float32)}
    assert {value.dtype for value in of_double[-2:]} == {numpy.dtype(numpy.float64)}


@every_cell
def test_nothing_that_is_given_is_changed(cell_type, backend):
    model = lively(cell_type, backend)
    given = {
        "features": backend.to_device(images(ONE_LONGEST)),
        "captions": backend.to_device(ONE_LONGEST),
        **model.params,
    }
    before = {name: to_host(value).copy() for name, value in given.items()}
    results(model, given["features"], given["captions"])
    assert all(model.params[name] is given[name] for name in model.params)
    for name, value in given.items():
        numpy.testing.assert_array_equal(to_host(value), before[name], err_msg=name)


@pytest.mark.parametrize("look", [gradient_flow, gate_saturation, word_gradients])
def test_what_does_not_fit_is_refused(look):
    model = lively("gru")
    with pytest.raises(ShapeError, match="expected"):
        look(model, images(range(3)), ONE_CAPTION)
    with pytest.raises(ShapeError, match="expected"):
        look(model, images(range(4)), ONE_CAPTION[0])
    with pytest.raises(ShapeError, match="expected"):
        look(model, numpy.zeros((1, D + 1)), ONE_CAPTION)
    with pytest.raises(ShapeError, match=r"do not all lie in 0\.\.5"):
        look(model, images(range(1)), numpy.array([[1, 6, 2]]))
    with pytest.raises(BackendError):
        look(model, images(range(1)).tolist(), ONE_CAPTION)


def test_without_start_there_are_no_word_gradients():
    model = CaptioningRNN({"<NULL>": 0, "cat": 1}, D, W, H)
    with pytest.raises(ConfigurationError, match="<START>"):
        word_gradients(model, images(range(1)), numpy.array([[1]]))
