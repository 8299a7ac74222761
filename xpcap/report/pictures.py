"""What an image of a data set looks like, in a page that stands alone."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.coco_json import NUMBERS
from xpcap.data.dataset import Dataset
from xpcap.data.images import decode_picture, open_picture
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


def pictures_of(dataset: Dataset, split: str, rows: Sequence[int]) -> list[Picture]:
    """Find the pictures of some images of a split.

    A picture that is not there any more, or cannot be opened, is left out: a report is no less true
    without it.

    Parameters
    ----------
    dataset, split, rows
        Which images.
    """
    part, description = dataset.splits[split], dataset.description
    archive = dataset.folder / description["pictures"] if "pictures" in description else None
    categories = categories_of(dataset)
    found = []
    for row in rows:
        address = part.urls[row]
        if address.startswith(("http://", "https://")):
            boxes = boxes_of(part.features[row], categories) if categories else ()
            found.append(Picture(link=address, boxes=boxes))
        else:
            found.append(Picture(data=_embedded(address, archive)))
    return found


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


def _embedded(address: str, archive: Path | None) -> str:
    try:
        if archive is not None:
            with zipfile.ZipFile(archive) as pictures:
                member = address.removeprefix(f"{archive.name}/")
                picture = decode_picture(pictures.read(member), address)
        else:
            picture = open_picture(Path(address))
    except (DataError, OSError, KeyError, zipfile.BadZipFile):
        return ""
    return _data_address(picture)


def _data_address(picture: Any) -> str:
    """Return a small copy of a picture as a `data:` address: sharp where it is small itself."""
    small = max(picture.size) <= THUMBNAIL // 2
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    if small:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "JPEG", quality=80)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
