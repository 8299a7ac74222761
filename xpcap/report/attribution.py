"""Attribution of words to regions or boxes of an image, by gradient times input.

The gradient is that of a word's log-probability, given the words before it, with respect to the
image's features, by the hand-written backward pass. Times the features, it is, to first order, how
much each of them raises or lowers that log-probability (M. Ancona and others, "Towards better
understanding of gradient-based attribution methods for deep neural networks", ICLR 2018). It is
summed over regions of the image or annotated categories.

Features can be divided among regions if they are a sum over regions: those of the filter bank, and
those of EfficientNet-Lite0, the mean over the cells of a grid. Features of regions are divided as
they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy

from xpcap.backend import to_host
from xpcap.data.extractors import EfficientNetLite0, FilterBank, open_extractor
from xpcap.data.progress import Progress, no_progress
from xpcap.errors import DataError
from xpcap.models import CaptionModel
from xpcap.models.inspection import word_gradients
from xpcap.report.regions import RegionMap, Regions, map_of_attribution, regions_of
from xpcap.runs import Run

_BLOCK = 2**24  # gradients computed at a time


def attribute(
    run: Run,
    features: numpy.ndarray,
    words: numpy.ndarray,
    categories: Sequence[str],
    images: Sequence[Any],
    progress: Progress = no_progress,
) -> list[list[RegionMap]]:
    """Compute the attributions of the words that a run has generated, T for each image.

    `features`, `(N, D)` or of regions `(N, L, D)`, and `words (N, T)` int32, `<NULL>` after
    `<END>`, are on the host; `categories` are the object categories, if the features are their
    boxes; `images` are PIL images or None. Features of whole images are divided anew: without its
    image a word has an empty attribution.

    Raises
    ------
    ConfigurationError, DataError
        If the features cannot be divided among regions or boxes, or the extractor is not available.
    """
    extractor = None if features.ndim == 3 or categories else _divisible(run)
    if extractor and all(image is None for image in images):
        raise DataError("none of the images can be opened here")
    transform, shift = run.transform, 0.0
    if transform is not None:  # gradient times the features before their mean was subtracted
        shift = transform.components @ transform.mean
    found = []
    gradients = _gradients(run.model, features, words)
    for of_image, image, gradient in zip(features, images, gradients, strict=True):
        if extractor is None:
            regions = regions_of(run.config["data"], of_image, categories)
            if features.ndim == 3:
                whole = of_image + shift * of_image.any(axis=1, keepdims=True)
                values = (gradient * whole).sum(axis=2)
            else:
                by_category = (gradient * of_image).reshape(len(gradient), len(categories), -1)
                values = by_category.sum(axis=2)
            found.append(_mapped(values, regions))
            continue
        if image is None:
            found.append([RegionMap()] * len(gradient))
        else:
            parts = _parts(extractor, image)
            whole = gradient if transform is None else transform.backward(gradient)
            values = numpy.tensordot(whole, parts, (1, 2)).reshape(len(gradient), -1)
            found.append(_mapped(values, Regions(len(parts))))
        progress("attribution", len(found), len(images))
    return found


def _mapped(values: numpy.ndarray, regions: Regions) -> list[RegionMap]:
    return [map_of_attribution(of_word, regions) for of_word in values]


def _gradients(
    model: CaptionModel, features: numpy.ndarray, words: numpy.ndarray
) -> Iterator[numpy.ndarray]:
    """Yield the gradients of the words of each image, computed for some images at a time."""
    to_device = model.backend.to_device
    count = max(1, _BLOCK // max(1, words.shape[1] * math.prod(features.shape[1:])))
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


def _parts(extractor: FilterBank | EfficientNetLite0, image: Any) -> numpy.ndarray:
    """Divide the features of an image among its regions: `(S, S, D)`, whose sum they are."""
    prepared = extractor.prepare(image)[None]
    if isinstance(extractor, FilterBank):
        return numpy.asarray(extractor.regions(prepared)[0])
    cells: numpy.ndarray = extractor.grid(prepared)[0]
    side = math.isqrt(len(cells))
    return cells.reshape(side, side, -1) / len(cells)
