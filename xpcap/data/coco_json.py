"""Building a data folder from COCO's official annotation files.

Features come from the annotated object boxes, not from pixels: five numbers for each category of
the instances file, in ascending category id; or a set of vectors, one for each object. They hardly
tell colours, actions and scenes.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.captions_entry import NUMBER, value_of
from xpcap.data.captions_json import add_captions, records_of
from xpcap.data.encoding import BuildReport, check_limits, encode, held_out
from xpcap.data.folder import CaptionedImage, write_contents
from xpcap.data.vocabulary import Vocabulary, tokenize
from xpcap.errors import DataError
from xpcap.files import check_swelling, new_folder, read_json

VALIDATION_EVERY = 5
NUMBERS = ("log(1 + count)", "sqrt(largest area)", "sqrt(total area)", "centre x", "centre y")
OF_OBJECT = ("centre x", "centre y", "width", "height", "sqrt(area)")
LARGEST_EXTENT = 1e12  # pixels, or square pixels


@dataclass
class AnnotatedImage(CaptionedImage):
    """One image of the annotation files.

    A box is its category and area, then centre x and y, width and height, as shares of the image.
    """

    boxes: list[tuple[int, float, float, float, float, float]] = field(default_factory=list)
    size: tuple[float, float] = (1, 1)  # width and height in pixels


def build_from_coco(
    captions: Path,
    instances: Path,
    out: Path,
    *,
    vocabulary: Path | None = None,
    min_count: int = 5,
    max_words: int = 15,
    objects: bool = False,
) -> BuildReport:
    """Build a data folder from a captions file and an instances file of the same images.

    Images are sorted by id, and every fifth that can be used (indices 4, 9, 14, ...) is for
    validation. Features are `box_features`, or if `objects`, `object_features`. The other options
    are those of `xpcap.data.prepare.prepare`, which raises the same errors.
    """
    check_limits(min_count, max_words)
    images = _read_images(captions)
    categories = _add_boxes(instances, images, captions)
    most = max(len(image.boxes) for image in images.values())
    numbers = len(categories) * len(NUMBERS)
    if objects:
        numbers = most * (len(categories) + len(OF_OBJECT))
    check_swelling(
        f"{instances}: features of {len(categories)} categories and {len(images)} images",
        len(images) * numbers * numpy.float64().itemsize,
        captions.stat().st_size + instances.stat().st_size,
    )
    parts: dict[str, list[AnnotatedImage]] = {"train": [], "val": []}
    in_order = [images[id_] for id_ in sorted(images)]
    chosen = held_out(captions, in_order, tokenize, max_words, VALIDATION_EVERY)
    for k, image in enumerate(in_order):
        parts["val" if k in chosen else "train"].append(image)
    words = None if vocabulary is None else Vocabulary.read(vocabulary)
    encoded = encode(captions, parts, tokenize, words, min_count, max_words)
    contents = {}
    for name, part in parts.items():
        if objects:
            features = object_features(part, list(categories), most)
        else:
            features = numpy.array([box_features(image, list(categories)) for image in part])
        by_kind = {"fc7": features.astype(numpy.float32, copy=False)}
        contents[name] = replace(encoded.splits[name], features=by_kind)
    what = "object its category, and " if objects else "category "
    description = {
        "name": "coco-json",
        "features": f"people's object annotations, not pixels: for each {what}"
        + ", ".join(OF_OBJECT if objects else NUMBERS),
        "categories": list(categories.values()),
        "max_words": max_words,
        "images": encoded.report.images,
        "captions": encoded.report.captions,
    }
    with new_folder(out) as folder:
        write_contents(folder, encoded.vocabulary, contents, description)
    return encoded.report


def _read_images(path: Path) -> dict[int, AnnotatedImage]:
    """Read a captions file: images by id."""
    content = read_json(path)
    images: dict[int, AnnotatedImage] = {}
    for where, record in records_of(path, content, "images"):
        id_ = value_of(where, record, "id", int)
        width, height = (value_of(where, record, side, NUMBER) for side in ("width", "height"))
        if not all(1 <= side <= LARGEST_EXTENT for side in (width, height)):
            raise DataError(f"{where}: expected 'width' and 'height' of at least 1 pixel")
        urls = (record.get(key) for key in ("coco_url", "flickr_url", "file_name"))
        url = " ".join(str(next(filter(None, urls), "")).split())
        images[id_] = AnnotatedImage(id_, url, size=(width, height))
    add_captions(path, content, {id_: image.captions for id_, image in images.items()})
    return images


def _add_boxes(path: Path, images: Mapping[int, AnnotatedImage], captions: Path) -> dict[int, str]:
    """Add the boxes of an instances file to known images, and return the categories by id."""
    content = read_json(path)
    if "images" in content:
        records = records_of(path, content, "images")
        missing = images.keys() - {value_of(where, record, "id", int) for where, record in records}
        if missing:
            raise DataError(
                f"{path}: 'images' lacks {len(missing)} of the {len(images)} images of {captions},"
                f" such as id {min(missing)}; expected annotations of the same images"
            )
    categories: dict[int, str] = {
        value_of(where, record, "id", int): value_of(where, record, "name", str)
        for where, record in records_of(path, content, "categories")
    }
    for where, record in records_of(path, content, "annotations"):
        image = images.get(value_of(where, record, "image_id", int))
        category = value_of(where, record, "category_id", int)
        box, area = value_of(where, record, "bbox", list), value_of(where, record, "area", NUMBER)
        if category not in categories:
            raise DataError(f"{where}: category {category} is not in 'categories'")
        if len(box) != 4 or not all(map(_is_extent, (*box, area))):
            raise DataError(f"{where}: expected 'bbox' of 4 and 'area' of finite numbers >= 0")
        if image is not None:
            (x, y, w, h), (width, height) = box, image.size
            share = area / (width * height)
            centre = (x + w / 2) / width, (y + h / 2) / height
            image.boxes.append((category, share, *centre, w / width, h / height))
    if not categories:
        raise DataError(f"{path}: 'categories' is empty; expected at least one")
    if not any(image.boxes for image in images.values()):
        raise DataError(
            f"{path}: none of its {len(content['annotations'])} boxes is in one of the"
            f" {len(images)} images of {captions}; expected annotations of the same images"
        )
    return dict(sorted(categories.items()))


def _is_extent(number: Any) -> bool:
    return isinstance(number, NUMBER) and 0 <= number <= LARGEST_EXTENT


def box_features(image: AnnotatedImage, categories: Sequence[int]) -> numpy.ndarray:
    """Return the features of an image's boxes, `(5 len(categories),)` float64.

    They are `NUMBERS` for each category id, the centre of its largest box; zeros if it has none.
    """
    features = numpy.zeros((len(categories), len(NUMBERS)))
    by_category = collections.defaultdict(list)
    for box in image.boxes:
        by_category[box[0]].append(box)
    for row, category in enumerate(categories):
        if boxes := by_category.get(category):
            _, largest, x, y, *_ = max(boxes, key=lambda box: box[1])
            total = sum(box[1] for box in boxes)
            features[row] = math.log1p(len(boxes)), math.sqrt(largest), math.sqrt(total), x, y
    return features.reshape(-1)


def object_features(
    images: Sequence[AnnotatedImage], categories: Sequence[int], most: int
) -> numpy.ndarray:
    """Return the features of the objects of images, `(N, most, len(categories) + 5)` float32.

    Those of an object are 1 for its category, 0 for the others, and `OF_OBJECT`. Images with fewer
    than `most` objects, the largest first, are padded with zeros.
    """
    features = numpy.zeros((len(images), most, len(categories) + len(OF_OBJECT)), numpy.float32)
    column = {category: k for k, category in enumerate(categories)}
    for rows, image in zip(features, images, strict=True):
        boxes = sorted(image.boxes, key=lambda box: -box[1])
        for row, (category, share, *box) in zip(rows, boxes, strict=False):
            row[column[category]] = 1
            row[len(categories) :] = *box, math.sqrt(share)
    return features
