"""Building a data folder from COCO's official annotation files.

Features come from people's object boxes, not from pixels: five numbers for each category of the
instances file, in ascending category id. Colours, actions and scenes can only be guessed from them.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.encoding import (
    BuildReport,
    Encoded,
    build_report,
    check_captions,
    check_limits,
    encode,
)
from xpcap.data.folder import SplitContents, write_contents
from xpcap.data.vocabulary import Vocabulary, tokenize
from xpcap.errors import DataError
from xpcap.files import check_swelling, new_folder, read_json

VALIDATION_EVERY = 5
NUMBERS = ("log(1 + count)", "sqrt(largest area)", "sqrt(total area)", "centre x", "centre y")
LARGEST_EXTENT = 1e12  # pixels, or square pixels


@dataclass
class AnnotatedImage:
    """One image of the annotation files; a box is its category, area, centre x and centre y.

    Areas and centres are shares of the image.
    """

    id: int
    url: str
    captions: list[str] = field(default_factory=list)
    boxes: list[tuple[int, float, float, float]] = field(default_factory=list)


def build_from_coco(
    captions: Path,
    instances: Path,
    out: Path,
    *,
    vocabulary: Path | None = None,
    min_count: int = 5,
    max_words: int = 15,
) -> BuildReport:
    """Build a data folder from a captions file and an instances file of the same images.

    Images are taken in ascending id, and every fifth (positions 4, 9, 14, ...) is for validation.
    Captions of more than `max_words` words are not encoded; `references.json` keeps all of them.

    Parameters
    ----------
    captions, instances
        COCO's annotation files: `images` and `annotations`; `categories` and `annotations`.
    out
        The new folder.
    vocabulary
        A `coco2014_vocab.json` to use; else one is made of the training captions' words.
    min_count
        How often a word must occur in training captions to be in that vocabulary.
    max_words
        The longest caption encoded.

    Raises
    ------
    DataError
        It names the file, the record and what was expected; nothing is left behind.
    ConfigurationError
        If `min_count` or `max_words` is less than 1.
    """
    check_limits(min_count, max_words)
    images = _read_images(captions)
    categories = _add_boxes(instances, images)
    check_swelling(
        f"{instances}: a feature for each of {len(categories)} categories and {len(images)} images",
        len(images) * len(categories) * len(NUMBERS) * numpy.float64().itemsize,
        captions.stat().st_size + instances.stat().st_size,
    )
    ordered = [image for _, (image, _) in sorted(images.items())]
    last = VALIDATION_EVERY - 1
    parts = {
        "train": [image for k, image in enumerate(ordered) if k % VALIDATION_EVERY != last],
        "val": [image for k, image in enumerate(ordered) if k % VALIDATION_EVERY == last],
    }
    tokens = {
        name: [[tokenize(caption) for caption in image.captions] for image in part]
        for name, part in parts.items()
    }
    if vocabulary is None:
        words = Vocabulary.build((c for image in tokens["train"] for c in image), min_count)
    else:
        words = Vocabulary.read(vocabulary)
    encoded = {name: encode(tokens[name], words, max_words) for name in parts}
    check_captions(captions, encoded)
    report = build_report(tokens, encoded, words, max_words)
    splits = {name: _contents(part, encoded[name], categories) for name, part in parts.items()}
    description = {
        "name": "coco-json",
        "features": "people's object annotations, not pixels: for each category "
        + ", ".join(NUMBERS),
        "categories": list(categories.values()),
        "max_words": max_words,
        "images": report.images,
        "captions": report.captions,
    }
    with new_folder(out) as folder:
        write_contents(folder, words, splits, description)
    return report


def _read_object(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, as COCO's annotation files are")
    return content


def _records(
    path: Path, content: Mapping[str, Any], key: str, **fields: Any
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each record of a list with its name for messages, its fields' types checked."""
    records = content.get(key)
    if not isinstance(records, list):
        raise DataError(f"{path}: expected '{key}', a list")
    for k, record in enumerate(records):
        where = f"{path}: {key}[{k}]"
        for name, kind in fields.items():
            if not isinstance(record, dict) or not isinstance(record.get(name), kind):
                wanted = kind.__name__ if isinstance(kind, type) else "number"
                raise DataError(f"{where}: expected '{name}', a {wanted}")
        yield where, record


