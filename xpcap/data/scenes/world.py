"""The small world of the scenes: one or two things with a shape, a colour, a size and a place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("small", "large")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")


class Place(NamedTuple):
    """One of the nine places of an image: a row and a column, each 0, 1 or 2."""

    row: int
    column: int

    def __str__(self) -> str:
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


PLACES = {str(Place(row, column)): Place(row, column) for row in range(3) for column in range(3)}


@dataclass(frozen=True)
class Thing:
    """One thing in an image; `shape`, `colour`, `size` are of `SHAPES`, `COLOURS`, `SIZES`."""

    shape: str
    colour: str
    size: str
    place: Place


@dataclass(frozen=True)
class Scene:
    """The contents of one image: one or two things."""

    things: tuple[Thing, ...]


def random_scene(rng: numpy.random.Generator, count: int) -> Scene:
    """Sample a scene of `count` (1 or 2) things, uniformly.

    Of two things the first is large, the other small; they differ in colour and in place.
    """
    while True:
        things = tuple(_random_thing(rng) for _ in range(count))
        if count == 1 or _fit_together(*things):
            return Scene(things)


def _random_thing(rng: numpy.random.Generator) -> Thing:
    return Thing(
        SHAPES[rng.integers(len(SHAPES))],
        COLOURS[rng.integers(len(COLOURS))],
        SIZES[rng.integers(len(SIZES))],
        Place(int(rng.integers(3)), int(rng.integers(3))),
    )


def _fit_together(first: Thing, second: Thing) -> bool:
    return (
        (first.size, second.size) == ("large", "small")
        and first.colour != second.colour
        and first.place != second.place
    )
