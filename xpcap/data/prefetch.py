"""Batches made ahead by a thread, while those before them are computed with."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from xpcap.data.minibatch import Batch, EpochBatches

AHEAD = 2

Item = TypeVar("Item")


class PrefetchedBatches(EpochBatches):
    """`EpochBatches`, the same ones, read ahead by a thread that lives as long as an epoch."""

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, from its batch `first` on."""
        return made_ahead(super().epoch(number, first))


def made_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items which one thread makes, at most two ahead of the one in use.

    What making an item raises is raised in its place. The thread has ended when the last item is
    out, and when the iterator is closed or forgotten before.
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
