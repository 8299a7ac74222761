"""Computing the features of many pictures: in batches, from where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy

from xpcap.data.extractors import Extractor
from xpcap.data.images import open_picture
from xpcap.data.progress import Progress, say_nothing
from xpcap.errors import DataError
from xpcap.files import explained

_BATCH = 32


class Broken(NamedTuple):
    """A picture that cannot be opened, and why."""

    path: Path
    reason: str


class Extraction:
    """The features of pictures, a row each, in a file that grows as they are computed.

    Whoever is interrupted and asks again for the same pictures from the same extractor, which
    the file's name tells, goes on from there; unless one that was done has been changed since.

    Parameters
    ----------
    extractor
        What computes them.
    pictures
        Files.
    beside
        The path that the rows are kept beside, under a hidden name.

    Attributes
    ----------
    path
        The file: `(len(pictures), extractor.dim)` float32 when complete, rows of NaN for broken
        pictures.
    """

    def __init__(self, extractor: Extractor, pictures: Sequence[Path], beside: Path) -> None:
        self.extractor = extractor
        self.pictures = pictures
        self._pattern = f".{beside.name}.*.features"
        self.path = beside.with_name(self._pattern.replace("*", self._key()))
        self._row_bytes = 4 * extractor.dim

    @property
    def done(self) -> int:
        """How many pictures have their features."""
        if not self.path.exists():
            return 0
        stat = self.path.stat()
        count = stat.st_size // self._row_bytes
        changed = any(_time(path) > stat.st_mtime for path in self.pictures[:count])
        return 0 if changed else count

    def run(
        self,
        skip_broken: bool = False,
        workers: int | None = None,
        progress: Progress = say_nothing,
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

        Returns
        -------
        list of Broken
            What was skipped.

        Raises
        ------
        DataError
            If a picture cannot be opened and `skip_broken` is not said, the extractor gives
            something that is not finite, or the file cannot be written. What was computed is kept.
        """
        total, done = len(self.pictures), self.done
        batches = [self.pictures[k : k + _BATCH] for k in range(done, total, _BATCH)]
        with explained(self.path, "write"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with (
                ThreadPoolExecutor(workers or os.cpu_count()) as pool,
                open(self.path, "ab") as file,
            ):
                file.truncate(done * self._row_bytes)  # half a row may be left of an interruption
                for batch, opened in zip(batches, self._opened(pool, batches), strict=True):
                    file.write(self._rows(batch, opened, skip_broken).tobytes())
                    file.flush()
                    done += len(batch)
                    progress("pictures", done, total)
        return self._broken()

    def rows(self) -> numpy.ndarray:
        """Return the finished rows, left in their file."""
        shape = len(self.pictures), self.extractor.dim
        with explained(self.path, "read"):
            return numpy.memmap(self.path, numpy.float32, "r", shape=shape)

    def forget(self) -> None:
        """Remove the file, and those of other pictures and extractors for the same place."""
        for path in self.path.parent.glob(self._pattern):
            path.unlink(missing_ok=True)

    def _key(self) -> str:
        content = json.dumps([self.extractor.describe(), *map(str, self.pictures)])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _opened(
        self, pool: ThreadPoolExecutor, batches: Sequence[Sequence[Path]]
    ) -> Iterator[list[numpy.ndarray | DataError]]:
        """Open batch after batch, always one ahead of the one that is asked for."""
        ahead: list[Future[numpy.ndarray | DataError]] = []
        try:
            for batch in [*batches, ()]:
                now, ahead = ahead, [pool.submit(self._open, path) for path in batch]
                if now:
                    yield [future.result() for future in now]
        finally:
            for future in ahead:
                future.cancel()

    def _open(self, path: Path) -> numpy.ndarray | DataError:
        try:
            return self.extractor.prepare(open_picture(path))
        except DataError as error:
            return error

    def _rows(
        self, batch: Sequence[Path], opened: Sequence[numpy.ndarray | DataError], skip_broken: bool
    ) -> numpy.ndarray:
        rows = numpy.full((len(batch), self.extractor.dim), numpy.nan, numpy.float32)
        whole: dict[int, numpy.ndarray] = {}
        for k, picture in enumerate(opened):
            if not isinstance(picture, DataError):
                whole[k] = picture
            elif not skip_broken:
                raise picture
        if whole:
            rows[list(whole)] = self.extractor(numpy.stack(list(whole.values())))
        for k in whole:
            if not numpy.isfinite(rows[k]).all():
                raise DataError(f"{batch[k]}: '{self.extractor.name}' gives NaN or infinity")
        return rows

    def _broken(self) -> list[Broken]:
        """Say of every row of NaN what is wrong with its picture."""
        skipped = numpy.flatnonzero(numpy.isnan(self.rows()[:, 0])).tolist()
        return [Broken(self.pictures[k], str(self._open(self.pictures[k]))) for k in skipped]


def _time(path: Path) -> float:
    """Return when a file was last changed; 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
