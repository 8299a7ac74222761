"""Names of EECS 498: the course's shapes, values by loops, and gradients by differences."""

import math

import numpy
import pytest

from xpcap.backend import to_host
from xpcap.compat import eecs498
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.gradcheck import eval_numerical_gradient
from xpcap.selfcheck.cases import scaled_difference

N, T, D, H = 2, 3, 4, 5
WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "dog": 4}
CAPTIONS = numpy.array([[1, 3, 4, 2], [1, 4, 2, 0]])
CELLS = ["rnn", "lstm", "attn"]


def draw(*shape, seed=0):
    return numpy.random.default_rng([seed, *shape]).standard_normal(shape)


SEQUENCE = {
    "x": draw(N, T, D), "Wx": draw(D, 4 * H), "Wh": draw(H, 4 * H), "b": draw(4 * H),
}  # fmt: skip
STEP = {"x": draw(N, D), "prev_h": draw(N, H), "prev_c": draw(N, H, seed=1),
        "Wx": draw(D, 4 * H), "Wh": draw(H, 4 * H), "b": draw(4 * H)}  # fmt: skip
ATTENTION = {"attn": draw(N, H, seed=2), "Wattn": draw(H, 4 * H, seed=3)}
MAPS = draw(N, H, 4, 4)


def attended(h, A):
    """Attention in loops, one image and one region at a time."""
    means, weights = numpy.zeros_like(h), numpy.zeros((len(A), *A.shape[2:]))
    for n, (state, maps) in enumerate(zip(h, A, strict=True)):
        places = list(numpy.ndindex(maps.shape[1:]))
        powers = {p: math.exp(state @ maps[(slice(None), *p)] / math.sqrt(len(state)))
                  for p in places}  # fmt: skip
        for p in places:
            weights[(n, *p)] = powers[p] / sum(powers.values())
            means[n] += weights[(n, *p)] * maps[(slice(None), *p)]
    return means, weights


def test_attention_is_the_weighted_mean_of_the_regions(backend):
    h = draw(N, H)
    found = eecs498.dot_product_attention(backend.to_device(h), backend.to_device(MAPS))
    for value, expected in zip(found, attended(h, MAPS), strict=True):
        numpy.testing.assert_allclose(to_host(value), expected, rtol=1e-12)


def test_a_step_with_attention_adds_one_product():
    wide, _ = eecs498.lstm_step_forward(**STEP, **ATTENTION)
    b = STEP["b"] + ATTENTION["attn"] @ ATTENTION["Wattn"]
    one_by_one = [
        eecs498.lstm_step_forward(*(STEP[n][k : k + 1] for n in ("x", "prev_h", "prev_c")),
                                  STEP["Wx"], STEP["Wh"], b[k])[0]
        for k in range(N)
    ]  # fmt: skip
    numpy.testing.assert_allclose(wide, numpy.concatenate(one_by_one), rtol=1e-12)


def test_the_states_of_a_sequence_with_attention():
    given = {**SEQUENCE, "A": MAPS, "Wattn": ATTENTION["Wattn"]}
    h = c = MAPS.mean(axis=(2, 3))
    for t, found in enumerate(eecs498.attention_forward(**given).transpose(1, 0, 2)):
        mean, _ = attended(h, MAPS)
        gates = SEQUENCE["x"][:, t] @ SEQUENCE["Wx"] + h @ SEQUENCE["Wh"] + SEQUENCE["b"]
        i, f, o, g = numpy.split(gates + mean @ ATTENTION["Wattn"], 4, axis=1)
        i, f, o = (1 / (1 + numpy.exp(-a)) for a in (i, f, o))
        c = f * c + i * numpy.tanh(g)
        h = o * numpy.tanh(c)
        numpy.testing.assert_allclose(found, h, rtol=1e-12)


