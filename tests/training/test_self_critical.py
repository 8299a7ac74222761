"""Self-critical steps: that their gradient is that of the expected reward, exactly."""

import itertools

import numpy
import pytest
from kinds import KINDS

from xpcap.backend import CPU, to_host
from xpcap.data.minibatch import Batch, Share
from xpcap.models.generation import sampled
from xpcap.optim import Optimizer
from xpcap.training import self_critical
from xpcap.training.self_critical import (
    SelfCritical,
    SelfCriticalStep,
    count_distinct,
    lengths_of,
    mean_of_others,
)

WORDS = {word: k for k, word in enumerate(("<NULL>", "<START>", "<END>", "a"))}
NULL, START, END, A = range(4)
D, W, H, T = 3, 2, 4, 2
CAPTIONS = [(END, NULL), *itertools.product((NULL, START, A), range(4))]
"""All captions of at most two words: a word may also be one that no caption should have."""


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(params=["lstm", "attention gru dot", "transformer with encoder"])
def family(request):
    """Return a kind of each family, for every backend; other tests take all kinds."""
    return KINDS[request.param]


def reward(captions):
    """Return a reward that each caption has alone."""
    return captions @ numpy.array([1.7, -0.9]) + 0.8 * captions.prod(axis=1)


class Enumerated:
    """A model, an image, and all its captions with their probabilities."""

    def __init__(self, kind, backend):
        self.backend = backend
        self.model = kind.build(WORDS, D, W, H, seed=1, backend=backend, dropout=0.5)
        rng = numpy.random.default_rng(0)
        for name, value in self.model.params.items():
            self.model.params[name] = backend.to_device(0.8 * rng.standard_normal(value.shape))
        self.features = backend.to_device(kind.features(2, D, 3)[1:])
        self.captions = numpy.array(CAPTIONS, numpy.int32)
        self.rewards = reward(self.captions)

    def log_probs(self):
        """Return log p of each caption, word by word as decoding does."""
        model, xp = self.model, self.backend.xp
        found = []
        with self.backend.activate():
            for caption in CAPTIONS:
                context, state = model.start(self.features)
                total, before = 0.0, START
                for word in caption[: 1 if caption[0] == END else T]:
                    words = xp.full(1, before, dtype=numpy.int32)
                    scores, state = model.step(words, None, state, context)
                    scores = to_host(scores)[0]
                    total += scores[word] - numpy.log(numpy.exp(scores).sum())
                    before = word
                found.append(total)
        return numpy.array(found)

    def step(self, baseline, **options):
        samples = 1 if baseline == "greedy" else 2
        options = SelfCritical(samples=samples, baseline=baseline, **options)
        return SelfCriticalStep(
            self.model, Optimizer("sgd", learning_rate=1e-30), numpy.zeros(1000, int),
            lambda images, captions: reward(captions), T, options,
        )  # fmt: skip

    def expectation(self, baseline, monkeypatch, **options):
        """Return the gradient of a step, averaged over all captions that it may draw."""
        step, log_probs = self.step(baseline, **options), self.log_probs()
        drawn = numpy.array(
            list(itertools.product(range(len(CAPTIONS)), repeat=step.options.samples))
        )
        N = len(drawn)
        likely = numpy.exp(log_probs[drawn].sum(axis=1, keepdims=True))
        monkeypatch.setattr(
            self_critical, "sampled",
            lambda *_: (self.captions[drawn.reshape(-1)], log_probs[drawn.reshape(-1)]),
        )  # fmt: skip
        weighted = SelfCriticalStep._draw

        def draw(self, *arguments):
            found = weighted(self, *arguments)
            return found._replace(advantages=N * likely * found.advantages)

        monkeypatch.setattr(SelfCriticalStep, "_draw", draw)
        some = numpy.full((N, T + 1), NULL, numpy.int32)
        features = self.backend.xp.repeat(self.features, N, axis=0)
        step(Batch(some, features, numpy.arange(N)), 0, 1.0)
        return flat(step.gradients)

    def exact(self, scores):
        """Return minus the gradient of sum p(w) scores(w)."""
        count, step = len(CAPTIONS), self.step("mean")
        step._gather()
        given = numpy.hstack([numpy.full((count, 1), START, numpy.int32), self.captions])
        inside = numpy.arange(T) < lengths_of(self.captions, END)[:, None]
        weights = inside * (count * numpy.exp(self.log_probs()) * scores)[:, None]
        features = self.backend.xp.repeat(self.features, count, axis=0)
        step.packed.loss(features, given, 0, step.gradients, weights=weights)
        return flat(step.gradients)


def flat(gradients):
    return numpy.concatenate([to_host(gradients[name]).reshape(-1) for name in sorted(gradients)])


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_the_expected_gradient_is_that_of_the_expected_reward(
    baseline, family, backend, monkeypatch
):
    every = Enumerated(family, backend)
    exact = every.exact(every.rewards)
    assert numpy.exp(every.log_probs()).sum() == pytest.approx(1)
    found = every.expectation(baseline, monkeypatch)
    assert abs(exact).max() > 0.01
    numpy.testing.assert_allclose(found, exact, atol=1e-10 * abs(exact).max())


@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_the_exact_gradient_is_that_of_differences(kind, entropy):
    every = Enumerated(kind, CPU)
    params, rng = every.model.params, numpy.random.default_rng(5)
    way = {name: rng.standard_normal(value.shape) for name, value in params.items()}
    lengths = lengths_of(every.captions, END)

    def expected(distance):
        before = {name: value.copy() for name, value in params.items()}
        for name, value in params.items():
            value += distance * way[name]
        try:
            log_probs = every.log_probs()
            return numpy.exp(log_probs) @ (every.rewards - entropy * log_probs / lengths)
        finally:
            params.update(before)

    steps = [1e-3, 5e-4]
    wide, narrow = ((expected(h) - expected(-h)) / (2 * h) for h in steps)
    scores = every.rewards - entropy * (every.log_probs() + 1) / lengths
    along = flat(way) @ every.exact(scores)
    assert -along == pytest.approx((4 * narrow - wide) / 3, rel=1e-7)


