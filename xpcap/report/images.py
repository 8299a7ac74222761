"""How images of a data set are shown in a self-contained page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.coco_json import NUMBERS
from xpcap.data.dataset import Dataset
from xpcap.data.images import open_stored
from xpcap.data.web import is_url
from xpcap.errors import DataError

THUMBNAIL = 256  # pixels of the longer side, at most


@dataclass(frozen=True)
class Box:
    """A square of the area of the largest object of a category, in shares of the image's sides."""

    category: str
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class View:
    """How an image is shown: scaled down as a `data:` URL, or by a link to its web address.

    Either is empty if there is none. `boxes` are its annotated objects, if they are the features.
    """

    data: str = ""
    link: str = ""
    boxes: Sequence[Box] = ()


def open_image(dataset: Dataset, split: str, row: int) -> Any:
    """Open an image of a split with PIL; None if it is missing or cannot be opened."""
    address = dataset.address(split, row)
    if is_url(address):
        return None
    try:
        return open_stored(address)
    except DataError:
        return None


def view(dataset: Dataset, split: str, row: int, image: Any) -> View:
    """Make the view of an image of a split, given the opened image or None."""
    part, categories = dataset.splits[split], categories_of(dataset)
    return View(
        "" if image is None else data_url(image),
        part.urls[row] if is_url(part.urls[row]) else "",
        boxes_of(part.features[row], categories) if categories else (),
    )


def name_of(dataset: Dataset, address: str, id: int | str) -> str:
    """Return the name of an image: of its file; of scenes and web images, with their ids."""
    if "pictures" in dataset.description:
        return f"Scene {id}"
    return f"Image {id}" if is_url(address) else Path(address).name


def categories_of(dataset: Dataset) -> list[str]:
    """Return the object categories, if the features are their boxes."""
    categories = dataset.description.get("categories")
    if dataset.kind != "fc7" or not isinstance(categories, list):
        return []
    fits = dataset.feature_shape == (len(NUMBERS) * len(categories),)
    return [str(name) for name in categories] if fits else []


def boxes_of(features: numpy.ndarray, categories: Sequence[str]) -> list[Box]:
    """Read boxes from features `(5 categories,)` of `box_features`, the largest first.

    Smaller boxes are drawn over larger ones.
    """
    numbers = features.reshape(len(categories), len(NUMBERS))
    boxes = [
        Box(category, float(x), float(y), float(side))
        for category, (count, side, _, x, y) in zip(categories, numbers, strict=True)
        if count > 0
    ]
    return sorted(boxes, key=lambda box: -box.side)


def data_url(image: Any) -> str:
    """Return a scaled-down copy of an image as a `data:` URL; small images are lossless."""
    format, options = "JPEG", {"quality": 80}
    if max(image.size) <= THUMBNAIL // 2:
        format, options = "PNG", {"optimize": True}
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, format, **options)
    content = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{format.lower()};base64,{content}"
