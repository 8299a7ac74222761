import numpy
import pytest
from kinds import KINDS
from oracle import END, NULL, START, next_log_probs
from small_captioners import model_of, some_features

from xpcap.backend import CPU, to_host
from xpcap.decoding import Ensemble, score_captions
from xpcap.errors import ShapeError

CAPTIONS = numpy.array(
    [
        [START, 4, 5, 6, END],
        [START, 4, END, NULL, NULL],
        [START, 4, 5, 3, 6],  # not ended
        [START, NULL, NULL, NULL, NULL],
        [START, 6, NULL, 5, END],  # a gap
    ],
    numpy.int32,
)


def slow_scores(models, features):
    """Return the log of the mean probability of each word, each model run from the start."""
    found = numpy.zeros((len(CAPTIONS), CAPTIONS.shape[1] - 1))
    for n, (_, *words) in enumerate(CAPTIONS.tolist()):
        for t, word in enumerate(words):
            if word != NULL:
                probs = [
                    numpy.exp(next_log_probs(model, words[:t], features[n])[word])
                    for model in models
                ]
                found[n, t] = numpy.log(sum(probs) / len(probs))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_equal_those_of_single_steps(backend, kind):
    features = some_features(5, kind=kind)
    found = score_captions(
        model_of(kind, backend), backend.to_device(features), backend.to_device(CAPTIONS)
    )
    expected = slow_scores([model_of(kind)], features)
    numpy.testing.assert_allclose(to_host(found), expected, rtol=1e-10, atol=1e-13)
    assert (to_host(found) == 0).tolist() == (CAPTIONS[:, 1:] == NULL).tolist()


@pytest.mark.parametrize(
    "kinds",
    [("lstm", "lstm"), ("lstm on regions", "attention gru dot", "transformer with encoder")],
)
def test_an_ensemble_scores_by_mean_probability(kinds, backend):
    features, members = some_features(5, kind=kinds[0]), list(zip(kinds, (0, 3, 4), strict=False))
    together = Ensemble([model_of(kind, backend, seed) for kind, seed in members])
    found = score_captions(together, backend.to_device(features), backend.to_device(CAPTIONS))
    expected = slow_scores([model_of(kind, CPU, seed) for kind, seed in members], features)
    numpy.testing.assert_allclose(to_host(found), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_sum_to_the_loss(kind):
    model, features = model_of(kind), some_features(5, kind=kind)
    whole = -score_captions(model, features, CAPTIONS).sum() / len(CAPTIONS)
    assert whole == pytest.approx(float(model.evaluate(features, CAPTIONS)))


@pytest.mark.parametrize("captions", [CAPTIONS[0], CAPTIONS[:, :1], CAPTIONS[:3]])
def test_captions_of_wrong_shape_are_refused(captions):
    with pytest.raises(ShapeError, match=r"expected captions \(N, T\+1\) with T > 0 for features"):
        score_captions(model_of(), some_features(5), captions)
