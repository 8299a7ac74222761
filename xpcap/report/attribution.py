"""What in an image spoke for a word: gradient times input, summed over what a person can name.

The gradient is that of the word's log-probability given the words before it, with respect to the
image's features, by the hand-written backward pass. Times the features, it says how much each of
them raises or lowers that log-probability, to first order (M. Ancona and others, "Towards better
understanding of gradient-based attribution methods for deep neural networks", ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from xpcap.backend import to_host
from xpcap.data.coco_json import NUMBERS
from xpcap.data.extractors.filter_bank import FilterBank
from xpcap.models.inspection import word_gradients
from xpcap.report.pictures import Box, boxes_of
from xpcap.runs import Run

NAMED = 3  # categories in a text
LEVELS = 9  # of strength, on either side of zero
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


@dataclass(frozen=True)
class Spoken:
    """What spoke for a word.

    Parameters
    ----------
    text
        In words; empty if nothing is known.
    levels
        A letter for each part of the picture, its regions row by row or its boxes: from `a`,
        strongly against, over `j`, neither, to `s`, strongly for.
    """

    text: str = ""
    levels: str = ""


def spoken_for(
    run: Run,
    features: numpy.ndarray,
    words: numpy.ndarray,
    categories: Sequence[str],
    pictures: Sequence[Any],
) -> list[list[Spoken]]:
    """Find what spoke for each word of captions.

    Parameters
    ----------
    run
        Who said them.
    features
        `(N, D)` of the images, on the host.
    words
        Indices `(N, T)` int32, `<NULL>` after `<END>`.
    categories
        Whose boxes are the features, if they are.
    pictures
        Of each image, or None.

    Returns
    -------
    list of list of Spoken
        For each image T of them; empty ones where features mean nothing that could be named.
    """
    extractor = run.config["data"].get("extractor") or {}
    by_region = extractor.get("name") == FilterBank.name
    unknown = [Spoken()] * words.shape[1]
    if not (by_region or categories):
        return [unknown] * len(words)
    to_device = run.model.backend.to_device
    _, gradients = map(to_host, word_gradients(run.model, to_device(features), to_device(words)))
    if categories:
        shape = (*words.shape, len(categories), len(NUMBERS))
        values = (gradients * features[:, None]).reshape(shape).sum(axis=-1)
        return [
            _by_category(values[n], categories, boxes_of(features[n], categories))
            for n in range(len(words))
        ]
    transform = run.transform
    if transform is not None:
        gradients = transform.backward(gradients)
    return [
        unknown if picture is None else _by_region(_region_maps(picture, gradient))
        for picture, gradient in zip(pictures, gradients, strict=True)
    ]


def _region_maps(picture: Any, gradients: numpy.ndarray) -> numpy.ndarray:
    """Return what each region of a picture adds, `(T, 8, 8)`, given gradients `(T, 4096)`."""
    bank = FilterBank()
    (parts,) = bank.regions(bank.prepare(picture)[None])
    return numpy.asarray(numpy.tensordot(gradients, parts, (1, 2)))


def _by_region(maps: numpy.ndarray) -> list[Spoken]:
    """Describe the maps `(T, 8, 8)` of a caption's words."""
    return [Spoken(_where(one), _levels(one.reshape(-1))) for one in maps]


def _where(regions: numpy.ndarray) -> str:
    """Name the place of the region that spoke most for a word, in thirds of the picture."""
    row, column = numpy.unravel_index(regions.argmax(), regions.shape)
    if regions[row, column] <= 0:
        return ""
    vertical, horizontal = (
        names[int(3 * (place + 0.5) / size)]
        for names, place, size in zip((_ROWS, _COLUMNS), (row, column), regions.shape, strict=True)
    )
    return f"most from the {vertical} {horizontal}; in all {regions.sum():+.2f}"


def _by_category(
    values: numpy.ndarray, categories: Sequence[str], boxes: Sequence[Box]
) -> list[Spoken]:
    """Describe the values `(T, categories)` of a caption's words."""
    place = {category: k for k, category in enumerate(categories)}
    shown = [place[box.category] for box in boxes]
    spoken = []
    for word in values:
        order = numpy.argsort(-numpy.abs(word))[:NAMED]
        text = ", ".join(f"{categories[k]} {word[k]:+.2f}" for k in order if word[k])
        spoken.append(Spoken(text, _levels(word[shown])))
    return spoken


def _levels(values: numpy.ndarray) -> str:
    """Write strengths down as letters, relative to the strongest."""
    largest = numpy.abs(values).max(initial=0) or 1.0
    scaled = numpy.rint(LEVELS * values / largest).astype(int)
    return "".join(chr(ord("a") + LEVELS + level) for level in scaled)
