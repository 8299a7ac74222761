"""Warnings while self-critical training raises the reward, and captions get worse by other figures.

Training for a metric finds whatever the metric lets through: captions that break off after "a",
repeat what is rewarded, or are the same for each image. The reward only rises meanwhile.

Compared are the first tenth of the first epoch's steps, in which the model is almost the one that
training started from; and the second half of the last epoch's, almost the one that it has become.
Nothing is said unless the reward has risen between them, and a figure counts as worse only if it
differs by more than twice the standard error of the two means, as the reward does: steps draw other
captions of other images, so that all figures vary from step to step. Beyond that, a figure must be
further away than training moves it where it goes well:

* repeats and bad endings: 0.1 above the share among training captions;
* length: a fifth more or less than that of training captions;
* entropy, and the number of different captions of an image beyond the first: below a quarter of
  that at the start. Both always fall, since training makes good captions likelier;
* the metric that selects the best epoch: a twentieth below its best value so far, about twice the
  standard error of the difference between two epochs on 1,000 images.

The validation loss is not among them: it rises, as references are not what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy

from xpcap.errors import DataError
from xpcap.training.history import Curves, read_history
from xpcap.training.trainer import Trainer

START, END = 0.1, 0.5  # shares of an epoch's steps
ERRORS = 2.0  # standard errors of a difference
SHARE, LENGTH, COLLAPSED, METRIC = 0.1, 0.2, 0.25, 0.05

_PHRASES = "--reward CIDEr-D:1,BLEU-4:0.5 or --cross-entropy 0.2"
_DIVERSITY = "--entropy 0.01 or a lower --lr"


def watch(
    trainer: Trainer, history: Path, references: Mapping[str, float], warn: Callable[[str], None]
) -> None:
    """After each epoch of self-critical training, warn of what gets worse, once for each cause.

    Parameters
    ----------
    trainer
        Its steps are in `history`, the run's `history.jsonl`, so that those before it was resumed
        count too.
    references
        The figures of `describe_samples` of training captions.
    warn
        Called with each warning, one line.
    """
    warned = set[str]()

    def check(trainer: Trainer) -> None:
        try:
            found = dict(causes(read_history(history), references))
        except DataError as error:
            found = {"history": f"{error}; captions are not compared with those at the start"}
        for cause, text in found.items():
            if cause not in warned:
                warn(f"warning: {text}")
        warned.update(found)

    trainer.on("epoch", check)


class _Check(NamedTuple):
    """A figure, how bad values of it are, the most that is not warned of, and the warning.

    Without a limit it is a quarter of the badness at the start, which is negative. The text is
    given the figure at the end, at the start, and of training captions.
    """

    name: str
    badness: Callable[[numpy.ndarray], numpy.ndarray]
    limit: float | None
    text: str


def _checks(references: Mapping[str, float]) -> list[_Check]:
    words = references["words"]
    among = "{:.0%} at the start and {:.0%} of training captions"
    return [
        _Check(
            "repeats", lambda values: values, references["repeats"] + SHARE,
            f"{{:.0%}} of captions repeat a phrase, {among}; {_PHRASES} would help",
        ),
        _Check(
            "bad_endings", lambda values: values, references["bad_endings"] + SHARE,
            f"{{:.0%}} of captions break off or end with a word such as 'a', {among}; {_PHRASES}"
            " would help",
        ),
        _Check(
            "words", lambda values: abs(values - words), LENGTH * words,
            "captions have {:.1f} words, {:.1f} at the start and {:.1f} in training captions;"
            f" {_PHRASES} would help",
        ),
        _Check(
            "entropy", lambda values: -values, None,
            "the entropy of captions fell to {:.2f} nats per word, from {:.2f} at the start;"
            f" {_DIVERSITY} would help",
        ),
        _Check(
            "distinct", lambda values: 1 - values, None,
            "only {:.2f} of the captions drawn of an image are different, {:.2f} at the start;"
            f" {_DIVERSITY} would help",
        ),
    ]  # fmt: skip


def causes(curves: Curves, references: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield the name of each figure that got worse while the reward rose, and the warning."""
    samples, epochs = curves.samples, curves.epoch_number
    if "reward" not in samples or not len(epochs):
        return
    first, last = (numpy.flatnonzero(curves.epoch == k) for k in (curves.epoch[0], epochs[-1]))
    parts = first[: 2 + int(START * len(first))], last[int(END * len(last)) :]

    def means(values: numpy.ndarray) -> list[float]:
        return [float(values[rows].mean()) for rows in parts]

    def rises(values: numpy.ndarray) -> bool:
        before, now = means(values)
        errors = [values[rows].var() / max(1, len(rows) - 1) for rows in parts]
        return bool(now - before > ERRORS * numpy.sqrt(sum(errors)))

    if not (len(last) and rises(samples["reward"])):
        return
    rose = "the reward rose from {:.3f} to {:.3f}, but".format(*means(samples["reward"]))
    for name, badness, limit, text in _checks(references):
        if name in samples and rises(values := badness(samples[name])):
            before, now = means(values)
            if now > (COLLAPSED * before if limit is None else limit):
                figures = *reversed(means(samples[name])), references.get(name)
                yield name, f"{rose} {text.format(*figures)}"
    for name, values in curves.metrics.items():
        best, now = numpy.nanmax(values), values[-1]
        if now < best - METRIC * abs(best):
            text = (
                f"{name} of validation captions fell to {now:.3f}, from {best:.3f} after epoch"
                f" {epochs[numpy.nanargmax(values)]}; --cross-entropy 0.2 or a lower --lr would"
                " help"
            )
            yield name, f"{rose} {text}"
