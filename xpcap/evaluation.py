"""How well a run describes the images of a split: captions, metrics, and COCO's results file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.dataset import Dataset
from xpcap.data.vocabulary import SPECIAL, plain
from xpcap.decoding import Beam, Sampling
from xpcap.errors import DataError
from xpcap.files import explained, new_file
from xpcap.metrics import DEFAULT, Scores, check_names, evaluate_captions
from xpcap.run_folder import Run


@dataclass(frozen=True)
class Evaluation:
    """What a run says of a split, and how good that is.

    Parameters
    ----------
    images
        For each image `image` (its address), `id`, `caption`, `references`, and its value by
        metric.
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
        Names of `xpcap.metrics.METRICS`.

    Raises
    ------
    DataError
        If no image of the split has a reference, or files of the data set are damaged.
    ConfigurationError
        If a metric is unknown, or cannot be computed here.
    """
    trained = [said for image in dataset.references("train") for said in image]
    words = run.vocabulary.idx_to_word[len(SPECIAL) :]
    check_names(metrics, trained, words)
    references = dataset.references(split)
    rows = [row for row, said in enumerate(references) if said]
    if not rows:
        raise DataError(f"{dataset.folder}: no image of '{split}' has a caption to compare with")
    part = dataset.splits[split]
    captions = run.caption(part.features[numpy.array(rows)], how)
    known = [[plain(sentence) for sentence in references[row]] for row in rows]
    scores = evaluate_captions(
        captions,
        known,
        metrics,
        training_captions=trained,
        vocabulary=words,
    )
    ids = dataset.image_ids(split)
    images = [
        {
            "image": part.urls[row],
            "id": ids[row],
            "caption": caption,
            "references": known[k],
            **{name: float(values[k]) for name, values in scores.images.items()},
        }
        for k, (row, caption) in enumerate(zip(rows, captions, strict=True))
    ]
    return Evaluation(images, scores)


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
