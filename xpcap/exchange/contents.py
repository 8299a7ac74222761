"""The contents of a converted run: the same for every format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.pca import PCA
from xpcap.data.vocabulary import Vocabulary
from xpcap.files import explained
from xpcap.runs import BEST, HISTORY, create_run
from xpcap.runs.checkpoint import Checkpoint, TrainingState, written_by

FORMAT, TEXT = 1, "xpcap"


@dataclass(frozen=True)
class Contents:
    """A captioner: its parameters by name, on the host, and what belongs to them.

    `config` has `model` and `data` as in a run's checkpoints.
    """

    params: Mapping[str, numpy.ndarray]
    vocabulary: Vocabulary
    config: Mapping[str, Any]
    transform: PCA | None = None


def write_run(folder: Path, contents: Contents) -> None:
    """Make a new run folder with an empty history."""
    state = TrainingState(contents.params)
    best = Checkpoint(contents.config, contents.vocabulary, state, written_by("cpu"))
    create_run(folder, {BEST: best}, contents.transform)
    with explained(folder, "write"):
        (folder / HISTORY).touch()


def description(contents: Contents) -> str:
    """Return the text `xpcap` of exported files, JSON: `format`, `vocabulary` and `config`."""
    words = contents.vocabulary.stored()
    return json.dumps({"format": FORMAT, "vocabulary": words, "config": contents.config})