GRADIENTS = {
    "lstm_step": ({**STEP}, eecs498.lstm_step_forward, eecs498.lstm_step_backward),
    "lstm_step with attention": (
        {**STEP, **ATTENTION}, eecs498.lstm_step_forward, eecs498.lstm_step_backward,
    ),
    "lstm": (
        {"x": SEQUENCE["x"], "h0": draw(N, H), "Wx": SEQUENCE["Wx"], "Wh": SEQUENCE["Wh"],
         "b": SEQUENCE["b"]},
        eecs498.lstm_forward, eecs498.lstm_backward,
    ),
    "dot_product_attention": (
        {"prev_h": draw(N, H), "A": MAPS},
        eecs498.dot_product_attention, eecs498.dot_product_attention_backward,
    ),
    "attention": (
        {"x": SEQUENCE["x"], "A": MAPS, "Wx": SEQUENCE["Wx"], "Wh": SEQUENCE["Wh"],
         "Wattn": ATTENTION["Wattn"], "b": SEQUENCE["b"]},
        eecs498.attention_forward, eecs498.attention_backward,
    ),
    "temporal_softmax_loss": (
        {"x": draw(N, T, 5)},
        lambda x: eecs498.temporal_softmax_loss(x, CAPTIONS[:, 1:], 0),
        lambda dloss, x: (
            dloss * eecs498.temporal_softmax_loss_backward(x, CAPTIONS[:, 1:], 0),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_numerical_ones(name):
    arguments, forward, backward = GRADIENTS[name]
    outputs = forward(**arguments)
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    above = [draw(*out.shape, 1)[..., 0] if out.ndim else numpy.array(2.0) for out in several]
    gradients = backward(*above, **arguments)
    kept = [gradient for gradient in gradients if gradient is not None]
    assert len(kept) == len(arguments)

    def total(_):
        found = forward(**arguments)
        found = found if isinstance(found, tuple) else (found,)
        return sum((out * gradient).sum() for out, gradient in zip(found, above, strict=True))

    for (argument, value), own in zip(arguments.items(), kept, strict=True):
        numerical = eval_numerical_gradient(total, value, verbose=False)
        assert scaled_difference(own, numerical) < 1e-7, argument


def model_of(cell):
    return eecs498.CaptioningRNN(WORDS, 6, 3, H, cell, seed=0)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_the_captioner(cell):
    model, features = model_of(cell), draw(N, 6, 4, 4)
    _, gradients = model.loss(features, CAPTIONS)
    assert gradients.keys() == model.params.keys()
    for name, value in model.params.items():
        numerical = eval_numerical_gradient(
            lambda _: model.loss(features, CAPTIONS)[0], value, verbose=False
        )
        assert abs(numerical).max() > 1e-4, name
        assert scaled_difference(gradients[name], numerical) < 1e-7, name


@pytest.mark.parametrize("cell", CELLS)
def test_sampled_words_are_the_likeliest(cell):
    """Fed with its own words, the captioner's loss is less than with any other last word."""
    model, features = model_of(cell), draw(3, 6, 4, 4)
    model.params["b_vocab"][0] = -9.0  # no <NULL>, which would not count
    captions = model.sample(features, max_length=4)
    if cell == "attn":
        captions, weights = captions
        numpy.testing.assert_allclose(weights.sum(axis=(2, 3)), 1, rtol=1e-12)
        assert weights.shape == (3, 4, 4, 4)
    for n, words in enumerate(captions):
        length = int((words != 0).sum())

        def loss(last, n=n, words=words, length=length):
            caption = [[1, *words[: length - 1], last]]
            return model.loss(features[n : n + 1], numpy.array(caption))[0]

        assert min(range(1, 5), key=loss) == words[length - 1]


def test_vectors_are_taken_without_attention():
    features = draw(N, 6, 4, 4)
    model = model_of("lstm")
    of_maps, of_vectors = (
        float(model.loss(given, CAPTIONS)[0]) for given in (features, features.mean(axis=(2, 3)))
    )
    assert of_maps == pytest.approx(of_vectors, rel=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigurationError, match="'gru' is unknown"):
        model_of("gru")
    with pytest.raises(ShapeError, match=r"feature map \(N, H, height, width\)"):
        eecs498.dot_product_attention(draw(N, H), draw(N, H, 16))
    with pytest.raises(ConfigurationError, match=r"no <START>; expected <NULL>, <START> and <END>"):
        eecs498.CaptioningRNN({"<NULL>": 0, "<END>": 1})
    with pytest.raises(ConfigurationError, match="max_length must be at least 1"):
        model_of("attn").sample(draw(N, 6, 4, 4), 0)


LONG = {**SEQUENCE, "A": MAPS, "Wattn": ATTENTION["Wattn"]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eecs498.lstm_step_forward(**STEP, attn=draw(N, H)), "attn and Wattn, .* no Wattn"),
        (lambda: eecs498.lstm_step_backward(draw(N, H), draw(N, H), **STEP, Wattn=draw(H, 4 * H)),
         "lstm_step_backward: .* got no attn"),
        (lambda: eecs498.lstm_step_forward(**STEP, attn=draw(N, H), Wattn=draw(H, 4)),
         r"Wattn \(H, 4H\); got .*Wattn \(5, 4\)"),
        (lambda: eecs498.dot_product_attention_backward(draw(N, H), draw(N, 16), draw(N, H), MAPS),
         r"dattn_weights \(2, 4, 4\)"),
        (lambda: eecs498.attention_forward(**{**LONG, "x": draw(N, 0, D)}), "T of at least 1"),
        (lambda: eecs498.attention_forward(**{**LONG, "x": draw(N + 1, T, D)}), r"x \(N, T, D\)"),
        (lambda: eecs498.attention_forward(**{**LONG, "x": draw(N, D)}), r"x \(N, T, D\)"),
        (lambda: eecs498.attention_backward(draw(N, T - 1, H), **LONG), r"expected dh \(2, 3, 5\)"),
        (lambda: model_of("attn").loss(draw(N, 7, 4, 4), CAPTIONS), r"x \(2, 16, 7\)"),
        (lambda: model_of("attn").loss(draw(N, 6, 4, 4), CAPTIONS[0]), r"captions \(N, T\)"),
        (lambda: model_of("attn").loss(draw(N, 6, 4, 4), CAPTIONS[:, :1]), "T of at least 1"),
        (lambda: model_of("attn").sample(draw(N, 7, 4, 4)), r"x \(2, 16, 7\)"),
        (lambda: model_of("lstm").sample(draw(N, 7)), r"x \(2, 7\)"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_a_batch_may_be_empty():
    for cell in CELLS:
        captions = model_of(cell).sample(draw(0, 6, 4, 4), 2)
        assert (captions[0] if cell == "attn" else captions).shape == (0, 2)
