"""A run: the folder that training leaves behind, and everything needed to caption with it.

best.safetensors    the checkpoint of the epoch with the lowest validation loss
last.safetensors    the last checkpoint, from which training goes on
history.jsonl       an object a step, and one an epoch with the validation figures
pca.h5              where features are reduced: the transform, so that new pictures can follow
step-N.safetensors  earlier checkpoints, where they were asked for
diverged.json       what is known of the step where numbers went wrong, if training stopped there
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from xpcap import threads
from xpcap.backend import Backend, as_backend, is_host, to_host
from xpcap.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from xpcap.checkpoint_model import build_model
from xpcap.data.extraction import BATCH as PICTURES
from xpcap.data.extraction import extract
from xpcap.data.extractors import open_extractor
from xpcap.data.pca import PCA
from xpcap.data.vocabulary import NULL, START, UNK, Vocabulary, decode_captions, plain
from xpcap.decoding import (
    Beam,
    Captioner,
    Constraints,
    Decoded,
    Ensemble,
    Sampling,
    beam_search,
    sample,
    score_captions,
)
from xpcap.errors import CheckpointError
from xpcap.files import explained, lock, new_folder, not_through_links, remove_parts
from xpcap.models import CaptioningRNN
from xpcap.parallel import Alone, Ranks, share_out

BEST, LAST, EARLIER = "best.safetensors", "last.safetensors", "step-*.safetensors"
HISTORY, TRANSFORM, REPORT = "history.jsonl", "pca.h5", "diverged.json"
_LOCK = ".lock"
BATCH = 256


def create_run(
    folder: Path, checkpoints: Mapping[str, Checkpoint], transform: PCA | None = None
) -> None:
    """Make a run's folder.

    Parameters
    ----------
    folder
        A new name.
    checkpoints
        By `BEST` and `LAST`, what it begins with: at least one.
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
        for name, checkpoint in checkpoints.items():
            write_checkpoint(temporary / name, checkpoint)
        if transform is not None:
            transform.write(temporary / TRANSFORM)


def check_new_run(folder: Path) -> None:
    """Check that a folder does not hold a run already.

    Raises
    ------
    CheckpointError
        If it does.
    """
    if is_run(folder):
        raise CheckpointError(f"{folder} holds another run; expected a new name")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    with explained(folder, "read"):
        return any((folder / name).exists() for name in (BEST, LAST))


