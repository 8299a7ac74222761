"""Small captioners with very different word probabilities, and their captions."""

import numpy
from kinds import KINDS
from oracle import END, NULL, START, UNK

from xpcap.backend import CPU, to_host
from xpcap.decoding import Constraints

WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "b", "c"]
BANNED = (NULL, START, UNK)
SHORT = Constraints(max_length=3, banned=BANNED)


def model_of(kind="lstm", backend=CPU, seed=0, end=0.0):
    """Make a captioner with weights so large that word probabilities differ much."""
    vocabulary = {word: k for k, word in enumerate(WORDS)}
    model = KINDS[kind].build(vocabulary, 5, 4, 6, seed=seed, backend="cpu")
    model.params = {name: 3 * value for name, value in model.params.items()}
    rng = numpy.random.default_rng(seed)
    model.params["b_vocab"] = rng.standard_normal(len(WORDS))
    model.params["b_vocab"][END] += end
    return model.to(backend)


def some_features(count=4, seed=1, kind="lstm"):
    return KINDS[kind].features(count, 5, seed)


def captions(decoded, n):
    """Return the captions of image n, each up to `<END>`."""
    words, scores = to_host(decoded.words[n]), to_host(decoded.scores[n])
    return [
        [int(word) for word in row if word != NULL]
        for row, score in zip(words, scores, strict=True)
        if score > -numpy.inf
    ]