_NUMBER = (int, float)


def _read_images(path: Path) -> dict[int, tuple[AnnotatedImage, tuple[float, float]]]:
    """Read a captions file: by id, each image with its captions, and its width and height."""
    content = _read_object(path)
    images: dict[int, tuple[AnnotatedImage, tuple[float, float]]] = {}
    for where, record in _records(path, content, "images", id=int, width=_NUMBER, height=_NUMBER):
        if not all(_is_extent(record[side]) and record[side] >= 1 for side in ("width", "height")):
            raise DataError(f"{where}: expected 'width' and 'height' of at least 1 pixel")
        urls = (record.get(key) for key in ("coco_url", "flickr_url", "file_name"))
        url = " ".join(str(next(filter(None, urls), "")).split())
        image = AnnotatedImage(record["id"], url)
        images[record["id"]] = image, (record["width"], record["height"])
    for where, record in _records(path, content, "annotations", image_id=int, caption=str):
        if record["image_id"] not in images:
            raise DataError(f"{where}: image {record['image_id']} is not among 'images'")
        images[record["image_id"]][0].captions.append(record["caption"])
    return images


def _add_boxes(
    path: Path, images: Mapping[int, tuple[AnnotatedImage, tuple[float, float]]]
) -> dict[int, str]:
    """Read an instances file into the images known, and return the name of each category by id."""
    content = _read_object(path)
    categories: dict[int, str] = {
        record["id"]: record["name"]
        for _, record in _records(path, content, "categories", id=int, name=str)
    }
    types = {"image_id": int, "category_id": int, "bbox": list, "area": _NUMBER}
    for where, record in _records(path, content, "annotations", **types):
        if record["category_id"] not in categories:
            raise DataError(f"{where}: category {record['category_id']} is not in 'categories'")
        numbers = (*record["bbox"], record["area"])
        if len(numbers) != 5 or not all(_is_extent(number) for number in numbers):
            raise DataError(f"{where}: expected 'bbox' of 4 and 'area' of finite numbers >= 0")
        if record["image_id"] in images:
            image, (width, height) = images[record["image_id"]]
            x, y, w, h, area = numbers
            share = area / (width * height)
            image.boxes.append(
                (record["category_id"], share, (x + w / 2) / width, (y + h / 2) / height)
            )
    if not categories:
        raise DataError(f"{path}: 'categories' is empty; expected at least one")
    return dict(sorted(categories.items()))


def _is_extent(number: Any) -> bool:
    return isinstance(number, _NUMBER) and 0 <= number <= LARGEST_EXTENT


def _contents(
    images: Sequence[AnnotatedImage], encoded: Encoded, categories: Mapping[int, str]
) -> SplitContents:
    features = numpy.array([box_features(image, list(categories)) for image in images])
    return SplitContents(
        captions=encoded.captions,
        image_idxs=encoded.image_idxs,
        features={"fc7": features.astype(numpy.float32)},
        urls=[image.url for image in images],
        ids=[image.id for image in images],
        references=[image.captions for image in images],
    )


def box_features(image: AnnotatedImage, categories: Sequence[int]) -> numpy.ndarray:
    """Describe an image by its boxes.

    Parameters
    ----------
    image
        With its boxes.
    categories
        The ids of all categories.

    Returns
    -------
    array
        `(5 categories,)` float64, for each category: log(1 + count), square root of the largest
        box's and of the total area, centre x and y of the largest box; zeros where it has none.
        Areas and centres are shares of the image.
    """
    features = numpy.zeros((len(categories), len(NUMBERS)))
    by_category = collections.defaultdict(list)
    for box in image.boxes:
        by_category[box[0]].append(box)
    for row, category in enumerate(categories):
        if boxes := by_category.get(category):
            _, largest, x, y = max(boxes, key=lambda box: box[1])
            total = sum(box[1] for box in boxes)
            features[row] = math.log1p(len(boxes)), math.sqrt(largest), math.sqrt(total), x, y
    return features.reshape(-1)
