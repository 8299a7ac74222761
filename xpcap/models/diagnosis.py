"""Where in a captioner numbers are the first to be not finite."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from xpcap.backend import Array, to_host
from xpcap.models.captioner import CaptioningRNN


def first_nonfinite(
    model: CaptioningRNN, features: Array, captions: Array, step: int = 0
) -> str | None:
    """Go through a forward and a backward pass, and name the first thing that is not finite.

    Parameters
    ----------
    model, features, captions, step
        As for `CaptioningRNN.loss`.

    Returns
    -------
    str or None
        Such as `"parameter W_proj"` or `"the hidden state after word 3"`; None if all is finite.
    """
    with model.backend.activate(), numpy.errstate(all="ignore"):
        for name, values in _in_order(model, features, captions, step):
            if not numpy.isfinite(to_host(values)).all():
                return name
    return None


def _in_order(
    model: CaptioningRNN, features: Array, captions: Array, step: int
) -> Iterator[tuple[str, Array]]:
    for name, value in model.params.items():
        yield f"parameter {name}", value
    yield "the features", features
    yield "the first hidden state, which the features set", model.start(features)[0]
    scores, caches = model._forward(features, captions, step if model.dropout else None)
    for t, hidden in enumerate(caches.vocabulary.x.transpose(1, 0, 2)):
        yield f"the hidden state after word {t + 1}", hidden
    yield "the words' scores", scores
    loss, dscores = model._compare(scores, captions)
    yield "the loss", loss
    for name, value in model._backward(dscores, caches).items():
        yield f"the gradient of {name}", value
