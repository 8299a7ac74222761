"""Locate the first non-finite value of a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from xpcap.backend import Array, to_host
from xpcap.models.model import CaptionModel
from xpcap.models.objective import Objective


def first_nonfinite(
    model: CaptionModel, features: Array, captions: Array, step: int = 0
) -> str | None:
    """Run `CaptionModel.loss` step by step, and name the first non-finite value.

    Such as `"parameter W_proj"` or `"the hidden state after word 3"`; None if all is finite.
    """
    with model.backend.activate(), numpy.errstate(all="ignore"):
        for name, values in _in_order(model, features, captions, step):
            if not numpy.isfinite(to_host(values)).all():
                return name
    return None


def _in_order(
    model: CaptionModel, features: Array, captions: Array, step: int
) -> Iterator[tuple[str, Array]]:
    for name, value in model.params.items():
        yield f"parameter {name}", value
    yield "the features", features
    _, state = model.start(features)
    yield "the first state, which the features set", state[0]
    batch, hidden, _ = Objective(model).read(features, to_host(captions))
    for t, rows in enumerate(batch.packing.rows):
        yield f"the hidden state after word {t + 1}", hidden[rows]
    W, b = model.vocabulary_layer(model.params)
    yield "the words' scores", hidden @ W + b
    loss, gradients = model.loss(features, captions, step)
    yield "the loss", loss
    for name, value in gradients.items():
        yield f"the gradient of {name}", value
