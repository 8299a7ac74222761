"""Minibatches: random, as in the assignment, or every caption once per epoch."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy

from xpcap.backend import Array, namespace, to_host
from xpcap.data.dataset import Split
from xpcap.data.features import LazyFeatures
from xpcap.errors import ConfigurationError, DataError
from xpcap.options import check_counts

AHEAD = 2

Item = TypeVar("Item")


def sample_coco_minibatch(
    data: Mapping[str, Any], batch_size: int = 100, split: str = "train"
) -> tuple[Array, Array, numpy.ndarray]:
    """Draw N captions with replacement from the result of `load_coco_data`.

    NumPy's global generator draws. The captions `(N, T)` int32 and features `(N, ...)` are on the
    device of `data`, the URLs `(N,)` on the host. A `DataError` is raised if `data` have no such
    `split`.
    """
    check_counts(batch_size=batch_size)
    if f"{split}_captions" not in data:
        known = [key.removesuffix("_captions") for key in data if key.endswith("_captions")]
        raise DataError(f"split '{split}' is unknown; expected {' or '.join(known)}")
    all_captions = data[f"{split}_captions"]
    xp = namespace(all_captions)
    drawn = xp.asarray(numpy.random.choice(all_captions.shape[0], batch_size))
    image_idxs = data[f"{split}_image_idxs"][drawn]
    urls = numpy.asarray(data[f"{split}_urls"])[to_host(image_idxs)]
    return all_captions[drawn], data[f"{split}_features"][image_idxs], urls


class Share(NamedTuple):
    """The part of a minibatch that one of several processes computes."""

    places: numpy.ndarray  # (N,), of its captions in the whole minibatch
    captions: int  # of the whole minibatch
    words: int


class Batch(NamedTuple):
    """The input of one training step, on the host or on the device."""

    captions: Any  # (N, T)
    features: Any  # (N, ...) or None
    rows: Any = None  # (N,), the captions' indices in the split, if known
    share: Share | None = None  # None for a whole minibatch

    @property
    def total(self) -> int:
        """Number of captions in the whole minibatch."""
        return len(self.captions) if self.share is None else self.share.captions

    @property
    def words(self) -> int:
        """Number of target words in the whole minibatch."""
        return count_words(to_host(self.captions)) if self.share is None else self.share.words


def count_words(captions: numpy.ndarray) -> int:
    """Count the target words of captions `(N, T)`: all but the first of each and padding (0)."""
    return int(numpy.count_nonzero(captions[:, 1:]))


class EpochBatches:
    """Every caption of a split once per epoch, shuffled; the last batch may be smaller.

    With `by_image` it is every image, with one of its captions, another one in each epoch. The
    order depends on the seed and the epoch alone; without a seed it is that of the file. The
    process `rank` of `ranks` gets its share of every batch, see `deal`. Features in a file are read
    ahead, by a thread that ends with the epoch. A `ConfigurationError` is raised if the batch size
    is not in 1..len(split).
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int | None = None,
        *,
        with_features: bool = True,
        by_image: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._count = len(numpy.unique(split.image_idxs)) if by_image else len(split)
        if not 1 <= batch_size <= self._count:
            what = "images with captions" if by_image else "captions"
            raise ConfigurationError(
                f"batch size {batch_size} is not in 1..{self._count}, the {what} of the split"
            )
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.with_features = with_features
        self.by_image = by_image
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return -(-self._count // self.batch_size)

    def order(self, number: int) -> numpy.ndarray:
        """Return the order of all captions of an epoch (from 0)."""
        order = numpy.arange(len(self.split))
        if self.seed is not None:
            numpy.random.default_rng((self.seed, number)).shuffle(order)
        if self.by_image:
            first = numpy.unique(self.split.image_idxs[order], return_index=True)[1]
            order = order[numpy.sort(first)]
        return order

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 0), starting with its batch `first`."""
        batches = self._batches(number, first)
        return made_ahead(batches) if isinstance(self.split.features, LazyFeatures) else batches

    def _batches(self, number: int, first: int) -> Iterator[Batch]:
        order = self.order(number)
        for place in range(first * self.batch_size, len(order), self.batch_size):
            rows, share = order[place : place + self.batch_size], None
            if self.ranks > 1:
                share = self._share(rows)
                rows = rows[share.places]
            if self.with_features:
                yield gather(self.split, rows)._replace(share=share)
            else:
                yield Batch(self.split.captions[rows], None, rows, share)

    def _share(self, rows: numpy.ndarray) -> Share:
        captions = self.split.captions[rows]
        places = deal(captions, self.ranks)[self.rank]
        return Share(places, len(rows), count_words(captions))


def made_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items that one thread makes, at most two ahead of the one in use.

    Exceptions are raised in the place of their item. The thread ends with the last item, or when
    the iterator is closed or garbage collected.
    """
    thread = ThreadPoolExecutor(max_workers=1)
    end = object()
    try:
        waiting = collections.deque(thread.submit(next, items, end) for _ in range(AHEAD))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)


def deal(captions: numpy.ndarray, parts: int) -> list[numpy.ndarray]:
    """Assign captions `(N, T)` to parts in snake order, longest first; return each part's rows."""
    order = numpy.argsort(-numpy.count_nonzero(captions, axis=1), kind="stable")
    turn = numpy.arange(len(order)) % (2 * parts)
    part = numpy.minimum(turn, 2 * parts - 1 - turn)
    return [order[part == number] for number in range(parts)]


def gather(split: Split, rows: numpy.ndarray) -> Batch:
    """Return the captions `rows (N,)` of a split with their images' features."""
    return Batch(split.captions[rows], split.features[split.image_idxs[rows]], rows)
