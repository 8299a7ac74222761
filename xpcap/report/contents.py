"""The contents of a report on one or two runs, without their layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy

from xpcap.backend import Array, to_host
from xpcap.data.dataset import Dataset
from xpcap.data.vocabulary import NULL, decode_captions, plain
from xpcap.decoding import Beam, Decoded
from xpcap.errors import CheckpointError, DataError
from xpcap.evaluation import DEFAULT, Evaluation, evaluate_run
from xpcap.models import CaptionModel
from xpcap.models.inspection import (
    GateSaturation,
    GradientFlow,
    Inspectable,
    gate_saturation,
    gradient_flow,
)
from xpcap.report.attribution import Attribution, attribute
from xpcap.report.images import View, categories_of, open_image, view
from xpcap.runs import HISTORY, Run
from xpcap.runs.dataset import open_data
from xpcap.train.history import Curves, read_history
from xpcap.train.options import options_of

SORTED_BY = "CIDEr-D"
INSPECTED = 256  # captions whose gradients and gates are inspected
LISTED = 300  # images, at most
EXTREMES = 12  # best and worst images, and those on which two runs differ most
Inspected = TypeVar("Inspected", GradientFlow, GateSaturation)
_NO_METRICS = ("image", "id", "caption", "references")


@dataclass(frozen=True)
class Word:
    """A generated word with its probability and attribution."""

    text: str
    probability: float
    attribution: Attribution


@dataclass(frozen=True)
class RunCaption:
    """The words of a run's best caption, the captions of its beam, and the metrics."""

    words: Sequence[Word]
    beams: Sequence[tuple[str, float]]
    values: dict[str, float | None]

    @property
    def value(self) -> float:
        """The metric that captions are sorted by."""
        return self.values[SORTED_BY] or 0.0


@dataclass(frozen=True)
class Entry:
    """An image with its references and a caption per run; `id` is that of its data set."""

    id: int
    view: View
    references: Sequence[str]
    captions: Sequence[RunCaption]


