"""Looking inside a captioner, against the naive model and its complex steps."""

import numpy
import oracle
import pytest
from kinds import KINDS, LOOKING, WITH_A_CELL
from oracle import NULL

from xpcap import CaptioningRNN
from xpcap.backend import CPU, namespace, to_host
from xpcap.decoding import Beam, Constraints, beam_search
from xpcap.errors import BackendError, ConfigurationError, ShapeError
from xpcap.models.inspection import (
    Inspectable,
    attention_maps,
    gate_saturation,
    gradient_flow,
    word_gradients,
)
from xpcap.selfcheck.cases import scaled_difference

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "dog": 4, "sits": 5}
D, W, H = 4, 3, 5
every_kind = pytest.mark.parametrize("kind", KINDS)
every_cell = pytest.mark.parametrize("kind", WITH_A_CELL)

ONE_LONGEST = numpy.array([[1, 3, 5, 2, 0, 0], [1, 4, 2, 0, 0, 0], [1, 4, 4, 5, 2, 0]], numpy.int32)
ONE_CAPTION = numpy.array([[1, 4, 3, 2]], numpy.int32)
ONE_WORD = numpy.array([[1, 2], [1, 4], [1, 3]], numpy.int32)
WITH_A_GAP = numpy.array([[1, 3, 0, 5, 2], [1, 4, 0, 2, 0]], numpy.int32)
every_shape = pytest.mark.parametrize(
    "captions",
    [ONE_LONGEST, ONE_CAPTION, ONE_WORD, WITH_A_GAP],
    ids=["padded", "N=1", "T=1", "gap"],
)


def lively(kind="lstm", backend=CPU, scale=0.9, dtype=numpy.float64):
    """Build a captioner whose biases and word vectors are not nearly zero."""
    model = KINDS[kind].build(WORDS, D, W, H, dtype, seed=0, backend=backend)
    rng = numpy.random.default_rng(3)
    for name, value in model.params.items():
        model.params[name] = backend.to_device(scale * rng.standard_normal(value.shape), dtype)
    return model


def images(captions, kind="lstm"):
    return KINDS[kind].features(len(captions), D, seed=5)


def log_prob(kind, params, image, caption):
    """Return the log-probability of each word; there may be many images, on a first axis."""
    if kind == "lstm on regions":
        image = oracle.mean_region(image)
    if kind == "transformer on a vector":
        image = image[..., None, :]
    return oracle.log_probs(KINDS[kind].options, params, image, caption)


def slopes(model, image, caption, t, of_cell=False):
    """Return dL/dh, or dL/dc of an LSTM, of the state after step t; -1 is before the first."""
    cell, params = model.cell_type, model.params
    image = oracle.summary(params, image)
    first = oracle.Step(oracle.initial(cell, params, image), None, None, None)
    here = [first, *oracle.read(cell, params, image, caption[:-1])][t + 1]
    h, *others = here.state

    def loss(moved):
        state = (here.gates[2] * numpy.tanh(moved), moved) if of_cell else (moved, *others)
        after = oracle.read(cell, params, image, caption[t + 1 : -1], state)
        steps = [here._replace(state=state), *after] if t >= 0 else after
        words = caption[max(t, 0) + 1 :]
        return -oracle.of_words(oracle.scores_of(params, steps), words).sum(axis=-1)

    return oracle.gradient(loss, others[0] if of_cell else h)


def mean_norm(model, features, captions, t, counted, of_cell=False):
    """Return the mean norm of `slopes` over captions that are counted, 0 without any."""
    rows = numpy.flatnonzero(counted)
    each = [slopes(model, features[n], captions[n], t, of_cell) for n in rows]
    return numpy.mean([numpy.linalg.norm(slope) for slope in each]) if each else 0


def steps_of(captions):
    """Return which captions have a word to predict, for each step up to the longest one's."""
    counted = [captions[:, t + 1] != NULL for t in range(captions.shape[1] - 1)]
    while not counted[-1].any():
        counted.pop()
    return counted


