"""Record what pycocoevalcap's Bleu, Rouge and Cider give, for the tests of `xpcap.metrics`.

    pip install pycocoevalcap
    python tools/record_metrics.py tests/metrics/recorded.json

It runs no Java. The sentences are made up here, by a grammar of a few words and a fixed seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

SEED = 20150607
SLOTS = (
    "a the one some two",
    "red small old round wet",
    "fox lamp boat drum tree",
    "sits stands shines lies floats",
    "near under on behind",
    "a the that",
    "hill table river wall door",
)
Images = list[tuple[str, list[str]]]
"""The candidate and the references of each image."""

EDGES: Images = [
    ("a red fox sits on the hill", ["a red fox sits on the hill", "the old fox sits near a wall"]),
    ("", ["a small lamp stands near the door", "the lamp"]),
    ("", ["", "the lamp"]),
    ("the tree", [""]),
    ("the wet tree", ["", "the wet tree stands", "trees"]),
    ("boat", ["boat", "the boat"]),
    ("a drum", ["a drum", "one old drum lies under the table"]),
    ("two boats", ["two old boats float on the river", "two round red boats lie near that hill"]),
    ("one drum lies behind the door near the wall on the hill", ["one drum lies there", "a drum"]),
    ("the the the the the the", ["the fox the the lamp", "the the the", "a fox near the lamp"]),
    ("a fox a fox a fox a fox sits", ["a fox sits on a fox on a fox", "a fox a fox"]),
    # lengths 4 and 3 or 6, of which 3 is closer; lengths 4 and 5 or 3, of which the shorter counts
    ("one lamp shines here", ["one lamp shines", "a lamp shines on one door"]),
    ("one tree stands here", ["a tree stands on hills", "one tree stands"]),
    ("nobody knows these words", ["a red fox sits on the hill"]),
]


def sentence(rng: numpy.random.Generator) -> list[str]:
    """Draw a word for each slot."""
    return [str(rng.choice(words.split())) for words in SLOTS]


def changed(words: Sequence[str], rng: numpy.random.Generator) -> str:
    """Leave a word of a sentence out, say one twice, and draw each anew one time in four."""
    words = [
        new if rng.random() < 0.25 else old for old, new in zip(words, sentence(rng), strict=True)
    ]
    for copies in (0, 2):
        if rng.random() < 0.5:
            place = rng.integers(len(words))
            words[place : place + 1] = [words[place]] * copies
    return " ".join(words)


def draw_images(count: int, references: int, rng: numpy.random.Generator) -> Images:
    """Draw images: what is said of one are changes of the same sentence."""
    images = []
    for _ in range(count):
        words = sentence(rng)
        captions = [changed(words, rng) for _ in range(references + 1)]
        images.append((captions[0], captions[1:]))
    return images


def record(images: Images) -> dict[str, Any]:
    """Return candidates, references and pycocoevalcap's values: of all, and of each image."""
    candidates = {place: [candidate] for place, (candidate, _) in enumerate(images)}
    references = {place: known for place, (_, known) in enumerate(images)}
    bleu, bleu_images = Bleu(4).compute_score(references, candidates, verbose=0)
    values = {f"BLEU-{n}": (bleu[n - 1], bleu_images[n - 1]) for n in (1, 2, 3, 4)}
    values["ROUGE-L"] = Rouge().compute_score(references, candidates)
    values["CIDEr-D"] = Cider().compute_score(references, candidates)
    return {
        "candidates": [candidate for candidate, _ in images],
        "references": [known for _, known in images],
        "values": {
            name: {"corpus": float(corpus), "images": [float(value) for value in of_images]}
            for name, (corpus, of_images) in values.items()
        },
    }


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Draw, record and write."""
    rng = numpy.random.default_rng(SEED)
    cases = {
        "many images": draw_images(60, 5, rng),
        "one reference": draw_images(12, 1, rng),
        "one image": draw_images(1, 3, rng),
        "edges": EDGES,
        "edges among others": [*EDGES, *draw_images(20, 3, rng)],
        "no candidate has words": [("", known) for _, known in draw_images(3, 2, rng)],
        "no candidate has a word in common": [("x y z", k) for _, k in draw_images(3, 2, rng)],
        "candidates are references": [(k[0], k) for _, k in draw_images(10, 4, rng)],
        "references are all the same": [(k[0], [k[0]] * 3) for _, k in draw_images(10, 1, rng)],
    }
    content = {
        "made by": f"pycocoevalcap {version('pycocoevalcap')}",
        "cases": {name: record(images) for name, images in cases.items()},
    }
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
