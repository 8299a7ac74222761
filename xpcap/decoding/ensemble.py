"""Several captioners that decide together."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from xpcap.backend import Array, namespace
from xpcap.decoding.captioner import Captioner, State
from xpcap.errors import ConfigurationError
from xpcap.kernels.softmax import log_softmax


class Ensemble:
    """A captioner whose probability of a word is the average of its members'.

    Parameters
    ----------
    members
        Captioners of the same words, on one device, that take the same features.

    Raises
    ------
    ConfigurationError
        If there is none, or they disagree about the marks' indices.
    """

    def __init__(self, members: Sequence[Captioner]) -> None:
        marks = {(member.null, member.start_word, member.end) for member in members}
        if len(marks) != 1:
            raise ConfigurationError(
                f"an ensemble of {len(members)} captioners whose <NULL>, <START> and <END> are"
                f" {sorted(marks, key=str)}; expected at least one, and all alike"
            )
        self.members = members
        ((self.null, self.start_word, self.end),) = marks
        self._sizes: list[int] = []

    def start(self, features: Array) -> State:
        """Return the members' first states, one after the other."""
        states = [member.start(features) for member in self.members]
        self._sizes = [len(state) for state in states]
        return tuple(part for state in states for part in state)

    def step(self, words: Array, state: State, rows: Array | None = None) -> tuple[Array, State]:
        """Feed a word to each caption; scores are the logarithm of the average probability."""
        xp = namespace(words, *state)
        log_probs, new, first = [], list[Array](), 0
        for member, size in zip(self.members, self._sizes, strict=True):
            scores, after = member.step(words, state[first : first + size], rows)
            log_probs.append(log_softmax(xp, scores))
            new += after
            first += size
        total = functools.reduce(xp.logaddexp, log_probs)  # no probability is rounded to 0
        return total - math.log(len(self.members)), tuple(new)
