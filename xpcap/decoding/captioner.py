"""What decoding needs of a captioner, and what it returns."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from xpcap.backend import Array, namespace
from xpcap.errors import ConfigurationError

State = tuple[Array, ...]
"""Arrays with one row per hypothesis."""


class Captioner(Protocol):
    """A model that scores the next word of each hypothesis, word by word.

    `null`, `start_word` and `end` are the indices of `<NULL>`, `<START>` and `<END>`; `max_length`
    is the most words of a caption, `<END>` included, or infinite.
    """

    null: int
    start_word: int | None
    end: int | None
    max_length: float

    def start(self, features: Array) -> tuple[Any, State]:
        """Return a context, and the state of N images before the first word."""

    def step(
        self, words: Array, parents: Array | None, state: State, context: Any
    ) -> tuple[Array, State]:
        """Feed one word to each of R hypotheses; return scores `(R, V)` and the new state.

        `parents (R,)` are the rows of `state` that the words `(R,)` follow. None: each its own row,
        and arrays of `state` may be written into and returned.
        """


def start_and_end(model: Captioner, limit: int) -> tuple[int, int]:
    """Return the indices of `<START>` and `<END>`.

    Raises `ConfigurationError` if there are none, or captions cannot have `limit` words.
    """
    if model.start_word is None or model.end is None:
        raise ConfigurationError(
            "the vocabulary lacks <START> or <END>, with which captions begin and end"
        )
    if limit >= model.max_length:
        raise ConfigurationError(
            f"captions of {limit} words are longer than the model can generate; expected at most"
            f" {model.max_length - 1} (max_words=N)"
        )
    return model.start_word, model.end


class Decoded(NamedTuple):
    """The captions of N images, B per image, best first.

        words         (N, B, T)     token indices, int32, <NULL> after <END>
        log_probs     (N, B, T)     log-probability of each token given those before it, in nats
        scores        (N, B)        what captions are sorted by

    Log-probabilities after `<END>` are 0. Rows without a caption have only `<NULL>`, and the score
    minus infinity.
    """

    words: Array
    log_probs: Array
    scores: Array

    def best(self, count: int) -> Decoded:
        """Return the `count` captions of each image with the highest scores, best first."""
        xp = namespace(self.scores)
        order = xp.argsort(-self.scores, axis=1, kind="stable")[:, :count]
        image = xp.arange(len(order))[:, None]
        return Decoded(*(part[image, order] for part in self))
