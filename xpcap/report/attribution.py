"""Attribution of words to regions or boxes of an image, by gradient times input.

The gradient is that of a word's log-probability, given the words before it, with respect to the
image's features, by the hand-written backward pass. Times the features, it is, to first order, how
much each of them raises or lowers that log-probability (M. Ancona and others, "Towards better
understanding of gradient-based attribution methods for deep neural networks", ICLR 2018). It is
summed over regions of the image or annotated categories.

Features can be divided among regions if they are a sum over regions: those of the filter bank, and
those of EfficientNet-Lite0, the mean over the cells of a grid. Features of a grid are divided as
they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from xpcap.backend import to_host
from xpcap.data.coco_json import NUMBERS
from xpcap.data.extractors import EfficientNetLite0, FilterBank, open_extractor
from xpcap.errors import ConfigurationError, DataError
from xpcap.models.inspection import Inspectable, word_gradients
from xpcap.report.images import Box, boxes_of
from xpcap.runs import Run

NAMED = 3  # categories in a text
_BLOCK = 2**24  # gradients computed at a time
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

    Those of a missing image are empty. `features`, `(N, D)` or of a grid `(N, L, D)`, and `words
    (N, T)` int32, `<NULL>` after `<END>`, are on the host; `categories` are the object categories,
    if the features are their boxes; `images` are PIL images or None.

    Raises
    ------
    ConfigurationError, DataError
        If the features cannot be divided among regions or boxes, the extractor is not available, or
        the model is not `Inspectable`.
    """
    model = run.model
    if not isinstance(model, Inspectable):
        raise ConfigurationError("models of this family have no gradients of single words")
    extractor = None if categories else _divisible(run)
    if extractor and all(image is None for image in images):
        raise DataError("none of the images can be opened here")
    gradients = _gradients(model, features, words)
    if extractor is None:
        shape = (words.shape[1], len(categories), len(NUMBERS))
        return [
            _by_category(
                (gradient * of_image).reshape(shape).sum(axis=-1),
                categories,
                boxes_of(of_image, categories),
            )
            for of_image, gradient in zip(features, gradients, strict=True)
        ]
    transform = run.transform
    if transform is not None:
        gradients = map(transform.backward, gradients)
    unknown = [Attribution()] * words.shape[1]
    return [
        unknown if image is None else _by_region(_regions(extractor, image), gradient)
        for image, gradient in zip(images, gradients, strict=True)
    ]


def _gradients(
    model: Inspectable, features: numpy.ndarray, words: numpy.ndarray
) -> Iterator[numpy.ndarray]:
    """Yield the gradients of the words of each image, computed for some images at a time."""
    to_device = model.backend.to_device
    count = max(1, _BLOCK // (words.shape[1] * math.prod(features.shape[1:])))
    for first in range(0, len(words), count):
        part = slice(first, first + count)
        found = word_gradients(model, to_device(features[part]), to_device(words[part]))
        yield from to_host(found[1])


def _divisible(run: Run) -> FilterBank | EfficientNetLite0:
    """Open the extractor of a run, if its features can be divided among regions."""
    description = run.config["data"].get("extractor") or {}
    if description and "weights" not in description:
        extractor = open_extractor(description)
        if isinstance(extractor, (FilterBank, EfficientNetLite0)):
            return extractor
    name = description.get("name", "another program")
    raise DataError(
        f"features by {name} cannot be divided among regions of an image; expected those of"
        f" {FilterBank.name} or {EfficientNetLite0.name}"
    )


def _regions(extractor: FilterBank | EfficientNetLite0, image: Any) -> numpy.ndarray:
    """Divide the features of an image among its regions: `(S, S, D)`, whose sum they are.

    Those of a grid `(S S, D)` are divided already.
    """
    prepared = extractor.prepare(image)[None]
    if len(extractor.shape) == 2:
        found: numpy.ndarray = extractor(prepared)[0]
        return found.reshape(math.isqrt(len(found)), -1, found.shape[1])
    if isinstance(extractor, FilterBank):
        return numpy.asarray(extractor.regions(prepared)[0])
    cells: numpy.ndarray = extractor.grid(prepared)[0]
    side = math.isqrt(len(cells))
    return cells.reshape(side, side, -1) / len(cells)


def _by_region(regions: numpy.ndarray, gradients: numpy.ndarray) -> list[Attribution]:
    """Attribute words to regions `(S, S, D)` of the features.

    Gradients are those of the features `(T, D)`, or of each region's `(T, S S, D)`.
    """
    if gradients.ndim == 3:
        maps = (gradients.reshape(-1, *regions.shape) * regions).sum(axis=3)
    else:
        maps = numpy.tensordot(gradients, regions, (1, 2))  # (T, S, S)
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
    place = f"{vertical} {horizontal}".replace("middle middle", "centre")
    return f"strongest at the {place}; total {regions.sum():+.2f}"


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
