"""Ensembles: several captioners that decode together."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from xpcap.backend import Array, namespace
from xpcap.decoding.captioner import Captioner, State
from xpcap.errors import ConfigurationError
from xpcap.layers.loss import log_softmax


class Ensemble:
    """A captioner whose word probabilities are the mean of its members'.

    Members have the same vocabulary and features, and are on one device.
    """

    def __init__(self, members: Sequence[Captioner]) -> None:
        tokens = {(member.null, member.start_word, member.end) for member in members}
        if len(tokens) != 1:
            raise ConfigurationError(
                f"an ensemble of {len(members)} captioners whose <NULL>, <START> and <END> are"
                f" {sorted(tokens, key=str)}; expected at least one, and all alike"
            )
        self.members = members
        ((self.null, self.start_word, self.end),) = tokens
        self.max_length = min(member.max_length for member in members)

    def start(self, features: Array) -> tuple[Any, State]:
        """Return the members' contexts and concatenated first states."""
        started = [member.start(features) for member in self.members]
        context = [(inner, len(state)) for inner, state in started]
        return context, tuple(part for _, state in started for part in state)

    def step(
        self, words: Array, parents: Array | None, state: State, context: Any
    ) -> tuple[Array, State]:
        """Feed one word to each hypothesis; scores are the logarithm of the mean probability."""
        xp = namespace(words, *state)
        log_probs, new, first = [], list[Array](), 0
        for member, (inner, size) in zip(self.members, context, strict=True):
            scores, after = member.step(words, parents, state[first : first + size], inner)
            log_probs.append(log_softmax(xp, scores))
            new += after
            first += size
        total = functools.reduce(xp.logaddexp, log_probs)  # no probability is rounded to 0
        return total - math.log(len(self.members)), tuple(new)
