"""Do captions say what is true, and do words look at the things they name? Judged on the scenes.

    python tools/judge_attribution.py RUN

RUN was trained on the scenes (`xpcap train`), whose truth is known. Printed are the shares of
validation pictures, with one thing and with two, whose greedy caption is true. Then, of pictures
with two things, each word is taken that is the colour or the shape of exactly one of them. Of a run
on PCA features: is the region that speaks most for it, by gradient times input, nearer to that
thing than to the other? Beside it stands what random numbers in the gradient's place would give. Of
a run with attention: does the region of 8 x 8 pixels with the largest weight overlap the thing's
square?
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy

from xpcap.data.dataset import Dataset
from xpcap.data.extractors import FilterBank
from xpcap.data.scenes import Scene, Thing, is_true, read_picture, read_scenes
from xpcap.data.scenes.world import COLOURS, SHAPES
from xpcap.models.inspection import Attends, attention_maps, word_gradients
from xpcap.runs import Run, open_run
from xpcap.runs.dataset import open_data

CENTRES = numpy.array([13, 32, 51]) / 8 - 0.5  # of rows and columns of things, in regions
RADII = {"small": 6 / 8, "large": 11 / 8}


def place_of(regions: numpy.ndarray) -> numpy.ndarray:
    """Return row and column of the largest of `(8, 8)` regions."""
    return numpy.array(numpy.unravel_index(regions.argmax(), regions.shape))


def nearer(regions: numpy.ndarray, thing: Thing, other: Thing) -> bool:
    """Whether the largest of `(8, 8)` regions is nearer the centre of one thing than of another."""
    place = place_of(regions)
    mine, theirs = (CENTRES[[*one.place]] for one in (thing, other))
    return bool(((place - mine) ** 2).sum() < ((place - theirs) ** 2).sum())


def overlaps(regions: numpy.ndarray, thing: Thing) -> bool:
    """Whether the largest of `(8, 8)` regions overlaps the square around a thing."""
    apart = abs(place_of(regions) - CENTRES[[*thing.place]])
    return bool(apart.max() < RADII[thing.size] + 0.5)


def named_things(words: list[str], scene: Scene) -> Iterator[tuple[int, str, Thing, Thing]]:
    """Yield the words that name one of two things: which, its kind, the thing, and the other."""
    for t, word in enumerate(words):
        kind = "colour" if word in COLOURS else "shape" if word in SHAPES else None
        named = [thing for thing in scene.things if kind and getattr(thing, kind) == word]
        if kind and len(named) == 1:
            (other,) = (thing for thing in scene.things if thing is not named[0])
            yield t, kind, named[0], other


def judge(run: Run, dataset: Dataset) -> dict[str, list[bool]]:
    """Return what is right and what is not, by what is judged."""
    features = dataset.splits["val"].features[:]
    words = run.decode(features).words[:, 0]
    hits = defaultdict(list)
    texts = [[run.vocabulary.idx_to_word[index] for index in row] for row in words]
    scenes = read_scenes(dataset.folder)["val"]
    for sentence, scene in zip(run.vocabulary.sentences(words), scenes, strict=True):
        hits[f"captions of {len(scene.things)}"].append(is_true(sentence, scene))
    attends: Any = isinstance(run.model, Attends)
    if attends:
        maps = attention_maps(run.model, features, words).reshape(*words.shape, 8, 8)
    else:
        _, gradients = word_gradients(run.model, features, words)
    transform, bank, random = run.transform, FilterBank(), numpy.random.default_rng(0)
    for n, scene in enumerate(scenes):
        if len(scene.things) != 2:
            continue
        if not attends:
            assert transform is not None, "the run was not trained on PCA features"
            parts = bank.regions(read_picture(dataset.folder, "val", n)[None])[0]
        for t, kind, thing, other in named_things(texts[n], scene):
            if attends:
                hits[f"{kind}s, attention"].append(overlaps(maps[n, t], thing))
                continue
            gradient = gradients[n, t]
            drawn = random.standard_normal(gradient.shape).astype(gradient.dtype)
            for what, one in (("attribution", gradient), ("random", drawn)):
                regions = parts @ transform.backward(one)
                hits[f"{kind}s, {what}"].append(nearer(regions, thing, other))
    return hits


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def main(run: Path) -> None:
    """Judge the captions and words of a RUN on the scenes."""
    opened = open_run(run, "cpu")
    for what, found in sorted(judge(opened, open_data(opened)).items()):
        click.echo(f"{what:22} {numpy.mean(found):.3f} of {len(found)}")


if __name__ == "__main__":
    main()
