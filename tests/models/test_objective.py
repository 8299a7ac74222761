"""The packed loss and its gradients against the naive model."""

import functools
import itertools

import numpy
import oracle
import pytest
from guard import counters, open_guard
from kinds import KINDS, LOOKING, RECURRENT

from xpcap.backend import CPU, to_host
from xpcap.data.minibatch import Batch
from xpcap.errors import ShapeError
from xpcap.layers.recurrence import Packing
from xpcap.models.objective import Objective
from xpcap.models.packed_batch import PackedBatch, pack_captions
from xpcap.optim import Optimizer
from xpcap.training.step import TrainingStep

V, D, W, H, N, T = 23, 5, 6, 7, 9, 8
WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, **{f"w{k}": k for k in range(3, V)}}
RNG = numpy.random.default_rng(0)


DOUBLY_STOCHASTIC = {"attention lstm": 0.7, "attention gru dot": 0.0, "attention rnn": 0.3}


def captions_of(lengths, T=T):
    captions = numpy.zeros((len(lengths), T + 1), numpy.int32)
    for row, length in zip(captions, lengths, strict=True):
        row[0] = 1
        row[1 : 1 + length] = RNG.integers(2, V, size=length)
    return captions


def with_gaps():
    """Padding in the middle: its words are read, but not to be predicted."""
    captions = captions_of([8, 3, 5, 8, 1])
    captions[0, 3:5] = captions[2, 1] = captions[3, 7] = 0
    return captions


BATCHES = {
    "any lengths": captions_of([3, 8, 1, 5, 5, 2, 7, 4, 6]),
    "all full": captions_of([T] * N),
    "all one word": captions_of([1] * N),
    "one row": captions_of([4]),
    "one full row": captions_of([T]),
    "some without a word": captions_of([0, 3, 0, 8]),
    "without a word": captions_of([0, 0]),
    "padding in the middle": with_gaps(),
    "one step": captions_of([1, 0, 1], T=1),
}


def model_of(kind, dropout=0.0, backend="cpu", dtype=numpy.float64):
    own = {"doubly_stochastic": DOUBLY_STOCHASTIC[kind]} if kind in LOOKING else {}
    options = {"dropout": dropout, "seed": 3, "backend": backend, **own}
    return KINDS[kind].build(WORDS, D, W, H, dtype, **options)


def gradients_of(model):
    xp = model.backend.xp
    return {name: xp.full(p.shape, numpy.nan, dtype=p.dtype) for name, p in model.params.items()}


@functools.cache
def naive(name, kind, dropout, smoothing=0.0):
    """Return features for a batch, and the naive model's loss and gradients at step 5.

    The first and the last caption are of the same image.
    """
    captions, model = BATCHES[name], model_of(kind, dropout)
    features = KINDS[kind].features(len(captions), D, seed=1)
    features[-1] = features[0]
    masks = oracle.dropout_masks(model, captions, 5) if dropout else None

    def loss(**moved):
        params, more = {**model.params, **moved}, DOUBLY_STOCHASTIC.get(kind, 0.0)
        return oracle.loss(model.sizes, params, features, captions, masks, more, smoothing)

    gradients = {
        key: oracle.gradient(lambda moved, key=key: loss(**{key: moved}), value)
        for key, value in model.params.items()
    }
    return features, loss(), gradients


def with_penalty(objective, loss):
    return float(loss if objective.penalty is None else loss + objective.penalty.sum())


def assert_near(found, gradients):
    for key, gradient in gradients.items():
        numpy.testing.assert_allclose(to_host(found[key]), gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kind", "dropout"),
    [
        *itertools.product(BATCHES, RECURRENT, [0.0, 0.4]),
        *((name, "attention lstm", 0.0) for name in BATCHES),
        ("padding in the middle", "attention lstm", 0.4),
        ("any lengths", "attention gru dot", 0.4),
        ("all full", "attention gru dot", 0.0),
        ("some without a word", "attention rnn", 0.4),
        ("any lengths", "lstm on regions", 0.4),
        ("padding in the middle", "transformer", 0.4),
        ("some without a word", "transformer with encoder", 0.4),
        ("without a word", "transformer with encoder", 0.0),
        ("one row", "transformer on a vector", 0.0),
    ],
)
def test_loss_and_gradients_are_those_of_the_naive_model(name, kind, dropout, backend):
    features, loss, gradients = naive(name, kind, dropout)
    where = model_of(kind, dropout, backend)
    found = gradients_of(where)
    objective = Objective(where)
    found_loss = objective.loss(backend.to_device(features), BATCHES[name], 5, found)
    assert with_penalty(objective, found_loss) == pytest.approx(loss, rel=1e-12, abs=1e-12)
    assert_near(found, gradients)


