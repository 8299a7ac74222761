"""A captioner trained by a run, with what is needed to caption new images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from xpcap import threads
from xpcap.backend import to_host
from xpcap.data.extraction import Extracted, extract
from xpcap.data.extractors import open_extractor
from xpcap.data.features import LazyFeatures
from xpcap.data.images import as_images
from xpcap.data.pca import PCA
from xpcap.data.progress import Progress, no_progress
from xpcap.data.vocabulary import Vocabulary
from xpcap.decoding import (
    MAX_LENGTH,
    Beam,
    Captioner,
    Decoded,
    Ensemble,
    Sampling,
    beam_search,
    sample,
    score_captions,
)
from xpcap.distributed import Alone, Ranks, share_out
from xpcap.errors import CheckpointError, ConfigurationError, DataError
from xpcap.models import CaptionModel
from xpcap.models.generation import decoding_spans
from xpcap.runs.attention import Attention, attending, weights_of
from xpcap.runs.folder import TRANSFORM
from xpcap.runs.search import check_search, make_search, with_length

BATCH = 256


def _are_features(images: Any) -> bool:
    """Whether images are given as features: pixels are integers."""
    if isinstance(images, LazyFeatures):
        return True
    return isinstance(images, numpy.ndarray) and images.dtype.kind == "f"


def _joined(parts: Sequence[Decoded]) -> Decoded:
    return Decoded(*map(numpy.concatenate, zip(*parts, strict=True)))


@dataclass(frozen=True, repr=False)
class Run:
    """An open run: a captioner, and what it was trained on."""

    folder: Path
    config: Mapping[str, Any]  # as in its checkpoints
    vocabulary: Vocabulary
    model: CaptionModel  # with the parameters of the best epoch
    partners: Sequence[CaptionModel] = ()  # models of other runs, see `ensemble`
    ranks: Ranks = field(default_factory=Alone)  # the processes that share the images
    file: Path | None = None  # the checkpoint that it was opened from

    def __repr__(self) -> str:
        data = self.config.get("data", {})
        features = f"{data.get('kind')} of {(extractor_of(data) or {}).get('name', 'its files')}"
        models = "".join(f"\n  {model!r}" for model in (self.model, *self.partners))
        return f"Run({str(self.folder)!r}) on {data.get('name')}, features: {features}{models}"

    @property
    def max_words(self) -> int:
        """The most words of a caption, `<END>` not counted.

        That of its data set, 30 if not recorded, or fewer if its models cannot generate so many.
        """
        recorded = self.config.get("data", {}).get("max_words", MAX_LENGTH)
        return int(min(recorded, self.captioner.max_length - 1))

    @property
    def captioner(self) -> Captioner:
        """What predicts words: the model, or the ensemble with its partners."""
        return Ensemble([self.model, *self.partners]) if self.partners else self.model

    def decode(self, features: numpy.ndarray, how: Beam | Sampling | None = None) -> Decoded:
        """Caption images, with the log-probabilities of the words.

        Features are `(N, D)` or `(N, L, D)`, of the kind the run was trained on; they and the
        result are on the host. The default search is greedy, without `<UNK>`. Captions have at most
        `max_words` words unless the search has its own limit.
        """
        how = self._search(how)
        backend, captioner = self.model.backend, self.captioner

        def work(part: slice) -> Decoded:
            rows = backend.to_device(features[part])
            if isinstance(how, Beam):
                found = beam_search(captioner, rows, how)
            else:
                found = sample(captioner, rows, how, part.start)
            return Decoded(*map(to_host, found))

        def share(part: slice) -> Decoded:
            first, spans = part.start, decoding_spans(self.model, part.stop - part.start)
            parts = [slice(first + span.start, first + span.stop) for span in spans]
            return _joined(threads.run([partial(work, part) for part in parts]))

        with backend.activate():
            return _joined(share_out(max(len(features), 1), BATCH, self.ranks, share))

    def caption(self, images: Any, how: Beam | Sampling | None = None, **options: Any) -> list[str]:
        """Return the best caption of each image, without special tokens.

        `images` are file names, PIL images and arrays of 8-bit pixels `(height, width, 3)`, or one
        of them; or a floating array with the features `(N, D)` or `(N, L, D)`, on the host. Instead
        of a search, `options` of `make_search` may be given, such as `beam=3`; otherwise a
        `ConfigurationError` is raised. Other errors are those of `features_of`, and a `DataError`
        if the features are not of `feature_shape`.
        """
        _, words = self._best(images, how, options)
        return self.vocabulary.sentences(words)

    def attention(
        self, images: Any, how: Beam | Sampling | None = None, **options: Any
    ) -> list[Attention]:
        """Return the words of each image's best caption, and where the model looked for each.

        Arguments and errors are those of `caption`; `ConfigurationError` too if the model has no
        attention. The weights `(T, L)` of features of a grid are maps: `weights.reshape(T, 7, 7)`
        for the 49 regions of `efficientnet-lite0`. Those of an ensemble are its models' mean.
        """
        attending((self.model, *self.partners), self.feature_shape)
        features, captions = self._best(images, how, options)
        maps = weights_of((self.model, *self.partners), features, captions)
        return [
            Attention([self.vocabulary.idx_to_word[word] for word in words], weights[: len(words)])
            for caption, weights in zip(captions, maps, strict=True)
            for words in [caption[caption != self.model.null]]
        ]

    def _best(
        self, images: Any, how: Beam | Sampling | None, options: Mapping[str, Any]
    ) -> tuple[Any, numpy.ndarray]:
        """Return the features of images, and the words `(N, T)` of their best captions."""
        how = self._search(how, **options)
        features = self._checked(images) if _are_features(images) else self.features_of(images)
        return features, self.decode(features, how).words[:, 0]

    def _search(self, how: Beam | Sampling | None, **options: Any) -> Beam | Sampling:
        """Return `how`, or a search by its options, with a limit of words."""
        check_search(options)
        if how is None:
            how = make_search(self.vocabulary, **options)
        elif options or not isinstance(how, Beam | Sampling):
            given = ", ".join([repr(how), *options])
            raise ConfigurationError(
                f"{given}: expected either a Beam or Sampling, or options such as beam=3"
            )
        return with_length(how, self.max_words)

    def score(self, features: numpy.ndarray, captions: numpy.ndarray) -> numpy.ndarray:
        """Return the log-probabilities `(N, T)` of the words of given captions, in nats.

        Features are those of `decode`, one image a caption, and captions `(N, T+1)`; all are on the
        host.
        """
        backend = self.model.backend

        def work(part: slice) -> numpy.ndarray:
            arrays = backend.to_device(features[part]), backend.to_device(captions[part])
            return numpy.asarray(to_host(score_captions(self.captioner, *arrays)))

        with backend.activate():
            spans = decoding_spans(self.model, len(captions))
            return numpy.concatenate(threads.run([partial(work, part) for part in spans]))

    def features_of(self, images: Any, weights: Path | None = None) -> numpy.ndarray:
        """Compute features of images, `(N, D)` or `(N, L, D)`, as those of the training set were.

        Images are those of `caption`; `weights` is the extractor's file, if it has moved.

        Raises
        ------
        CheckpointError
            If the run was trained on features that xpcap cannot compute from pixels.
        DataError
            If a file is no image, or the extractor is missing or another one.
        """
        return self.extract(images, weights).features

    def extract(
        self,
        images: Any,
        weights: Path | None = None,
        skip_broken: bool = False,
        progress: Progress = no_progress,
    ) -> Extracted:
        """Compute features as `features_of` does; images that cannot be opened may be skipped."""
        data = self.config["data"]
        if not data.get("extractor"):
            raise CheckpointError(
                f"{self.folder} was trained on features that xpcap cannot compute from an image"
                f" ({data.get('features') or 'no extractor in its data set'})"
            )
        images = as_images(images)
        extractor = open_extractor(data["extractor"], weights)
        found = extract(extractor, images, skip_broken, progress, self.ranks)
        transform = self.transform
        if transform is not None:
            found = found._replace(features=transform.transform(found.features))
        return found

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Features per image that the run was trained on: `(D,)`, or `(L, D)` of L regions.

        L is 0 if an imported run does not say how many there were.
        """
        unknown = [0, 0] if self.model.needs_regions else [0]
        shape = self.config.get("data", {}).get("shape") or unknown
        return (*shape[:-1], self.model.sizes["input_dim"])

    def _checked(self, features: Any) -> Any:
        """Return features, after checking their shape; there may be any number of regions."""
        found, expected = tuple(features.shape), self.feature_shape
        if len(found) != len(expected) + 1 or found[-1] != expected[-1]:
            one = "L, " * (len(expected) - 1)
            raise DataError(
                f"features are {found}; expected (N, {one}{expected[-1]}), as {self.folder} was"
                " trained with; pixels are 8-bit integers"
            )
        return features

    @property
    def transform(self) -> PCA | None:
        """The transform that reduced the features of its extractor, or None."""
        data = self.config["data"]
        if data["kind"] != "pca" or not data.get("extractor"):
            return None
        path = self.folder / TRANSFORM
        if not path.exists():
            raise CheckpointError(
                f"{self.folder} has no {TRANSFORM}, by which its features are reduced; expected it"
                f" beside the checkpoint: copy that of its run, or of the data folder"
                f" {data['folder']}"
            )
        return PCA.read(path)


def ensemble(runs: Sequence[Run]) -> Run:
    """Combine runs on one device: the probability of a word is the average of theirs.

    Returns the first one, with the others' models as partners and the largest `max_words`; they
    must have its vocabulary and need the same features.
    """
    for other in runs[1:]:
        _check_compatible(runs[0], other)
    models = [model for run in runs for model in (run.model, *run.partners)]
    config = runs[0].config
    data = {**config["data"], "max_words": max(run.max_words for run in runs)}
    return replace(runs[0], config={**config, "data": data}, model=models[0], partners=models[1:])


def _check_compatible(first: Run, other: Run) -> None:
    why = "expected the same, as they are to decide together"
    if other.vocabulary.stored() != first.vocabulary.stored():
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
    data = run.config["data"]
    return {
        "features per image": " x ".join(map(str, run.feature_shape)),
        "features of the kind": data["kind"],
        "features from": extractor_of(data) or data.get("features"),
    }


def extractor_of(description: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the extractor of a data set's or run's description, without its file's location.

    The rows and columns of its grid, which follow from the rest, are left out too.
    """
    extractor = description.get("extractor")
    left_out = "weights", "grid"  # older versions did not record the grid
    return extractor and {key: value for key, value in extractor.items() if key not in left_out}
