"""From pictures to the features of a captioner: what every way of doing it looks like.

A data set keeps the description of the extractor that its features come from, and a run keeps it
too, so that a new picture's features are computed in the same way or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy

from xpcap.data.extractors.filter_bank import FilterBank
from xpcap.data.extractors.onnx import OnnxExtractor, open_onnx
from xpcap.data.extractors.preprocessing import PRESETS, Preprocessing
from xpcap.errors import ConfigurationError, DataError

__all__ = [
    "EXTRACTORS",
    "PRESETS",
    "Extractor",
    "FilterBank",
    "OnnxExtractor",
    "Preprocessing",
    "make_extractor",
    "open_extractor",
]

EXTRACTORS = (FilterBank.name, *PRESETS, "onnx")
"""The names that `make_extractor` knows."""


class Extractor(Protocol):
    """What computes the features of pictures."""

    @property
    def name(self) -> str:
        """One of `EXTRACTORS`."""

    @property
    def dim(self) -> int:
        """D, the numbers a picture has."""

    def prepare(self, picture: Any) -> numpy.ndarray:
        """Turn a `PIL.Image.Image` in red, green and blue into one entry of a batch.

        Many threads may do so at once.
        """

    def __call__(self, images: Any) -> Any:
        """Compute the features `(N, D)` float32 of a batch of prepared pictures."""

    def describe(self) -> dict[str, Any]:
        """Return what `open_extractor` needs to find this extractor again, ready for JSON."""


def make_extractor(
    name: str,
    weights: Path | None = None,
    output: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Extractor:
    """Choose an extractor for a new data set.

    Parameters
    ----------
    name
        `"filter-bank"`; a preset of `PRESETS`, which says how its network wants pictures; or
        `"onnx"` for any other network.
    weights
        The ONNX file; of all but the filter bank.
    output
        Which output of the network to take; None is its only one.
    changes
        Fields of `Preprocessing` that are to be other than the preset's.

    Raises
    ------
    ConfigurationError
        If the name is unknown, or something is given that the extractor cannot use.
    DataError
        If the file cannot be used.
    """
    if name not in EXTRACTORS:
        raise ConfigurationError(
            f"extractor '{name}' is unknown; expected one of {', '.join(EXTRACTORS)}"
        )
    if name == FilterBank.name:
        if weights or output or changes:
            raise ConfigurationError(f"'{name}' has no weights, output or preprocessing to choose")
        return FilterBank()
    if weights is None:
        raise ConfigurationError(
            f"extractor '{name}' needs the weights of its network, an ONNX file"
        )
    preset = PRESETS.get(name, Preprocessing())
    return OnnxExtractor(weights, preset.changed({} if changes is None else changes), output, name)


def open_extractor(description: Mapping[str, Any], weights: Path | None = None) -> Extractor:
    """Return the extractor that a data set's or a run's description names.

    Parameters
    ----------
    description
        What `describe` returned.
    weights
        Where its ONNX file is now, if it has moved.

    Raises
    ------
    DataError
        If it cannot be had here, in the very same version, with the very same weights.
    """
    if "weights" in description:
        return open_onnx(description, weights)
    bank = FilterBank()
    if dict(description) != bank.describe():
        raise DataError(
            f"the features come from {dict(description)}, which cannot be computed here;"
            f" expected {bank.describe()}"
        )
    if weights is not None:
        raise DataError(f"'{bank.name}' has no weights, but {weights} was given")
    return bank
