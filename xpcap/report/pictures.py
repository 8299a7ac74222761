"""What an image of a data set looks like, in a page that stands alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.archive import read_member
from xpcap.data.coco_json import NUMBERS
from xpcap.data.dataset import Dataset
from xpcap.data.images import LARGEST_FILE, decode_picture, open_picture
from xpcap.errors import DataError

THUMBNAIL = 256  # pixels of the longer side, at most


@dataclass(frozen=True)
class Box:
    """The largest object of a category: the centre and the side of a square of its area.

    All are shares of the image.
    """

    category: str
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Picture:
    """How an image is shown.

    Parameters
    ----------
    data
        The picture itself, small, as a `data:` address; empty if it is not at hand.
    link
        Where it is in the web; empty if it is not.
    boxes
        What people found in it, if that is all that is known of it.
    """

    data: str = ""
    link: str = ""
    boxes: Sequence[Box] = ()


def picture_of(dataset: Dataset, split: str, row: int) -> Any:
    """Open the picture of an image of a split, if it is at hand.

    One that is not there any more, or cannot be opened, is None: a report is no less true without
    it.
    """
    address, description = dataset.splits[split].urls[row], dataset.description
    if is_in_the_web(address):
        return None
    try:
        if "pictures" not in description:
            return open_picture(Path(address))
        archive = description["pictures"]
        member = address.removeprefix(f"{archive}/")
        return decode_picture(read_member(dataset.folder / archive, member, LARGEST_FILE), address)
    except DataError:
        return None


def shown(dataset: Dataset, split: str, row: int, picture: Any) -> Picture:
    """Say how an image is shown, given its picture or None."""
    part, categories = dataset.splits[split], categories_of(dataset)
    link = part.urls[row] if is_in_the_web(part.urls[row]) else ""
    return Picture(
        "" if picture is None else _data_address(picture),
        link,
        boxes_of(part.features[row], categories) if categories else (),
    )


def is_in_the_web(address: str) -> bool:
    """Whether a browser can fetch an address."""
    return address.startswith(("http://", "https://"))


def categories_of(dataset: Dataset) -> list[str]:
    """Return the categories whose boxes are the features, if they are."""
    categories = dataset.description.get("categories")
    if dataset.kind != "fc7" or not isinstance(categories, list):
        return []
    fits = dataset.feature_dim == len(NUMBERS) * len(categories)
    return [str(name) for name in categories] if fits else []


def boxes_of(features: numpy.ndarray, categories: Sequence[str]) -> list[Box]:
    """Read boxes from an image's features `(5 categories,)`, as `box_features` wrote them.

    The largest come first, so that the others can be drawn over them.
    """
    numbers = features.reshape(len(categories), len(NUMBERS))
    boxes = [
        Box(category, float(x), float(y), float(side))
        for category, (count, side, _, x, y) in zip(categories, numbers, strict=True)
        if count > 0
    ]
    return sorted(boxes, key=lambda box: -box.side)


def _data_address(picture: Any) -> str:
    """Return a small copy of a picture as a `data:` address: sharp where it is small itself."""
    small = max(picture.size) <= THUMBNAIL // 2
    picture = picture.copy()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    if small:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "JPEG", quality=80)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
