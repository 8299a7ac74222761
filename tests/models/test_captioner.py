"""The whole captioner against its naive version, and its promises."""

import functools
import re

import numpy
import oracle
import pytest
from guard import counters, open_guard
from kinds import KINDS, LOOKING, RECURRENT
from oracle import END, NULL, START

from xpcap import CaptioningRNN
from xpcap.backend import CPU, namespace, to_host
from xpcap.errors import BackendError, ConfigurationError, ShapeError
from xpcap.models import AttentionRNN
from xpcap.selfcheck.cases import captioner_gradients, scaled_difference

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "dog": 4, "sits": 5}
D, W, H = 4, 3, 5
every_kind = pytest.mark.parametrize("kind", KINDS)
FEATURES = {name: kind.features(3, D, seed=5) for name, kind in KINDS.items()}
VECTORS = FEATURES["rnn"]
CAPTIONS = numpy.array([[1, 3, 5, 2, 0], [1, 4, 2, 0, 0], [1, 4, 4, 5, 2]], numpy.int32)


def build(kind, backend=CPU, dtype=numpy.float64, seed=0, words=WORDS, **options):
    return KINDS[kind].build(words, D, W, H, dtype, seed=seed, backend=backend, **options)


def lively(kind, backend=CPU, seed=0, scale=1.5, **options):
    """Build a captioner whose biases and word vectors are not nearly zero."""
    model = build(kind, backend, **options)
    rng = numpy.random.default_rng(seed)
    for name, value in model.params.items():
        small = 0.3 if name.endswith(".b_out") or name == "b_norm" else 1  # or images do not matter
        model.params[name] = backend.to_device(small * scale * rng.standard_normal(value.shape))
    return model


def on_host(model):
    return {name: to_host(value) for name, value in model.params.items()}


def naive_loss(model, features, captions=CAPTIONS, masks=None):
    return oracle.loss(model.sizes, on_host(model), features, captions, masks)


@pytest.mark.parametrize(
    ("kind", "dropout", "options"),
    [
        *((kind, dropout, {}) for kind in RECURRENT for dropout in (0.0, 0.4)),
        ("lstm on regions", 0.0, {}),
        *((kind, 0.4, {}) for kind in LOOKING),
        ("attention lstm", 0.0, {"doubly_stochastic": 0.7}),
        ("attention gru dot", 0.0, {"doubly_stochastic": 0.7, "T": 2}),
        ("transformer", 0.0, {}),
        ("transformer with encoder", 0.4, {"regions": 3}),
    ],
)
def test_numerical_gradients(kind, dropout, options, backend):
    family, _, regions = KINDS[kind]
    sizes = {"N": 2, "T": 4, "regions": regions, **KINDS[kind].sizes(3, 3, 4), **options}
    found = captioner_gradients(backend, family, dropout, **sizes, h=1e-5)
    assert found.keys() == build(kind).params.keys()
    for name, (error, gradient) in found.items():
        if regions == 1 and name in ("W_query", "b_query", "w_score"):  # of weights that are 1
            assert abs(to_host(gradient)).max() < 1e-15
            continue
        assert abs(to_host(gradient)).max() > 1e-4, name
        assert error < 1e-7, name


@every_kind
def test_the_loss_of_the_naive_model(kind, backend):
    model = lively(kind, backend)
    loss, gradients = model.loss(backend.to_device(FEATURES[kind]), backend.to_device(CAPTIONS))
    expected = naive_loss(model, FEATURES[kind])
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert gradients.keys() == model.params.keys()
    for name, gradient in gradients.items():
        assert gradient.shape == model.params[name].shape
        assert gradient.dtype == model.params[name].dtype
    evaluated = model.evaluate(backend.to_device(FEATURES[kind]), backend.to_device(CAPTIONS))
    assert float(evaluated) == float(loss)


SEEDS = {
    **{kind: [0] for kind in KINDS}, **{kind: range(4) for kind in RECURRENT},
    "attention gru dot": [1],
    "transformer": [5], "transformer with encoder": [3], "transformer on a vector": [9],
}  # fmt: skip
"""Those of captioners of which some captions end, and others do not."""


@functools.cache
def naive_sample(kind, seed):
    """Return 20 images, and their naive captions by a captioner drawn with a seed."""
    features, model = KINDS[kind].features(20, D, seed), lively(kind, seed=seed)
    return features, oracle.sample(model.sizes, model.params, features, 9)