def test_an_entropy_bonus_adds_the_gradient_of_the_entropy(kind, monkeypatch):
    every = Enumerated(kind, CPU)
    per_word = (every.log_probs() + 1) / lengths_of(every.captions, END)
    exact = every.exact(every.rewards - 0.3 * per_word)
    found = every.expectation("mean", monkeypatch, entropy=0.3)
    assert abs(exact - every.exact(every.rewards)).max() > 0.01
    numpy.testing.assert_allclose(found, exact, atol=1e-10 * abs(exact).max())


def test_a_share_of_cross_entropy(backend):
    every = Enumerated(KINDS["attention lstm"], backend)
    captions = numpy.array([[START, A, END], [START, END, NULL], [START, A, A]], numpy.int32)
    features = every.backend.xp.repeat(every.features, len(captions), axis=0)
    batch = Batch(captions, features, numpy.arange(len(captions)))
    found = []
    for share in (0.0, 0.25):
        step = every.step("mean", cross_entropy=share)
        step(batch, 3, 1.0)
        found.append(flat(step.gradients))
    alone = every.step("mean")
    alone._gather()
    alone.packed.model.dropout = 0.0
    alone.packed.loss(features, captions, 0, alone.gradients)
    rewarded, mixed = found
    expected = 0.75 * rewarded + 0.25 * flat(alone.gradients)
    numpy.testing.assert_allclose(mixed, expected, atol=1e-13)


def test_captions_are_drawn_with_their_probabilities(family, backend):
    """Of 4,000 captions of an image each is as frequent as it is likely, within five deviations."""
    every, count = Enumerated(family, backend), 4000
    numbers = backend.to_device(numpy.random.default_rng(0).random((count, T)))
    captions, log_probs = map(to_host, sampled(every.model, every.features, T, numbers))
    of_each, likely = every.log_probs(), numpy.exp(every.log_probs())
    which = [CAPTIONS.index(tuple(caption)) for caption in captions.tolist()]
    numpy.testing.assert_allclose(log_probs, of_each[which], atol=1e-12)
    seen = numpy.bincount(which, minlength=len(CAPTIONS))
    deviation = numpy.sqrt(count * likely * (1 - likely)) + 1
    assert (abs(seen - count * likely) < 5 * deviation).all()


def test_ranks_draw_the_captions_of_one_process():
    """Each rank its share of the images, in an order of its own."""
    every = Enumerated(KINDS["lstm"], CPU)
    features, some = KINDS["lstm"].features(5, D, 0), numpy.zeros((5, T + 1), numpy.int32)

    def drawn(places, share=None):
        step = every.step("mean")
        step._gather()
        batch = Batch(some[places], features[places], places, share)
        return step._draw(features[places], batch, 7)

    whole = drawn(numpy.arange(5)).captions.reshape(5, 2, T)
    for places in (numpy.array([4, 0, 2]), numpy.array([3, 1])):
        part = drawn(places, Share(places, 5, 0))
        numpy.testing.assert_array_equal(part.captions.reshape(-1, 2, T), whole[places])


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_rewards_and_baselines_are_those_of_the_image(baseline):
    every = Enumerated(KINDS["lstm"], CPU)
    features, rows = KINDS["lstm"].features(4, D, 0), numpy.array([3, 0, 2, 1])
    step = SelfCriticalStep(
        every.model, Optimizer("sgd"), numpy.array([10, 20, 30, 40]),
        lambda images, captions: images + 0.01 * reward(captions), T,
        SelfCritical(samples=3, baseline=baseline),
    )  # fmt: skip
    step._gather()
    drawn = step._draw(features, Batch(numpy.zeros((4, T + 1), int), features, rows), 0)
    images = numpy.repeat([[40.0], [10], [30], [20]], 3, axis=1)
    numpy.testing.assert_allclose(drawn.rewards, images, atol=0.5)
    numpy.testing.assert_allclose(drawn.baseline, images, atol=0.5)
    numpy.testing.assert_allclose(drawn.advantages, drawn.rewards - drawn.baseline, atol=1e-12)


def test_each_step_draws_other_captions():
    every = Enumerated(KINDS["lstm"], CPU)
    features, some = KINDS["lstm"].features(20, D, 0), numpy.zeros((20, T + 1), int)
    step = every.step("mean")
    step._gather()
    batch = Batch(some, features, numpy.arange(20))
    first, again, second = (step._draw(features, batch, number).captions for number in (0, 0, 1))
    numpy.testing.assert_array_equal(first, again)
    assert (first != second).any(axis=1).mean() > 0.2


def test_baselines():
    rewards = numpy.array([[1.0, 2, 6], [0, 0, 3]])
    numpy.testing.assert_allclose(mean_of_others(rewards), [[4, 3.5, 1.5], [1.5, 1.5, 0]])


def test_length_is_up_to_the_end():
    captions = numpy.array([[A, END, NULL], [END, NULL, NULL], [A, NULL, A], [A, A, END]])
    assert lengths_of(captions, END).tolist() == [2, 1, 3, 3]


def test_captions_are_counted_as_different_within_their_image():
    captions = numpy.array([[A, END], [A, END], [A, A], [A, A], [A, END], [END, NULL]])
    assert [count_distinct(captions, images) for images in (1, 2, 3)] == [3, 5, 4]
    assert count_distinct(captions[:0], 0) == 0
