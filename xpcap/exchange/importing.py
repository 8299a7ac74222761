"""Import of weights of other programs as a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy

from xpcap.data import folder as layout
from xpcap.data.dataset import open_dataset
from xpcap.data.pca import PCA, read_transform
from xpcap.data.vocabulary import Vocabulary
from xpcap.decoding import MAX_LENGTH
from xpcap.errors import ConfigurationError, DataError, XpcapError
from xpcap.exchange.contents import Contents, write_run
from xpcap.exchange.course import read_npz
from xpcap.exchange.parameters import COMMON, sizes_of, unified
from xpcap.exchange.tensors import read_safetensors, split_transform
from xpcap.exchange.torch_layout import from_torch
from xpcap.files import check_plain, explained, new_folder
from xpcap.layers.multi_head import check_heads
from xpcap.runs import Run, check_new_run, open_run
from xpcap.runs.dataset import check_regions, data_configuration, open_data

_ZIP = b"PK"  # the first bytes of an .npz file


def import_run(
    file: Path,
    out: Path,
    data: Path | None = None,
    vocab: Path | None = None,
    features: str = "auto",
    heads: int | None = None,
) -> Run:
    """Make a run folder `out` from a file of weights, and open it on the CPU.

    The file is a state dict in safetensors, or the course's `.npz`. If the weights cannot be
    imported, no folder is left.

    Parameters
    ----------
    data
        The data folder that the weights were trained on; state dicts of `export_run` name theirs.
    vocab
        A file like `coco2014_vocab.json`, if neither `file` nor `data` has the words.
    features
        Which features of `data`: `"pca"`, `"fc7"`, or `"auto"`: pca if their number is that of the
        weights, else fc7.
    heads
        The number of heads of a Transformer's attention, which shapes do not tell; state dicts of
        `export_run` name theirs.
    """
    check_new_run(out)
    check_plain(file)
    with explained(file, "read"), open(file, "rb") as opened:
        zipped = opened.read(len(_ZIP)) == _ZIP
    tensors, own, described = (read_npz(file), None, {}) if zipped else read_safetensors(file)
    vocabulary = _vocabulary(file, own, data, vocab)
    tensors, transform = split_transform(tensors)
    params = _parameters(file, unified(str(file), tensors), len(vocabulary))
    words, sizes = sizes_of(str(file), params)
    if words != len(vocabulary):
        raise DataError(
            f"{file} has weights of {words} words; expected {len(vocabulary)} as the vocabulary has"
        )
    if not described:
        origin, transform = _origin(data, features, sizes["input_dim"])
    else:
        folder = {} if data is None else {"folder": str(data.resolve())}
        origin = {**described["data"], **folder}
        if features not in ("auto", kind := origin.get("kind")):
            raise ConfigurationError(f"{file} takes features of the kind {kind}, not {features}")
    model = {"dropout": 0.0, "seed": 0, **described.get("model", {}), **sizes}
    model["dtype"] = str(params["W_proj"].dtype)
    model |= _heads(file, model, heads)
    if "heads" in model and not described:
        model.setdefault("max_length", origin.get("max_words", MAX_LENGTH) + 1)  # with `<END>`
    config = {"model": model, "data": origin, "imported": file.name}
    with new_folder(out) as temporary:
        write_run(temporary, Contents(params, vocabulary, config, transform))
        try:
            run = open_run(temporary, "cpu")
            _check_features(run, data)
        except XpcapError as error:
            raise type(error)(str(error).replace(str(temporary), str(file))) from error
    return replace(run, folder=out)


def _vocabulary(
    file: Path, own: Vocabulary | None, data: Path | None, vocab: Path | None
) -> Vocabulary:
    """Return the words of all sources that have any; they must be the same."""
    found = {} if own is None else {file: own}
    for path in (vocab, data and data / layout.VOCABULARY):
        if path is not None:
            found[path] = Vocabulary.read(path)
    if not found:
        raise ConfigurationError(
            f"{file} does not say which words it knows; expected the data folder that it was"
            " trained on (data=FOLDER), or a file like coco2014_vocab.json (vocab=FILE)"
        )
    (first, vocabulary), *others = found.items()
    for path, other in others:
        if other.stored() != vocabulary.stored():
            raise DataError(f"{path} has other words than {first}; expected the same")
    return vocabulary


def _parameters(
    file: Path, tensors: dict[str, numpy.ndarray], words: int
) -> dict[str, numpy.ndarray]:
    """Return parameters under our names, converted if they are a state dict."""
    if set(COMMON) <= set(tensors):
        return tensors
    try:
        return unified(str(file), from_torch(tensors, words))
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def _origin(data: Path | None, features: str, dim: int) -> tuple[dict[str, Any], PCA | None]:
    """Return the `data` of a run's configuration, and the transform of its features."""
    if data is None:
        return {"folder": "(no data folder)", "kind": "fc7"}, None
    dataset = open_dataset(data, features, lazy=True)
    others = data / layout.features_file("train", "fc7")
    if features == "auto" and dataset.feature_dim != dim and others.exists():
        dataset = open_dataset(data, "fc7", lazy=True)
    origin = data_configuration(dataset)
    reduced = dataset.kind == "pca" and origin["extractor"]
    return origin, read_transform(data) if reduced else None


def _heads(file: Path, model: Mapping[str, Any], heads: int | None) -> dict[str, int]:
    """Return the `heads` of a Transformer's attention, given or those of its file."""
    family, known = model.get("family"), model.get("heads")
    if family == "transformer" and heads is None and known is None:
        raise ConfigurationError(
            f"{file} does not say how many heads its attention has; expected their number"
            " (heads=NUMBER)"
        )
    if heads is not None and (family != "transformer" or known not in (None, heads)):
        what = "no attention with heads" if family != "transformer" else f"{known} heads"
        raise ConfigurationError(f"{file} has {what}, not {heads}")
    if heads is None:
        return {}
    check_heads(str(file), heads, model["hidden_dim"])
    return {"heads": heads}


def _check_features(run: Run, data: Path | None) -> None:
    """Check that the features of the data folder and of new images fit the model."""
    if data is not None:
        check_regions(type(run.model), open_data(run))
    transform, dim = run.transform, run.config["model"]["input_dim"]
    if transform is not None and len(transform.components) != dim:
        raise DataError(
            f"{run.folder} reduces features to {len(transform.components)} numbers; expected {dim}"
            " as its weights take"
        )
