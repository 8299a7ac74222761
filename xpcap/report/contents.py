"""What a report tells of one or two runs, gathered before a line of it is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy

from xpcap.backend import to_host
from xpcap.data.dataset import Dataset
from xpcap.data.vocabulary import NULL, decode_captions, plain
from xpcap.decoding import Beam, Decoded
from xpcap.errors import CheckpointError, DataError
from xpcap.evaluation import DEFAULT, Evaluation, evaluate_run
from xpcap.models.inspection import GateSaturation, GradientFlow, gate_saturation, gradient_flow
from xpcap.report.attribution import Spoken, spoken_for
from xpcap.report.pictures import Picture, categories_of, picture_of, shown
from xpcap.runs import HISTORY, Run
from xpcap.runs.dataset import open_data
from xpcap.train.history import Curves, read_history
from xpcap.train.options import options_of

SORTED_BY = "CIDEr-D"
INSPECTED = 256  # captions whose gradients are looked at
LISTED = 300  # images, where there are more
EXTREMES = 12  # best ones, worst ones, and those about which two runs differ most
Looked = TypeVar("Looked", GradientFlow, GateSaturation)
_DESCRIBING = ("image", "id", "caption", "references")  # all else of an image are its values


@dataclass(frozen=True)
class Word:
    """A word that a run said, how sure it was, and what in the image spoke for it."""

    text: str
    probability: float
    spoken: Spoken


@dataclass(frozen=True)
class Said:
    """What a run says of an image: the best caption, the others of its beam, and values."""

    caption: str
    words: Sequence[Word]
    beams: Sequence[tuple[str, float]]
    values: dict[str, float | None]

    @property
    def value(self) -> float:
        """What captions are sorted by."""
        return self.values[SORTED_BY] or 0.0


@dataclass(frozen=True)
class Entry:
    """An image with what people and the runs say of it; `id` is its number where it came from."""

    id: int
    picture: Picture
    references: Sequence[str]
    said: Sequence[Said]


@dataclass(frozen=True)
class RunPart:
    """What is told of a run itself."""

    name: str
    facts: dict[str, str]
    curves: Curves
    flow: GradientFlow
    saturation: GateSaturation
    evaluation: Evaluation


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    Parameters
    ----------
    runs
        One or two.
    split
        Whose images were captioned.
    decoding
        How, in words.
    entries
        The images listed, in the order of the split.
    best, worst, different
        Places in `entries`; `different` is empty for one run.
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
    """Caption a split with one or two runs, measure, and look inside.

    Parameters
    ----------
    runs
        One or two, of the same images.
    split
        `"train"` or `"val"`.
    beam
        How captions are found; all of a beam are listed.
    data
        The data folder, if it has moved.
    count
        How many images are listed; of more, the best, the worst and some between.

    Raises
    ------
    DataError
        If two runs were trained on data sets of other images, or a file is damaged or missing.
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
    pictures = [picture_of(datasets[0], split, row) for row in rows]
    said = [
        _said(run, dataset, split, rows, beam, part.evaluation, listed, pictures)
        for run, dataset, part in zip(runs, datasets, parts, strict=True)
    ]
    images = [parts[0].evaluation.images[k] for k in listed]
    entries = [
        Entry(image["id"], shown(datasets[0], split, row, picture), image["references"], by_run)
        for image, row, picture, *by_run in zip(images, rows, pictures, *said, strict=True)
    ]
    best, worst, different = ([listed.index(k) for k in some] for some in extremes)
    return Report(parts, split, _in_words(beam), entries, best, worst, different)


def _check_same_images(datasets: Sequence[Dataset], split: str) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if list(other.splits[split].urls) != list(first.splits[split].urls):
            raise DataError(
                f"{other.folder} has other images in '{split}' than {first.folder}; expected two"
                " runs of the same images"
            )


def _names(runs: Sequence[Run]) -> list[str]:
    """Call runs by their folders' names, or where these are alike by their paths."""
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
        _on_host(gradient_flow(run.model, features, captions)),
        _on_host(gate_saturation(run.model, features, captions)),
        evaluation,
    )


def _on_host(found: Looked) -> Looked:
    values = {name: getattr(found, name) for name in found._fields}
    there = {name: to_host(value) for name, value in values.items() if hasattr(value, "shape")}
    return found._replace(**there)


def _facts(run: Run, dataset: Dataset) -> dict[str, str]:
    """Say in a few words what a run is."""
    model = run.config["model"]
    parameters = sum(value.size for value in run.model.params.values())
    try:
        options = options_of(run.config)
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
        f" ({model['input_dim']:,} numbers)",
        "training": how,
    }


def _extremes(values: numpy.ndarray, count: int) -> tuple[list[int], list[int], list[int]]:
    """Return which images `(runs, N)` are best, worst, and most different, so many of each."""
    mean = values.mean(axis=0)
    best, worst = (numpy.argsort(order, kind="stable")[:count] for order in (-mean, mean))
    if len(values) == 1:
        return best.tolist(), worst.tolist(), []
    different = numpy.argsort(-numpy.abs(values[0] - values[1]), kind="stable")[:count]
    return best.tolist(), worst.tolist(), different.tolist()


def _listed(images: int, count: int, extremes: Iterable[Sequence[int]]) -> list[int]:
    """Choose images: the extremes, and as many evenly spaced ones as there is room for."""
    chosen = {k for some in extremes for k in some}
    others = [k for k in range(images) if k not in chosen]
    room = min(len(others), max(0, count - len(chosen)))
    spread = numpy.linspace(0, len(others) - 1, room).astype(int)
    return sorted(chosen | {others[k] for k in spread})


def _said(
    run: Run,
    dataset: Dataset,
    split: str,
    rows: Sequence[int],
    beam: Beam,
    evaluation: Evaluation,
    listed: Sequence[int],
    pictures: Sequence[Any],
) -> list[Said]:
    """Caption some images once more, to see all of the beam and what spoke for each word."""
    features = dataset.splits[split].features[numpy.array(rows)]
    decoded = run.decode(features, replace(beam, n_best=beam.width))
    words = decoded.words[:, 0]
    spoken = spoken_for(run, features, words, categories_of(dataset), pictures)
    return [
        Said(
            image["caption"],
            _words(run, words[n], decoded.log_probs[n, 0], spoken[n]),
            _beams(run, decoded, n),
            {name: image[name] for name in image if name not in _DESCRIBING},
        )
        for n, image in enumerate(evaluation.images[k] for k in listed)
    ]


def _words(
    run: Run, indices: numpy.ndarray, log_probs: numpy.ndarray, spoken: Sequence[Spoken]
) -> list[Word]:
    """Return the words of a caption, `<END>` with them."""
    said = int((indices != run.vocabulary.word_to_idx[NULL]).sum())
    return [
        Word(run.vocabulary.idx_to_word[indices[t]], float(numpy.exp(log_probs[t])), spoken[t])
        for t in range(said)
    ]


def _beams(run: Run, decoded: Decoded, n: int) -> list[tuple[str, float]]:
    """Return the captions of an image, the best first, each with its log-probability."""
    captions = decode_captions(decoded.words[n], run.vocabulary.idx_to_word)
    return [
        (plain(caption), float(log_probs.sum()))
        for caption, log_probs, score in zip(
            captions, decoded.log_probs[n], decoded.scores[n], strict=True
        )
        if numpy.isfinite(score)
    ]


def _in_words(beam: Beam) -> str:
    if beam.width == 1:
        return "greedily"
    penalty = "" if beam.length_penalty == "none" else f", length penalty {beam.length_penalty}"
    return f"by beam search, width {beam.width}{penalty}"
