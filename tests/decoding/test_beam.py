import dataclasses
import itertools

import numpy
import pytest
from kinds import RECURRENT
from oracle import END, every_caption, slow_beam
from small_captioners import BANNED, SHORT, captions, model_of, some_features

from xpcap.backend import to_host
from xpcap.decoding.beam import Beam, beam_search
from xpcap.decoding.constraints import Constraints
from xpcap.errors import ConfigurationError


def check(decoded, n, expected):
    """Compare the captions of image n with `(score, words, log_probs)`, best first."""
    assert captions(decoded, n) == [words for _, words, _ in expected]
    for k, (score, words, log_probs) in enumerate(expected):
        assert float(decoded.scores[n, k]) == pytest.approx(score, abs=1e-10)
        found = to_host(decoded.log_probs[n, k])
        numpy.testing.assert_allclose(found[: len(words)], log_probs, atol=1e-10)
        assert not found[len(words) :].any()


OPTIONS = {
    "plain": {},
    "average": {"length_penalty": "average"},
    "gnmt": {"length_penalty": "gnmt", "alpha": 0.9},
    "min length": {"constraints": dataclasses.replace(SHORT, min_length=2)},
    "one length": {"constraints": dataclasses.replace(SHORT, min_length=3)},
    "no word": {"constraints": dataclasses.replace(SHORT, max_length=0)},
    "no repeated word": {"constraints": dataclasses.replace(SHORT, no_repeat_ngram=1)},
    "no repeated pair": {
        "constraints": dataclasses.replace(SHORT, max_length=4, no_repeat_ngram=2)
    },
    "more banned": {"constraints": dataclasses.replace(SHORT, banned=(*BANNED, 5))},
    "nothing left": {
        "constraints": Constraints(max_length=4, min_length=4, no_repeat_ngram=1, banned=BANNED)
    },
}


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        *itertools.product(RECURRENT, OPTIONS),
        ("attention lstm", "plain"),
        ("attention gru dot", "no repeated word"),
        ("attention rnn", "average"),
        ("lstm on regions", "plain"),
        ("transformer", "plain"),
        ("transformer with encoder", "average"),
    ],
)
def test_a_wide_beam_is_exhaustive_search(backend, kind, option):
    beam = Beam(width=400, n_best=400, **{"constraints": SHORT, **OPTIONS[option]})
    features = some_features(2, kind=kind)
    decoded = beam_search(model_of(kind, backend), backend.to_device(features), beam)
    for n in range(2):
        check(decoded, n, every_caption(model_of(kind), features[n], beam))


@pytest.mark.parametrize(
    ("kind", "option", "width"),
    [
        *itertools.product(["lstm"], [name for name in OPTIONS if name != "no word"], [1, 2, 3, 5]),
        ("attention lstm", "plain", 3),
        ("attention gru dot", "gnmt", 5),
        ("transformer", "no repeated pair", 3),
        ("transformer on a vector", "plain", 2),
    ],
)
def test_a_narrow_beam_equals_the_oracle(backend, kind, option, width):
    """One image as well as several together."""
    beam = Beam(width, width, **{"constraints": SHORT, **OPTIONS[option]})
    features, model = some_features(5, kind=kind), model_of(kind, backend)
    decoded = beam_search(model, backend.to_device(features), beam)
    for n in range(5):
        expected = slow_beam(model_of(kind), features[n], beam)
        check(decoded, n, expected)
        one = dataclasses.replace(beam, n_best=1)
        best = beam_search(model, backend.to_device(features[n : n + 1]), one)
        check(best, 0, expected[:1])


@pytest.mark.parametrize(("width", "groups"), [(2, 2), (4, 2), (6, 3), (6, 2), (3, 3)])
@pytest.mark.parametrize("diversity", [0.0, 0.7, 20.0])
def test_diverse_beam_search_equals_the_oracle(backend, width, groups, diversity):
    beam = Beam(width, width, groups=groups, diversity=diversity, constraints=SHORT)
    features = some_features(4)
    decoded = beam_search(model_of("lstm", backend), backend.to_device(features), beam)
    for n in range(4):
        check(decoded, n, slow_beam(model_of(), features[n], beam))


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        *itertools.product(RECURRENT, [-3.0, 0.0, 3.0]),
        ("attention lstm", 0.0),
        ("attention gru dot", -3.0),
        ("transformer with encoder", 0.0),
    ],
)
def test_beam_width_one_is_greedy_decoding(backend, kind, end):
    features = backend.to_device(some_features(20, kind=kind))
    model = model_of(kind, backend, end=end)
    beam = Beam(width=1, constraints=Constraints(max_length=8))
    found = to_host(beam_search(model, features, beam).words[:, 0])
    greedy = to_host(model.sample(features, 8))
    whole = (greedy == END).any(axis=1)
    numpy.testing.assert_array_equal(found[:, :8], greedy)
    assert (found[~whole, 8] == END).all()
    assert not found[whole, 8].any()


def test_no_images_give_no_captions(backend):
    decoded = beam_search(
        model_of("lstm", backend), backend.to_device(some_features(0)), Beam(constraints=SHORT)
    )
    assert decoded.words.shape == (0, 1, 4)


def test_parameters_and_features_are_not_changed():
    model, features = model_of(), some_features()
    before = {name: value.copy() for name, value in model.params.items()}
    kept = features.copy()
    beam_search(model, features, Beam(constraints=SHORT))
    numpy.testing.assert_array_equal(features, kept)
    for name, value in before.items():
        numpy.testing.assert_array_equal(model.params[name], value)


@pytest.mark.parametrize("diversity", [1e20, 1e39, 1e308])
def test_a_huge_diversity_is_one_that_excludes_words(diversity):
    model, features = model_of(), some_features(3).astype("float32")
    model.params = {name: value.astype("float32") for name, value in model.params.items()}
    found, expected = (
        beam_search(model, features, Beam(4, 4, groups=2, diversity=value, constraints=SHORT))
        for value in (diversity, 1e10)
    )
    numpy.testing.assert_array_equal(found.words, expected.words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "beam must be at least 1, a whole number, got 0"),
        ({"width": 2, "n_best": 3}, "n_best 3 is more than beam 2 can find"),
        ({"n_best": 0}, "n_best must be at least 1"),
        ({"length_penalty": "wu"}, "length penalty 'wu' is unknown; expected none, average, gnmt"),
        ({"width": 3, "groups": 2}, "beam 3 is not a multiple of groups 2"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"alpha": -1.0}, r"alpha must be a number in \[0, 10\], got -1.0"),
        ({"diversity": float("nan")}, r"diversity must be a number in \[0, inf\), got nan"),
    ],
)
def test_invalid_beam_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Beam(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_length": 31, "max_length": 30}, "captions of 31 to 30 words cannot be"),
        ({"min_length": -1}, "min_words must be at least 0, a whole number, got -1"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram must be at least 0"),
    ],
)
def test_invalid_constraints_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Constraints(**options)


def test_a_vocabulary_without_end_is_refused():
    model = model_of()
    model.end = None
    with pytest.raises(ConfigurationError, match="lacks <START> or <END>"):
        beam_search(model, some_features(), Beam())
