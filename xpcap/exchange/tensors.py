"""Safetensors files: a state dict and, in files that xpcap wrote, everything else a run needs.

Such a file has one metadata text, `xpcap`, see `contents.description`. A transform of features is
stored in three more tensors, `pca.mean`, `pca.components` and `pca.explained_variance`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import load, save

from xpcap.data.pca import PCA
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import DataError
from xpcap.exchange.contents import FORMAT, TEXT, Contents, description
from xpcap.exchange.torch_layout import to_torch
from xpcap.files import explained, new_file

_TRANSFORM = "pca."
_FLOATING = ("F64", "F32", "F16")
_LONG = 8  # bytes of the length of the header


def write_safetensors(path: Path, contents: Contents) -> None:
    """Write a captioner as the state dict of PyTorch's layers, with everything a run needs."""
    tensors = to_torch(contents.params)
    if contents.transform is not None:
        for name, value in vars(contents.transform).items():
            tensors[f"{_TRANSFORM}{name}"] = numpy.ascontiguousarray(value)
    content = save(tensors, {TEXT: description(contents)})
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def read_safetensors(
    path: Path,
) -> tuple[dict[str, numpy.ndarray], Vocabulary | None, dict[str, Any]]:
    """Read the tensors of an untrusted file: 16, 32 or 64 bit floats.

    If xpcap wrote the file, its words and its configuration follow, else None and an empty one.
    """
    with explained(path, "read"):
        content = path.read_bytes()
    try:
        header = json.loads(content[_LONG : _LONG + int.from_bytes(content[:_LONG], "little")])
        text = header.pop("__metadata__", {}).get(TEXT)
        kinds = {name: entry["dtype"] for name, entry in header.items()}
        known = all(kind in _FLOATING for kind in kinds.values())
        tensors = load(content) if known else {}
    except Exception as error:  # a damaged header raises many kinds of errors
        what = "is not a whole safetensors file, nor an .npz file" if content else "is empty"
        raise DataError(
            f"{path} {what}; expected one of"
            " safetensors.torch.save_file (not of torch.save), or of numpy.savez"
        ) from error
    for name, kind in kinds.items():
        if kind not in _FLOATING:
            raise DataError(
                f"{path}: {name!r:.60} is of dtype {kind!r:.20}; expected"
                f" {', '.join(_FLOATING)} (in PyTorch: tensor.float())"
            )
    return (tensors, None, {}) if text is None else (tensors, *_parsed(path, text))


def split_transform(
    tensors: Mapping[str, numpy.ndarray],
) -> tuple[dict[str, numpy.ndarray], PCA | None]:
    """Separate the tensors of the transform, if there is one, from the others."""
    names = [f"{_TRANSFORM}{name}" for name in PCA.__dataclass_fields__]
    if not all(name in tensors for name in names):
        return dict(tensors), None
    state = {name: value for name, value in tensors.items() if name not in names}
    return state, PCA(*(tensors[name] for name in names))


def _parsed(path: Path, text: str) -> tuple[Vocabulary, dict[str, Any]]:
    content = None
    try:
        content = json.loads(text)
        words, config = content["vocabulary"], content["config"]
        parts = [config[name] for name in ("model", "data")]
        fits = content["format"] == FORMAT and all(isinstance(part, dict) for part in parts)
    except (ValueError, TypeError, LookupError, RecursionError):
        fits = False
    if isinstance(content, dict) and "written_by" in content:
        raise DataError(
            f"{path} is a checkpoint of a run, which needs no import: other commands take it for a"
            " RUN"
        )
    if not fits:
        raise DataError(
            f"{path}: expected its text '{TEXT}' to be one of xpcap export: JSON of format"
            f" {FORMAT} with 'vocabulary', and 'config' with 'model' and 'data'"
        )
    return Vocabulary.checked(words, f"{path}: 'vocabulary'"), config