@pytest.mark.parametrize("name", ["padding in the middle", "any lengths"])
@pytest.mark.parametrize(("kind", "dropout"), [("gru", 0.4), ("attention lstm", 0.0)])
def test_label_smoothing_is_that_of_the_naive_model(name, kind, dropout, backend):
    """In the loss of which there are gradients; what is only evaluated has none."""
    (features, loss, gradients), captions = naive(name, kind, dropout, 0.2), BATCHES[name]
    where, features = model_of(kind, dropout, backend), backend.to_device(features)
    found, objective = gradients_of(where), Objective(where, 0.2)
    found_loss = objective.loss(features, captions, 5, found)
    assert with_penalty(objective, found_loss) == pytest.approx(loss, rel=1e-12)
    assert_near(found, gradients)
    without = Objective(where)
    assert objective.evaluate(features, captions) == without.evaluate(features, captions)
    numpy.testing.assert_array_equal(*(to_host(one.words(features, captions)[1])
                                       for one in (objective, without)))  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "dropout", "marked"),
    [
        *itertools.product([*RECURRENT, "attention lstm"], [0.0], [True]),
        *itertools.product([*RECURRENT, "attention lstm", "transformer"], [0.4], [False]),
    ],
)
def test_a_batch_that_is_not_packed_but_weighted_gives_the_same(kind, dropout, marked, backend):
    """As on a device that finds its own batches: all places, time first, padding without weight.

    Words after which no target counts may be marked with -1: they have no gradient.
    """
    name = "padding in the middle"
    (features, loss, gradients), captions = naive(name, kind, dropout), BATCHES[name]
    where = model_of(kind, dropout, backend)
    n = len(captions)
    at = backend.to_device
    words = captions[:, :-1].copy()
    if marked:
        words[numpy.cumsum(captions[:, :0:-1], axis=1)[:, ::-1] == 0] = -1
        assert (words == -1).any()
    batch = PackedBatch(
        Packing(n, [n] * T),
        at(numpy.arange(n) % (n - 1)),
        at(words.T.reshape(-1).copy()),
        at(captions[:, 1:].T.reshape(-1).copy()),
        at((captions[:, 1:] != 0).T.reshape(-1) / n),
        at((numpy.arange(n)[None, :] * T + numpy.arange(T)[:, None]).reshape(-1)),
    )
    found = gradients_of(where)
    streams = (10, 11) if dropout else None
    objective = Objective(where)
    losses = objective.compute(at(features[:-1]), batch, streams, found)
    assert with_penalty(objective, losses.sum()) == pytest.approx(loss, rel=1e-12)
    assert_near(found, gradients)


@pytest.mark.parametrize(
    ("name", "kind", "dropout"),
    [
        ("any lengths", "lstm", 0.4),
        ("some without a word", "lstm on regions", 0.4),
        ("all full", "attention gru dot", 0.0),
        ("any lengths", "attention lstm", 0.0),
        ("some without a word", "attention rnn", 0.4),
        ("padding in the middle", "transformer", 0.4),
        ("some without a word", "transformer with encoder", 0.4),
    ],
)
def test_captions_of_one_image_share_its_features(name, kind, dropout, backend):
    model, captions = model_of(kind, dropout, backend), BATCHES[name]
    images = numpy.arange(len(captions)) % 2
    features = KINDS[kind].features(2, D, seed=1)
    expected, found, objective, seen = (
        gradients_of(model),
        gradients_of(model),
        Objective(model),
        [],
    )
    each = backend.to_device(features[images])
    loss = with_penalty(objective, objective.loss(each, captions, 5, expected))
    forward = model.forward
    model.forward = lambda given, *more: seen.append(len(given)) or forward(given, *more)
    features = backend.to_device(features)
    found_loss = objective.loss(features, captions, 5, found, images=images)
    assert seen == [2]
    assert with_penalty(objective, found_loss) == pytest.approx(loss, rel=1e-12)
    assert_near(found, {key: to_host(value) for key, value in expected.items()})


@pytest.mark.parametrize(
    "kind", [*RECURRENT, "attention lstm", "attention gru dot", "transformer with encoder"]
)
def test_in_single_precision_it_rounds_no_worse_than_with_numpy(kind, elsewhere):
    """The yardstick is how far NumPy's single precision is from its double precision."""
    captions = captions_of(RNG.integers(1, T + 1, size=60))
    features = KINDS[kind].features(60, D, seed=2).astype(numpy.float32)
    exact, single = model_of(kind), model_of(kind, dtype=numpy.float32)
    exact.params = {name: value.astype(numpy.float64) for name, value in single.params.items()}
    _, true = exact.loss(features.astype(numpy.float64), captions)
    _, plain = single.loss(features, captions)
    where = model_of(kind, backend=elsewhere, dtype=numpy.float32)
    found = gradients_of(where)
    Objective(where).loss(elsewhere.to_device(features), captions, 0, found)
    for name, value in true.items():
        limit = 2 * abs(plain[name] - value).max() + 1e-6 * abs(value).max()
        assert abs(to_host(found[name]) - value).max() <= limit, name


