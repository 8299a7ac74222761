import dataclasses

import numpy
import pytest
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


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_wide_beam_is_exhaustive_search(backend, option, cell):
    beam = Beam(width=400, n_best=400, **{"constraints": SHORT, **OPTIONS[option]})
    features = some_features(2)
    decoded = beam_search(model_of(cell, backend), backend.to_device(features), beam)
    for n in range(2):
        check(decoded, n, every_caption(model_of(cell), features[n], beam))


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "no word"])
def test_a_narrow_beam_equals_the_oracle(backend, option, width):
    beam = Beam(width, width, **{"constraints": SHORT, **OPTIONS[option]})
    features = some_features(5)
    decoded = beam_search(model_of("lstm", backend), backend.to_device(features), beam)
    for n in range(5):
        expected = slow_beam(model_of(), features[n], beam)
        check(decoded, n, expected)
        one = dataclasses.replace(beam, n_best=1)
        best = beam_search(model_of("lstm", backend), backend.to_device(features[n : n + 1]), one)
        check(best, 0, expected[:1])


@pytest.mark.parametrize(("width", "groups"), [(2, 2), (4, 2), (6, 3), (6, 2), (3, 3)])
@pytest.mark.parametrize("diversity", [0.0, 0.7, 20.0])
def test_diverse_beam_search_equals_the_oracle(backend, width, groups, diversity):
    beam = Beam(width, width, groups=groups, diversity=diversity, constraints=SHORT)
    features = some_features(4)
    decoded = beam_search(model_of("lstm", backend), backend.to_device(features), beam)
    for n in range(4):
        check(decoded, n, slow_beam(model_of(), features[n], beam))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("end", [-3.0, 0.0, 3.0])
def test_beam_width_one_is_greedy_decoding(backend, cell, end):
    model, features = model_of(cell, backend, end=end), backend.to_device(some_features(20))
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "1 captions of a beam of 0"),
        ({"width": 2, "n_best": 3}, "3 captions of a beam of 2 cannot be generated"),
        ({"n_best": 0}, "0 captions"),
        ({"length_penalty": "wu"}, "length penalty 'wu' is unknown; expected none, average, gnmt"),
        ({"width": 3, "groups": 2}, "a beam of 3 cannot be divided into 2 groups"),
        ({"groups": 0}, "into 0 groups"),
        ({"alpha": -1.0}, "alpha -1.0"),
        ({"diversity": float("nan")}, "diversity nan"),
    ],
)
def test_invalid_beam_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Beam(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_length": 31, "max_length": 30}, "captions of 31 to 30 words cannot be"),
        ({"min_length": -1}, "captions of -1 to 30"),
        ({"no_repeat_ngram": -1}, "no-repeat-ngram must be >= 0"),
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
