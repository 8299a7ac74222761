"""The sentences about scenes: saying five of them, and judging whether a given one is true.

One table of patterns serves both. A pattern is words and slots in braces: `{a}` and `{b}` are
things ("a small red circle"), `{at_a}` says where the first stands ("at the top left"), `{to_b}`
how it stands to the second ("left of"), `{side}` how the second stands to it ("to its right").
Saying fills the slots with something true; judging turns the pattern into a regular expression,
reads the slots, and holds them against the scene.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable

import numpy

from xpcap.data.scenes.world import COLOURS, SHAPES, Place, Scene, Thing
from xpcap.data.vocabulary import tokenize

CAPTIONS = 5
"""Sentences said of each picture, each after another pattern."""

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
    # the row and the column that are said, None where the words leave it open
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
    """Make the regular expression that a pattern's sentences match, a group for each slot."""
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
    """Say five true sentences of a scene.

    Parameters
    ----------
    scene
        What is to be described; all its things are mentioned, the large one as the subject.
    rng
        Decides the wording, and whether sizes are said.

    Returns
    -------
    list of str
        Five sentences of 5 to 14 words, each after another pattern: lower case, no punctuation.
    """
    patterns = _PATTERNS[len(scene.things)]
    chosen = rng.permutation(len(patterns))[:CAPTIONS]
    return [_say(patterns[index], scene, rng) for index in chosen]


def _say(pattern: str, scene: Scene, rng: numpy.random.Generator) -> str:
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


def _stands(place: Place, said: tuple[int | None, int | None]) -> bool:
    """Whether a place is the one said, as far as it is said."""
    return all(what is None or what == index for what, index in zip(said, place, strict=True))


def _best_places(place: Place) -> list[str]:
    """Return the phrases true of a place that say most: a corner's name rather than a side's."""
    true = {phrase: said for phrase, said in _PLACES.items() if _stands(place, said)}
    fewest = min(said.count(None) for said in true.values())
    return [phrase for phrase, said in true.items() if said.count(None) == fewest]


def _true_of(phrases: dict[str, tuple[int, int]], one: Thing, other: Thing) -> list[str]:
    """Return the phrases that truly say how `one` stands to `other`."""
    return [
        phrase
        for phrase, (axis, sign) in phrases.items()
        if (one.place[axis] - other.place[axis]) * sign > 0
    ]


def is_true(sentence: str, scene: Scene) -> bool:
    """Judge whether a sentence is one of the grammar and all that it says is true of the scene.

    What it leaves unsaid is not held against it: "this is a red circle" is true of a scene with a
    red circle and something else, "on the left" of a thing at the top left.

    Parameters
    ----------
    sentence
        Words as `captions` says them, without `<START>` and `<END>`.
    scene
        The truth.
    """
    words = " ".join(tokenize(sentence))
    return any(
        _holds(match.groupdict(), things)
        for count, expressions in _EXPRESSIONS.items()
        for expression in expressions
        if (match := expression.fullmatch(words))
        for things in itertools.permutations(scene.things, count)
    )


def _holds(slots: dict[str, str], things: tuple[Thing, ...]) -> bool:
    """Whether what the slots of a sentence say is true of its things, the first named first."""
    first, last = things[0], things[-1]
    checks: dict[str, Callable[[str], bool]] = {
        "a": lambda said: _is_named(first, said),
        "b": lambda said: _is_named(last, said),
        "at_a": lambda said: _stands(first.place, _PLACES[said]),
        "to_b": lambda said: said in _true_of(_RELATIONS, first, last),
        "side": lambda said: said in _true_of(_SIDES, last, first),
    }
    return all(checks[slot](said) for slot, said in slots.items())


def _is_named(thing: Thing, said: str) -> bool:
    _, *size, colour, shape = said.split()
    return (colour, shape) == (thing.colour, thing.shape) and all(
        _SIZES[word] == thing.size for word in size
    )
