"""What in an image spoke for a word: gradient times input, summed over what a person can name.

The gradient is that of the word's log-probability given the words before it, with respect to the
image's features, by the hand-written backward pass. Times the features, it says how much each of
them raises or lowers that log-probability, to first order (M. Ancona and others, "Towards better
understanding of gradient-based attribution methods for deep neural networks", ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from xpcap.backend import to_host
from xpcap.data.coco_json import NUMBERS
from xpcap.data.extractors.filter_bank import FilterBank
from xpcap.models.inspection import word_gradients
from xpcap.report.pictures import Box, boxes_of
from xpcap.run_folder import Run

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

    Returns
    -------
    list of list of Spoken
        For each image T of them; empty ones where features mean nothing that could be named.
    """
    by_pixels = (run.config["data"].get("extractor") or {}).get("name") == FilterBank.name
    if not (by_pixels or categories):
        return [[Spoken()] * words.shape[1]] * len(words)
    to_device = run.model.backend.to_device
    _, gradients = word_gradients(run.model, to_device(features), to_device(words))
    gradients = to_host(gradients)
    if by_pixels:
        return [_by_region(maps) for maps in _region_maps(run, features, gradients)]
    numbers = (gradients * features[:, None]).reshape(*words.shape, len(categories), len(NUMBERS))
    return [
        _by_category(values, categories, boxes_of(image, categories))
        for values, image in zip(numbers.sum(axis=-1), features, strict=True)
    ]


def _region_maps(run: Run, features: numpy.ndarray, gradients: numpy.ndarray) -> numpy.ndarray:
    """Return `(N, T, 8, 8)`: attributions summed over the filter bank's channels."""
    transform = run.transform
    if transform is None:
        return FilterBank.regions(gradients * features[:, None])
    return FilterBank.regions(transform.backward(gradients) * transform.backward(features)[:, None])


def _by_region(maps: numpy.ndarray) -> list[Spoken]:
    """Describe the maps `(T, 8, 8)` of a caption's words; strengths are relative to its largest."""
    largest = numpy.abs(maps).max()
    return [Spoken(_where(one), _levels(one.reshape(-1), largest)) for one in maps]


def _where(regions: numpy.ndarray) -> str:
    """Name the place of the region that spoke most for a word, in thirds of the picture."""
    row, column = numpy.unravel_index(regions.argmax(), regions.shape)
    if regions[row, column] <= 0:
        return ""
    vertical, horizontal = (
        names[int(3 * place / size)]
        for names, place, size in zip((_ROWS, _COLUMNS), (row, column), regions.shape, strict=True)
    )
    return f"most from the {vertical} {horizontal}"


def _by_category(
    values: numpy.ndarray, categories: Sequence[str], boxes: Sequence[Box]
) -> list[Spoken]:
    """Describe the values `(T, categories)` of a caption's words."""
    place = {category: k for k, category in enumerate(categories)}
    shown = [place[box.category] for box in boxes]
    largest = numpy.abs(values).max()
    spoken = []
    for word in values:
        order = numpy.argsort(-numpy.abs(word))[:NAMED]
        text = ", ".join(f"{categories[k]} {word[k]:+.2f}" for k in order if word[k])
        spoken.append(Spoken(text, _levels(word[shown], largest)))
    return spoken


def _levels(values: numpy.ndarray, largest: float) -> str:
    scaled = numpy.rint(LEVELS * values / (largest or 1)).astype(int)
    return "".join(chr(ord("a") + LEVELS + level) for level in scaled)