@pytest.mark.parametrize("kind", ["lstm", "attention lstm", "transformer"])
def test_evaluate_has_no_dropout_and_no_penalty(kind, backend):
    model, captions = model_of(kind, 0.5, backend), BATCHES["any lengths"]
    features = KINDS[kind].features(len(captions), D, seed=1)
    params = {name: to_host(value) for name, value in model.params.items()}
    found = Objective(model).evaluate(backend.to_device(features), captions)
    expected = oracle.loss(model.sizes, params, features, captions)
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["gru", "attention lstm", "transformer with encoder"])
def test_nothing_is_left_of_the_batch_before(kind, backend):
    """Large and small batches in turn give what each gives in fresh memory."""
    model = model_of(kind, 0.3, backend)
    packed = Objective(model)
    for step, captions in enumerate([*BATCHES.values(), *reversed(BATCHES.values())]):
        features = backend.to_device(KINDS[kind].features(len(captions), D, seed=step))
        kept, fresh = gradients_of(model), gradients_of(model)
        packed.loss(features, captions, step, kept)
        Objective(model).loss(features, captions, step, fresh)
        for name, gradient in fresh.items():
            numpy.testing.assert_array_equal(to_host(kept[name]), to_host(gradient))


def test_parameters_of_another_dtype_get_memory_of_their_own():
    model = model_of("lstm")
    packed, captions = Objective(model), BATCHES["any lengths"]
    features = RNG.standard_normal((N, D))
    before = packed.evaluate(features, captions)
    model.params = {name: value.astype(numpy.float32) for name, value in model.params.items()}
    after = packed.evaluate(features, captions)
    assert (before.dtype, after.dtype) == (numpy.float64, numpy.float32)
    assert float(after) == pytest.approx(float(before), rel=1e-5)


def test_packing_a_batch_written_out():
    captions = numpy.array([[1, 5, 2, 0], [1, 2, 0, 0], [1, 6, 5, 2]])
    packed = pack_captions(captions, 0, numpy.float64, CPU.to_device)
    assert packed.images.tolist() == [2, 0, 1]
    assert packed.words.tolist() == [1, 1, 1, 6, 5, 5]
    assert packed.weight.tolist() == [1 / 3] * 6
    assert packed.packing.rows == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert packed.packing.capacity == 9
    assert packed.distinct[packed.which].tolist() == [1, 1, 1, 6, 5, 5]
    assert packed.distinct.tolist() == [1, 5, 6]
    assert packed.targets.tolist() == [6, 5, 2, 5, 2, 2]
    assert packed.places.tolist() == [6, 0, 3, 7, 1, 8]
    assert packed.scored is None


@pytest.mark.parametrize(
    "captions",
    [
        numpy.zeros(4, int),
        numpy.zeros((3, 1), int),
        numpy.zeros((0, 3), int),
        numpy.full((2, 3), V),
        numpy.full((2, 3), -1),
    ],
)
def test_captions_that_cannot_be(captions):
    with pytest.raises(ShapeError, match="captions"):
        Objective(model_of("rnn")).evaluate(numpy.zeros((len(captions), D)), captions)


@pytest.mark.parametrize("shape", [(N - 1, D), (N + 1, D), (N, D + 1), (D,)])
def test_features_that_do_not_fit(shape):
    with pytest.raises(ShapeError, match="features"):
        Objective(model_of("rnn")).evaluate(numpy.zeros(shape), BATCHES["any lengths"])


def test_words_beyond_the_parameters_are_refused():
    """Whatever the vocabulary says: memory outside an array would be read and written."""
    model = model_of("rnn")
    for name in ("W_embed", "b_vocab"):
        model.params[name] = model.params[name][: V - 5]
    model.params["W_vocab"] = model.params["W_vocab"][:, : V - 5]
    captions = BATCHES["any lengths"].copy()
    captions[0, 1] = V - 5
    with pytest.raises(ShapeError, match=f"do not all lie in 0..{V - 6}"):
        Objective(model).evaluate(numpy.zeros((N, D)), captions)


@pytest.mark.parametrize(
    ("rule", "dropout", "kind"),
    [
        *itertools.product(
            ["sgd", "sgd_momentum", "rmsprop", "adam", "adamw"], [0.0, 0.4], ["lstm"]
        ),
        ("adam", 0.4, "attention lstm"),
        ("sgd", 0.0, "attention gru dot"),
        ("adam", 0.4, "transformer with encoder"),
    ],
)
def test_a_step_waits_for_nothing(rule, dropout, kind):
    guard = open_guard()
    step = TrainingStep(model_of(kind, dropout, guard, numpy.float32), Optimizer(rule), 5.0)
    features = KINDS[kind].features(N, D, seed=1).astype(numpy.float32)
    batch = Batch(BATCHES["any lengths"], features)
    step(batch, 0, 1.0)
    counters.reset()
    step(batch, 1, 1.0)
    assert counters.synchronizations == 0
    assert guard.xp.asnumpy(step.loss) > 0
