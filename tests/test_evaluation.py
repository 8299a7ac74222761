import json
import math
from pathlib import Path

import numpy
import pytest
from oracle import END, NULL, START, UNK, next_log_probs
from small_captioners import WORDS, model_of, some_features
from tiny import make_tiny

from xpcap.backend import CPU
from xpcap.data.dataset import Split, open_dataset
from xpcap.data.vocabulary import Vocabulary
from xpcap.decoding import Beam
from xpcap.evaluation import evaluate_run, perplexity, write_images
from xpcap.models import CaptioningRNN
from xpcap.runs import Run

CAPTIONS = numpy.array(
    [
        [START, 4, 5, 6, END],
        [START, 4, END, NULL, NULL],
        [START, 4, UNK, END, NULL],
        [START, 6, END, NULL, NULL],
    ],
    numpy.int32,
)


def test_perplexity_of_the_split_and_of_each_image(backend, monkeypatch):
    monkeypatch.setattr("xpcap.evaluation.BATCH", 3)
    features, owners = some_features(4), numpy.array([2, 0, 2, 3], numpy.int32)
    run = Run(Path("run"), {}, Vocabulary(WORDS), model_of("lstm", backend))
    found = perplexity(run, Split(CAPTIONS, owners, features, [""] * 4))
    by_image = {0: [], 2: [], 3: []}
    for (_, *words), image in zip(CAPTIONS.tolist(), owners, strict=True):
        for t, word in enumerate(words):
            if word != NULL:
                following = next_log_probs(model_of(), words[:t], features[image])
                by_image[image].append(following[word])
    every = [*by_image[0], *by_image[2], *by_image[3]]
    assert len(every) == 4 + 2 + 3 + 2
    assert found.corpus == pytest.approx(math.exp(-sum(every) / len(every)))
    for image, log_probs in by_image.items():
        assert found.images[image] == pytest.approx(math.exp(-sum(log_probs) / len(log_probs)))
    assert numpy.isnan(found.images[1])  # it has no caption


def test_perplexity_of_an_impossible_caption_is_finite():
    model = model_of()
    model.params["b_vocab"][END] = -1e4
    run = Run(Path("run"), {}, Vocabulary(WORDS), model)
    split = Split(CAPTIONS[1:2], numpy.array([0]), some_features(1), [""])
    assert perplexity(run, split).corpus == pytest.approx(math.exp(700))


def test_an_image_without_encoded_captions_has_no_perplexity(tmp_path):
    path = make_tiny(tmp_path / "tiny") / "references.json"
    references = json.loads(path.read_text())
    references["val"][2]["captions"] = ["...", "🙂"]  # no words
    path.write_text(json.dumps(references))
    dataset = open_dataset(tmp_path / "tiny")
    part = dataset.splits["val"]
    kept = part.image_idxs != 4
    fewer = Split(part.captions[kept], part.image_idxs[kept], part.features, part.urls)
    dataset.splits["val"] = fewer
    model = CaptioningRNN(dataset.vocabulary.word_to_idx, 7, 4, 4, seed=0, backend=CPU)
    run = Run(tmp_path, {}, dataset.vocabulary, model)
    found = evaluate_run(run, dataset, "val", Beam(1), ["perplexity", "bleu-1"])
    assert list(found.scores.corpus) == ["perplexity", "BLEU-1"]
    write_images(tmp_path / "images.jsonl", found)
    images = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text().splitlines()]
    assert [image["id"] for image in images] == [0, 1, *range(3, 12)]
    assert images[3]["perplexity"] is None
    assert isinstance(images[3]["BLEU-1"], float)
    expected = perplexity(run, fewer).images
    for image in images:
        if image["id"] != 4:
            assert image["perplexity"] == expected[image["id"]]
