"""The grammar of captions: generating five for a scene, and judging whether a given one is true.

One table of patterns serves both. A pattern has slots in braces: `{a}` and `{b}` are things ("a
small red circle"), `{at_a}` is the place of the first ("at the top left"), `{to_b}` its relation to
the second ("left of"), `{side}` the inverse relation ("to its right"). To generate, slots are
filled with something true; to judge, the pattern is matched as a regular expression, and its slots
are compared with the scene.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable

import numpy

from xpcap.data.scenes.world import COLOURS, SHAPES, Place, Scene, Thing
from xpcap.data.vocabulary import tokenize

CAPTIONS = 5
"""Captions per image, each of another pattern."""

_PATTERNS = {
    1: (
        "{a} {at_a}",
        "there is {a} {at_a}",
        "you see {a} {at_a}",
        "{at_a} there is {a}",
        "{at_a} of the picture you see {a}",
        "the picture shows {a}",
        "this is {a}",
    ),
    2: (
        "{a} and {b}",
        "the picture shows {a} and {b}",
        "there is {a} and {b}",
        "{a} {to_b} {b}",
        "{a} is {to_b} {b}",
        "there is {a} {to_b} {b}",
        "you see {a} {to_b} {b}",
        "{to_b} {b} there is {a}",
        "{a} with {b} {side}",
    ),
}
_SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
_CORNERS = {
    f"{start} {row_word} {column_word}{end}": (row, column)
    for start, end, row_words in (
        ("at the", "", ("top", "bottom")),
        ("in the", " corner", ("top", "bottom")),
        ("in the", " corner", ("upper", "lower")),
    )
    for row, row_word in zip((0, 2), row_words, strict=True)
    for column, column_word in ((0, "left"), (2, "right"))
}
_PLACES: dict[str, tuple[int | None, int | None]] = {
    # row and column, None if the words leave it open
    **_CORNERS,
    "at the top": (0, None),
    "near the top edge": (0, None),
    "at the bottom": (2, None),
    "near the bottom edge": (2, None),
    "on the left": (None, 0),
    "on the left side": (None, 0),
    "on the right": (None, 2),
    "on the right side": (None, 2),
    "in the middle": (1, 1),
    "in the centre": (1, 1),
}
_ABOVE, _BELOW, _LEFT, _RIGHT = (0, -1), (0, 1), (1, -1), (1, 1)  # axis of a place, sign
_RELATIONS = {
    "above": _ABOVE,
    "below": _BELOW,
    "left of": _LEFT,
    "to the left of": _LEFT,
    "right of": _RIGHT,
    "to the right of": _RIGHT,
}
_SIDES = {
    "above it": _ABOVE,
    "below it": _BELOW,
    "to its left": _LEFT,
    "to its right": _RIGHT,
}


def _any_of(phrases: Iterable[str]) -> str:
    return f"(?:{'|'.join(phrases)})"


def _expression(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern's sentences, with a group for each slot."""
    article = "(?:an(?= [aeiou])|a(?! [aeiou]))"
    thing = f"{article} (?:{_any_of(_SIZES)} )?{_any_of(COLOURS)} {_any_of(SHAPES)}"
    place = _any_of(_PLACES)
    slots = {
        "a": thing,
        "b": thing,
        "at_a": place,
        "to_b": _any_of(_RELATIONS),
        "side": _any_of(_SIDES),
    }
    return re.compile(
        pattern.format(**{name: f"(?P<{name}>{slot})" for name, slot in slots.items()})
    )


_EXPRESSIONS = {
    count: [_expression(pattern) for pattern in patterns] for count, patterns in _PATTERNS.items()
}


def captions(scene: Scene, rng: numpy.random.Generator) -> list[str]:
    """Generate five true captions of a scene.

    Each is a sentence of another pattern and of 5 to 14 lower-case words without punctuation. All
    things are mentioned, the large one as the subject; `rng` decides the wording, and whether sizes
    are mentioned.
    """
    patterns = _PATTERNS[len(scene.things)]
    chosen = rng.permutation(len(patterns))[:CAPTIONS]
    return [_fill(patterns[index], scene, rng) for index in chosen]


def _fill(pattern: str, scene: Scene, rng: numpy.random.Generator) -> str:
    first, last = scene.things[0], scene.things[-1]
    return pattern.format(
        a=_name(first, rng),
        b=_name(last, rng),
        at_a=_pick(_best_places(first.place), rng),
        to_b=_pick(_true_of(_RELATIONS, first, last), rng),
        side=_pick(_true_of(_SIDES, last, first), rng),
    )


def _pick(phrases: list[str], rng: numpy.random.Generator) -> str:
    return phrases[rng.integers(len(phrases))] if phrases else ""


def _name(thing: Thing, rng: numpy.random.Generator) -> str:
    """Name a thing: "an orange ring", every other time with its size."""
    words = [thing.colour, thing.shape]
    if rng.random() < 0.5:
        words.insert(0, _pick([word for word, size in _SIZES.items() if size == thing.size], rng))
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _stands(place: Place, where: tuple[int | None, int | None]) -> bool:
    """Return whether a place matches a row and a column, None matching any."""
    return all(what is None or what == index for what, index in zip(where, place, strict=True))


def _best_places(place: Place) -> list[str]:
    """Return the most specific true phrases: of a corner rather than of a side."""
    true = {phrase: where for phrase, where in _PLACES.items() if _stands(place, where)}
    fewest = min(where.count(None) for where in true.values())
    return [phrase for phrase, where in true.items() if where.count(None) == fewest]


def _true_of(phrases: dict[str, tuple[int, int]], one: Thing, other: Thing) -> list[str]:
    """Return the phrases that are true of `one` in relation to `other`."""
    return [
        phrase
        for phrase, (axis, sign) in phrases.items()
        if (one.place[axis] - other.place[axis]) * sign > 0
    ]


def is_true(sentence: str, scene: Scene) -> bool:
    """Return whether a sentence is one of the grammar, and true of the scene.

    It need not be complete: "this is a red circle" is true of a scene with a red circle and
    something else, "on the left" of a thing at the top left. The sentence has no special tokens.
    """
    text = " ".join(tokenize(sentence))
    return any(
        _holds(match.groupdict(), things)
        for count, expressions in _EXPRESSIONS.items()
        for expression in expressions
        if (match := expression.fullmatch(text))
        for things in itertools.permutations(scene.things, count)
    )


def _holds(slots: dict[str, str], things: tuple[Thing, ...]) -> bool:
    """Return whether the slots are true of the things, in the order of their names."""
    first, last = things[0], things[-1]
    checks: dict[str, Callable[[str], bool]] = {
        "a": lambda words: _is_named(first, words),
        "b": lambda words: _is_named(last, words),
        "at_a": lambda words: _stands(first.place, _PLACES[words]),
        "to_b": lambda words: words in _true_of(_RELATIONS, first, last),
        "side": lambda words: words in _true_of(_SIDES, last, first),
    }
    return all(checks[slot](words) for slot, words in slots.items())


def _is_named(thing: Thing, words: str) -> bool:
    _, *size, colour, shape = words.split()
    return (colour, shape) == (thing.colour, thing.shape) and all(
        _SIZES[word] == thing.size for word in size
    )
