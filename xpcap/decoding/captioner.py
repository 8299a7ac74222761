"""What decoding needs of a captioner, and what it gives back."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from xpcap.backend import Array
from xpcap.errors import ConfigurationError

State = tuple[Array, ...]
"""Arrays with a row for each caption."""


class Captioner(Protocol):
    """What says, word after word, how likely every next word is."""

    @property
    def null(self) -> int:
        """The index of `<NULL>`."""

    @property
    def start_word(self) -> int | None:
        """The index of `<START>`."""

    @property
    def end(self) -> int | None:
        """The index of `<END>`."""

    def start(self, features: Array) -> tuple[Any, State]:
        """Return a context, and the state before the first word of N images."""

    def step(
        self, words: Array, parents: Array | None, state: State, context: Any
    ) -> tuple[Array, State]:
        """Feed words `(R,)` to the hypotheses in some rows of the state, or in all of them.

        Returns scores `(R, V)` of the next words, and the new state, of R rows.
        """


def check_words(model: Captioner) -> tuple[int, int]:
    """Return the indices of `<START>` and `<END>`.

    Raises
    ------
    ConfigurationError
        If the vocabulary has no such word.
    """
    if model.start_word is None or model.end is None:
        raise ConfigurationError(
            "the vocabulary lacks <START> or <END>, with which captions begin and end"
        )
    return model.start_word, model.end


class Decoded(NamedTuple):
    """Captions of N images, B each, the best first.

    Attributes
    ----------
    words
        Indices `(N, B, T)` int32, `<NULL>` after `<END>`; nothing but `<NULL>` where there is no
        further caption.
    log_probs
        Of each word given those before, `(N, B, T)`, in nats; 0 after `<END>`.
    scores
        What they are sorted by, `(N, B)`; minus infinity where there is no further caption.
    """

    words: Array
    log_probs: Array
    scores: Array
