import re
from pathlib import Path

import numpy
import pytest
from PIL import Image

from xpcap.data.coco_json import AnnotatedImage, box_features
from xpcap.data.extractors import EfficientNetLite0, FilterBank
from xpcap.data.pca import PCA
from xpcap.data.vocabulary import SPECIAL, Vocabulary
from xpcap.errors import DataError
from xpcap.models import AttentionRNN, CaptioningRNN
from xpcap.models.inspection import word_gradients
from xpcap.report.attribution import attribute
from xpcap.report.regions import LEVELS
from xpcap.runs import Run
from xpcap.runs.folder import TRANSFORM

WORDS = Vocabulary([*SPECIAL, "a", "red", "ring"])
CAPTIONS = numpy.array([[4, 5, 6, 2], [6, 2, 0, 0]], numpy.int32)
DRAW = numpy.random.default_rng(0)


def run_of(dim, extractor=None):
    model = CaptioningRNN(WORDS.word_to_idx, dim, 6, 8, "gru", seed=3)
    return Run(Path("run"), {"data": {"kind": "fc7", "extractor": extractor}}, WORDS, model)


def strengths(levels):
    return numpy.array([ord(letter) - ord("a") - LEVELS for letter in levels]) / LEVELS


@pytest.fixture
def images():
    blank = numpy.full((64, 64, 3), 128, numpy.uint8)
    corner = blank.copy()
    corner[4:20, 40:56] = (230, 20, 20)
    return [Image.fromarray(corner), Image.fromarray(numpy.flip(corner, (0, 1)).copy())]


def test_attributions_of_regions_sum_to_gradient_times_features(images):
    bank, run = FilterBank(), run_of(4096, FilterBank().describe())
    features = bank(numpy.stack([bank.prepare(image) for image in images]))
    found = attribute(run, features, CAPTIONS, [], images)
    _, gradients = word_gradients(run.model, features, CAPTIONS)
    totals = (gradients * features[:, None]).sum(axis=2)
    for n, t in ((0, 0), (0, 3), (1, 1)):
        assert float(re.search(r"total ([-+.\d]+)", found[n][t].text)[1]) == pytest.approx(
            totals[n, t], abs=0.006
        )
        levels = strengths(found[n][t].levels).reshape(8, 8)
        assert numpy.abs(levels).max() == 1
        # the image has only a square, in rows 0 to 2 and columns 5 to 6, or flipped
        there = numpy.s_[:3, 4:] if n == 0 else numpy.s_[5:, :4]
        assert numpy.abs(levels[there]).sum() > 0.9 * numpy.abs(levels).sum()
        row, column = numpy.unravel_index(levels.argmax(), levels.shape)
        vertical = ("top", "middle", "bottom")[(0, 0, 0, 1, 1, 2, 2, 2)[row]]
        horizontal = ("left", "middle", "right")[(0, 0, 0, 1, 1, 2, 2, 2)[column]]
        assert found[n][t].text.startswith(f"strongest at the {vertical} {horizontal};")


class Quarters(EfficientNetLite0):
    """A network without weights: the mean colour of each quarter of an image is its grid."""

    def __init__(self, shape=(3,)):
        self.shape = shape

    def prepare(self, image):
        return numpy.asarray(image) / 255

    def grid(self, images):
        quarters = images.reshape(len(images), 2, 32, 2, 32, 3).mean(axis=(2, 4))
        return quarters.reshape(len(images), 4, 3)

    def __call__(self, images):
        return self.grid(images)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
def test_attributions_of_a_grid_are_slopes_along_its_cells(
    images, reduced, pooled, monkeypatch, tmp_path
):
    """By how much a word gains as a cell, or its share of pooled features, grows."""
    network = Quarters((3,) if pooled else (4, 3))
    pca = PCA(DRAW.random(3), DRAW.random((2, 3)), numpy.ones(2))
    monkeypatch.setattr("xpcap.report.attribution.open_extractor", lambda _: network)
    cells = network.grid(numpy.stack([network.prepare(image) for image in images]))
    model = CaptioningRNN(WORDS.word_to_idx, 2 if reduced else 3, 6, 8, "lstm", float, seed=3)
    extractor = {"name": "quarters", "output": "pooled" if pooled else "grid"}
    config = {"kind": "pca" if reduced else "fc7", "extractor": extractor}
    run = Run(tmp_path, {"data": config}, WORDS, model)
    pca.write(tmp_path / TRANSFORM)

    def features(factors):
        found = cells * factors[:, None]
        if pooled:
            found = found.mean(axis=1)
        return (found - pca.mean) @ pca.components.T if reduced else found

    def log_probs(factors):
        return word_gradients(model, features(factors), CAPTIONS)[0]

    steps = 1e-5 * numpy.eye(4)
    ends = [[log_probs(1 + sign * step) for sign in (1, -1)] for step in steps]
    expected = numpy.stack([(after - before) / 2e-5 for after, before in ends], axis=2)
    found = attribute(run, features(numpy.ones(4)), CAPTIONS, [], images)
    for n, t in ((0, 0), (0, 3), (1, 1)):
        relative = expected[n, t] / abs(expected[n, t]).max()
        assert abs(strengths(found[n][t].levels) - relative).max() <= 0.5 / LEVELS + 1e-6
        if expected[n, t].max() > 0:
            row, column = divmod(expected[n, t].argmax(), 2)
            place = f"{('top', 'bottom')[row]} {('left', 'right')[column]}"
            total = f"{expected[n, t].sum():+.2f}"
            assert found[n][t].text == f"strongest at the {place}; total {total}"