@pytest.mark.parametrize(
    ("kind", "seed"), [(kind, seed) for kind, seeds in SEEDS.items() for seed in seeds]
)
def test_samples_are_those_of_the_naive_model(kind, seed, backend):
    model = lively(kind, backend, seed)
    features, expected = naive_sample(kind, seed)
    found = to_host(model.sample(backend.to_device(features), max_length=9))
    assert found.shape == (20, 9)
    assert found.dtype.kind == "i"
    numpy.testing.assert_array_equal(found, expected)


def test_some_of_those_samples_end_and_some_do_not():
    """Otherwise the test above would not show what happens after <END>."""
    for kind, seeds in SEEDS.items():
        ended = [(naive_sample(kind, seed)[1] == END).any(axis=1) for seed in seeds]
        assert 0.1 < numpy.mean(ended) < 0.9, kind


def test_after_end_all_is_null(backend):
    model = build("rnn", backend)
    p = {name: numpy.zeros(value.shape) for name, value in on_host(model).items()}
    p["b_vocab"][END] = 1.0
    model.params = {name: backend.to_device(value) for name, value in p.items()}
    found = to_host(model.sample(backend.to_device(VECTORS), max_length=4))
    assert found.tolist() == [[END, NULL, NULL, NULL]] * 3


@pytest.mark.parametrize("max_length", [0, 1, 30])
def test_max_length(max_length, backend):
    model = build("lstm", backend)
    found = model.sample(backend.to_device(VECTORS), max_length=max_length)
    assert found.shape == (3, max_length)
    assert build("lstm").sample(VECTORS).shape == (3, 30)


def test_without_end_sampling_goes_on():
    words = {"<NULL>": 0, "<START>": 1, "cat": 2}
    model = build("rnn", words=words)
    model.params["b_vocab"] = numpy.array([0.0, 0.0, 9.0])
    assert model.sample(VECTORS, max_length=3).tolist() == [[2, 2, 2]] * 3


def test_without_start_there_is_no_sample_but_a_loss():
    model = build("rnn", words={"<NULL>": 0, "cat": 2, "dog": 1})
    assert numpy.isfinite(model.loss(VECTORS, numpy.array([[1, 2, 0]] * 3))[0])
    with pytest.raises(ConfigurationError, match="<START>"):
        model.sample(VECTORS)


@every_kind
def test_float64_parameters_in_a_float32_model(kind, backend):
    """What counts is the dtype of the parameters at the time."""
    model = build(kind, backend, dtype=numpy.float32)
    assert {value.dtype for value in model.params.values()} == {numpy.dtype(numpy.float32)}
    double = lively(kind, backend)
    model.params.update(double.params)
    features, captions = backend.to_device(FEATURES[kind]), backend.to_device(CAPTIONS)
    loss, gradients = model.loss(features, captions)
    expected = naive_loss(double, FEATURES[kind])
    assert abs(float(loss) - expected) < 1e-10
    assert {value.dtype for value in gradients.values()} == {numpy.dtype(numpy.float64)}


@every_kind
def test_parameters_of_several_dtypes(kind):
    model, double = build(kind, dtype=numpy.float32), build(kind)
    expected = float(double.loss(FEATURES[kind], CAPTIONS)[0])
    for name in model.params:
        model.params[name] = model.params[name].astype(numpy.float64)
        loss, gradients = model.loss(FEATURES[kind], CAPTIONS)
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        assert gradients[name].dtype == numpy.float64


@pytest.mark.parametrize("dtype", [numpy.float16, numpy.float32, numpy.float64])
@every_kind
def test_features_of_any_floating_dtype(kind, dtype, backend):
    """They are taken to the parameters' dtype: float16 features cost their own rounding only."""
    model = build(kind, backend, dtype=numpy.float32)
    features = backend.to_device(FEATURES[kind], dtype)
    loss, gradients = model.loss(features, backend.to_device(CAPTIONS))
    assert {value.dtype for value in gradients.values()} == {numpy.dtype(numpy.float32)}
    rounded = FEATURES[kind].astype(dtype).astype(numpy.float64)
    expected = naive_loss(model, rounded)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert model.sample(features, 3).shape == (3, 3)
    assert features.dtype == dtype


