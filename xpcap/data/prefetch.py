"""Batches prefetched by a thread during computation."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from xpcap.data.minibatch import Batch, EpochBatches

AHEAD = 2

Item = TypeVar("Item")


class PrefetchedBatches(EpochBatches):
    """`EpochBatches` whose batches are prefetched by a thread that ends with the epoch."""

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, as `EpochBatches` does."""
        return made_ahead(super().epoch(number, first))


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
