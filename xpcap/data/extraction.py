"""Computing the features of many images: in batches, and resumable."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from xpcap import threads
from xpcap.data.extractors import Extractor
from xpcap.data.folder import as_stored, stored_dtype
from xpcap.data.images import rgb_picture
from xpcap.data.progress import Progress, no_progress
from xpcap.distributed import Alone, Ranks, by_first, check_alike
from xpcap.errors import DataError
from xpcap.files import explained, lock

BATCH = 32
_BLOCK = 2**25  # bytes of rows that are read back at a time


class Broken(NamedTuple):
    """An image that cannot be opened, and why."""

    path: Path
    reason: str


class Extracted(NamedTuple):
    """The features `(K, *shape)` of the K images that can be opened, in order.

    They are in the dtype in which features of their shape are stored. `broken` has the reason why
    each of the other images cannot be opened, by its index.
    """

    features: numpy.ndarray
    broken: dict[int, str]


def extract(
    extractor: Extractor,
    images: Sequence[Any],
    skip_broken: bool = False,
    progress: Progress = no_progress,
    ranks: Ranks | None = None,
) -> Extracted:
    """Compute the features of images, each as `rgb_picture` takes it; the ranks share them.

    A `DataError` is raised if features are not finite, or an image cannot be opened and
    `skip_broken` is False.
    """
    ranks = ranks or Alone()
    features = numpy.empty((len(images), *extractor.shape), stored_dtype(extractor.shape))
    done = 0
    for rows in _batches(extractor, images, skip_broken, None, ranks):
        features[done : done + len(rows)] = rows["features"]
        done += len(rows)
        progress("images", done, len(images))
    broken = by_first(ranks, lambda: _reasons(extractor, images, features))
    return Extracted(numpy.delete(features, [*broken], axis=0) if broken else features, broken)


class Extraction:
    """The features of images, in a hidden file beside a path, that grows as they are computed.

    The file's name identifies images and extractor. With the same ones, a later call resumes at
    the first image that is missing from the file or has been modified.
    """

    def __init__(self, extractor: Extractor, images: Sequence[Path], beside: Path) -> None:
        self.extractor = extractor
        self.images = images
        self._beside = beside.absolute()
        self.path = self._beside.with_name(f".{self._beside.name}.{self._key()}.features")
        self._row = _row_type(extractor)
        self._height = max(1, _BLOCK // self._row.itemsize)

    def _key(self) -> str:
        content = json.dumps(
            [self.extractor.describe(), *(str(path.absolute()) for path in self.images)]
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def run(
        self,
        skip_broken: bool = False,
        workers: int | None = None,
        progress: Progress = no_progress,
        ranks: Ranks | None = None,
    ) -> list[Broken]:
        """Compute the missing rows, and return the images that cannot be opened, if skipped.

        There are `workers` threads that open and prepare images, by default one per core. The ranks
        share the batches, on one file system; the first writes the file.

        Raises
        ------
        DataError
            If an image cannot be opened and `skip_broken` is False, features are not finite, the
            file cannot be written, or another process uses it. Computed rows are kept.
        ConfigurationError
            If the ranks have different images or extractors.
        """
        ranks = ranks or Alone()
        check_alike(ranks, {"images or extractors": self._key()})
        with explained(self.path, "write"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.devnull if ranks.rank else self.path, "ab") as file:
                done = 0
                if not ranks.rank:
                    lock(file, self.path)
                    done = self._done(skip_broken)
                    file.truncate(done * self._row.itemsize)
                done = ranks.gather(done)[0]
                try:
                    missing = self.images[done:]
                    for rows in _batches(self.extractor, missing, skip_broken, workers, ranks):
                        file.write(rows.tobytes())
                        file.flush()
                        done += len(rows)
                        progress("images", done, len(self.images))
                finally:
                    if not (done or ranks.rank):
                        self.path.unlink()
        return by_first(ranks, self._broken)

    def features(self, images: Collection[Path]) -> Iterator[numpy.ndarray]:
        """Yield the features of some of the images, in the order of all, in blocks."""
        for first in range(0, len(self.images), self._height):
            wanted = [path in images for path in self.images[first : first + self._height]]
            if any(wanted):
                yield self._read(first, first + len(wanted))["features"][wanted]

    def forget(self) -> None:
        """Remove the file, and those of other images and extractors beside the same path."""
        name = re.compile(rf"\.{re.escape(self._beside.name)}\.[0-9a-f]{{16}}\.features")
        for path in self._beside.parent.iterdir():
            if name.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _read(self, first: int, end: int) -> numpy.ndarray:
        with explained(self.path, "read"):
            offset = first * self._row.itemsize
            return numpy.fromfile(self.path, self._row, end - first, offset=offset)

    def _blocks(self, end: int) -> Iterator[tuple[int, numpy.ndarray]]:
        for first in range(0, end, self._height):
            yield first, self._read(first, min(first + self._height, end))

    def _done(self, skip_broken: bool) -> int:
        """Count the leading rows that can be kept."""
        written = min(self.path.stat().st_size // self._row.itemsize, len(self.images))
        for first, block in self._blocks(written):
            for k, row in enumerate(block, first):
                same = tuple(row["stamp"]) == _stamp(self.images[k])
                if not same or (_are_broken(row["features"][None])[0] and not skip_broken):
                    return k
        return written

    def _broken(self) -> list[Broken]:
        found = list[Broken]()
        for first, block in self._blocks(len(self.images)):
            images = self.images[first : first + len(block)]
            reasons = _reasons(self.extractor, images, block["features"])
            found += [Broken(images[k], reason) for k, reason in reasons.items()]
        return found


def _row_type(extractor: Extractor) -> numpy.dtype[numpy.void]:
    """Return the type of a row: `stamp` identifies a version of the image file."""
    shape = extractor.shape
    return numpy.dtype([("stamp", numpy.int64, 2), ("features", stored_dtype(shape), shape)])


def _are_broken(features: numpy.ndarray) -> numpy.ndarray:
    """Return which rows are NaN, those of images that cannot be opened."""
    rows = features.reshape(len(features), math.prod(features.shape[1:]))
    return numpy.asarray(numpy.isnan(rows[:, 0]))


def _reasons(
    extractor: Extractor, images: Sequence[Any], features: numpy.ndarray
) -> dict[int, str]:
    """Open the images whose features are NaN again; return why they cannot be, by index."""
    found = {}
    for k in numpy.flatnonzero(_are_broken(features)).tolist():
        error = _open(extractor, images[k]).found
        again = isinstance(error, DataError)
        found[k] = str(error) if again else f"{images[k]} could not be opened at first"
    return found


def _batches(
    extractor: Extractor,
    images: Sequence[Any],
    skip_broken: bool,
    workers: int | None,
    ranks: Ranks,
) -> Iterator[numpy.ndarray]:
    """Compute the rows of images in order, one batch of each rank at a time."""
    batches = [images[k : k + BATCH] for k in range(0, len(images), BATCH)]
    rounds = -(-len(batches) // ranks.size)
    mine = [*batches[ranks.rank :: ranks.size], ()][:rounds]
    pool = ThreadPoolExecutor(workers or threads.available())
    try:
        for batch, opened in zip(mine, _opened(pool, extractor, mine), strict=True):
            yield from ranks.gather(_rows(extractor, batch, opened, skip_broken))
    finally:
        pool.shutdown(cancel_futures=True)


def _rows(
    extractor: Extractor, images: Sequence[Any], opened: Sequence[_Opened], skip_broken: bool
) -> numpy.ndarray:
    """Return the rows of images; those that cannot be opened have features of NaN."""
    rows = numpy.empty(len(images), _row_type(extractor))
    rows["features"] = numpy.nan
    prepared: dict[int, numpy.ndarray] = {}
    for k, (stamp, found) in enumerate(opened):
        rows["stamp"][k] = stamp
        if not isinstance(found, DataError):
            prepared[k] = found
        elif not skip_broken:
            raise DataError(f"{found} (skip_broken=True leaves it out)") from found
    features = extractor(numpy.stack([*prepared.values()])) if prepared else ()
    for k, row in zip(prepared, features, strict=True):
        if not numpy.isfinite(row).all():
            raise DataError(f"{images[k]}: '{extractor.name}' gives NaN or infinity")
        rows["features"][k] = as_stored(row[None], images[k])[0]
    return rows


class _Opened(NamedTuple):
    """An image prepared for the extractor, or the error, and the stamp of its file."""

    stamp: tuple[int, int]
    found: numpy.ndarray | DataError


def _opened(
    pool: ThreadPoolExecutor, extractor: Extractor, batches: Sequence[Sequence[Any]]
) -> Iterator[list[_Opened]]:
    """Open batch after batch, always one ahead of the one in use."""
    opening = ([pool.submit(_open, extractor, path) for path in batch] for batch in [*batches, ()])
    for now, _ in itertools.pairwise(opening):
        yield [future.result() for future in now]


def _open(extractor: Extractor, image: Any) -> _Opened:
    stamp = _stamp(image) if isinstance(image, Path) else (0, 0)
    try:
        return _Opened(stamp, extractor.prepare(rgb_picture(image)))
    except DataError as error:
        return _Opened(stamp, error)


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and modification time of a file; zeros if it does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
