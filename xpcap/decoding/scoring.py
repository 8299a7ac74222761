"""Log-probabilities of given captions."""

from __future__ import annotations

from xpcap.backend import Array, namespace
from xpcap.decoding.captioner import Captioner
from xpcap.errors import ShapeError
from xpcap.layers.loss import log_softmax


def score_captions(model: Captioner, features: Array, captions: Array) -> Array:
    """Return the log-probability of each word of given captions, given the words before it.

    `features (N, D)` are one image per caption; `captions (N, T+1)` begin with `<START>`. The
    result is `(N, T)` for all words but the first, in nats, and 0 for `<NULL>`. Raises `ShapeError`
    if the shapes do not fit, or a caption has more words than the model can read.
    """
    if captions.ndim != 2 or captions.shape[1] < 2 or len(captions) != len(features):
        raise ShapeError(
            f"expected captions (N, T+1) with T > 0 for features (N, D), got {captions.shape} and"
            f" {features.shape}"
        )
    context, state = model.start(features)
    xp = namespace(captions, *state)
    targets = captions[:, 1:]
    counted = targets != model.null
    found = xp.zeros(targets.shape, dtype=state[0].dtype)
    rows = xp.arange(len(captions))  # active captions
    for t in range(targets.shape[1]):
        active = xp.nonzero(counted[rows, t:].any(axis=1))[0]
        if not len(active):
            break
        if t >= model.max_length:
            raise ShapeError(f"captions have more than {model.max_length} words, the model's limit")
        rows = rows[active]
        scores, state = model.step(captions[rows, t], active, state, context)
        log_probs = log_softmax(xp, scores)[xp.arange(len(rows)), targets[rows, t]]
        found[rows, t] = xp.where(counted[rows, t], log_probs, 0)
    return found
