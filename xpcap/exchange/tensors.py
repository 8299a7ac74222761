"""Files of safetensors: a state dict and, in files that xpcap wrote, what else a run needs.

Such a file has one text, `xpcap`, an object in JSON: `format`; `vocabulary`, the list of words; and
`config` with `model` and `data` as in a run's `config.json`. Where features are reduced, three more
tensors, `pca.mean`, `pca.components` and `pca.explained_variance`, say how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from safetensors.numpy import load, save

from xpcap.data.pca import PCA
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import DataError
from xpcap.exchange.contents import FORMAT, TEXT, Contents, description
from xpcap.exchange.torch_layout import to_torch
from xpcap.files import explained, new_file

_REDUCTION = "pca."
_FLOATING = ("F64", "F32", "F16")
_LONG = 8  # bytes of the length of the header


class Said(NamedTuple):
    """What a file of ours says of itself: its words, and the two parts of its configuration."""

    vocabulary: Vocabulary
    model: dict[str, Any]
    data: dict[str, Any]


def write_safetensors(path: Path, contents: Contents) -> None:
    """Write a captioner as the state dict of PyTorch's layers, with all that a run needs.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    tensors = to_torch(contents.params)
    if contents.transform is not None:
        for name, value in vars(contents.transform).items():
            tensors[f"{_REDUCTION}{name}"] = numpy.ascontiguousarray(value)
    content = save(tensors, {TEXT: description(contents)})
    with new_file(path) as temporary, explained(path, "write"):
        temporary.write_bytes(content)


def read_safetensors(path: Path) -> tuple[dict[str, numpy.ndarray], Said | None]:
    """Read a file that nobody vouches for.

    Returns
    -------
    tensors, said
        By name; and what `description` wrote, or None if xpcap did not write the file.

    Raises
    ------
    DataError
        If the file is damaged, holds other than floating numbers of 16, 32 or 64 bits, or a text of
        xpcap's that is none.
    """
    with explained(path, "read"):
        content = path.read_bytes()
    try:
        header = json.loads(content[_LONG : _LONG + int.from_bytes(content[:_LONG], "little")])
        text = header.pop("__metadata__", {}).get(TEXT)
        kinds = {name: entry["dtype"] for name, entry in header.items()}
        known = all(kind in _FLOATING for kind in kinds.values())
        tensors = load(content) if known else {}
    except Exception as error:  # what is wrong with a header has many forms
        raise DataError(
            f"{path} is not a whole safetensors file, nor an .npz file; expected one of"
            " safetensors.torch.save_file (not of torch.save), or of numpy.savez"
        ) from error
    for name, kind in kinds.items():
        if kind not in _FLOATING:
            raise DataError(
                f"{path}: {name!r:.60} is of the kind {kind!r:.20}; expected"
                f" {', '.join(_FLOATING)} (in PyTorch: tensor.float())"
            )
    return tensors, None if text is None else _parsed(path, text)


def split_transform(
    tensors: Mapping[str, numpy.ndarray],
) -> tuple[dict[str, numpy.ndarray], PCA | None]:
    """Take the transform, if there is one, from among the tensors of a file."""
    names = [f"{_REDUCTION}{name}" for name in PCA.__dataclass_fields__]
    if not all(name in tensors for name in names):
        return dict(tensors), None
    state = {name: value for name, value in tensors.items() if name not in names}
    return state, PCA(*(tensors[name] for name in names))


def _parsed(path: Path, text: str) -> Said:
    try:
        content = json.loads(text)
        words, config = content["vocabulary"], content["config"]
        model, data = config["model"], config["data"]
        fits = content["format"] == FORMAT and isinstance(model, dict) and isinstance(data, dict)
    except (ValueError, TypeError, LookupError, RecursionError):
        fits = False
    if not fits:
        raise DataError(
            f"{path}: expected its text '{TEXT}' to be one of xpcap export: JSON of format"
            f" {FORMAT} with 'vocabulary', and 'config' with 'model' and 'data'"
        )
    return Said(Vocabulary.checked(words, f"{path}: 'vocabulary'"), model, data)
