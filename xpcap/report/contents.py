"""The contents of a report on one or two runs, without their layout."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import to_host
from xpcap.data.dataset import Dataset
from xpcap.data.progress import Progress, no_progress
from xpcap.decoding import Beam
from xpcap.errors import CheckpointError, ConfigurationError, DataError
from xpcap.evaluation import DEFAULT, Evaluation, evaluate_run
from xpcap.models.inspection import (
    GateSaturation,
    GradientFlow,
    Inspectable,
    Layered,
    LayerGradients,
    attends,
    attention_heads,
    gate_saturation,
    gradient_flow,
    layer_gradients,
    self_attention,
)
from xpcap.report.attribution import attribute
from xpcap.report.before import Before, find_before
from xpcap.report.images import View, categories_of, name_of, open_image, view
from xpcap.report.regions import RegionMap, levels_of, map_of_attention, regions_of, shown
from xpcap.runs import HISTORY, Run
from xpcap.runs.attention import Area, grid_area, grid_side, weights_of
from xpcap.runs.captions import captions_of
from xpcap.runs.dataset import open_data
from xpcap.training.history import Curves, read_history
from xpcap.training.options import options_of

SORTED_BY = "CIDEr-D"
INSPECTED = 256  # captions whose gradients and gates are inspected
LISTED = 300  # images, at most
EXTREMES = 12  # best and worst images, and those on which two runs differ most
_NO_METRICS = ("image", "id", "caption", "references")


@dataclass(frozen=True)
class Word:
    """A generated word with its probability, attribution, and attention if there is any."""

    text: str
    probability: float
    attribution: RegionMap
    attention: RegionMap


@dataclass(frozen=True)
class Heads:
    """Attention in each of K layers with A heads, as letters; see `RegionMap`.

    Each layer has 1 + A texts: the mean of its heads, and each of them. `regions` has, for each
    word of a caption, K (1 + A) maps of regions, if images have regions. `words` has as many texts,
    of the weights of words read: 1 for the first word, 2 for the second, and so on.
    """

    layers: int
    heads: int
    regions: Sequence[Sequence[str]]
    words: Sequence[str]


@dataclass(frozen=True)
class RunCaption:
    """The words of a run's best caption, the captions of its beam, and the metrics.

    `area` is the part of the image that its regions cover. `before` is the caption of the run that
    training started from, with its metric, if there is one.
    """

    words: Sequence[Word]
    beam: Sequence[dict[str, Any]]
    values: dict[str, float | None]
    area: Area
    heads: Heads | None = None
    before: tuple[str, float] | None = None

    @property
    def value(self) -> float:
        """The metric that captions are sorted by."""
        return self.values[SORTED_BY] or 0.0

    @property
    def maps(self) -> list[str]:
        """Which maps its words have: `attention`, `attribution`."""
        kinds = ("attention", "attribution")
        return [kind for kind in kinds if any(getattr(word, kind).text for word in self.words)]


@dataclass(frozen=True)
class Entry:
    """An image with its references and a caption per run; `name` is that of its file or its id."""

    name: str
    view: View
    references: Sequence[str]
    captions: Sequence[RunCaption]


@dataclass(frozen=True)
class RunPart:
    """A run's options, loss curves, gradients, gates and metrics; and what it started from.

    `unattributed` and `unplaced` say why there is no attribution, and why there are no heat maps,
    or are empty.
    """

    name: str
    facts: dict[str, str]
    curves: Curves
    evaluation: Evaluation
    before: Before | None
    unplaced: str
    unattributed: str = ""
    flow: GradientFlow | None = None
    saturation: GateSaturation | None = None
    layers: LayerGradients | None = None


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    `decoding` is a phrase that describes it; `entries` are in the order of the split; `best`,
    `worst` and `different` are indices into them, the last of the images on which two runs differ
    most, or a run and what it started from.
    """

    sorted_by = SORTED_BY

    runs: Sequence[RunPart]
    split: str
    decoding: str
    entries: Sequence[Entry]
    best: Sequence[int]
    worst: Sequence[int]
    different: Sequence[int]


