"""Summary of a data folder, and the problems in it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, cast

import numpy

from xpcap.data import folder as layout
from xpcap.data.dataset import (
    check_folder,
    check_images,
    check_widths,
    described,
    read_description,
    read_split_captions,
    read_urls,
    splits_in,
)
from xpcap.data.features import LazyFeatures, row_blocks
from xpcap.data.hdf5 import find_array, open_hdf5
from xpcap.data.progress import Progress, no_progress
from xpcap.data.vocabulary import END, NULL, SPECIAL, START, UNK, Vocabulary, has_words, tokenizer
from xpcap.errors import DataError
from xpcap.files import read_json

MANY_UNKNOWN = 0.2
_COMPARED = 1000  # captions of a split, with those in `references.json`


def summarize(folder: Path, progress: Progress = no_progress) -> dict[str, Any]:
    """Read a whole data folder, features included, and report what is missing or damaged.

    Returns
    -------
    dict
        `folder`, `name`, `features` (in words) and `extractor`; `vocabulary`, the number of
        `tokens`, words or characters; `splits`: for each `images`, `captions`, `lengths` (number of
        captions by number of words), `unknown` (share of `<UNK>` among words) and `features` (for
        each kind shape, dtype and bytes); `problems`, one line each.
    """
    check_folder(folder)
    return _Summary(folder, progress).result


class _Summary:
    """Collects `result`; a file that cannot be used becomes a problem."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.progress = progress
        self.problems: list[str] = []
        self.result: dict[str, Any] = {"folder": str(folder)}
        self._noted(self._describe)
        self.words: Vocabulary | None = self._noted(Vocabulary.read, folder / layout.VOCABULARY)
        self.result["vocabulary"] = len(self.words) if self.words else None
        self.result["tokens"] = self.words.tokens if self.words else None
        splits = self._noted(self._splits) or layout.SPLITS
        self.result["splits"] = {name: self._split(name) for name in splits}
        self._noted(self._compare_splits)
        self.result["problems"] = self.problems

    def _noted(self, read: Any, *args: Any) -> Any:
        try:
            return read(*args)
        except DataError as error:
            if str(error) not in self.problems:  # some files are read several times
                self.problems.append(str(error))
            return None

    def _describe(self) -> None:
        description = read_description(self.folder)
        for key in ("name", "features", "extractor"):
            self.result[key] = description.get(key)

    def _splits(self) -> tuple[str, ...]:
        path = self.folder / layout.CAPTIONS
        with open_hdf5(path) as file:
            return splits_in(file, path)

    def _split(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"features": {}}
        for kind in layout.FEATURE_KINDS:
            path = self.folder / layout.features_file(name, kind)
            if path.exists():
                found["features"][kind] = self._noted(self._features, path, name == "train")
        if not found["features"]:
            self.problems.append(
                f"no features for '{name}'; expected {layout.features_file(name, 'fc7')}"
            )
        rows = {kind: part["shape"][0] for kind, part in found["features"].items() if part}
        if len(set(rows.values())) > 1:
            self.problems.append(
                f"features of '{name}' have {rows} images; expected the same number"
            )
        found["images"] = next(iter(rows.values()), None)
        if found["images"] is not None:
            self._noted(read_urls, self.folder / layout.urls_file(name), found["images"])
        if self.words is not None:
            self._noted(self._captions, name, found, self.words)
        return found

    def _features(self, path: Path, vary: bool) -> dict[str, Any]:
        with open_hdf5(path) as file:
            dtype = str(find_array(file, path, "features", 2, "f").dtype)
        features = LazyFeatures(path)
        empty, images, alike = 0, len(features), True
        try:
            for block in row_blocks(features):
                rows = features[block]
                if block.start == 0:
                    first = rows[:1]
                empty += int((~rows.any(axis=1)).sum())
                alike = alike and bool((rows == first).all())
                self.progress(path.name, block.stop, images)
        finally:
            features.close()
        if empty:
            self.problems.append(f"{path}: {empty} of {images} images have zeros only")
        elif vary and alike:
            self.problems.append(f"{path}: all {images} images have the same features")
        return {"shape": list(features.shape), "dtype": dtype, "bytes": path.stat().st_size}

    def _captions(self, name: str, found: dict[str, Any], words: Vocabulary) -> None:
        path = self.folder / layout.CAPTIONS
        with open_hdf5(path) as file:
            captions, image_idxs = read_split_captions(file, path, name, words)
        places = words.word_to_idx
        is_word = (captions >= len(SPECIAL)) | (captions == places[UNK])
        lengths, counts = numpy.unique(is_word.sum(axis=1), return_counts=True)
        found["captions"] = len(captions)
        found["lengths"] = dict(zip(lengths.tolist(), counts.tolist(), strict=True))
        found["unknown"] = float((captions == places[UNK]).sum() / max(1, is_word.sum()))
        if found["unknown"] > MANY_UNKNOWN:
            self.problems.append(f"{UNK} is {found['unknown']:.0%} of the words of '{name}'")
        inside = captions[:, 1:]
        ends, used = inside == places[END], inside != places[NULL]
        for wrong, problem in (
            (inside == places[START], f"{START} after the first place"),
            (~used[:, :-1] & used[:, 1:], f"{NULL} before a word"),
            (~ends.any(axis=1, keepdims=True), f"no {END}: what learns from them does not stop"),
            (ends[:, :-1] & used[:, 1:], f"a word after {END}"),
            (~is_word.any(axis=1, keepdims=True), "no word"),
        ):
            if count := int(wrong.any(axis=1).sum()):
                self.problems.append(
                    f"{path}: {count} of {len(captions)} captions of '{name}' have {problem}"
                )
        if name == "train" and (captions == captions[0]).all():
            self.problems.append(f"{path}: all {len(captions)} captions of '{name}' are the same")
        if found["images"] is not None:
            file = self.folder / layout.features_file(name, next(iter(found["features"])))
            check_images(self.folder, name, image_idxs, file, found["images"])
            if (self.folder / layout.REFERENCES).exists():
                captioned = self._with_references(name, found["images"], captions, image_idxs)
            else:
                worded = numpy.array([*map(has_words, words.idx_to_word)])
                worded[[places[NULL], places[START], places[END]]] = False
                captioned = len(numpy.unique(image_idxs[worded[captions].any(axis=1)]))
            silent = found["images"] - captioned
            if silent:
                self.problems.append(
                    f"{silent} of {found['images']} images of '{name}' have no caption"
                )

    def _with_references(
        self, name: str, images: int, captions: numpy.ndarray, image_idxs: numpy.ndarray
    ) -> int:
        """Count the images that have a caption in `references.json`, and compare some captions."""
        path = self.folder / layout.REFERENCES
        of_split = described(path, read_json(path), name, images)
        rows = numpy.unique(numpy.linspace(0, len(captions) - 1, _COMPARED).astype(int))
        vocabulary = cast(Vocabulary, self.words)
        split = tokenizer(vocabulary.tokens)
        found = total = 0
        for image, caption in zip(image_idxs[rows], captions[rows], strict=True):
            known = {token for text in of_split[image]["captions"] for token in split(text)}
            own = {vocabulary.idx_to_word[word] for word in caption if word >= len(SPECIAL)}
            found, total = found + len(known & own), total + len(own)
        if 2 * found < total:
            self.problems.append(
                f"{path}: of {total} words of captions of '{name}' {total - found} are not in those"
                f" of their image; expected the captions and words of {layout.CAPTIONS}"
            )
        return sum(any(map(has_words, image["captions"])) for image in of_split)

    def _compare_splits(self) -> None:
        splits = self.result["splits"]
        for kind in layout.FEATURE_KINDS:
            parts = {name: split["features"].get(kind) for name, split in splits.items()}
            shapes = {name: part["shape"] for name, part in parts.items() if part}
            self._noted(check_widths, self.folder, kind, shapes)
        urls = {
            name: set(read_urls(self.folder / layout.urls_file(name), split["images"])) - {""}
            for name, split in splits.items()
            if split["images"] is not None
        }
        for one, other in itertools.combinations(urls, 2):
            if shared := urls[one] & urls[other]:
                self.problems.append(
                    f"{len(shared)} images are in both '{one}' and '{other}': {min(shared)}, ..."
                )