@every_kind
def test_padding_counts_nothing(kind):
    """More padding changes neither the loss nor a gradient."""
    model = lively(kind)
    padded = numpy.concatenate([CAPTIONS, numpy.zeros((3, 2), numpy.int32)], axis=1)
    one, grads_one = model.loss(FEATURES[kind], CAPTIONS)
    other, grads_other = model.loss(FEATURES[kind], padded)
    assert one == pytest.approx(other, rel=1e-14)
    for name in grads_one:
        assert scaled_difference(grads_other[name], grads_one[name]) < 1e-12


def test_dropout_follows_the_step_and_evaluate_has_none(backend):
    model = lively("lstm", backend, dropout=0.5)
    features, captions = backend.to_device(VECTORS), backend.to_device(CAPTIONS)
    losses = [float(model.loss(features, captions, step=step)[0]) for step in (0, 1, 2, 0)]
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3
    expected = naive_loss(model, VECTORS)
    assert float(model.evaluate(features, captions)) == pytest.approx(expected, rel=1e-12)


@every_kind
def test_dropout_scales_word_vectors_and_hidden_states(kind, backend):
    """But not what passes from step to step."""
    model = lively(kind, backend, dropout=0.5)
    for step in range(3):
        masks = oracle.dropout_masks(model, CAPTIONS, step)
        loss, _ = model.loss(backend.to_device(FEATURES[kind]), backend.to_device(CAPTIONS), step)
        expected = naive_loss(model, FEATURES[kind], masks=masks)
        assert float(loss) == pytest.approx(expected, rel=1e-12)


@every_kind
def test_the_loss_is_the_same_on_every_device(kind, elsewhere):
    """And its gradients, with the same dropout."""
    here, there = (lively(kind, b, dropout=0.5) for b in (CPU, elsewhere))
    expected, expected_grads = here.loss(FEATURES[kind], CAPTIONS, step=7)
    arrays = elsewhere.to_device(FEATURES[kind]), elsewhere.to_device(CAPTIONS)
    loss, grads = there.loss(*arrays, step=7)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    for name, gradient in grads.items():
        assert scaled_difference(gradient, expected_grads[name]) < 1e-10


@every_kind
def test_a_seed_gives_the_same_parameters_everywhere(kind, elsewhere):
    here, there = build(kind, seed=3), build(kind, elsewhere, seed=3)
    for name, value in here.params.items():
        numpy.testing.assert_array_equal(to_host(there.params[name]), value)
    assert not numpy.array_equal(build(kind, seed=4).params["W_proj"], here.params["W_proj"])


