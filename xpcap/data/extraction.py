"""Computing the features of many pictures: in batches, from where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy

from xpcap import threads
from xpcap.data.extractors import Extractor
from xpcap.data.images import open_picture
from xpcap.data.progress import Progress, say_nothing
from xpcap.distributed import Alone, Ranks, by_first, check_alike
from xpcap.errors import DataError
from xpcap.files import explained, lock

BATCH = 32
_BLOCK = 1024  # rows that are read back at a time


class Broken(NamedTuple):
    """A picture that cannot be opened, and why."""

    path: Path
    reason: str


def extract(extractor: Extractor, pictures: Sequence[Path]) -> numpy.ndarray:
    """Compute the features `(N, D)` float32 of a few pictures.

    Raises
    ------
    DataError
        If one cannot be opened, or its features are not finite.
    """
    rows = numpy.empty((len(pictures), extractor.dim), numpy.float32)
    for first in range(0, len(pictures), BATCH):
        batch = pictures[first : first + BATCH]
        opened = [extractor.prepare(open_picture(path)) for path in batch]
        rows[first : first + BATCH] = _compute(extractor, batch, opened)
    return rows


def _compute(
    extractor: Extractor, pictures: Sequence[Path], prepared: Sequence[numpy.ndarray]
) -> numpy.ndarray:
    rows: numpy.ndarray = extractor(numpy.stack(prepared))
    for path, row in zip(pictures, rows, strict=True):
        if not numpy.isfinite(row).all():
            raise DataError(f"{path}: '{extractor.name}' gives NaN or infinity")
    return rows


class Extraction:
    """The features of pictures, a row each, in a hidden file that grows as they are computed.

    Whoever is interrupted and asks again for the same pictures from the same extractor, which the
    file's name tells, goes on from the first picture that was not done, or has changed since.

    Parameters
    ----------
    extractor
        What computes them.
    pictures
        Files.
    beside
        The path that the file is beside.
    """

    def __init__(self, extractor: Extractor, pictures: Sequence[Path], beside: Path) -> None:
        self.extractor = extractor
        self.pictures = pictures
        self._beside = beside.absolute()
        self.path = self._beside.with_name(f".{self._beside.name}.{self._key()}.features")
        # `stamp` tells one state of a picture's file from another; features of a broken one are NaN
        self._row = numpy.dtype(
            [("stamp", numpy.int64, 2), ("features", numpy.float32, extractor.dim)]
        )

    def _key(self) -> str:
        pictures = [str(path.absolute()) for path in self.pictures]
        content = json.dumps([self.extractor.describe(), *pictures])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def run(
        self,
        skip_broken: bool = False,
        workers: int | None = None,
        progress: Progress = say_nothing,
        ranks: Ranks | None = None,
    ) -> list[Broken]:
        """Compute the rows that are missing.

        Parameters
        ----------
        skip_broken
            Go on past pictures that cannot be opened.
        workers
            Threads that open and prepare pictures; None is one a core.
        progress
            Told how far it is.
        ranks
            The processes that compute together, on one file system: batches are dealt out, and the
            first process writes.

        Returns
        -------
        list of Broken
            What was skipped.

        Raises
        ------
        DataError
            If a picture cannot be opened and `skip_broken` is not said, the extractor gives
            something that is not finite, the file cannot be written, or another process is at
            work on it. What was computed is kept.
        ConfigurationError
            If the ranks have different pictures or extractors.
        """
        ranks = ranks or Alone()
        check_alike(ranks, {"pictures or extractors": self._key()})
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
                    for rows in self._missing(done, skip_broken, workers, ranks):
                        file.write(rows.tobytes())
                        file.flush()
                        done += len(rows)
                        progress("pictures", done, len(self.pictures))
                finally:
                    if not (done or ranks.rank):
                        self.path.unlink()
        return by_first(ranks, self._broken)

    def _missing(
        self, done: int, skip_broken: bool, workers: int | None, ranks: Ranks
    ) -> Iterator[numpy.ndarray]:
        """Compute the rows from `done` on, a batch of each rank at a time, in their order."""
        batches = [self.pictures[k : k + BATCH] for k in range(done, len(self.pictures), BATCH)]
        rounds = -(-len(batches) // ranks.size)
        mine = [*batches[ranks.rank :: ranks.size], ()][:rounds]
        pool = ThreadPoolExecutor(workers or threads.available())
        try:
            for batch, opened in zip(mine, self._opened(pool, mine), strict=True):
                yield from ranks.gather(self._rows(batch, opened, skip_broken))
        finally:
            pool.shutdown(cancel_futures=True)

    def features(self, rows: Sequence[int]) -> numpy.ndarray:
        """Return the features of some pictures, by their numbers, which ascend."""
        first = rows[0]
        block = self._read(first, rows[-1] + 1)
        return numpy.asarray(block["features"][numpy.asarray(rows) - first])

    def forget(self) -> None:
        """Remove the file, and those of other pictures and extractors for the same place."""
        name = re.compile(rf"\.{re.escape(self._beside.name)}\.[0-9a-f]{{16}}\.features")
        for path in self._beside.parent.iterdir():
            if name.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _read(self, first: int, end: int) -> numpy.ndarray:
        with explained(self.path, "read"):
            offset = first * self._row.itemsize
            return numpy.fromfile(self.path, self._row, end - first, offset=offset)

    def _blocks(self, end: int) -> Iterator[tuple[int, numpy.ndarray]]:
        for first in range(0, end, _BLOCK):
            yield first, self._read(first, min(first + _BLOCK, end))

    def _done(self, skip_broken: bool) -> int:
        """Count the rows, from the first on, that can be kept."""
        written = self.path.stat().st_size // self._row.itemsize
        for first, block in self._blocks(min(written, len(self.pictures))):
            for k, row in enumerate(block):
                same = tuple(row["stamp"]) == _stamp(self.pictures[first + k])
                if not same or (numpy.isnan(row["features"][0]) and not skip_broken):
                    return first + k
        return min(written, len(self.pictures))

    def _opened(
        self, pool: ThreadPoolExecutor, batches: Sequence[Sequence[Path]]
    ) -> Iterator[list[_Opened]]:
        """Open batch after batch, always one ahead of the one that is asked for."""
        ahead: list[Future[_Opened]] = []
        for k, batch in enumerate([*batches, ()]):
            now, ahead = ahead, [pool.submit(self._open, path) for path in batch]
            if k:
                yield [future.result() for future in now]

    def _open(self, path: Path) -> _Opened:
        stamp = _stamp(path)
        try:
            return _Opened(stamp, self.extractor.prepare(open_picture(path)), None)
        except DataError as error:
            return _Opened(stamp, None, error)

    def _rows(
        self, batch: Sequence[Path], opened: Sequence[_Opened], skip_broken: bool
    ) -> numpy.ndarray:
        rows = numpy.empty(len(batch), self._row)
        if not batch:
            return rows
        rows["stamp"] = [picture.stamp for picture in opened]
        rows["features"] = numpy.nan
        whole: dict[int, numpy.ndarray] = {}
        for k, picture in enumerate(opened):
            if picture.prepared is not None:
                whole[k] = picture.prepared
            elif picture.error is not None and not skip_broken:
                raise picture.error
        if whole:
            paths = [batch[k] for k in whole]
            rows["features"][list(whole)] = _compute(self.extractor, paths, list(whole.values()))
        return rows

    def _broken(self) -> list[Broken]:
        """Say of every row of NaN what is wrong with its picture."""
        found = []
        for first, block in self._blocks(len(self.pictures)):
            for k in numpy.flatnonzero(numpy.isnan(block["features"][:, 0])).tolist():
                path = self.pictures[first + k]
                error = self._open(path).error
                found.append(Broken(path, str(error or f"{path} could not be opened at its turn")))
        return found


class _Opened(NamedTuple):
    """A picture's file as it was, and the picture, prepared, or why there is none."""

    stamp: tuple[int, int]
    prepared: numpy.ndarray | None
    error: DataError | None


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file does, its size and its time; zeros if it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
