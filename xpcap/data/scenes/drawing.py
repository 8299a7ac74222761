"""From a scene to an image: antialiased shapes on muted backgrounds.

Background, exact shade, and up to a pixel of place and of size are random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy

from xpcap.data.scenes.world import Scene, Thing

SIZE = 64
"""Pixels on each side of an image."""

_FINE = 4  # each pixel is the mean of _FINE x _FINE points
_CENTRES = (13.0, 32.0, 51.0)  # of the rows and columns, in pixels
_RADII = {"small": (5.0, 6.0), "large": (10.0, 11.0)}  # from, to, in pixels
_SHADES = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.97, 0.52, 0.06),
    "yellow": (0.96, 0.90, 0.14),
    "green": (0.12, 0.66, 0.20),
    "blue": (0.10, 0.24, 0.86),
    "purple": (0.56, 0.12, 0.74),
    "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.04),
}

Floats: TypeAlias = "numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]"
Mask: TypeAlias = "numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.bool_]]"


def _star(u: Floats, v: Floats) -> Mask:
    """Five points; the edge is a straight line from each hollow to the next tip."""
    tip, hollow = numpy.pi / 5, 0.45
    turn = numpy.abs((numpy.arctan2(u, v) + tip) % (2 * tip) - tip)
    along, across = numpy.hypot(u, v) * (numpy.cos(turn), numpy.sin(turn))
    inside = (along - hollow) * numpy.sin(tip) <= across * (numpy.cos(tip) - hollow)
    return numpy.asarray(inside)


_INSIDE: dict[str, Callable[[Floats, Floats], Mask]] = {
    # u to the right and v downwards, both -1 to 1 across the thing
    "circle": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: numpy.maximum(abs(u), abs(v)) <= 0.8,
    "triangle": lambda u, v: (v <= 0.8) & (abs(u) <= (v + 1) / 1.8),
    "star": _star,
    "cross": lambda u, v: (
        (numpy.minimum(abs(u), abs(v)) <= 0.3) & (numpy.maximum(abs(u), abs(v)) <= 1)
    ),
    "ring": lambda u, v: abs(numpy.hypot(u, v) - 0.775) <= 0.225,
}


def draw(scene: Scene, rng: numpy.random.Generator) -> numpy.ndarray:
    """Draw a scene as `(64, 64, 3)` uint8 in RGB; `rng` decides what the scene leaves open."""
    image = _background(rng)
    for thing in scene.things:
        cover = _cover(thing, rng)[:, :, None]
        shade = numpy.clip(_SHADES[thing.colour] + rng.uniform(-0.04, 0.04, 3), 0, 1)
        image += cover * (shade - image)
    return numpy.asarray(numpy.rint(image * 255), numpy.uint8)


def _cover(thing: Thing, rng: numpy.random.Generator) -> Floats:
    """Return the share of each pixel that a thing covers, `(64, 64)`."""
    y, x = (_CENTRES[index] + rng.uniform(-1, 1) for index in thing.place)
    radius = rng.uniform(*_RADII[thing.size])
    points = (numpy.arange(SIZE * _FINE) + 0.5) / _FINE
    rows, columns = (numpy.flatnonzero(abs(points // 1 - at) <= radius + 1) for at in (y, x))
    inside = _INSIDE[thing.shape](
        (points[None, columns] - x) / radius, (points[rows, None] - y) / radius
    )
    cover = numpy.zeros((SIZE, SIZE))
    blocks = inside.reshape(len(rows) // _FINE, _FINE, len(columns) // _FINE, _FINE)
    top, left = rows[0] // _FINE, columns[0] // _FINE
    cover[top : top + blocks.shape[0], left : left + blocks.shape[2]] = blocks.mean(axis=(1, 3))
    return cover


def _background(rng: numpy.random.Generator) -> Floats:
    """Draw `(64, 64, 3)` floats: two muted colours, mixed by a pattern."""
    grey = rng.uniform(0.38, 0.62, (2, 1))
    grey[1] = grey[0] + rng.uniform(-0.1, 0.1)
    here, there = numpy.clip(grey + rng.uniform(-0.07, 0.07, (2, 3)), 0.3, 0.7)
    mix = _PATTERNS[rng.integers(len(_PATTERNS))](rng)[:, :, None]
    return numpy.asarray(here + mix * (there - here))


def _wave(rng: numpy.random.Generator, cycles: float) -> Floats:
    """Return the phase of a plane wave in a random direction, `cycles` periods per image."""
    angle = rng.uniform(0, 2 * numpy.pi)
    steps = numpy.linspace(-0.5, 0.5, SIZE) * 2 * numpy.pi * cycles
    return numpy.asarray(steps[:, None] * numpy.sin(angle) + steps * numpy.cos(angle))


def _checks(rng: numpy.random.Generator) -> Floats:
    parity = numpy.arange(SIZE) // rng.integers(4, 12) % 2
    return numpy.asarray(parity[:, None] ^ parity, float)


def _clouds(rng: numpy.random.Generator) -> Floats:
    """Random values on an 8 x 8 grid, interpolated linearly."""
    places = numpy.linspace(0, 7, SIZE)
    weights = numpy.maximum(0, 1 - abs(places[:, None] - numpy.arange(8)))
    return numpy.asarray(weights @ rng.random((8, 8)) @ weights.T)


_PATTERNS: tuple[Callable[[numpy.random.Generator], Floats], ...] = (
    lambda rng: numpy.zeros((SIZE, SIZE)),
    lambda rng: 0.5 + _wave(rng, 0.11),  # a gradient
    lambda rng: 0.5 + 0.5 * numpy.sin(_wave(rng, rng.uniform(3, 9))),  # stripes
    _checks,
    lambda rng: rng.random((SIZE, SIZE)),
    _clouds,
)
