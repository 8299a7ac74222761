"""Does what speaks for a word lie where the thing is? Judged on the scenes, whose truth is known.

    python tools/judge_attribution.py RUN

RUN was trained on the scenes' PCA features (`xpcap train`). Of held-out pictures with two things,
each word of the greedy caption is taken that is the colour or the shape of exactly one of them: is
the region that speaks most for it nearer to that thing than to the other? Beside it stands what
random numbers in the gradient's place would give.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
import numpy

from xpcap.data.extractors import FilterBank
from xpcap.data.scenes import read_picture, read_scenes
from xpcap.data.scenes.world import COLOURS, SHAPES, Thing
from xpcap.models.inspection import word_gradients
from xpcap.runs import open_run
from xpcap.runs.dataset import open_data

CENTRES = numpy.array([13, 32, 51]) / 8 - 0.5  # of rows and columns of things, in regions


def nearer(regions: numpy.ndarray, thing: Thing, other: Thing) -> bool:
    """Whether the largest of `(8, 8)` regions is nearer the centre of one thing than of another."""
    place = numpy.array(numpy.unravel_index(regions.argmax(), regions.shape))
    mine, theirs = (CENTRES[[*one.place]] for one in (thing, other))
    return bool(((place - mine) ** 2).sum() < ((place - theirs) ** 2).sum())


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def main(run: Path) -> None:
    """Judge the attributions of a RUN on the scenes."""
    opened = open_run(run, "cpu")
    dataset = open_data(opened)
    features = dataset.splits["val"].features[:]
    words = opened.decode(features).words[:, 0]
    _, gradients = word_gradients(opened.model, features, words)
    transform, bank, random = opened.transform, FilterBank(), numpy.random.default_rng(0)
    assert transform is not None, "the run was not trained on PCA features"
    hits = defaultdict(list)
    for n, scene in enumerate(read_scenes(dataset.folder)["val"]):
        if len(scene.things) != 2:
            continue
        parts = bank.regions(read_picture(dataset.folder, "val", n)[None])[0]
        for t, index in enumerate(words[n]):
            word = opened.vocabulary.idx_to_word[index]
            kind = "colour" if word in COLOURS else "shape" if word in SHAPES else None
            named = [thing for thing in scene.things if kind and getattr(thing, kind) == word]
            if len(named) != 1:
                continue
            (other,) = (thing for thing in scene.things if thing is not named[0])
            gradient = gradients[n, t]
            drawn = random.standard_normal(gradient.shape).astype(gradient.dtype)
            for what, one in (("", gradient), (", random", drawn)):
                hits[kind + what].append(nearer(parts @ transform.backward(one), *named, other))
    for what, found in sorted(hits.items()):
        click.echo(f"{what:16} {numpy.mean(found):.3f} of {len(found)} words")


if __name__ == "__main__":
    main()
