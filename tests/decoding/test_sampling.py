import numpy
import pytest
from oracle import END, NULL, START, UNK, choices, every_caption, next_log_probs
from small_captioners import BANNED, SHORT, captions, model_of, some_features

from xpcap.backend import to_host
from xpcap.decoding import Beam, Constraints, Ensemble, Sampling, beam_search, sample
from xpcap.decoding.sampling import _draw
from xpcap.errors import ConfigurationError


def test_captions_are_sampled_with_their_probabilities():
    model, features = model_of(), some_features(1)
    count, limits = 20_000, Constraints(max_length=2, banned=BANNED)
    decoded = sample(model, features, Sampling(count, constraints=limits))
    found: dict[tuple, int] = {}
    for words in captions(decoded, 0):
        found[tuple(words)] = found.get(tuple(words), 0) + 1
    total = 0.0
    for _, words, _ in every_caption(model, features[0], Beam(constraints=limits)):
        p = 1.0
        for t, word in enumerate(words):
            following = numpy.exp(next_log_probs(model, words[:t], features[0]))
            may = choices(words[:t], len(following), limits)
            p *= following[word] / following[may].sum()
        assert found.get(tuple(words), 0) / count == pytest.approx(p, abs=5 * (p / count) ** 0.5)
        total += p
    assert total == pytest.approx(1)


def test_log_probs_are_without_temperature_and_truncation():
    model, features = model_of(), some_features(3)
    decoded = sample(model, features, Sampling(5, 0.3, top_k=3, constraints=SHORT))
    for n in range(3):
        for k, words in enumerate(captions(decoded, n)):
            expected = [
                next_log_probs(model, words[:t], features[n])[word] for t, word in enumerate(words)
            ]
            numpy.testing.assert_allclose(decoded.log_probs[n, k, : len(words)], expected)
            assert decoded.scores[n, k] == pytest.approx(sum(expected))
        assert (numpy.diff(decoded.scores[n]) <= 0).all()


@pytest.mark.parametrize("kind", ["lstm", "attention lstm", "attention gru dot"])
def test_samples_depend_on_the_seed_not_on_backend_or_batch(kind, backend):
    features = some_features(8, kind=kind)
    expected = sample(model_of(kind), features, Sampling(3, seed=5, constraints=SHORT))
    model = model_of(kind, backend)
    found = sample(model, backend.to_device(features), Sampling(3, seed=5, constraints=SHORT))
    numpy.testing.assert_array_equal(to_host(found.words), expected.words)
    few = sample(model, backend.to_device(features[:2]), Sampling(3, seed=5, constraints=SHORT))
    numpy.testing.assert_array_equal(to_host(few.words), expected.words[:2])
    other = sample(model, backend.to_device(features), Sampling(3, seed=6, constraints=SHORT))
    assert (to_host(other.words) != expected.words).any()


def test_samples_of_parts_are_those_of_the_whole(backend):
    model, same = model_of("lstm", backend), numpy.repeat(some_features(1), 7, axis=0)
    features, sampling = backend.to_device(same), Sampling(2, seed=5, constraints=SHORT)
    together = to_host(sample(model, features, sampling).words)
    parts = [sample(model, features[k : k + 3], sampling, first=k).words for k in (0, 3, 6)]
    numpy.testing.assert_array_equal(numpy.concatenate([to_host(p) for p in parts]), together)
    assert (together[:3] != together[3:6]).any()


def test_the_most_conservative_sampling_is_greedy(backend):
    model, features = model_of("gru", backend), backend.to_device(some_features(9))
    greedy = beam_search(model, features, Beam(1, constraints=SHORT))
    for sampling in (
        Sampling(temperature=1e-6, constraints=SHORT),
        Sampling(top_k=1, constraints=SHORT),
        Sampling(top_p=1e-9, constraints=SHORT),
    ):
        numpy.testing.assert_array_equal(
            to_host(sample(model, features, sampling).words), to_host(greedy.words)
        )


