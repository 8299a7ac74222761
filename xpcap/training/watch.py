"""Warnings while self-critical training raises the reward, and captions get worse by other figures.

Training for a metric finds whatever the metric lets through: captions that break off after "a",
repeat what is rewarded, or are the same for each image. The reward only rises meanwhile.

Compared are the first three steps, before a high learning rate can have changed the model much, and
the second half of the last epoch's. Nothing is said unless the reward has risen between them, and a
figure counts as worse only if it differs by more than twice the standard error of the difference of
the two means, as the reward does: steps draw other captions of other images, so that all figures
vary from step to step, as they do in the second half. Beyond that, a figure must be further away
than training moves it where it goes well:

* repeats and bad endings: 0.1 above the share among training captions, and at the start, as
  captions that are drawn have more of them;
* length: a fifth more or less than that of training captions;
* entropy, and the number of different captions of an image beyond the first: below a quarter of
  that at the start. Both always fall, since training makes good captions likelier;
* the metric that selects the best epoch, whatever the reward does: a twentieth below its best value
  so far or before training, about twice the standard error of the difference between two epochs on
  1,000 images.

The validation loss is not among them: it rises, as references are not what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy

from xpcap.data.dataset import Split
from xpcap.errors import DataError
from xpcap.training.assembly import some_of
from xpcap.training.history import Curves, read_history
from xpcap.training.samples import FIGURES, describe_samples
from xpcap.training.trainer import Trainer

START, END = 3, 0.5  # steps, and a share of an epoch's steps
ERRORS = 2.0  # standard errors of a difference
SHARE, LENGTH, COLLAPSED, METRIC = 0.1, 0.2, 0.25, 0.05

_PHRASES = "--reward CIDEr-D:1,BLEU-4:0.5 or --cross-entropy 0.2"
_DIVERSITY = "--entropy 0.01 or a lower --lr"


def watch(
    trainer: Trainer,
    history: Path,
    split: Split,
    warn: Callable[[str], None],
    before: float | None = None,
) -> None:
    """After each epoch of self-critical training, warn of what gets worse, once for each cause.

    All steps are read from the run's `history.jsonl`, so that those before it was resumed count
    too; `split` is the training split, `before` the metric before the first step, if it is known.
    """
    references = describe_samples(some_of(split).captions[:, 1:], trainer.model.word_to_idx)
    warned = set[str]()

    def check(trainer: Trainer) -> None:
        with suppress(DataError):  # which the history warns of
            for cause, text in causes(read_history(history), references, before):
                if cause not in warned:
                    warned.add(cause)
                    warn(f"warning: {text}")

    trainer.on("epoch", check)


def causes(
    curves: Curves, references: Mapping[str, float], before: float | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the name of each figure that got worse while the reward rose, and the warning.

    `references` are the figures of `describe_samples` of training captions, `before` is the metric
    before training. A metric that falls is told whatever the reward does.
    """
    epochs, absent = curves.epoch_number, numpy.full(len(curves.step), numpy.nan)
    found = {name: curves.samples.get(name, absent) for name in FIGURES}
    last = numpy.flatnonzero(curves.epoch == epochs.max(initial=0))
    parts = slice(START), last[int(END * len(last)) :]
    if not len(last):
        return
    for name, values in curves.metrics.items():
        best = -math.inf if before is None else before
        when = "before training"
        if numpy.nanmax(values) > best:
            best, when = numpy.nanmax(values), f"after epoch {epochs[numpy.nanargmax(values)]}"
        if values[-1] < (1 - METRIC) * best:
            help = "--cross-entropy 0.2 or a lower --lr would help"
            yield (
                name,
                f"{name} of validation captions is {values[-1]:.3f}, {best:.3f} {when}; {help}",
            )

    def means(values: numpy.ndarray) -> list[float]:
        return [float(numpy.nanmean(values[rows])) for rows in parts]

    def rises(values: numpy.ndarray) -> bool:
        before, now = means(values)
        error = numpy.nanstd(values[parts[1]]) * math.sqrt(1 / START + 1 / len(parts[1]))
        return bool(now - before > ERRORS * error)

    def share(name: str) -> float:
        return max(references[name], means(found[name])[0])

    if not rises(found["reward"]):
        return
    rose = "the reward rose from {:.3f} to {:.3f}, but".format(*means(found["reward"]))
    among, words = "{:.0%} at the start and {:.0%} of training captions", references["words"]
    for name, badness, limit, text in (
        ("repeats", found["repeats"], share("repeats") + SHARE,
         f"{{:.0%}} of captions repeat a phrase, {among}; {_PHRASES} would help"),
        ("bad_endings", found["bad_endings"], share("bad_endings") + SHARE,
         f"{{:.0%}} of captions break off or end with a word such as 'a', {among}; {_PHRASES} would"
         " help"),
        ("words", abs(found["words"] - words), LENGTH * words,
         "captions have {:.1f} words, {:.1f} at the start and {:.1f} in training captions;"
         f" {_PHRASES} would help"),
        ("entropy", -found["entropy"], -COLLAPSED * means(found["entropy"])[0],
         "the entropy of captions fell to {:.2f} nats per word, from {:.2f} at the start;"
         f" {_DIVERSITY} would help"),
        ("distinct", 1 - found["distinct"], COLLAPSED * means(1 - found["distinct"])[0],
         "only {:.2f} of the captions drawn of an image are different, {:.2f} at the start;"
         f" {_DIVERSITY} would help"),
    ):  # fmt: skip
        if means(badness)[1] > limit and rises(badness):
            figures = *reversed(means(found[name])), references.get(name)
            yield name, f"{rose} {text.format(*figures)}"