def test_without_a_seed_numpys_global_one_counts():
    drawn = []
    for _ in range(2):
        numpy.random.seed(12)
        drawn.append([build("rnn", seed=None).params["Wx"] for _ in range(2)])
    numpy.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    assert not numpy.array_equal(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize(("kind", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_initial_parameters(kind, gates):
    words = {"<NULL>": 0, **{str(k): k for k in range(1, 50)}}
    model = CaptioningRNN(words, 300, 200, 100, kind, seed=0)
    shapes = {
        "W_proj": (300, 100), "b_proj": (100,), "W_embed": (50, 200), "Wx": (200, gates * 100),
        "Wh": (100, gates * 100), "b": (gates * 100,), "W_vocab": (100, 50), "b_vocab": (50,),
    }  # fmt: skip
    if kind == "gru":
        shapes["bn"] = (100,)
    assert {name: value.shape for name, value in model.params.items()} == shapes
    spread = {"W_proj": 300**-0.5, "W_embed": 0.01, "Wx": 200**-0.5, "Wh": 0.1, "W_vocab": 0.1}
    for name, value in model.params.items():
        assert value.dtype == numpy.float32
        if name in spread:
            assert value.std() == pytest.approx(spread[name], rel=0.05)
            assert abs(value.mean()) < 4 * spread[name] / value.size**0.5
        else:
            assert (value == 0).all()


@pytest.mark.parametrize("scoring", ["additive", "dot"])
def test_initial_parameters_of_attention(scoring):
    sizes = {"input_dim": 300, "wordvec_dim": 200, "hidden_dim": 100, "cell_type": "gru"}
    model = AttentionRNN({"<NULL>": 0}, **sizes, scoring=scoring, seed=0)
    first = CaptioningRNN({"<NULL>": 0}, **sizes, seed=0).params
    own = {name: value for name, value in model.params.items() if name not in first}
    shapes = {
        "W_grid": (300, 100), "b_grid": (100,), "W_query": (100, 100), "b_query": (100,),
        "W_gate": (100, 1), "b_gate": (1,), "Wz": (100, 300), "W_context": (100, 100),
    }  # fmt: skip
    shapes |= {"w_score": (100,)} if scoring == "additive" else {}
    assert {name: value.shape for name, value in own.items()} == shapes
    for name, value in own.items():
        if name[0] == "b":
            assert (value == 0).all()
        else:
            assert value.std() == pytest.approx(len(value) ** -0.5, rel=3 / value.size**0.5), name


@every_kind
def test_features_of_another_scale(kind):
    model = lively(kind)
    expected = model.evaluate(FEATURES[kind], CAPTIONS)
    model.scale_features(4.0)
    assert model.evaluate(4 * FEATURES[kind], CAPTIONS) == pytest.approx(expected, rel=1e-12)


@every_kind
def test_mixed_devices_are_named(kind):
    guard = open_guard()
    model, moved = build(kind), build(kind, guard)
    features, captions = guard.to_device(FEATURES[kind]), guard.to_device(CAPTIONS)
    for call in (
        lambda: model.loss(features, captions),
        lambda: model.loss(FEATURES[kind], captions),
        lambda: model.loss(features, CAPTIONS),
        lambda: model.sample(features),
        lambda: moved.loss(FEATURES[kind], CAPTIONS),
        lambda: moved.loss(FEATURES[kind], captions),
        lambda: moved.evaluate(features, CAPTIONS),
        lambda: moved.sample(FEATURES[kind]),
    ):
        with pytest.raises(BackendError) as caught:
            call()
        assert "numpy" in str(caught.value)
        assert "guard" in str(caught.value)


@pytest.mark.parametrize("kind", ["gru", "attention gru dot"])
def test_a_model_moves_to_another_device(kind, elsewhere):
    model = lively(kind)
    expected, _ = model.loss(FEATURES[kind], CAPTIONS)
    before = on_host(model)
    assert model.to(elsewhere) is model
    assert model.backend is elsewhere
    assert namespace(*model.params.values()) is elsewhere.xp
    loss, _ = model.loss(elsewhere.to_device(FEATURES[kind]), elsewhere.to_device(CAPTIONS))
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    model.to("cpu")
    for name, value in model.params.items():
        numpy.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@every_kind
def test_the_device_never_waits(kind, dropout):
    guard = open_guard()
    model = build(kind, guard, dtype=numpy.float32, dropout=dropout)
    features = guard.to_device(FEATURES[kind], numpy.float16)
    captions = guard.to_device(CAPTIONS)
    counters.reset()
    model.loss(features, captions, step=3)
    model.evaluate(features, captions)
    assert counters.synchronizations == 0


def test_decoding_asks_only_every_few_steps_whether_to_stop():
    guard = open_guard()
    model = build("lstm", guard)
    features = guard.to_device(VECTORS)
    model.params["b_vocab"][END] = -100.0
    counters.reset()
    model.sample(features, max_length=12)
    assert counters.synchronizations == 3
    model.params["b_vocab"][END] = 100.0
    counters.reset()
    model.sample(features, max_length=12)
    assert counters.synchronizations == 1


def test_each_word_is_projected_once():
    """On the CPU, however often it is said."""
    model = lively("rnn", seed=2)
    read = []

    class Noting(numpy.ndarray):
        def __getitem__(self, key):
            read.extend(numpy.atleast_1d(key).tolist())
            return numpy.asarray(self)[key]

    model.params["W_embed"] = model.params["W_embed"].view(Noting)
    said = model.sample(numpy.random.default_rng(5).standard_normal((40, D)), max_length=12)
    assert len(read) == len(set(read)) > 3
    assert set(read) <= set(said.reshape(-1).tolist()) | {model.start_word}


@every_kind
def test_captions_of_many_lengths_are_decoded_together_as_one_by_one(kind):
    """On the CPU a caption that has ended leaves the batch."""
    model = lively(kind, seed=SEEDS[kind][0])
    features = KINDS[kind].features(40, D, seed=5)
    together = model.sample(features, max_length=12)
    alone = numpy.concatenate([model.sample(row[None], max_length=12) for row in features])
    numpy.testing.assert_array_equal(together, alone)
    assert len(numpy.unique((together != NULL).sum(axis=1))) >= 3


@every_kind
def test_nothing_given_is_changed(kind, backend):
    model = lively(kind, backend, dropout=0.3)
    before = {name: value.copy() for name, value in on_host(model).items()}
    features, captions = backend.to_device(FEATURES[kind]), backend.to_device(CAPTIONS)
    model.loss(features, captions)
    model.sample(features)
    numpy.testing.assert_array_equal(to_host(features), FEATURES[kind])
    numpy.testing.assert_array_equal(to_host(captions), CAPTIONS)
    for name, value in on_host(model).items():
        numpy.testing.assert_array_equal(value, before[name])


@every_kind
def test_one_caption_of_one_word(kind, backend):
    model = lively(kind, backend)
    captions = numpy.array([[START, END]])
    loss, gradients = model.loss(backend.to_device(FEATURES[kind][:1]), backend.to_device(captions))
    expected = naive_loss(model, FEATURES[kind][:1], captions)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert all(numpy.isfinite(to_host(value)).all() for value in gradients.values())


@pytest.mark.parametrize(
    ("features", "captions", "message"),
    [
        (VECTORS, CAPTIONS[:, :1], r"captions \(N, T\+1\) with T > 0 .* got \(3, 1\)"),
        (VECTORS, CAPTIONS[:, :0], r"captions \(N, T\+1\) with T > 0 .* got \(3, 0\)"),
        (VECTORS, CAPTIONS[0], r"captions \(N, T\+1\) with T > 0 .* got \(5,\)"),
        (VECTORS[:, :3], CAPTIONS, r"features \(N, D\), W_proj \(D, H\).* got features \(3, 3\)"),
        (VECTORS[:2], CAPTIONS, r"got \(3, 5\) and \(2, 4\)"),
        (VECTORS, CAPTIONS + 4, r"indices 4 to 9 do not all lie in 0\.\.5"),
        (VECTORS, CAPTIONS.astype(float), "integer indices, got float64"),
    ],
)
def test_arguments_that_do_not_fit(features, captions, message):
    with pytest.raises(ShapeError, match=message):
        build("lstm").loss(features, captions)


@pytest.mark.parametrize("shape", [(3, D), (3, 2, D + 1), (3, 1, 2, D)])
def test_features_that_are_no_regions(shape):
    model, features = build("attention lstm"), numpy.zeros(shape)
    for call in (lambda: model.loss(features, CAPTIONS), lambda: model.sample(features)):
        with pytest.raises(ShapeError, match=rf"features \(N, L, D\).*{re.escape(str(shape))}"):
            call()


def test_settings_that_are_refused():
    with pytest.raises(ConfigurationError, match="'elman' is unknown; expected rnn, lstm, gru"):
        CaptioningRNN(WORDS, D, W, H, "elman")
    with pytest.raises(ConfigurationError, match="lacks <NULL>"):
        build("rnn", words={"<START>": 0, "cat": 1})
    with pytest.raises(ConfigurationError, match=r"dropout must be a number in \[0, 1\), got 1\.0"):
        build("rnn", dropout=1.0)
    for options, message in (
        ({"scoring": "cosine"}, "scoring 'cosine' is unknown; expected additive or dot"),
        ({"doubly_stochastic": -0.1}, "doubly_stochastic must be a number"),
        (
            {"doubly_stochastic": numpy.inf},
            r"doubly_stochastic must be a number in \[0, inf\), got inf",
        ),
    ):
        with pytest.raises(ConfigurationError, match=message):
            AttentionRNN(WORDS, D, W, H, **options)
    for family in (CaptioningRNN, AttentionRNN):
        with pytest.raises(TypeError, match="argument 'depth'"):
            family(WORDS, D, W, H, depth=1)
    with pytest.raises(TypeError, match="argument 'scoring'"):
        CaptioningRNN(WORDS, D, W, H, scoring="dot")
    assert AttentionRNN(WORDS, D, W, H, doubly_stochastic=0).doubly_stochastic == 0
    with pytest.raises(BackendError, match="nowhere"):
        build("rnn", backend="nowhere")


def test_the_null_word_may_have_any_index():
    words = {"cat": 0, "<NULL>": 1, "<START>": 2, "<END>": 3}
    model = build("rnn", words=words)
    model.params["b_vocab"] = numpy.array([0.0, 0.0, 0.0, 9.0])
    assert model.sample(VECTORS, 3).tolist() == [[3, 1, 1]] * 3
    loss, _ = model.loss(VECTORS, numpy.array([[2, 1, 1]] * 3))
    assert loss == 0.0
    assert model.idx_to_word[1] == "<NULL>"
