"""Captions of images with their references, ready to be printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.dataset import Dataset
from xpcap.data.vocabulary import decode_captions, plain
from xpcap.decoding import Beam, Decoded, Sampling
from xpcap.runs.run import Run


def caption_dataset(
    run: Run, dataset: Dataset, split: str, count: int, how: Beam | Sampling | None = None
) -> list[dict[str, Any]]:
    """Caption evenly spaced images of a split, `count` of them, as `Run.decode` does.

    Returns
    -------
    list of dict
        For each image `image` (its address), `caption`, `references` and `captions`: all found,
        best first, with `caption`, its `log_prob` in nats and its `words`, each a `word` with a
        `log_prob`; the last word is `<END>`.
    """
    part = dataset.split(split)
    images = part.features.shape[0]
    rows = numpy.unique(numpy.linspace(0, images - 1, min(count, images)).astype(int))
    found = captions_of(run, run.decode(part.features[rows], how))
    references = dataset.references(split)
    return [
        {
            "image": part.urls[row],
            "caption": captions[0]["caption"],
            "references": references[row],
            "captions": captions,
        }
        for row, captions in zip(rows, found, strict=True)
    ]


def caption_images(
    run: Run,
    images: Sequence[Path],
    weights: Path | None = None,
    how: Beam | Sampling | None = None,
) -> list[dict[str, Any]]:
    """Caption image files; of each `image`, `caption` and `captions` as from `caption_dataset`."""
    found = captions_of(run, run.decode(run.features_of(images, weights), how))
    return [
        {"image": str(image), "caption": captions[0]["caption"], "captions": captions}
        for image, captions in zip(images, found, strict=True)
    ]


def captions_of(run: Run, decoded: Decoded) -> list[list[dict[str, Any]]]:
    """Return the captions of each image, best first, as `captions` of `caption_dataset`."""
    return [
        [
            _caption(run, words, log_probs)
            for words, log_probs, score in zip(*of_image, strict=True)
            if score > -numpy.inf
        ]
        for of_image in zip(*decoded, strict=True)
    ]


def _caption(run: Run, words: numpy.ndarray, log_probs: numpy.ndarray) -> dict[str, Any]:
    """Return a caption `(T,)` as text, with the log-probabilities of it and of its words."""
    sentence = decode_captions(words, run.vocabulary.idx_to_word)
    found = log_probs[words != run.model.null].tolist()
    return {
        "caption": plain(str(sentence)),
        "log_prob": sum(found),
        "words": [
            {"word": word, "log_prob": log_prob}
            for word, log_prob in zip(str(sentence).split(), found, strict=True)
        ],
    }
