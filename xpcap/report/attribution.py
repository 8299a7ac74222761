"""Attribution of words to regions or boxes of an image, by gradient times input.

The gradient is that of a word's log-probability, given the words before it, with respect to the
image's features, by the hand-written backward pass. Times the features, it is, to first order, how
much each of them raises or lowers that log-probability (M. Ancona and others, "Towards better
understanding of gradient-based attribution methods for deep neural networks", ICLR 2018). It is
summed over regions of the image or annotated categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from xpcap.backend import to_host
from xpcap.data.coco_json import NUMBERS
from xpcap.data.extractors.filter_bank import FilterBank
from xpcap.models.inspection import Inspectable, word_gradients
from xpcap.report.images import Box, boxes_of
from xpcap.runs import Run

NAMED = 3  # categories in a text
LEVELS = 9  # of strength, on either side of zero
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


@dataclass(frozen=True)
class Attribution:
    """The attribution of a word: a summary, empty if nothing is known, and levels.

    `levels` has a letter per region of the image, row by row, or per box: from `a`, strongly
    against the word, through `j`, neutral, to `s`, strongly for it.
    """

    text: str = ""
    levels: str = ""


def attribute(
    run: Run,
    features: numpy.ndarray,
    words: numpy.ndarray,
    categories: Sequence[str],
    images: Sequence[Any],
) -> list[list[Attribution]]:
    """Compute the attributions of the words that a run has generated, T for each image.

    They are empty where features have no known meaning. `features (N, D)` and `words (N, T)` int32,
    `<NULL>` after `<END>`, are on the host; `categories` are the object categories, if the features
    are their boxes; `images` are PIL images or None.
    """
    extractor = run.config["data"].get("extractor") or {}
    by_region = extractor.get("name") == FilterBank.name
    unknown = [Attribution()] * words.shape[1]
    model = run.model
    if not (by_region or categories) or not isinstance(model, Inspectable):
        return [unknown] * len(words)
    to_device = model.backend.to_device
    _, gradients = map(to_host, word_gradients(model, to_device(features), to_device(words)))
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
        unknown if image is None else _by_region(image, gradient)
        for image, gradient in zip(images, gradients, strict=True)
    ]


def _by_region(image: Any, gradients: numpy.ndarray) -> list[Attribution]:
    """Attribute words to the 8 x 8 regions of an image, given their gradients `(T, 4096)`."""
    bank = FilterBank()
    (parts,) = bank.regions(bank.prepare(image)[None])
    maps = numpy.tensordot(gradients, parts, (1, 2))  # (T, 8, 8)
    return [Attribution(_place(one), _levels(one.reshape(-1))) for one in maps]


def _place(regions: numpy.ndarray) -> str:
    """Name the place of the strongest region, in thirds of the image."""
    row, column = numpy.unravel_index(regions.argmax(), regions.shape)
    if regions[row, column] <= 0:
        return ""
    vertical, horizontal = (
        names[int(3 * (place + 0.5) / size)]
        for names, place, size in zip((_ROWS, _COLUMNS), (row, column), regions.shape, strict=True)
    )
    return f"strongest at the {vertical} {horizontal}; total {regions.sum():+.2f}"


def _by_category(
    values: numpy.ndarray, categories: Sequence[str], boxes: Sequence[Box]
) -> list[Attribution]:
    """Attribute words to categories, given their values `(T, categories)`."""
    index = {category: k for k, category in enumerate(categories)}
    shown = [index[box.category] for box in boxes]
    attributions = []
    for word in values:
        order = numpy.argsort(-numpy.abs(word))[:NAMED]
        text = ", ".join(f"{categories[k]} {word[k]:+.2f}" for k in order if word[k])
        attributions.append(Attribution(text, _levels(word[shown])))
    return attributions


def _levels(values: numpy.ndarray) -> str:
    """Encode strengths as letters, relative to the largest."""
    largest = numpy.abs(values).max(initial=0) or 1.0
    scaled = numpy.rint(LEVELS * values / largest).astype(int)
    return "".join(chr(ord("a") + LEVELS + level) for level in scaled)
