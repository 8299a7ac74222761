"""Captions of images with their references, ready to be printed or written to a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.dataset import Dataset
from xpcap.data.progress import Progress, no_progress
from xpcap.data.vocabulary import decode_captions
from xpcap.decoding import Beam, Decoded, Sampling
from xpcap.errors import DataError
from xpcap.files import new_file
from xpcap.runs.attention import weights_of
from xpcap.runs.run import Run


def caption_dataset(
    run: Run,
    dataset: Dataset,
    split: str,
    count: int,
    how: Beam | Sampling | None = None,
    attention: bool = False,
) -> list[dict[str, Any]]:
    """Caption evenly spaced images of a split, `count` of them, as `Run.decode` does.

    Returns
    -------
    list of dict
        For each image `image` (its address), `caption`, `references` and `captions`: all found,
        best first, with `caption`, its `log_prob` in nats and its `words`, each a `word` with a
        `log_prob`; the last word is `<END>`. If asked for, also `attention`: for each of the
        best caption's words a list of the weights of the regions, see `Attention`.
    """
    part, rows = dataset.split(split), evenly_spaced(dataset, split, count)
    features = part.features[rows]
    decoded = run.decode(features, how)
    references = dataset.references(split)
    entries = [
        {
            "image": part.urls[row],
            "caption": captions[0]["caption"],
            "references": references[row],
            "captions": captions,
        }
        for row, captions in zip(rows, captions_of(run, decoded), strict=True)
    ]
    if attention:
        _add_attention(run, entries, features, decoded)
    return entries


def evenly_spaced(dataset: Dataset, split: str, count: int) -> numpy.ndarray:
    """Return the rows of the images of a split that `caption_dataset` takes."""
    images = dataset.split(split).features.shape[0]
    return numpy.unique(numpy.linspace(0, images - 1, min(count, images)).astype(int))


def caption_images(
    run: Run,
    images: Sequence[Path],
    weights: Path | None = None,
    how: Beam | Sampling | None = None,
    skip_broken: bool = False,
    progress: Progress = no_progress,
    attention: bool = False,
) -> list[dict[str, Any]]:
    """Caption image files; of each `image`, `caption` and `captions` as from `caption_dataset`.

    With `skip_broken`, an image that cannot be opened has the reason as its `error`, the caption
    None and no `captions`. If none can be opened, a `DataError` is raised anyway.
    """
    found = run.extract(images, weights, skip_broken, progress)
    if found.broken and not len(found.features):
        raise DataError(f"none of the images can be opened: {found.broken[0]}")
    decoded = run.decode(found.features, how)
    captions = iter(captions_of(run, decoded))
    entries: list[dict[str, Any]] = []
    for k, image in enumerate(map(str, images)):
        if k in found.broken:
            error = found.broken[k]
            entries.append({"image": image, "caption": None, "captions": [], "error": error})
        else:
            best, *_ = of_image = next(captions)
            entries.append({"image": image, "caption": best["caption"], "captions": of_image})
    if attention:
        _add_attention(run, [e for e in entries if e["captions"]], found.features, decoded)
    return entries


def _add_attention(
    run: Run, entries: Sequence[dict[str, Any]], features: numpy.ndarray, decoded: Decoded
) -> None:
    """Add to each entry the weights of its best caption's words."""
    maps = weights_of((run.model, *run.partners), features, decoded.words[:, 0])
    for entry, weights in zip(entries, maps, strict=True):
        entry["attention"] = weights[: len(entry["captions"][0]["words"])].tolist()


def write_json(path: Path, captioned: Sequence[dict[str, Any]]) -> None:
    """Write what `caption_images` or `caption_dataset` returns to a JSON file."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(captioned, indent=2) + "\n", encoding="ascii")


def write_csv(path: Path, captioned: Sequence[dict[str, Any]], ranked: bool = False) -> None:
    """Write `image`, `caption` and `log_prob` (in nats) to a CSV file in UTF-8.

    If `ranked`, all captions of an image are written, with their `rank` from 1. Images without a
    caption are left out. Texts stay as they are: a spreadsheet may take one that begins with `=`
    for a formula.
    """
    rank = ["rank"] if ranked else []
    with (
        new_file(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        table = csv.DictWriter(
            file,
            ["image", *rank, "caption", "log_prob"],
            extrasaction="ignore",
            lineterminator="\n",
        )
        table.writeheader()
        for entry in captioned:
            shown = entry["captions"] if ranked else entry["captions"][:1]
            for number, caption in enumerate(shown, start=1):
                table.writerow({"image": entry["image"], "rank": number, **caption})


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
        "caption": run.vocabulary.sentences(words)[0],
        "log_prob": sum(found),
        "words": [
            {"word": word, "log_prob": log_prob}
            for word, log_prob in zip(str(sentence).split(), found, strict=True)
        ],
    }
