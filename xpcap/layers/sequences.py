"""Sequences one after the other: the rows of a Transformer.

Captions of a batch are packed step by step (`layers.recurrence.Packing`), as a recurrence reads
them. Attention compares the words of one caption with each other, so here the rows of a caption lie
together: first all words of the longest caption, then those of the next. Captions of equal length
form a group, whose rows are an array `(G, T, H)` without padding: of captions A, B, C of 3, 2 and
2 words, the rows A0 A1 A2 and B0 B1 C0 C1.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from xpcap.backend import Array, Namespace
from xpcap.layers.recurrence import Packing
from xpcap.workspace import Workspace


class Group(NamedTuple):
    """Sequences of equal length: their rows, which sequences they are, and the length."""

    rows: slice
    sequences: slice
    length: int


class Sequences:
    """The rows of sequences of these `lengths`, longest first; `capacity` is as in `Packing`."""

    def __init__(self, groups: Sequence[tuple[int, int]], capacity: int | None = None) -> None:
        """Take pairs of the number of sequences and their length."""
        self.groups: list[Group] = []
        self.total = count = 0
        for number, length in groups:
            rows = slice(self.total, self.total + number * length)
            self.groups.append(Group(rows, slice(count, count + number), length))
            self.total, count = rows.stop, count + number
        self.capacity = self.total if capacity is None else capacity

    @classmethod
    def even(cls, count: int, length: int) -> Sequences:
        """Return `count` sequences of one length."""
        return cls([(count, length)])

    @classmethod
    def of(cls, packing: Packing) -> Sequences:
        """Return the captions of a packing."""
        sizes = [rows.stop - rows.start for rows in packing.rows]
        ends = enumerate(itertools.pairwise([*sizes, 0]), 1)
        groups = [(size - after, length) for length, (size, after) in ends if size > after]
        return cls(groups[::-1], packing.capacity)

    def packed_rows(self, xp: Namespace, packing: Packing) -> Array:
        """Return the row of the packing `(M,)` that each row is."""
        starts = [rows.start for rows in packing.rows]
        found = [xp.zeros(0, dtype=int)]
        for _, sequences, length in self.groups:
            if packing.even:  # as on a GPU, where a graph may not read from the host
                of_step = xp.arange(length) * packing.captions
            else:
                of_step = xp.asarray(starts[:length])
            of_caption = xp.arange(sequences.start, sequences.stop)[:, None]
            found.append((of_caption + of_step).reshape(-1))
        return xp.concatenate(found)

    def empty(self, space: Workspace, name: str, width: int, dtype: Any = None) -> Array:
        """Return an array `(M, width)` of a workspace, with memory for the largest batch."""
        return space.empty(name, self.total, width, most=self.capacity, dtype=dtype)

    def heads(self, rows: Array, count: int) -> Iterator[Array]:
        """Yield the rows `(M, heads d)` of each group as `(G, heads, T, d)`, views."""
        for part, _, length in self.groups:
            yield rows[part].reshape(-1, length, count, rows.shape[1] // count).swapaxes(1, 2)
