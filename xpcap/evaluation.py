"""How well a run describes the images of a split: captions, metrics, and COCO's results file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.dataset import Dataset, Split
from xpcap.data.vocabulary import SPECIAL, plain
from xpcap.decoding import Beam, Sampling
from xpcap.distributed import by_first, share_out
from xpcap.errors import ConfigurationError, DataError
from xpcap.files import explained, new_file
from xpcap.metrics import METRICS as OF_CAPTIONS
from xpcap.metrics import Score, Scores, evaluate_captions
from xpcap.runs import BATCH, Run

PERPLEXITY = "perplexity"

METRICS = (*OF_CAPTIONS, PERPLEXITY)
"""The names that `evaluate_run` knows: those of `xpcap.metrics`, and `perplexity`."""

DEFAULT = tuple(name for name in METRICS if name not in ("METEOR", "SPICE"))
"""Those that need no Java."""


@dataclass(frozen=True)
class Evaluation:
    """What a run says of a split, and how good that is.

    Parameters
    ----------
    images
        For each image `image` (its address), `id`, `caption`, `references`, and its value by
        metric; its perplexity is None if none of its captions is among the encoded ones.
    scores
        The metrics.
    """

    images: Sequence[dict[str, Any]]
    scores: Scores


def evaluate_run(
    run: Run,
    dataset: Dataset,
    split: str,
    how: Beam | Sampling,
    metrics: Sequence[str] = DEFAULT,
) -> Evaluation:
    """Caption every image of a split that somebody described, and compare with what was said.

    Parameters
    ----------
    run, dataset, split
        Who captions, and which images.
    how
        How captions are found; the best of each image counts.
    metrics
        Names of `METRICS`, in capitals or not.

    Raises
    ------
    DataError
        If no image of the split has a reference, or files of the data set are damaged.
    ConfigurationError
        If a metric is unknown, or cannot be computed here.
    """
    names = _known(metrics)
    references = dataset.references(split)
    rows = [row for row, said in enumerate(references) if said]
    if not rows:
        raise DataError(f"{dataset.folder}: no image of '{split}' has a caption to compare with")
    part = dataset.splits[split]
    captions = run.caption(part.features[numpy.array(rows)], how)
    known = [[plain(sentence) for sentence in references[row]] for row in rows]
    trained = dataset.references("train") if "novel" in names else []
    scores = by_first(
        run.ranks,
        lambda: evaluate_captions(
            captions,
            known,
            [name for name in names if name != PERPLEXITY],
            training_captions=[said for image in trained for said in image],
            vocabulary=run.vocabulary.idx_to_word[len(SPECIAL) :],
        ),
    )
    corpus, by_image = scores.corpus, scores.images
    if PERPLEXITY in names:
        corpus[PERPLEXITY], values = perplexity(run, part)
        by_image[PERPLEXITY] = values[rows]
    ids = dataset.image_ids(split)
    images = [
        {
            "image": part.urls[row],
            "id": ids[row],
            "caption": caption,
            "references": known[k],
            **{name: _number(by_image[name][k]) for name in names if name in by_image},
        }
        for k, (row, caption) in enumerate(zip(rows, captions, strict=True))
    ]
    return Evaluation(images, Scores({name: corpus[name] for name in names}, by_image))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _known(names: Sequence[str]) -> list[str]:
    """Return the names as `METRICS` writes them, each once."""
    by_lower = {name.lower(): name for name in METRICS}
    for name in names:
        if name.lower() not in by_lower:
            raise ConfigurationError(
                f"metric '{name}' is unknown; expected one of {', '.join(METRICS)}"
            )
    return list(dict.fromkeys(by_lower[name.lower()] for name in names))


def perplexity(run: Run, split: Split) -> Score:
    """Measure how well a run foresees a split's encoded captions, `<END>` and `<UNK>` counted.

    e^(nats a word): among how many equally likely words it hesitates. Training's validation loss
    is the logarithm of it.

    Returns
    -------
    Score
        Of all captions together, and of those of each image of the split; NaN where it has none.
    """

    def work(rows: slice) -> numpy.ndarray:
        features = split.features[split.image_idxs[rows]]
        log_probs = run.score(features, split.captions[rows])
        found: numpy.ndarray = -log_probs.sum(axis=1, dtype=numpy.float64)
        return found

    nats = numpy.concatenate(share_out(len(split), BATCH, run.ranks, work))
    words = (split.captions[:, 1:] != run.model.null).sum(axis=1)
    images = split.features.shape[0]
    by_image = [numpy.bincount(split.image_idxs, values, images) for values in (nats, words)]
    with numpy.errstate(invalid="ignore"):  # 0 nats / 0 words
        each = by_image[0] / by_image[1]
    largest = 700.0  # whose exponential is finite
    return Score(
        math.exp(min(nats.sum() / words.sum(), largest)), numpy.exp(numpy.minimum(each, largest))
    )


def write_results(path: Path, evaluation: Evaluation) -> None:
    """Write captions in COCO's results format, for its own tools: `image_id` and `caption`.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    results = [
        {"image_id": image["id"], "caption": image["caption"]} for image in evaluation.images
    ]
    _write(path, json.dumps(results))


def write_images(path: Path, evaluation: Evaluation) -> None:
    """Write an object an image, as lines of JSON.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    _write(path, "".join(json.dumps(image) + "\n" for image in evaluation.images))


def _write(path: Path, text: str) -> None:
    with new_file(path) as temporary, explained(path, "write"):
        temporary.write_text(text, encoding="utf-8")