@every_shape
@every_kind
def test_word_gradients_are_the_slopes_of_log_probabilities(kind, captions, backend):
    words, features = captions[:, 1:], images(captions, kind)
    log_probs, gradients = word_gradients(
        lively(kind, backend), backend.to_device(features), backend.to_device(words)
    )
    assert namespace(log_probs, gradients) is backend.xp
    assert log_probs.shape == words.shape
    assert gradients.shape == (*words.shape, *features.shape[1:])
    params = lively(kind).params
    expected = [log_prob(kind, params, *one) for one in zip(features, captions, strict=True)]
    numpy.testing.assert_allclose(to_host(log_probs), expected, rtol=1e-12, atol=1e-12)
    for n, t in numpy.ndindex(words.shape):

        def of_word(image, n=n, t=t):
            return log_prob(kind, params, image, captions[n])[..., t]

        slope = oracle.gradient(of_word, features[n])
        numpy.testing.assert_allclose(to_host(gradients)[n, t], slope, rtol=1e-10, atol=1e-12)
    absent = words == NULL
    assert not to_host(log_probs)[absent].any()
    assert not to_host(gradients)[absent].any()


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_the_words_gradients_together_are_that_of_the_loss(kind, backend):
    """With x the features: dW_proj = xᵀ dh0 and dx = dh0 W_projᵀ, so xᵀ dx = dW_proj W_projᵀ."""
    model, features = lively(kind, backend), images(ONE_LONGEST)
    x, captions = backend.to_device(features), backend.to_device(ONE_LONGEST)
    log_probs, gradients = word_gradients(model, x, captions[:, 1:])
    loss, parameters = model.loss(x, captions)
    N = len(features)
    assert float(log_probs.sum()) == pytest.approx(-N * float(loss), rel=1e-12)
    found = features.T @ to_host(gradients.sum(axis=1))
    expected = -N * to_host(parameters["W_proj"] @ model.params["W_proj"].T)
    assert scaled_difference(found, expected) < 1e-12


@every_kind
def test_words_of_decoding_can_be_given_as_they_are(kind, backend):
    model, features = lively(kind, backend), images(range(6), kind)
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
def test_the_gradients_of_hidden_states_are_slopes_of_the_loss(kind, captions, backend):
    features = images(captions, kind)
    flow = gradient_flow(
        lively(kind, backend), backend.to_device(features), backend.to_device(captions)
    )
    assert namespace(flow.captions, flow.hidden, flow.first) is backend.xp
    counted, model = steps_of(captions), lively(kind)
    assert to_host(flow.captions).tolist() == [here.sum() for here in counted]
    expected = [mean_norm(model, features, captions, t, here) for t, here in enumerate(counted)]
    numpy.testing.assert_allclose(to_host(flow.hidden), expected, rtol=1e-10)
    first = mean_norm(model, features, captions, -1, numpy.ones(len(captions)))
    assert float(flow.first) == pytest.approx(first, rel=1e-10)
    assert (flow.cell is not None) == (model.cell_type == "lstm")


@pytest.mark.parametrize("kind", ["lstm", "attention lstm"])
@every_shape
def test_the_gradients_of_cell_states_are_slopes_of_the_loss(captions, kind, backend):
    features = images(captions, kind)
    flow = gradient_flow(
        lively(kind, backend), backend.to_device(features), backend.to_device(captions)
    )
    expected = [
        mean_norm(lively(kind), features, captions, t, here, of_cell=True)
        for t, here in enumerate(steps_of(captions))
    ]
    numpy.testing.assert_allclose(to_host(flow.cell), expected, rtol=1e-10)


def test_a_gradient_that_vanishes_is_not_zero(backend):
    model = lively("rnn", backend, dtype=numpy.float32)
    model.params["Wh"] *= 1e-25
    features, captions = images(ONE_CAPTION), ONE_CAPTION
    flow = gradient_flow(model, backend.to_device(features), backend.to_device(captions))
    assert 1e-28 < float(flow.first) < 1e-23


NAMES = {
    "rnn": ("hidden state",),
    "lstm": ("input", "forget", "output", "candidate"),
    "gru": ("reset", "update", "candidate"),
}


@every_shape
@every_cell
def test_saturated_gates_are_those_of_the_textbook(kind, captions, backend):
    features, cell = images(captions, kind), KINDS[kind].options["cell_type"]
    saturation = gate_saturation(
        lively(kind, backend, scale=1.3),
        backend.to_device(features),
        backend.to_device(captions),
    )
    assert saturation.names == NAMES[cell]
    p, counted = lively(kind, scale=1.3).params, steps_of(captions)
    units = [[[] for _ in counted] for _ in saturation.names]
    for n, image in enumerate(features):
        steps = oracle.read(cell, p, oracle.summary(p, image), captions[n])
        for t, here in enumerate(counted):
            for of_gate, activations in zip(units, steps[t].gates, strict=True):
                of_gate[t] += activations.tolist() if here[n] else []
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
    of_words = word_gradients(model, features, captions[:, 1:])
    if not isinstance(model, Inspectable):
        return [*of_words]
    flow = gradient_flow(model, features, captions)
    _, *shares = gate_saturation(model, features, captions)
    return [*(value for value in flow if value is not None), *shares, *of_words]