def test_regions_need_the_image(images):
    run = run_of(4096, FilterBank().describe())
    features = DRAW.standard_normal((2, 4096)).astype(numpy.float32)
    found = attribute(run, features, CAPTIONS, [], [None, images[0]])
    assert [word.text for word in found[0]] == [""] * 4
    assert found[1][0].levels
    with pytest.raises(DataError, match="none of the images can be opened"):
        attribute(run, features, CAPTIONS, [], [None, None])


def test_attributions_of_boxes_are_sums_over_categories():
    categories = ["person", "cat", "dog"]
    image = AnnotatedImage(1, "")
    image.boxes = [(1, 0.04, 0.2, 0.3), (3, 0.36, 0.4, 0.4)]
    features = numpy.stack([box_features(image, [1, 2, 3])] * 2).astype(numpy.float32)
    run = run_of(15)
    found = attribute(run, features, CAPTIONS, categories, [None, None])
    _, gradients = word_gradients(run.model, features, CAPTIONS)
    for n, t in ((0, 2), (1, 0)):
        values = [
            float(gradients[n, t, 5 * k : 5 * k + 5] @ features[n, 5 * k :][:5]) for k in range(3)
        ]
        totals = dict(re.findall(r"(\w+) ([-+.\d]+)", found[n][t].text))
        assert totals == {"person": f"{values[0]:+.2f}", "dog": f"{values[2]:+.2f}"}
        dog, person = strengths(found[n][t].levels)  # the larger box is drawn first
        assert person * values[0] > 0
        assert dog * values[2] > 0
        assert max(abs(dog), abs(person)) == 1
    assert found[1][3].text == ""  # <NULL>


@pytest.mark.parametrize("family", [CaptioningRNN, AttentionRNN])
@pytest.mark.parametrize("categories", [[], ["cat", "dog"]])
def test_attributions_of_any_regions_need_no_extractor_nor_image(family, categories):
    """Of objects, whose features begin with their categories, or of unknown regions."""
    features = DRAW.random((2, 4, 7)).astype(numpy.float32)
    features[1, 2:] = 0  # absent regions
    features[:, :, :2] *= 9 * numpy.eye(2)[[1, 0, 1, 0]]
    model = family(WORDS.word_to_idx, 7, 6, 8, "gru", seed=3)
    run = Run(Path("run"), {"data": {"kind": "fc7"}}, WORDS, model)
    found = attribute(run, features, CAPTIONS, categories, [None, None])
    _, gradients = word_gradients(model, features, CAPTIONS)
    values = (gradients * features[:, None]).sum(axis=3)
    for n, t in ((0, 0), (0, 3), (1, 1)):
        if categories:
            order = numpy.argsort(-abs(values[n, t, : 2 if n else 4]))[:3]
            named = [f"{('dog', 'cat')[k % 2]} {values[n, t, k]:+.2f}" for k in order]
            assert found[n][t].text == ", ".join(named)
            assert len(found[n][t].levels) == (2 if n else 4)
        elif values[n, t].max() > 0:
            assert f"in region {values[n, t].argmax() + 1} of 4; total" in found[n][t].text
            assert found[n][t].levels == ""
    assert any(word.text for words in found for word in words)


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        (None, "features by another program cannot be divided among regions"),
        ({"name": "vgg16-fc7", "weights": "gone.onnx"}, "features by vgg16-fc7 cannot be divided"),
        ({"name": "filter-bank", "version": 99}, "which cannot be computed here"),
    ],
)
def test_features_without_regions_are_refused(extractor, message, images):
    features = numpy.ones((2, 9), numpy.float32)
    with pytest.raises(DataError, match=message):
        attribute(run_of(9, extractor), features, CAPTIONS, [], images)
