"""The captioner as the notebooks of the CS231n assignment use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy

from xpcap import models
from xpcap.backend import Array, Backend, is_host, to_host
from xpcap.layers._checks import check_numbers


class CaptioningRNN(models.CaptioningRNN):
    """`xpcap.models.CaptioningRNN`, in float64, with NumPy arrays on any device.

    Parameters are float64 unless `dtype` is given, and so is all that is computed with them: the
    central differences that notebooks compare gradients with need it.

    On a GPU `features`, `captions` and `params` may be NumPy arrays too. If the features are, so
    are the results.
    """

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        dtype: Any = numpy.float64,
        *,
        dropout: float = 0.0,
        seed: int | None = None,
        backend: Backend | str | None = None,
    ) -> None:
        super().__init__(
            word_to_idx, input_dim, wordvec_dim, hidden_dim, cell_type, dtype,
            dropout=dropout, seed=seed, backend=backend,
        )  # fmt: skip

    def loss(
        self, features: Array, captions: Array, step: int = 0
    ) -> tuple[Array, dict[str, Array]]:
        """See `CaptionModel.loss`."""
        loss, gradients = self._on_device(super().loss, features, captions, step)
        if isinstance(features, numpy.ndarray):
            return to_host(loss), {name: to_host(value) for name, value in gradients.items()}
        return loss, gradients

    def evaluate(self, features: Array, captions: Array) -> Array:
        """See `CaptionModel.evaluate`."""
        found = self._on_device(super().evaluate, features, captions)
        return to_host(found) if isinstance(features, numpy.ndarray) else found

    def sample(self, features: Array, max_length: int | None = None) -> Array:
        """See `CaptionModel.sample`."""
        found = self._on_device(super().sample, features, max_length)
        return to_host(found) if isinstance(features, numpy.ndarray) else found

    def _on_device(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method with NumPy arrays, parameters included, moved to the model's device.

        `params` itself stays as it is, as the caller may change its NumPy arrays in place.
        """
        given = self.params
        if any(isinstance(value, numpy.ndarray) for value in given.values()):
            self.params = {name: self._moved(value) for name, value in given.items()}
        try:
            return method(*map(self._moved, arguments))
        finally:
            self.params = given

    def _moved(self, value: Any) -> Any:
        if is_host(self.backend.xp) or not isinstance(value, numpy.ndarray):
            return value
        check_numbers(type(self).__name__, array=value)  # CuPy's own errors are of other types
        return self.backend.to_device(value)
