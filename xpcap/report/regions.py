"""How values of the regions of an image, one for each word, are described and shown.

Regions are the cells of a square grid, objects with boxes, or vectors of unknown places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from xpcap.report.images import boxes_of
from xpcap.runs.attention import grid_side

NAMED = 3  # objects or categories in a text
LEVELS = 9  # of strength, on either side of zero
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


@dataclass(frozen=True)
class RegionMap:
    """The values of a word's regions: a summary, empty if nothing is known, and levels.

    `levels` has a letter per region of the image, row by row, or per box: from `a`, the most
    negative, through `j`, zero, to `s`, the most positive; empty if places are unknown.
    """

    text: str = ""
    levels: str = ""


@dataclass(frozen=True)
class Regions:
    """What the values of an image belong to.

    `side` is that of a square grid of cells. Otherwise `names` are those of objects or categories,
    and `boxes` the indices of those that have a box, as they are drawn; both are empty if nothing
    is known.
    """

    side: int | None = None
    names: Sequence[str] = ()
    boxes: Sequence[int] = ()


def regions_of(data: Any, features: numpy.ndarray, categories: Sequence[str]) -> Regions:
    """Return what the L regions `(L, D)` of an image are, for a run's description of its data.

    `categories` are those of the objects, if the features are theirs, or `(D,)` of their boxes.
    """
    if categories:
        names = [box.category for box in boxes_of(features, categories)]
        if features.ndim == 1:
            return Regions(None, categories, [*map(categories.index, names)])
        return Regions(None, names, range(len(names)))
    return Regions(grid_side(data, len(features)))


def map_of_attention(weights: numpy.ndarray, regions: Regions) -> RegionMap:
    """Describe the weights `(L,)` of regions; there is none if all are 0."""
    if not weights.any():
        return RegionMap()
    if regions.names:
        text = f"attention to {_named(weights[: len(regions.names)], regions, '.2f')}"
    else:
        text = f"strongest {_place(weights, regions)}, {weights.max():.0%} of the attention"
    return RegionMap(text, shown(weights, regions))


def map_of_attribution(values: numpy.ndarray, regions: Regions) -> RegionMap:
    """Describe the attribution `(L,)` of a word to regions."""
    if regions.names:
        text = _named(values[: len(regions.names)], regions, "+.2f")
    elif values.max() > 0:
        text = f"strongest {_place(values, regions)}; total {values.sum():+.2f}"
    else:
        text = ""
    return RegionMap(text, shown(values, regions))


def _named(values: numpy.ndarray, regions: Regions, form: str) -> str:
    """Name the objects or categories with the largest values."""
    order = numpy.argsort(-numpy.abs(values))[:NAMED]
    return ", ".join(f"{regions.names[k]} {values[k]:{form}}" for k in order if values[k])


def _place(values: numpy.ndarray, regions: Regions) -> str:
    """Name the place of the largest value, in thirds of the image, or else its number."""
    if regions.side is None:
        return f"in region {values.argmax() + 1} of {len(values)}"
    vertical, horizontal = (
        names[int(3 * (place + 0.5) / regions.side)]
        for names, place in zip(
            (_ROWS, _COLUMNS), divmod(int(values.argmax()), regions.side), strict=True
        )
    )
    return f"at the {vertical} {horizontal}".replace("middle middle", "centre")


def levels_of(values: numpy.ndarray) -> str:
    """Encode values `(n,)` from -1 to 1 as letters; see `RegionMap`."""
    return "".join(chr(ord("a") + LEVELS + round(LEVELS * float(value))) for value in values)


def shown(values: numpy.ndarray, regions: Regions) -> str:
    """Encode the values `(L,)` of all cells or boxes, relative to the largest."""
    if regions.side is None:
        values = values[list(regions.boxes)]
    return levels_of(values / (numpy.abs(values).max(initial=0) or 1.0))
