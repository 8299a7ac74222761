"""What is in a data folder, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy

from xpcap.data import folder as layout
from xpcap.data.dataset import check_images, read_description, read_split_captions, read_urls
from xpcap.data.features import LazyFeatures
from xpcap.data.hdf5 import find_array, open_hdf5
from xpcap.data.progress import Progress, say_nothing
from xpcap.data.vocabulary import NULL, SPECIAL, START, UNK, Vocabulary
from xpcap.errors import DataError
from xpcap.files import explained

MANY_UNKNOWN = 0.2
_BLOCK = 1024


def summarize(folder: Path, progress: Progress = say_nothing) -> dict[str, Any]:
    """Look through a data folder, features included.

    Parameters
    ----------
    folder
        Any folder; what is missing or damaged becomes a problem.
    progress
        Told how far it is.

    Returns
    -------
    dict
        `folder`, `name`, `features` (in words) and `extractor`; `vocabulary`, how many words;
        `splits`: for each `images`, `captions`, `lengths` (how many captions have so many words),
        `unknown` (the share of `<UNK>` among words) and `features` (for each kind shape, dtype and
        bytes); `problems`, a line each.

    Raises
    ------
    DataError
        If there is no such folder.
    """
    with explained(folder, "read"):
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; expected a data folder")
    return _Summary(folder, progress).result


class _Summary:
    """Collects `result`; a file that cannot be used is noted, and the next one looked at."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.progress = progress
        self.problems: list[str] = []
        self.result: dict[str, Any] = {"folder": str(folder)}
        self._noted(self._describe)
        self.words: Vocabulary | None = self._noted(Vocabulary.read, folder / layout.VOCABULARY)
        self.result["vocabulary"] = len(self.words) if self.words else None
        self.result["splits"] = {name: self._split(name) for name in layout.SPLITS}
        self._noted(self._compare_splits)
        self.result["problems"] = self.problems

    def _noted(self, look: Any, *args: Any) -> Any:
        try:
            return look(*args)
        except DataError as error:
            if str(error) not in self.problems:  # one file may be needed several times
                self.problems.append(str(error))
            return None

    def _describe(self) -> None:
        description = read_description(self.folder)
        for key in ("name", "features", "extractor"):
            self.result[key] = description.get(key)

    def _split(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"features": {}}
        for kind in layout.FEATURE_KINDS:
            path = self.folder / layout.features_file(name, kind)
            if path.exists():
                found["features"][kind] = self._noted(self._features, path)
        if not found["features"]:
            self.problems.append(
                f"no features for '{name}'; expected {layout.features_file(name, 'fc7')}"
            )
        rows = {kind: part["shape"][0] for kind, part in found["features"].items() if part}
        if len(set(rows.values())) > 1:
            self.problems.append(f"features of '{name}' have {rows} images; expected as many")
        found["images"] = next(iter(rows.values()), None)
        if found["images"] is not None:
            self._noted(read_urls, self.folder / layout.urls_file(name), found["images"])
        if self.words is not None:
            self._noted(self._captions, name, found, self.words)
        return found

    def _features(self, path: Path) -> dict[str, Any]:
        with open_hdf5(path) as file:
            dtype = str(find_array(file, path, "features", 2, "f").dtype)
        features = LazyFeatures(path)
        try:
            empty, images = 0, len(features)
            for first in range(0, images, _BLOCK):
                block = features[first : first + _BLOCK]
                empty += int((~block.any(axis=1)).sum())
                self.progress(path.name, min(first + _BLOCK, images), images)
        finally:
            features.close()
        if empty:
            self.problems.append(f"{path}: {empty} of {images} images have zeros only")
        return {
            "shape": list(features.shape),
            "dtype": dtype,
            "bytes": path.stat().st_size,
        }

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
        if (inside == places[START]).any():
            self.problems.append(f"{path}: captions of '{name}' hold {START} inside")
        gaps = (inside[:, :-1] == places[NULL]) & (inside[:, 1:] != places[NULL])
        if gaps.any():
            self.problems.append(f"{path}: captions of '{name}' hold {NULL} before a word")
        if found["images"] is not None:
            file = self.folder / layout.features_file(name, next(iter(found["features"])))
            check_images(self.folder, name, image_idxs, file, found["images"])
            silent = found["images"] - len(numpy.unique(image_idxs))
            if silent:
                self.problems.append(
                    f"{silent} of {found['images']} images of '{name}' have no caption"
                )

    def _compare_splits(self) -> None:
        sizes = {
            (name, kind): part["shape"][1]
            for name, split in self.result["splits"].items()
            for kind, part in split["features"].items()
            if part
        }
        for kind in layout.FEATURE_KINDS:
            found = {name: size for (name, of), size in sizes.items() if of == kind}
            if len(set(found.values())) > 1:
                self.problems.append(f"{kind} features have {found} numbers; expected one size")
        both = [
            set(read_urls(self.folder / layout.urls_file(name), split["images"])) - {""}
            for name, split in self.result["splits"].items()
            if split["images"] is not None
        ]
        if len(both) == 2 and both[0] & both[1]:
            shared = both[0] & both[1]
            self.problems.append(f"{len(shared)} pictures are in both splits: {min(shared)}, ...")