@dataclass(frozen=True)
class RunPart:
    """A run's options, loss curves, gradients, gates and metrics."""

    name: str
    facts: dict[str, str]
    curves: Curves
    evaluation: Evaluation
    flow: GradientFlow | None = None
    saturation: GateSaturation | None = None


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    Parameters
    ----------
    runs
        One or two.
    split
        The split that was captioned.
    decoding
        A phrase that describes the decoding.
    entries
        The images listed, in the order of the split.
    best, worst, different
        Indices into `entries`; `different` is empty for one run.
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
) -> Report:
    """Caption a split with one or two runs, compute metrics, and inspect the runs.

    Parameters
    ----------
    runs
        One or two, of the same images.
    split
        `"train"` or `"val"`.
    beam
        The decoding; all captions of a beam are listed.
    data
        The data folder, if it has moved.
    count
        Number of images listed: the best, the worst and others in between.
    """
    datasets = [open_data(run, data) for run in runs]
    _check_same_images(datasets, split)
    parts = [
        _part(run, name, dataset, split, beam)
        for run, name, dataset in zip(runs, _names(runs), datasets, strict=True)
    ]
    values = numpy.array([part.evaluation.scores.images[SORTED_BY] for part in parts])
    extremes = _extremes(values, min(EXTREMES, -(-count // 3)))
    listed = _listed(values.shape[1], count, extremes)
    described = [k for k, known in enumerate(datasets[0].references(split)) if known]
    rows = [described[k] for k in listed]
    images = [open_image(datasets[0], split, row) for row in rows]
    captions = [
        _captions(run, dataset, split, rows, beam, part.evaluation, listed, images)
        for run, dataset, part in zip(runs, datasets, parts, strict=True)
    ]
    found = [parts[0].evaluation.images[k] for k in listed]
    entries = [
        Entry(entry["id"], view(datasets[0], split, row, image), entry["references"], by_run)
        for entry, row, image, *by_run in zip(found, rows, images, *captions, strict=True)
    ]
    best, worst, different = ([listed.index(k) for k in some] for some in extremes)
    return Report(parts, split, _describe(beam), entries, best, worst, different)


def _check_same_images(datasets: Sequence[Dataset], split: str) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if list(other.splits[split].urls) != list(first.splits[split].urls):
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
    part = dataset.splits[split]
    some = numpy.unique(numpy.linspace(0, len(part) - 1, INSPECTED).astype(int))
    to_device = run.model.backend.to_device
    features = to_device(part.features[part.image_idxs[some]])
    captions = to_device(part.captions[some])
    return RunPart(
        name,
        _facts(run, dataset),
        read_history(run.folder / HISTORY),
        evaluation,
        *_inspected(run.model, features, captions),
    )


def _inspected(
    model: CaptionModel, features: Array, captions: Array
) -> tuple[GradientFlow | None, GateSaturation | None]:
    if not isinstance(model, Inspectable):
        return None, None
    return (
        _on_host(gradient_flow(model, features, captions)),
        _on_host(gate_saturation(model, features, captions)),
    )


def _on_host(found: Inspected) -> Inspected:
    values = {name: getattr(found, name) for name in found._fields}
    there = {name: to_host(value) for name, value in values.items() if hasattr(value, "shape")}
    return found._replace(**there)


def _facts(run: Run, dataset: Dataset) -> dict[str, str]:
    """Summarize a run's model, data and training options."""
    model = run.config["model"]
    parameters = sum(value.size for value in run.model.params.values())
    try:
        options = options_of(run.folder, run.config)
        how = (
            f"{options.rule}, learning rate {options.lr}, batches of {options.batch_size},"
            f" {options.schedule.epochs} epochs, dropout {options.dropout}, seed {options.seed}"
        )
    except CheckpointError:
        how = "elsewhere"
    return {
        "network": f"{model['cell_type']}, hidden {model['hidden_dim']}, word vectors"
        f" {model['wordvec_dim']}",
        "parameters": f"{parameters:,}",
        "vocabulary": f"{len(run.vocabulary):,} words",
        "data": f"{run.config['data'].get('name', dataset.folder.name)}",
        "features": f"{run.config['data'].get('features') or run.config['data']['kind']}"
        f" ({model['input_dim']:,} values)",
        "training": how,
    }


def _extremes(values: numpy.ndarray, count: int) -> tuple[list[int], list[int], list[int]]:
    """Return the best, worst and most different images, given values `(runs, N)`."""
    mean = values.mean(axis=0)
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
    evaluation: Evaluation,
    listed: Sequence[int],
    images: Sequence[Any],
) -> list[RunCaption]:
    """Caption the listed images again, for all of the beam and the attributions."""
    features = dataset.splits[split].features[numpy.array(rows)]
    decoded = run.decode(features, replace(beam, n_best=beam.width))
    words = decoded.words[:, 0]
    attributions = attribute(run, features, words, categories_of(dataset), images)
    return [
        RunCaption(
            _words(run, words[n], decoded.log_probs[n, 0], attributions[n]),
            _beams(run, decoded, n),
            {name: found[name] for name in found if name not in _NO_METRICS},
        )
        for n, found in enumerate(evaluation.images[k] for k in listed)
    ]


def _words(
    run: Run,
    indices: numpy.ndarray,
    log_probs: numpy.ndarray,
    attributions: Sequence[Attribution],
) -> list[Word]:
    """Return the words of a caption, including `<END>`."""
    length = int((indices != run.vocabulary.word_to_idx[NULL]).sum())
    return [
        Word(
            run.vocabulary.idx_to_word[indices[t]], float(numpy.exp(log_probs[t])), attributions[t]
        )
        for t in range(length)
    ]


def _beams(run: Run, decoded: Decoded, n: int) -> list[tuple[str, float]]:
    """Return an image's captions and log-probabilities, the best first."""
    captions = decode_captions(decoded.words[n], run.vocabulary.idx_to_word)
    return [
        (plain(caption), float(log_probs.sum()))
        for caption, log_probs, score in zip(
            captions, decoded.log_probs[n], decoded.scores[n], strict=True
        )
        if numpy.isfinite(score)
    ]


def _describe(beam: Beam) -> str:
    if beam.width == 1:
        return "greedily"
    penalty = "" if beam.length_penalty == "none" else f", length penalty {beam.length_penalty}"
    return f"by beam search, width {beam.width}{penalty}"
