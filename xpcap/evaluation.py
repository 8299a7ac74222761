"""Metrics of a run's captions on a split, and COCO's results file."""

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
from xpcap.errors import DataError
from xpcap.files import new_file
from xpcap.metrics import METRICS as OF_CAPTIONS
from xpcap.metrics import Score, Scores, check_names, evaluate_captions
from xpcap.runs import BATCH, Run

PERPLEXITY = "perplexity"

METRICS = OF_CAPTIONS | {
    PERPLEXITY: "exponential of the loss per word of the references: as uncertain as a choice"
    " among so many words; at least 1, lower is better"
}
"""The metrics that `evaluate_run` knows: those of `xpcap.metrics`, and `perplexity`."""

DEFAULT = tuple(name for name in METRICS if name not in ("METEOR", "SPICE"))
"""The metrics that need no Java."""


@dataclass(frozen=True)
class Evaluation:
    """A run's captions of a split, and their metrics.

    Each of `images` has `image` (its address), `id`, `caption`, `references`, and its value of each
    metric; its perplexity is None if it has no encoded caption.
    """

    images: Sequence[dict[str, Any]]
    scores: Scores


def evaluate_run(
    run: Run,
    dataset: Dataset,
    split: str,
    how: Beam | Sampling,
    metrics: Sequence[str] | str = DEFAULT,
    most: int | None = None,
) -> Evaluation:
    """Caption the images of a split that have references, and compute the metrics.

    The best caption of each image counts. Metrics are names of `METRICS`, case-
    insensitive, also as one text with commas. Of more than `most` images, that many evenly spaced
    ones are captioned.
    """
    if isinstance(metrics, str):
        metrics = [name.strip() for name in metrics.split(",")]
    by_lower = {name.lower(): name for name in METRICS}
    names = list(dict.fromkeys(by_lower.get(name.lower(), name) for name in metrics))
    check_names(names, METRICS)
    part, references = dataset.split(split), dataset.references(split)
    rows = with_references(dataset, split)
    if PERPLEXITY in names:
        check_lengths(run, dataset, split, f", or metrics without {PERPLEXITY}")
    if most is not None and len(rows) > most:
        rows = [rows[k] for k in numpy.linspace(0, len(rows) - 1, most).astype(int)]
    whole = len(rows) == part.features.shape[0]  # stay in their file
    captions = run.caption(part.features if whole else part.features[numpy.array(rows)], how)
    known = [[plain(sentence) for sentence in references[row]] for row in rows]
    trained = dataset.references("train") if "novel" in names else []
    scores = by_first(
        run.ranks,
        lambda: evaluate_captions(
            captions,
            known,
            [name for name in names if name != PERPLEXITY],
            training_captions=[sentence for image in trained for sentence in image],
            vocabulary=run.vocabulary.idx_to_word[len(SPECIAL) :],
            tokens=run.vocabulary.tokens,
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


def with_references(dataset: Dataset, split: str) -> list[int]:
    """Return the rows of a split's images that have references; if none has, raise `DataError`."""
    rows = [row for row, sentences in enumerate(dataset.references(split)) if sentences]
    if not rows:
        raise DataError(f"{dataset.folder}: no image of '{split}' has a caption to compare with")
    return rows


def check_lengths(run: Run, dataset: Dataset, split: str, advice: str = "") -> None:
    """Raise `DataError` if encoded captions of a split are longer than the model can read."""
    most, captions = run.captioner.max_length, dataset.split(split).captions
    if captions.shape[1] - 1 > most and (captions[:, 1 + int(most) :] != run.model.null).any():
        raise DataError(
            f"{dataset.folder} has captions of '{split}' longer than the {int(most) - 1} words that"
            f" {run.folder} can read; expected shorter ones{advice}"
        )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def perplexity(run: Run, split: Split) -> Score:
    """Compute e^(nats per word) of a split's encoded captions, `<END>` and `<UNK>` counted.

    For all captions together that is the exponential of the validation loss; of an image without
    captions it is NaN.
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
    """Write the captions in COCO's results format, `image_id` and `caption`, for its own tools."""
    images = evaluation.images
    results = [{"image_id": image["id"], "caption": image["caption"]} for image in images]
    _write(path, json.dumps(results))


def write_images(path: Path, evaluation: Evaluation) -> None:
    """Write one JSON object per image and line."""
    _write(path, "".join(json.dumps(image) + "\n" for image in evaluation.images))


def _write(path: Path, text: str) -> None:
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
