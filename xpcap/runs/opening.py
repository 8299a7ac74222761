"""Opening a run: its checkpoint is checked, then the model is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpcap.backend import Backend, as_backend
from xpcap.data.encoding import LONGEST
from xpcap.data.folder import FEATURE_KINDS
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import CheckpointError, XpcapError
from xpcap.files import explained
from xpcap.models import FAMILIES, CaptionModel
from xpcap.runs.checkpoint import Checkpoint, read_checkpoint
from xpcap.runs.folder import BEST, is_run, not_a_run
from xpcap.runs.run import Run

_COMMON = ("dtype", "dropout", "seed")  # arguments of every family


def open_run(path: Path, backend: Backend | str | None = None) -> Run:
    """Open a run, or a checkpoint file, to caption with it on a device (None is the default one).

    Of a run folder the best epoch is taken. A missing or damaged run, or one of another format,
    raises `CheckpointError`.
    """
    with explained(path, "read"):
        file = path / BEST if path.is_dir() else path
        if not file.exists():
            if is_run(path):
                raise CheckpointError(
                    f"{path} has no {BEST}; its training has not come to the end of an epoch"
                )
            raise not_a_run(path)
    checkpoint = read_checkpoint(file)
    model = build_model(file, checkpoint).to(as_backend(backend))
    return Run(file.parent, checkpoint.config, checkpoint.vocabulary, model, file=file)


def make_model(
    vocabulary: Vocabulary, config: Mapping[str, Any], backend: Backend | str | None = None
) -> CaptionModel:
    """Make a new model as the `model` of a run's configuration describes it."""
    family, sizes, common = _parts(config)
    return family(vocabulary.word_to_idx, **sizes, **common, backend=backend)


def build_model(path: Path, checkpoint: Checkpoint) -> CaptionModel:
    """Make the model of a checkpoint, on the CPU.

    Names and shapes are compared with those of the family before the model takes memory. Where they
    do not fit together, the `CheckpointError` names the file `path`.
    """
    config, parameters = checkpoint.config, checkpoint.state.parameters
    _check_config(path, config)
    try:
        family, sizes, _ = _parts(config["model"])
        shapes = family.shapes(len(checkpoint.vocabulary), **sizes)
    except KeyError as error:
        raise CheckpointError(f"{path}: 'model' lacks {error}") from error
    except (XpcapError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: 'model' cannot be built: {error}") from error
    for name in {**shapes, **parameters}:
        found = parameters[name].shape if name in parameters else None
        if found != shapes.get(name):
            raise CheckpointError(
                f"{path}: '{name}' is of shape {found}; expected {shapes.get(name)}, as 'model' and"
                f" {len(checkpoint.vocabulary)} words have it"
            )
    try:
        model = make_model(checkpoint.vocabulary, config["model"], "cpu")
    except (XpcapError, TypeError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path}: 'model' cannot be built: {error}") from error
    model.params = {name: parameters[name] for name in model.params}  # sums depend on their order
    return model


def _parts(config: Mapping[str, Any]) -> tuple[type[CaptionModel], dict[str, Any], dict[str, Any]]:
    """Return the family, the arguments of its `shapes`, and those that all families have."""
    sizes = dict(config)
    name = sizes.pop("family", "recurrent")
    if name not in FAMILIES:
        raise CheckpointError(f"family {name!r:.40} is unknown; expected {', '.join(FAMILIES)}")
    common = {argument: sizes.pop(argument) for argument in _COMMON if argument in sizes}
    return FAMILIES[name], sizes, common


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Check the types of the parts of a configuration that are used."""
    data = config.get("data")
    if not isinstance(config.get("model"), dict) or not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected 'model' and 'data', both objects")
    if data.get("kind") not in FEATURE_KINDS or not isinstance(data.get("folder"), str):
        raise CheckpointError(
            f"{path}: expected 'data' with 'kind' (pca, fc7) and 'folder', a text"
        )
    shape = data.get("shape", [1])
    if not isinstance(shape, list) or [*map(type, shape)] not in ([int], [int, int]):
        raise CheckpointError(f"{path}: expected 'shape' of 'data' to be [D] or [L, D]")
    length = data.get("max_words", 1)
    if type(length) is not int or not 1 <= length <= LONGEST:
        raise CheckpointError(
            f"{path}: expected the 'max_words' of 'data' to be a number from 1 to {LONGEST}"
        )
    if not isinstance(data.get("extractor") or {}, dict):
        raise CheckpointError(f"{path}: expected the 'extractor' of 'data' to be an object")
