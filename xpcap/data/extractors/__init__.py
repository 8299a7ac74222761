"""Feature extractors: from images to the features of a captioner.

Data sets and runs store the description of their extractor, so that the features of a new image are
computed in the same way or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy

from xpcap.data.extractors.efficientnet_lite0 import EfficientNetLite0, installed_weights
from xpcap.data.extractors.filter_bank import FilterBank
from xpcap.data.extractors.onnx import OnnxExtractor, open_onnx
from xpcap.data.extractors.preprocessing import PRESETS, Preprocessing
from xpcap.errors import ConfigurationError, DataError

__all__ = ["PRESETS", "EfficientNetLite0", "FilterBank", "OnnxExtractor", "Preprocessing"]

EXTRACTORS = (EfficientNetLite0.name, FilterBank.name, *PRESETS, "onnx")
"""The names of `make_extractor`."""


class Extractor(Protocol):
    """Computes the features of images."""

    @property
    def name(self) -> str:
        """One of `EXTRACTORS`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Features per image: `(D,)`, or `(L, D)` of L regions."""

    def prepare(self, image: Any) -> numpy.ndarray:
        """Turn an RGB `PIL.Image.Image` into one entry of a batch; called from many threads."""

    def __call__(self, images: Any) -> Any:
        """Compute the features `(N, *shape)` float32 of a batch of prepared images."""

    def describe(self) -> dict[str, Any]:
        """Return the description for `open_extractor`, ready for JSON."""


def make_extractor(
    name: str,
    weights: Path | None = None,
    output: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Extractor:
    """Return an extractor for a new data set.

    The name is `"efficientnet-lite0"`, whose weights come with the extra `photos`; `"filter-bank"`;
    one of `PRESETS`, by the preprocessing of its network; or `"onnx"` for any other network.
    `weights` and `output` are those of `OnnxExtractor`, `changes` the fields of `Preprocessing`
    that differ from the preset's. The first two have the output `"grid"`: the features of regions.
    A `ConfigurationError` is raised if the name is unknown, or an argument does not apply to the
    extractor.
    """
    if name not in EXTRACTORS:
        raise ConfigurationError(
            f"extractor '{name}' is unknown; expected one of {', '.join(EXTRACTORS)}"
        )
    if name in (FilterBank.name, EfficientNetLite0.name):
        if changes or (weights and name == FilterBank.name):
            raise ConfigurationError(f"'{name}' has no weights or preprocessing to choose")
        if name == FilterBank.name:
            return FilterBank(output)
        return EfficientNetLite0(weights, output or "pooled")
    if weights is None:
        raise ConfigurationError(
            f"extractor '{name}' needs the weights of its network, an ONNX file"
        )
    preset = PRESETS.get(name, Preprocessing())
    return OnnxExtractor(weights, preset.changed({} if changes is None else changes), output, name)


def choose_extractor(
    name: str | None,
    weights: Path | None = None,
    output: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Extractor | None:
    """Return the extractor of a name as `make_extractor` does; by default `default_extractor`'s.

    With `"none"` there is none. A `ConfigurationError` is also raised if `weights` or `changes` are
    given without a name, or anything with `"none"`.
    """
    if name in (None, "none") and (weights or changes or (output and name)):
        raise ConfigurationError(
            "weights, output and preprocessing need an extractor (extractor=NAME)"
        )
    if name == "none":
        return None
    return make_extractor(name or default_extractor(), weights, output, changes)


def default_extractor() -> str:
    """Return the name of the network for photographs if it is installed, else the filter bank's."""
    needed = (find_spec("onnx"), find_spec("onnxruntime"), installed_weights())
    return FilterBank.name if None in needed else EfficientNetLite0.name


def open_extractor(description: Mapping[str, Any], weights: Path | None = None) -> Extractor:
    """Return the extractor of a description stored in a data set or run.

    `weights` is where its file is now, if it has moved. A `DataError` is raised if the extractor
    is not available in the same version, with the same weights.
    """
    if "weights" in description:
        return open_onnx(description, weights)
    found: Extractor
    output = "grid" if description.get("output") == "grid" else None
    if description.get("name") == EfficientNetLite0.name:
        found = EfficientNetLite0(weights, output or "pooled")
    elif weights is None:
        found = FilterBank(output)
    else:
        raise DataError(f"'{FilterBank.name}' has no weights, but {weights} was given")
    if dict(description) != found.describe():
        raise DataError(
            f"the features come from {dict(description)}, which cannot be computed here;"
            f" expected {found.describe()}"
        )
    return found