PROBS = numpy.array([0.1, 0.4, 0.05, 0.25, 0.2])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), PROBS),
        (Sampling(temperature=0.5), PROBS**2 / (PROBS**2).sum()),
        (Sampling(temperature=2.0), PROBS**0.5 / (PROBS**0.5).sum()),
        (Sampling(top_k=2), numpy.array([0, 0.4, 0, 0.25, 0]) / 0.65),
        (Sampling(top_k=9), PROBS),
        (Sampling(top_p=0.39), numpy.array([0, 1, 0, 0, 0])),
        (Sampling(top_p=0.41), numpy.array([0, 0.4, 0, 0.25, 0]) / 0.65),
        (Sampling(top_p=0.9), numpy.array([0.1, 0.4, 0, 0.25, 0.2]) / 0.95),
        (Sampling(top_k=3, top_p=0.7), numpy.array([0, 0.4, 0, 0.25, 0]) / 0.65),
    ],
)
def test_temperature_top_k_and_top_p_truncate_the_distribution(sampling, expected):
    """Evenly spaced draws select each word in proportion to its probability."""
    count = 10_000
    uniform = (numpy.arange(count) + 0.5) / count
    log_probs = numpy.repeat(numpy.log(PROBS)[None], count, axis=0)
    found = numpy.bincount(_draw(numpy, log_probs, uniform, sampling), minlength=5) / count
    numpy.testing.assert_allclose(found, expected, atol=2 / count)


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("value", [5e-324, 1e-320, 1e-45, 1e-38, 1e-30, 1e-9])
@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_tiny_temperatures_and_top_p_draw_the_most_probable_allowed_word(name, value, dtype):
    log_probs = numpy.array([[-numpy.inf, -40.0, -0.5, -1.0, -numpy.inf]] * 99, dtype)
    with numpy.errstate(all="raise", under="ignore"):
        drawn = _draw(numpy, log_probs, numpy.linspace(0, 0.999, 99), Sampling(**{name: value}))
    assert set(drawn.tolist()) == {2}


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("temperature", [1e30, 1e38, 1e39, 1e308])
def test_huge_temperatures_draw_all_allowed_words_alike(temperature, dtype):
    log_probs = numpy.array([[-numpy.inf, -40.0, -0.5, -1.0, -numpy.inf]] * 300, dtype)
    uniform = (numpy.arange(300) + 0.5) / 300
    drawn = _draw(numpy, log_probs, uniform, Sampling(temperature=temperature))
    assert numpy.bincount(drawn, minlength=5).tolist() == [0, 100, 100, 100, 0]


@pytest.mark.parametrize("temperature", [5e-324, 1e308])
def test_banned_words_are_not_sampled_at_any_temperature(temperature):
    model = model_of("gru")
    model.params = {name: value.astype("float32") for name, value in model.params.items()}
    features = some_features(9).astype("float32")
    sampling = Sampling(5, temperature, constraints=Constraints(max_length=9, banned=BANNED))
    words = sample(model, features, sampling).words
    ended = (words == END).cumsum(axis=2) > 0
    assert not numpy.isin(words[~ended], BANNED).any()


def test_rounding_does_not_select_impossible_words():
    log_probs = numpy.array([[0.0, -numpy.inf, -40.0]], numpy.float32)
    uniform = numpy.array([numpy.nextafter(1.0, 0.0)])
    assert _draw(numpy, log_probs, uniform, Sampling())[0] in (0, 2)


def test_constraints_hold_for_samples():
    limits = Constraints(min_length=2, max_length=4, no_repeat_ngram=1, banned=BANNED)
    decoded = sample(model_of(), some_features(10), Sampling(20, 3.0, constraints=limits))
    for n in range(10):
        for words in captions(decoded, n):
            assert words[-1] == END
            assert len(set(words)) == len(words)
            assert 3 <= len(words) <= 4  # only three words are allowed
            assert not {NULL, START, UNK} & set(words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "number of captions must be at least 1, a whole number, got 0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"temperature": 0.0}, r"temperature must be a number in \(0, inf\), got 0.0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"top_p": 0.0}, r"top_p must be a number in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p must be a number in"),
    ],
)
def test_invalid_sampling_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    "members",
    [
        (("lstm", 0), ("gru", 3), ("rnn", 4)),
        (("lstm on regions", 0), ("attention lstm", 3), ("attention gru dot", 4)),
    ],
)
def test_an_ensemble_averages_the_probabilities_of_its_members(members, backend):
    features = some_features(3, kind=members[0][0])
    ensemble = Ensemble([model_of(kind, backend, seed) for kind, seed in members])
    context, state = ensemble.start(backend.to_device(features))
    words = backend.to_device(numpy.full(3, START, numpy.int32))
    scores, state = ensemble.step(words, None, state, context)
    scores, _ = ensemble.step(words * 0 + 5, None, state, context)
    for n in range(3):
        alone = [
            numpy.exp(next_log_probs(model_of(kind, seed=seed), [5], features[n]))
            for kind, seed in members
        ]
        expected = sum(alone) / 3
        numpy.testing.assert_allclose(numpy.exp(to_host(scores[n])), expected, rtol=1e-9)


def test_beam_search_with_an_ensemble_of_one_is_that_of_its_member():
    model, features = model_of(), some_features(6)
    beam = Beam(3, 3, constraints=SHORT)
    alone, together = (beam_search(m, features, beam) for m in (model, Ensemble([model])))
    numpy.testing.assert_array_equal(alone.words, together.words)
    numpy.testing.assert_allclose(alone.scores, together.scores, atol=1e-12)


def test_invalid_ensembles_are_refused():
    with pytest.raises(ConfigurationError, match="an ensemble of 0 captioners"):
        Ensemble([])
    other = model_of()
    other.end = 4
    with pytest.raises(ConfigurationError, match="expected at least one, and all alike"):
        Ensemble([model_of(), other])