@every_kind
def test_padding_changes_nothing(kind, backend):
    model, features = lively(kind, backend), backend.to_device(images(ONE_LONGEST, kind))
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


@every_kind
def test_captions_without_a_word(kind, backend):
    model, features = lively(kind, backend), backend.to_device(images(range(2), kind))
    captions = backend.to_device(numpy.array([[1, 0, 0], [1, 0, 0]]))
    if isinstance(model, Inspectable):
        flow = gradient_flow(model, features, captions)
        assert flow.captions.shape == flow.hidden.shape == (0,)
        assert float(flow.first) == 0
        assert gate_saturation(model, features, captions).low.shape == (len(model.cell.gates), 0)
    log_probs, gradients = map(to_host, word_gradients(model, features, captions[:, 1:]))
    assert log_probs.tolist() == [[0, 0], [0, 0]]
    assert gradients.shape == (2, 2, *features.shape[1:])
    assert not gradients.any()


@every_kind
def test_no_captions_at_all(kind, backend):
    model, features = lively(kind, backend), backend.to_device(images(range(0), kind))
    captions = backend.to_device(numpy.zeros((0, 4), int))
    if isinstance(model, Inspectable):
        assert gradient_flow(model, features, captions).hidden.shape == (0,)
    gradients = word_gradients(model, features, captions)[1]
    assert gradients.shape == (0, 4, *features.shape[1:])


@every_kind
def test_float32_parameters_give_what_float64_ones_give(kind, backend):
    features = images(ONE_LONGEST, kind)
    captions = backend.to_device(ONE_LONGEST)
    single = lively(kind, backend, dtype=numpy.float32)
    double = lively(kind, backend)
    for name, value in single.params.items():
        double.params[name] = value.astype(numpy.float64)
    of_single = results(single, backend.to_device(features, numpy.float32), captions)
    of_double = results(double, backend.to_device(features.astype(numpy.float32)), captions)
    for found, expected in zip(of_single, of_double, strict=True):
        assert scaled_difference(found, expected) < 3e-5
    assert {value.dtype for value in of_single[-2:]} == {numpy.dtype(numpy.float32)}
    assert {value.dtype for value in of_double[-2:]} == {numpy.dtype(numpy.float64)}


@every_kind
def test_nothing_that_is_given_is_changed(kind, backend):
    model = lively(kind, backend)
    given = {
        "features": backend.to_device(images(ONE_LONGEST, kind)),
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


@every_shape
@pytest.mark.parametrize("kind", [*LOOKING, "transformer", "transformer with encoder"])
def test_maps_of_attention_are_the_weights_of_regions(kind, captions, backend):
    features, model, params = images(captions, kind), lively(kind, backend), lively(kind).params
    maps = attention_maps(model, backend.to_device(features), backend.to_device(captions[:, 1:]))
    assert namespace(maps) is backend.xp
    expected = numpy.zeros((*captions[:, 1:].shape, KINDS[kind].regions))
    for n, image in enumerate(features):
        weights = oracle.attention(KINDS[kind].options, params, image, captions[n, :-1])
        for t, of_word in enumerate(weights):
            if captions[n, t + 1] != NULL:
                expected[n, t, oracle.regions_there(image)] = of_word
    numpy.testing.assert_allclose(to_host(maps), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["lstm on regions", "transformer on a vector"])
def test_without_attention_there_are_no_maps(kind):
    with pytest.raises(ConfigurationError, match=r"'\w+' has no attention to regions of these"):
        attention_maps(lively(kind), images(ONE_CAPTION, kind), ONE_CAPTION[:, 1:])


def test_without_start_there_are_no_word_gradients():
    model = CaptioningRNN({"<NULL>": 0, "cat": 1}, D, W, H)
    with pytest.raises(ConfigurationError, match="<START>"):
        word_gradients(model, images(range(1)), numpy.array([[1]]))
