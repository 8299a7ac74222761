"""The model that a checkpoint holds, once all that the checkpoint says of it fits together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpcap.checkpoint import Checkpoint
from xpcap.data.folder import FEATURE_KINDS
from xpcap.errors import CheckpointError, XpcapError
from xpcap.models import CaptioningRNN


def build_model(path: Path, checkpoint: Checkpoint) -> CaptioningRNN:
    """Make the model of a checkpoint, on the CPU.

    Raises
    ------
    CheckpointError
        If configuration, vocabulary and parameters do not fit together; it names the file `path`.
    """
    config, parameters = checkpoint.config, checkpoint.state.parameters
    _check_config(path, config)
    sizes = {
        ("W_proj", 0): "input_dim",
        ("W_proj", 1): "hidden_dim",
        ("W_embed", 1): "wordvec_dim",
        ("Wx", 0): "wordvec_dim",
        ("Wh", 0): "hidden_dim",
        ("W_vocab", 0): "hidden_dim",
    }
    for (name, axis), size in sizes.items():  # before memory is taken
        there = parameters[name].shape if name in parameters else ()
        if len(there) != 2 or there[axis] != config["model"].get(size):
            raise CheckpointError(
                f"{path}: '{name}' is of shape {there}; expected 'model' of the same {size}"
            )
    words, hidden = len(checkpoint.vocabulary), len(parameters["Wh"])
    if not len(parameters["W_embed"]) == parameters["W_vocab"].shape[1] == words:
        raise CheckpointError(
            f"{path}: 'W_embed' has {len(parameters['W_embed'])} rows, and 'W_vocab'"
            f" {parameters['W_vocab'].shape[1]} columns; expected one for each of {words} words"
        )
    for name in ("Wx", "Wh"):
        if parameters[name].shape[1] < hidden:
            raise CheckpointError(
                f"{path}: '{name}' is of shape {parameters[name].shape}; expected {hidden} columns"
                " or more, as there are hidden units"
            )
    try:
        model = CaptioningRNN(checkpoint.vocabulary.word_to_idx, **config["model"], backend="cpu")
    except (XpcapError, TypeError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path}: 'model' cannot be built: {error}") from error
    for name in parameters.keys() | model.params.keys():
        found, expected = (
            params[name].shape if name in params else None for params in (parameters, model.params)
        )
        if found != expected:
            raise CheckpointError(f"{path}: '{name}' is of shape {found}; expected {expected}")
    model.params = {name: parameters[name] for name in model.params}  # sums depend on their order
    return model


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Check that the parts of a configuration that are used are of their types."""
    data = config.get("data")
    if not isinstance(config.get("model"), dict) or not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected 'model' and 'data', both objects")
    if data.get("kind") not in FEATURE_KINDS or not isinstance(data.get("folder"), str):
        raise CheckpointError(
            f"{path}: expected 'data' with 'kind' (pca, fc7) and 'folder', a text"
        )
    if not isinstance(data.get("extractor") or {}, dict):
        raise CheckpointError(f"{path}: expected the 'extractor' of 'data' to be an object")