def checkpoint_of(path: Path) -> Path:
    """Return a run's last checkpoint, its best where there is no last; a file is returned as it is.

    Raises
    ------
    CheckpointError
        If there is neither.
    """
    with explained(path, "read"):
        if not path.is_dir():
            return path
        for name in (LAST, BEST):
            if (path / name).exists():
                return path / name
    raise CheckpointError(f"{path} is not a run; expected a folder made by xpcap train")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other process train in a run's folder meanwhile.

    What processes that were killed have left there half-written is removed.

    Raises
    ------
    DataError
        If another one does, or the folder cannot be written.
    """
    with explained(folder, "write"):
        file = open(folder / _LOCK, "ab", opener=not_through_links)  # noqa: SIM115 - closed below
    with file:
        lock(file, folder)
        for name in (BEST, LAST, EARLIER, REPORT):
            remove_parts(folder, name)
        yield


def _joined(parts: Sequence[Decoded]) -> Decoded:
    return Decoded(*map(numpy.concatenate, zip(*parts, strict=True)))


@dataclass(frozen=True)
class Run:
    """An open run.

    Parameters
    ----------
    folder
        Where it is.
    config
        What its checkpoints say of it.
    vocabulary
        Its words.
    model
        With the parameters of the best epoch.
    partners
        Models of other runs that decide with it, see `ensemble`.
    ranks
        The processes that share out what is captioned.
    """

    folder: Path
    config: Mapping[str, Any]
    vocabulary: Vocabulary
    model: CaptioningRNN
    partners: Sequence[CaptioningRNN] = ()
    ranks: Ranks = field(default_factory=Alone)

    @property
    def captioner(self) -> Captioner:
        """What says how likely words are: the model, with its partners if it has any."""
        return Ensemble([self.model, *self.partners]) if self.partners else self.model

    def decode(self, features: numpy.ndarray, how: Beam | Sampling | None = None) -> Decoded:
        """Find captions of images, and how likely their words are.

        Parameters
        ----------
        features
            `(N, D)` of the kind the run was trained on, on the host.
        how
            How captions are found; None is greedily, without `<UNK>`.

        Returns
        -------
        Decoded
            Of all N images, on the host.
        """
        if how is None:
            how = Beam(width=1, constraints=Constraints(banned=unsaid(self.vocabulary)))
        backend, captioner = self.model.backend, self.captioner

        def work(part: slice) -> Decoded:
            rows = backend.to_device(features[part])
            if isinstance(how, Beam):
                found = beam_search(captioner, rows, how)
            else:
                found = sample(captioner, rows, how, part.start)
            return Decoded(*map(to_host, found))

        def share(part: slice) -> Decoded:
            first, spans = part.start, self._spans(part.stop - part.start)
            parts = [slice(first + span.start, first + span.stop) for span in spans]
            return _joined(threads.run([partial(work, part) for part in parts]))

        with backend.activate():
            return _joined(share_out(max(len(features), 1), BATCH, self.ranks, share))

    def _spans(self, count: int) -> list[slice]:
        """Return the spans of `count` images or captions that the threads of a CPU take."""
        return threads.spans(count) if is_host(self.model.backend.xp) else [slice(0, count)]

    def caption(self, features: numpy.ndarray, how: Beam | Sampling | None = None) -> list[str]:
        """Caption images: the best of what `decode` finds.

        Returns
        -------
        list of str
            N sentences without `<START>` and `<END>`.
        """
        words = self.decode(features, how).words[:, 0]
        return [plain(said) for said in decode_captions(words, self.vocabulary.idx_to_word)]

    def score(self, features: numpy.ndarray, captions: numpy.ndarray) -> numpy.ndarray:
        """Return how likely the words of given captions are, as `score_captions` says.

        Parameters
        ----------
        features
            `(N, D)`, one image a caption, on the host.
        captions
            `(N, T+1)` on the host.

        Returns
        -------
        array
            `(N, T)` in nats, on the host.
        """
        backend = self.model.backend

        def work(part: slice) -> numpy.ndarray:
            arrays = backend.to_device(features[part]), backend.to_device(captions[part])
            return numpy.asarray(to_host(score_captions(self.captioner, *arrays)))

        with backend.activate():
            spans = self._spans(len(captions))
            return numpy.concatenate(threads.run([partial(work, part) for part in spans]))

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

        def work(part: slice) -> numpy.ndarray:
            return extract(extractor, pictures[part])

        features = numpy.concatenate(share_out(max(len(pictures), 1), PICTURES, self.ranks, work))
        transform = self.transform
        return features if transform is None else transform.transform(features)

    @property
    def transform(self) -> PCA | None:
        """How the features of its extractor were reduced, if they were."""
        data = self.config["data"]
        if data["kind"] != "pca" or not data.get("extractor"):
            return None
        return PCA.read(self.folder / TRANSFORM)


def unsaid(vocabulary: Vocabulary, allow_unk: bool = False) -> tuple[int, ...]:
    """Return the indices of what captions shall not hold: marks, and `<UNK>` unless allowed."""
    marks = (NULL, START) if allow_unk else (NULL, START, UNK)
    return tuple(vocabulary.word_to_idx[mark] for mark in marks)


def ensemble(runs: Sequence[Run]) -> Run:
    """Let runs decide together: the probability of a word is the average of theirs.

    Parameters
    ----------
    runs
        One or more, on one device.

    Returns
    -------
    Run
        The first one, with the others' models as partners.

    Raises
    ------
    CheckpointError
        If one has other words than the first, or needs other features.
    """
    for other in runs[1:]:
        _check_alike(runs[0], other)
    models = [model for run in runs for model in (run.model, *run.partners)]
    return replace(runs[0], model=models[0], partners=models[1:])


def _check_alike(first: Run, other: Run) -> None:
    """Check that two runs have the same words and need the same features."""
    why = "expected the same, as they are to decide together"
    if tuple(other.vocabulary.idx_to_word) != tuple(first.vocabulary.idx_to_word):
        raise CheckpointError(f"{other.folder} has another vocabulary than {first.folder}; {why}")
    expected, found = _input(first), _input(other)
    for what in expected:
        if found[what] != expected[what]:
            raise CheckpointError(
                f"{other.folder} has {what} {found[what]}, {first.folder} {expected[what]}; {why}"
            )
    one, another = first.transform, other.transform
    if one is not None and another is not None and not another.equals(one):
        raise CheckpointError(
            f"{other.folder} has other principal components than {first.folder}; {why}"
        )


def _input(run: Run) -> dict[str, Any]:
    """Return what is fed into a run's model, in words."""
    data = run.config["data"]
    return {
        "the input size": run.model.params["W_proj"].shape[0],
        "features of the kind": data["kind"],
        "features from": extractor_of(data) or data.get("features"),
    }


def extractor_of(description: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the extractor that a data set's or a run's description names, wherever its file is."""
    extractor = description.get("extractor")
    return extractor and {key: value for key, value in extractor.items() if key != "weights"}


def open_run(path: Path, backend: Backend | str | None = None) -> Run:
    """Open a run to caption with it.

    Parameters
    ----------
    path
        A folder made by `xpcap train`, of which the best epoch is taken; or one of its checkpoints.
    backend
        Where the model shall live: a device name, a `Backend`, or None for the default one.

    Raises
    ------
    CheckpointError
        If there is no run, or one of another format, or a file of it is damaged.
    """
    with explained(path, "read"):
        file = path / BEST if path.is_dir() else path
        if not file.exists():
            if is_run(path):
                raise CheckpointError(
                    f"{path} has no {BEST}; its training has not come to the end of an epoch"
                )
            raise CheckpointError(f"{path} is not a run; expected a folder made by xpcap train")
    checkpoint = read_checkpoint(file)
    model = build_model(file, checkpoint).to(as_backend(backend))
    return Run(file.parent, checkpoint.config, checkpoint.vocabulary, model)
