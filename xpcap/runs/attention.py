"""Where models look while they generate captions, and which part of the image a region is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy

from xpcap.backend import to_host
from xpcap.models import CaptionModel
from xpcap.models.inspection import attends, attention_maps, without_attention

_IMAGES = 64  # whose maps are computed at a time


class Attention(NamedTuple):
    """The T words of a caption, the last of which is `<END>`, and where the model looked.

    `weights (T, L)` have a row for each word: what each region counted just before the word was
    chosen. They add up to 1 and are 0 for absent regions. Regions of a grid are row by row.
    """

    words: list[str]
    weights: numpy.ndarray


class Area(NamedTuple):
    """A part of an image, in shares of its width and height from the top left corner."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


def attending(models: Sequence[CaptionModel], shape: Sequence[int]) -> list[CaptionModel]:
    """Return those of some models that attend to features of a shape.

    If there are none, a `ConfigurationError` is raised.
    """
    found = [model for model in models if attends(model, shape)]
    if not found:
        raise without_attention(models[0])
    return found


def weights_of(
    models: Sequence[CaptionModel], features: Any, words: numpy.ndarray
) -> Iterator[numpy.ndarray]:
    """Yield the weights `(T, L)` of the regions of each image, for captions `(N, T)`.

    Those of several models are averaged; models without attention do not count. Arguments and
    result are on the host, words as decoding returns them. If no model has attention, a
    `ConfigurationError` is raised.
    """
    looking = attending(models, features.shape[1:])
    for first in range(0, len(words), _IMAGES):
        part = slice(first, first + _IMAGES)
        maps = [
            attention_maps(model, *map(model.backend.to_device, (features[part], words[part])))
            for model in looking
        ]
        yield from numpy.mean([*map(to_host, maps)], axis=0)


def grid_side(data: Mapping[str, Any], regions: int) -> int | None:
    """Return S if the regions of a run's features are S x S cells of the image, else None.

    `data` describes the run's data. Regions have known places if xpcap's own extractors compute
    them with the output `"grid"`, or an ONNX file whose output are maps; others, such as objects,
    may be anywhere.
    """
    extractor, side = data.get("extractor") or {}, math.isqrt(regions)
    if "weights" in extractor:  # an ONNX file, in which outputs have any name
        return side if extractor.get("grid") == [side, side] else None
    return side if extractor.get("output") == "grid" and side * side == regions else None


def grid_area(data: Mapping[str, Any], size: tuple[int, int]) -> Area:
    """Return which part of an image of a width and height the run's extractor saw."""
    given = (data.get("extractor") or {}).get("preprocessing") or {}
    if given.get("shorter_side") is None:
        return Area()
    cropped = given["size"] / given["shorter_side"]
    x, y = (cropped * min(size) / side / 2 for side in size)
    return Area(0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y)
