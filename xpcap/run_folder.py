"""A run: the folder that training leaves behind, and everything needed to caption with it.

config.json     format, xpcap's version, the model's sizes, where the data came from, options
vocab.json      idx_to_word, word_to_idx
history.jsonl   an object a step, and one an epoch with the validation figures
best.npz        the parameters of the epoch with the lowest validation loss
last.npz        the parameters at the end
pca.h5          where features are reduced: the transform, so that new pictures can follow
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import Backend, as_backend
from xpcap.checkpoint import load_parameters
from xpcap.data.extraction import extract
from xpcap.data.extractors import open_extractor
from xpcap.data.folder import FEATURE_KINDS
from xpcap.data.pca import PCA
from xpcap.data.vocabulary import Vocabulary, decode_captions, plain
from xpcap.decoding import Beam, Sampling, beam_search, sample
from xpcap.errors import CheckpointError, XpcapError
from xpcap.files import explained, new_folder, read_json
from xpcap.models import CaptioningRNN

FORMAT = 1
CONFIG, VOCABULARY, HISTORY = "config.json", "vocab.json", "history.jsonl"
BEST, LAST, TRANSFORM = "best.npz", "last.npz", "pca.h5"
BATCH = 256


def create_run(
    folder: Path,
    config: Mapping[str, Any],
    vocabulary: Vocabulary,
    transform: PCA | None = None,
) -> None:
    """Begin a run: make its folder with everything that is known before the first step.

    Parameters
    ----------
    folder
        A new name.
    config
        With `model` (the arguments of `CaptioningRNN`) and `data`.
    vocabulary
        The words.
    transform
        How the data set's features were reduced, if they were.

    Raises
    ------
    CheckpointError
        If the folder holds another run.
    DataError
        If it holds something else, or cannot be written.
    """
    check_new_run(folder)
    with new_folder(folder) as temporary:
        vocabulary.write(temporary / VOCABULARY)
        with explained(folder / CONFIG, "write"):
            (temporary / CONFIG).write_text(json.dumps({"format": FORMAT, **config}, indent=2))
        if transform is not None:
            transform.write(temporary / TRANSFORM)


def check_new_run(folder: Path) -> None:
    """Check that a folder does not hold a run already.

    Raises
    ------
    CheckpointError
        If it does.
    """
    with explained(folder, "write"):
        taken = (folder / CONFIG).exists()
    if taken:
        raise CheckpointError(f"{folder} holds another run; expected a new name")


@dataclass(frozen=True)
class Run:
    """An open run.

    Parameters
    ----------
    folder
        Where it is.
    config
        What `config.json` says.
    vocabulary
        Its words.
    model
        With the parameters of the best epoch.
    """

    folder: Path
    config: Mapping[str, Any]
    vocabulary: Vocabulary
    model: CaptioningRNN

    def caption(self, features: numpy.ndarray, how: Beam | Sampling | None = None) -> list[str]:
        """Caption images.

        Parameters
        ----------
        features
            `(N, D)` of the kind the run was trained on, on the host.
        how
            How captions are found, the best of each image; None is greedily, `<UNK>` and all.

        Returns
        -------
        list of str
            N sentences without `<START>` and `<END>`.
        """
        backend, sentences = self.model.backend, list[str]()
        with backend.activate():
            for first in range(0, len(features), BATCH):
                rows = backend.to_device(features[first : first + BATCH])
                if how is None:
                    words = self.model.sample(rows)
                elif isinstance(how, Beam):
                    words = beam_search(self.model, rows, how).words[:, 0]
                else:
                    words = sample(self.model, rows, how).words[:, 0]
                sentences += decode_captions(words, self.vocabulary.idx_to_word)
        return [plain(sentence) for sentence in sentences]

    def features_of(self, pictures: Sequence[Path], weights: Path | None = None) -> numpy.ndarray:
        """Compute the features of pictures as those of the training set were.

        Parameters
        ----------
        pictures
            Files that Pillow can open.
        weights
            Where the extractor's file is, if it has moved.

        Returns
        -------
        array
            `(N, D)` float32.

        Raises
        ------
        CheckpointError
            If the run was trained on features that xpcap cannot compute from pixels.
        DataError
            If a file is no picture, or the extractor cannot be had here as it was.
        """
        data = self.config["data"]
        if not data.get("extractor"):
            raise CheckpointError(
                f"{self.folder} was trained on features that xpcap cannot compute from a picture"
                f" ({data.get('features') or 'no extractor in its data set'})"
            )
        extractor = open_extractor(data["extractor"], weights)
        features = extract(extractor, pictures)
        transform = self.transform
        return features if transform is None else transform.transform(features)

    @property
    def transform(self) -> PCA | None:
        """How the features of its extractor were reduced, if they were."""
        data = self.config["data"]
        if data["kind"] != "pca" or not data.get("extractor"):
            return None
        return PCA.read(self.folder / TRANSFORM)


def open_run(folder: Path, backend: Backend | str | None = None) -> Run:
    """Open a run to caption with it.

    Parameters
    ----------
    folder
        Made by `xpcap train`.
    backend
        Where the model shall live: a device name, a `Backend`, or None for the default one.

    Raises
    ------
    CheckpointError
        If the folder holds no run, one of another format, or a file of it is damaged.
    """
    path = folder / CONFIG
    with explained(folder, "read"):
        there = path.exists()
    if not there:
        raise CheckpointError(f"{folder} is not a run; expected a folder made by xpcap train")
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected a run of format {FORMAT}")
    vocabulary = Vocabulary.read(folder / VOCABULARY)
    _check_config(path, config)
    try:
        model = CaptioningRNN(vocabulary.word_to_idx, **config["model"], backend="cpu")
    except (XpcapError, TypeError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path}: 'model' cannot be built: {error}") from error
    if not (folder / BEST).exists():
        raise CheckpointError(f"{folder} has no {BEST}; its training ended before the first epoch")
    model.params = load_parameters(folder / BEST, model.params)
    return Run(folder, config, vocabulary, model.to(as_backend(backend)))


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Check that the parts of `config.json` that are used are of their types."""
    data = config.get("data")
    if not isinstance(config.get("model"), dict) or not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected 'model' and 'data', both objects")
    if data.get("kind") not in FEATURE_KINDS or not isinstance(data.get("folder"), str):
        raise CheckpointError(
            f"{path}: expected 'data' with 'kind' (pca, fc7) and 'folder', a text"
        )
    if not isinstance(data.get("extractor") or {}, dict):
        raise CheckpointError(f"{path}: expected the 'extractor' of 'data' to be an object")