def gather(
    runs: Sequence[Run],
    split: str,
    beam: Beam,
    data: Path | None = None,
    count: int = LISTED,
    progress: Progress = no_progress,
) -> Report:
    """Caption a split with one or two runs of the same images; compute metrics; inspect the runs.

    All captions of a beam are listed, of `count` images: the best, the worst and others in between.
    `data` is the data folder, if it has moved.
    """
    datasets = [open_data(run, data) for run in runs]
    _check_same_images(datasets, split)
    parts = list[RunPart]()
    for run, name, dataset in zip(runs, _names(runs), datasets, strict=True):
        progress("evaluation", len(parts), len(runs))
        parts.append(_part(run, name, dataset, split, beam))
    progress("evaluation", len(parts), len(runs))
    values = [part.evaluation.scores.images[SORTED_BY] for part in parts]
    if len(parts) == 1 and (before := parts[0].before) is not None and before.captions:
        values.append(numpy.array([value for _, value in before.captions]))
    extremes = _extremes(numpy.array(values), len(parts), min(EXTREMES, -(-count // 3)))
    listed = _listed(len(values[0]), count, extremes)
    described = [k for k, known in enumerate(datasets[0].references(split)) if known]
    rows = [described[k] for k in listed]
    images = [open_image(datasets[0], split, row) for row in rows]
    evaluated = [[part.evaluation.images[k] for k in listed] for part in parts]
    shown_first = {listed.index(k) for some in extremes for k in some}
    found = [
        _captions(run, dataset, split, rows, beam, of_run, images, shown_first, progress)
        for run, dataset, of_run in zip(runs, datasets, evaluated, strict=True)
    ]
    for k, (part, (of_run, unattributed)) in enumerate(zip(parts, found, strict=True)):
        parts[k] = replace(part, unattributed=unattributed)
        if part.before is not None and part.before.captions:
            earlier = [part.before.captions[k] for k in listed]
            of_run[:] = [replace(one, before=b) for one, b in zip(of_run, earlier, strict=True)]
    captions = [of_run for of_run, _ in found]
    first = datasets[0]
    entries = [
        Entry(
            name_of(first, entry["image"], entry["id"]),
            view(first, split, row, image),
            entry["references"],
            by_run,
        )
        for entry, row, image, *by_run in zip(evaluated[0], rows, images, *captions, strict=True)
    ]
    best, worst, different = ([listed.index(k) for k in some] for some in extremes)
    return Report(parts, split, _describe(beam), entries, best, worst, different)


def _check_same_images(datasets: Sequence[Dataset], split: str) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if list(other.split(split).urls) != list(first.split(split).urls):
            raise DataError(
                f"{other.folder} has other images in '{split}' than {first.folder}; expected two"
                " runs of the same images"
            )


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the names of the runs' folders, or their paths if the names are the same."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _part(run: Run, name: str, dataset: Dataset, split: str, beam: Beam) -> RunPart:
    evaluation = evaluate_run(run, dataset, split, beam, DEFAULT)
    before = find_before(run, dataset, split, beam, evaluation)
    part = dataset.splits[split]
    some = numpy.unique(numpy.linspace(0, len(part) - 1, INSPECTED).astype(int))
    curves = read_history(run.folder / HISTORY)
    found = RunPart(name, _facts(run, dataset), curves, evaluation, before, _unplaced(run, dataset))
    model = run.model
    features = model.backend.to_device(part.features[part.image_idxs[some]])
    captions = model.backend.to_device(part.captions[some])
    if isinstance(model, Layered):
        names, *norms = layer_gradients(model, features, captions)
        return replace(found, layers=LayerGradients(names, *map(to_host, norms)))
    if not isinstance(model, Inspectable):
        return found
    flow = GradientFlow(*map(to_host, gradient_flow(model, features, captions)))
    gates, *shares = gate_saturation(model, features, captions)
    return replace(found, flow=flow, saturation=GateSaturation(gates, *map(to_host, shares)))


def _facts(run: Run, dataset: Dataset) -> dict[str, str]:
    """Summarize a run's model, data and training options."""
    sizes = (
        f"{name.removesuffix('_dim').replace('_', ' ')} {size}"
        for name, size in run.model.sizes.items()
        if name != "input_dim"
    )
    parameters = sum(value.size for value in run.model.params.values())
    try:
        options = options_of(run.folder, run.config)
        how = (
            f"{options.rule}, learning rate {options.lr}, batches of {options.batch_size},"
            f" {options.schedule.epochs} epochs, dropout {options.dropout}, seed {options.seed}"
        )
        if options.self_critical is not None:
            named = asdict(options.self_critical).items()
            how += "".join(f", {name.replace('_', ' ')} {value}" for name, value in named)
    except CheckpointError:
        how = "elsewhere"
    return {
        "network": ", ".join([run.model.family, *sizes]),
        "parameters": f"{parameters:,}",
        "vocabulary": f"{len(run.vocabulary):,} {run.vocabulary.tokens}",
        "data": f"{run.config['data'].get('name', dataset.folder.name)}",
        "features": f"{run.config['data'].get('features') or run.config['data']['kind']}"
        f" ({' x '.join(f'{size:,}' for size in run.feature_shape)} values)",
        "training": how,
    }


def _extremes(
    values: numpy.ndarray, runs: int, count: int
) -> tuple[list[int], list[int], list[int]]:
    """Return the best and worst images of `runs` runs, and those where two rows differ most.

    Values are `(runs, N)`, or of one run `(2, N)`: its own, and those of what it started from.
    """
    mean = values[:runs].mean(axis=0)
    best, worst = (numpy.argsort(order, kind="stable")[:count] for order in (-mean, mean))
    if len(values) == 1:
        return best.tolist(), worst.tolist(), []
    different = numpy.argsort(-numpy.abs(values[0] - values[1]), kind="stable")[:count]
    return best.tolist(), worst.tolist(), different.tolist()


def _listed(images: int, count: int, extremes: Iterable[Sequence[int]]) -> list[int]:
    """Choose up to `count` images: the extremes, and evenly spaced ones."""
    chosen = {k for some in extremes for k in some}
    others = [k for k in range(images) if k not in chosen]
    room = min(len(others), max(0, count - len(chosen)))
    spread = numpy.linspace(0, len(others) - 1, room).astype(int)
    return sorted(chosen | {others[k] for k in spread})


def _captions(
    run: Run,
    dataset: Dataset,
    split: str,
    rows: Sequence[int],
    beam: Beam,
    evaluated: Sequence[dict[str, Any]],
    images: Sequence[Any],
    shown_first: Collection[int],
    progress: Progress,
) -> tuple[list[RunCaption], str]:
    """Caption the listed images again, for all of the beam and the attributions.

    Each head's attention is only computed for some of them, `shown_first`.

    Also returns why there is no attribution, or an empty text.
    """
    features = dataset.splits[split].features[numpy.array(rows)]
    decoded = run.decode(features, replace(beam, n_best=beam.width))
    best, unattributed, categories = decoded.words[:, 0], "", categories_of(dataset)
    try:
        attributions = attribute(run, features, best, categories, images, progress)
    except (ConfigurationError, DataError) as error:
        attributions = [[RegionMap()] * best.shape[1]] * len(best)
        unattributed = str(error)
    attention, entries = _attention(run, features, best, categories), []
    for beam_of_image, attributed, attended, entry, image in zip(
        captions_of(run, decoded), attributions, attention, evaluated, images, strict=True
    ):
        words = [
            Word(found["word"], math.exp(found["log_prob"]), *maps)
            for found, *maps in zip(beam_of_image[0]["words"], attributed, attended, strict=False)
        ]
        metrics = {name: value for name, value in entry.items() if name not in _NO_METRICS}
        area = Area() if image is None else grid_area(run.config["data"], image.size)
        entries.append(RunCaption(words, beam_of_image, metrics, area))
    if isinstance(run.model, Layered):
        for k in shown_first:
            count = len(entries[k].words)
            heads = _heads(run, features[[k]], best[[k], :count], categories)
            entries[k] = replace(entries[k], heads=heads)
    return entries, unattributed


def _heads(
    run: Run, features: numpy.ndarray, words: numpy.ndarray, categories: Sequence[str]
) -> Heads:
    """Encode the attention of a Transformer's heads for one caption `(1, T)`."""
    model = run.model
    assert isinstance(model, Layered)
    given = (model, *map(model.backend.to_device, (features, words)))
    (among,) = to_host(self_attention(*given))
    places = numpy.tril_indices(words.shape[1])
    on_words = [levels_of(weights[places]) for weights in _with_means(among)]
    on_regions = list[list[str]]()
    if features.ndim == 3:
        regions = regions_of(run.config["data"], features[0], categories)
        (looked,) = to_host(attention_heads(*given))
        maps = _with_means(looked).swapaxes(0, 1)
        on_regions = [[shown(of_head, regions) for of_head in of_word] for of_word in maps]
    layers, heads = among.shape[:2]
    return Heads(layers, heads, on_regions, on_words)


def _with_means(weights: numpy.ndarray) -> numpy.ndarray:
    """Put before the heads of each layer `(K, A, T, n)` their mean: `(K (1 + A), T, n)`."""
    means = weights.mean(axis=1, keepdims=True)
    return numpy.concatenate([means, weights], axis=1).reshape(-1, *weights.shape[2:])


def _attention(
    run: Run, features: numpy.ndarray, words: numpy.ndarray, categories: Sequence[str]
) -> list[list[RegionMap]]:
    """Describe the attention of the words of captions `(N, T)`, or nothing for other models."""
    if not attends(run.model, features.shape[1:]):
        return [[RegionMap()] * words.shape[1]] * len(words)
    return [
        [map_of_attention(of_word, regions) for of_word in weights]
        for of_image, weights in zip(
            features, weights_of([run.model], features, words), strict=True
        )
        for regions in [regions_of(run.config["data"], of_image, categories)]
    ]


def _unplaced(run: Run, dataset: Dataset) -> str:
    """Say why regions cannot be shown over the image; empty if they can, or there are none."""
    shape = dataset.feature_shape
    if len(shape) == 1 or categories_of(dataset) or grid_side(run.config["data"], shape[0]):
        return ""
    return (
        f"the places in the image of the {shape[0]} regions are unknown, as they are not those of a"
        " square grid; the texts give their numbers"
    )


def _describe(beam: Beam) -> str:
    if beam.width == 1:
        return "greedily"
    penalty = "" if beam.length_penalty == "none" else f", length penalty {beam.length_penalty}"
    return f"by beam search, width {beam.width}{penalty}"
