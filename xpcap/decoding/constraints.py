"""Constraints on captions: which words may come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xpcap.backend import Array, Namespace
from xpcap.errors import ConfigurationError

MAX_LENGTH = 30  # where no other length is known


@dataclass(frozen=True)
class Constraints:
    """Constraints on generated captions.

    Lengths are without `<END>`. A `max_length` of None is that of the data set a run was trained
    on, or else 30. N-grams of `no_repeat_ngram` words may not repeat, 0 disables.
    `banned` are the indices of words that are never generated. A caption that no word may continue
    ends, whatever its length.
    """

    min_length: int = 0
    max_length: int | None = None
    no_repeat_ngram: int = 0
    banned: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.min_length <= self.limit:
            raise ConfigurationError(
                f"captions of {self.min_length} to {self.limit} words cannot be generated;"
                " expected a minimum of 0 or more, and no smaller maximum"
            )
        if self.no_repeat_ngram < 0:
            raise ConfigurationError(f"no-repeat-ngram must be >= 0, got {self.no_repeat_ngram}")

    @property
    def limit(self) -> int:
        """The most words of a caption, if there is no run that knows its own."""
        if self.max_length is None:
            return max(MAX_LENGTH, self.min_length)
        return self.max_length

    def apply(self, xp: Namespace, log_probs: Array, tokens: Array, end: int) -> None:
        """Set the log-probabilities of words that may not come next to minus infinity, in place.

        `log_probs (R, V)` may be scores; `tokens (R, t)` are the words so far, `end` is `<END>`.
        """
        length, vocabulary = tokens.shape[1], log_probs.shape[1]
        ending = log_probs[:, end].copy()
        if length >= self.limit:
            log_probs[...] = -xp.inf
        else:
            for word in self.banned:
                log_probs[:, word] = -xp.inf
            self._ban_repetitions(xp, log_probs, tokens)
            if length < self.min_length:
                log_probs[:, end] = -xp.inf
        if length < self.limit and len({*self.banned, end}) + length < vocabulary:
            return  # some word is left
        stuck = log_probs.max(axis=1) == -xp.inf
        log_probs[:, end] = xp.where(stuck, ending, log_probs[:, end])

    def _ban_repetitions(self, xp: Namespace, log_probs: Array, tokens: Array) -> None:
        n, length = self.no_repeat_ngram, tokens.shape[1]
        if not n or length < n:
            return
        rows = xp.arange(len(tokens))
        last = tokens[:, length - n + 1 :]
        for first in range(length - n + 1):
            repeated = (tokens[:, first : first + n - 1] == last).all(axis=1)
            word = tokens[:, first + n - 1]
            log_probs[rows, word] = xp.where(repeated, -xp.inf, log_probs[rows, word])
