"""Where a run looks, from Python; and which part of an image its regions are."""

from pathlib import Path

import numpy
import pytest

from xpcap.api import Run
from xpcap.backend import to_host
from xpcap.data.extractors.preprocessing import Preprocessing
from xpcap.data.vocabulary import SPECIAL, Vocabulary
from xpcap.errors import ConfigurationError, DataError
from xpcap.models import AttentionRNN, CaptioningRNN, Transformer
from xpcap.models.inspection import attention_maps
from xpcap.runs import make_search
from xpcap.runs.attention import Area, grid_area, grid_side

WORDS = Vocabulary([*SPECIAL, "a", "red", "ring"])
DATA = {"kind": "fc7", "shape": [9, 5]}


def run_of(backend="cpu", family=AttentionRNN, seed=3, **options):
    model = family(WORDS.word_to_idx, 5, 6, 8, "gru", seed=seed, backend=backend, **options)
    return Run(Path("run"), {"data": DATA}, WORDS, model)


def run_of_vectors(seed=3):
    model = Transformer(WORDS.word_to_idx, 5, 8, layers=1, heads=2, seed=seed)
    return Run(Path("run"), {"data": {"kind": "fc7", "shape": [5]}}, WORDS, model)


@pytest.fixture
def features():
    drawn = numpy.random.default_rng(0).standard_normal((70, 9, 5)).astype(numpy.float32)
    drawn[1, 6:] = 0  # absent regions
    return drawn


def test_words_are_those_of_the_caption_and_weights_those_of_the_model(features, backend):
    """Of more images than are looked at together."""
    run = run_of(backend)
    how = make_search(WORDS, beam=2)
    found = run.attention(features, beam=2)
    captions = run.caption(features, how)
    assert len(found) == len(features) == 70
    decoded = run.decode(features, how).words[:, 0]
    to_device = backend.to_device
    expected = to_host(attention_maps(run.model, to_device(features), to_device(decoded)))
    for n, (words, weights) in enumerate(found):
        assert " ".join(word for word in words if word != "<END>") == captions[n]
        assert weights.shape == (len(words), 9)
        assert weights == pytest.approx(expected[n, : len(words)], abs=1e-6)
        assert weights.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert not found[1].weights[:, 6:].any()
    assert len({len(words) for words, _ in found}) > 1


def test_an_ensemble_looks_where_its_models_with_attention_look_on_average(features):
    one, other, blind = run_of(), run_of(seed=4), run_of(family=CaptioningRNN)
    both = Run(**{**vars(one), "partners": [blind.model, other.model]})
    words = both.decode(features).words[:, 0]
    maps = [attention_maps(run.model, features, words) for run in (one, other)]
    for weights, *expected in zip(both.attention(features), *maps, strict=True):
        mean = numpy.mean(expected, axis=0)[: len(weights.words)]
        assert weights.weights == pytest.approx(mean, abs=1e-6)


def test_a_run_without_attention_and_other_features_are_refused(features):
    with pytest.raises(
        ConfigurationError, match=r"family 'recurrent' has no attention .*; expected"
    ):
        run_of(family=CaptioningRNN).attention(features)
    with pytest.raises(ConfigurationError, match="'transformer' has no attention to regions"):
        run_of_vectors().attention(features[:, 0])
    with pytest.raises(DataError, match=r"features are \(70, 9\); expected \(N, L, 5\)"):
        run_of().attention(features[:, :, 0])
    with pytest.raises(ConfigurationError, match="temperature goes with sample"):
        run_of().attention(features, temperature=2)


@pytest.mark.parametrize(
    ("extractor", "regions", "side"),
    [
        ({"name": "filter-bank", "output": "grid"}, 64, 8),
        ({"name": "filter-bank", "output": "grid"}, 50, None),
        ({"name": "onnx", "weights": "a.onnx", "output": "maps", "grid": [7, 7]}, 49, 7),
        ({"name": "onnx", "weights": "a.onnx", "output": "maps", "grid": [4, 9]}, 36, None),
        ({"name": "onnx", "weights": "a.onnx", "output": "grid"}, 36, None),  # 36 objects
        (None, 49, None),
    ],
)
def test_regions_are_a_square_grid_if_their_extractor_says_so(extractor, regions, side):
    assert grid_side({"extractor": extractor}, regions) == side


@pytest.mark.parametrize("size", [(300, 600), (1000, 400), (256, 256)])
def test_the_grid_covers_what_the_network_saw(size):
    """A picture that is white only there is white all over after preprocessing."""
    from PIL import Image

    preprocessing = Preprocessing(size=224, shorter_side=256, mean=(0, 0, 0), std=(1, 1, 1))
    described = {"preprocessing": {"size": 224, "shorter_side": 256}}
    area = grid_area({"extractor": described}, size)
    left, top, right, bottom = (share * side for share, side in zip(area, 2 * size, strict=True))
    image = Image.new("RGB", size, "black")
    image.paste("white", (round(left - 3), round(top - 3), round(right + 3), round(bottom + 3)))
    assert preprocessing(image).min() == 1
    image.paste("black", (0, 0, size[0], round(top + 4)))
    assert preprocessing(image).min() == 0
    assert grid_area({"extractor": {"name": "filter-bank"}}, size) == Area()
    whole = {"preprocessing": {"size": 224, "shorter_side": None}}
    assert grid_area({"extractor": whole}, size) == Area() == (0, 0, 1, 1)
