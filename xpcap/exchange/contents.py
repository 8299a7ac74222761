"""What goes from one place to another; the only part that knows how a run folder is filled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import to_host
from xpcap.data.pca import PCA
from xpcap.data.vocabulary import Vocabulary
from xpcap.files import explained
from xpcap.runs import BEST, HISTORY, Run, create_run
from xpcap.runs.checkpoint import Checkpoint, TrainingState, written_by

FORMAT, TEXT = 1, "xpcap"


@dataclass(frozen=True)
class Contents:
    """A captioner, wherever it comes from.

    Parameters
    ----------
    params
        By name, as in `CaptioningRNN.params`, on the host.
    vocabulary
        Its words.
    config
        `model` and `data`, as in a run's checkpoints.
    transform
        How features of its extractor are reduced, if they are.
    """

    params: Mapping[str, numpy.ndarray]
    vocabulary: Vocabulary
    config: Mapping[str, Any]
    transform: PCA | None = None


def contents_of(run: Run) -> Contents:
    """Return what a run consists of.

    Raises
    ------
    DataError
        If its transform cannot be read.
    """
    params = {name: to_host(value) for name, value in run.model.params.items()}
    config = {name: run.config[name] for name in ("model", "data")}
    return Contents(params, run.vocabulary, config, run.transform)


def write_run(folder: Path, contents: Contents) -> None:
    """Make a run folder, a new name, with an empty history.

    Raises
    ------
    XpcapError
        If it cannot be made.
    """
    state = TrainingState(contents.params)
    best = Checkpoint(contents.config, contents.vocabulary, state, written_by("cpu"))
    create_run(folder, {BEST: best}, contents.transform)
    with explained(folder, "write"):
        (folder / HISTORY).touch()


def description(contents: Contents) -> str:
    """Return the text `xpcap` of exported files: `format`, `vocabulary` and `config`, as JSON."""
    words = list(contents.vocabulary.idx_to_word)
    return json.dumps({"format": FORMAT, "vocabulary": words, "config": contents.config})
