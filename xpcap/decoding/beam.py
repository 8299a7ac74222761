"""Beam search: the few most likely beginnings of each caption are continued, word by word.

A beam has K places. At each step every live beginning is continued by every word, and the K best of
all that are kept. A caption that ends keeps its place, so that fewer go on; what can no longer be
among those asked for is dropped. Batched over images, with one row for each live beginning.

Scores are log-probabilities divided by a penalty of the length L, `<END>` counted:

    none        1
    average     L
    gnmt        ((5 + L) / 6)^α      (Wu et al., "Google's neural machine translation system", 2016)

With groups, a beam is G beams of K / G places that look at each other: at each step a group finds
a word worth less, by `diversity`, for each time that a group before it has chosen it at this step
(Vijayakumar et al., "Diverse beam search", 2016). Scores are without that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy

from xpcap.backend import Array, namespace, to_host
from xpcap.decoding.captioner import Captioner, Decoded, check_words
from xpcap.decoding.constraints import Constraints
from xpcap.errors import ConfigurationError
from xpcap.kernels import fastest
from xpcap.kernels.top import best_continuations
from xpcap.layers.loss import log_normalizer

PENALTIES = ("none", "average", "gnmt")


@dataclass(frozen=True)
class Beam:
    """How to search.

    Parameters
    ----------
    width
        K, how many places.
    n_best
        How many captions of each image are wanted.
    length_penalty
        `"none"`, `"average"` or `"gnmt"`.
    alpha
        The exponent of the last.
    groups, diversity
        Into how many the places are divided, and what a word loses for each group that chose it.
    constraints
        What no caption may be.

    Raises
    ------
    ConfigurationError
        If a value cannot be used.
    """

    width: int = 3
    n_best: int = 1
    length_penalty: str = "none"
    alpha: float = 0.6
    groups: int = 1
    diversity: float = 0.5
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        if not 1 <= self.n_best <= self.width:
            raise ConfigurationError(
                f"{self.n_best} captions of a beam of {self.width} cannot be;"
                " expected 1 <= n-best <= width"
            )
        if self.length_penalty not in PENALTIES:
            raise ConfigurationError(
                f"length penalty '{self.length_penalty}' is unknown; expected"
                f" {', '.join(PENALTIES)}"
            )
        if self.groups < 1 or self.width % self.groups:
            raise ConfigurationError(
                f"a beam of {self.width} cannot be divided into {self.groups} groups"
            )
        if not (0 <= self.alpha < float("inf") and 0 <= self.diversity < float("inf")):
            raise ConfigurationError(
                f"alpha {self.alpha} and diversity {self.diversity} must be finite and >= 0"
            )

    def penalty(self, length: int) -> float:
        """Return what the log-probability of a caption of `length` words is divided by."""
        if self.length_penalty == "none":
            return 1.0
        if self.length_penalty == "average":
            return float(length)
        return float(((5 + length) / 6) ** self.alpha)


def beam_search(model: Captioner, features: Array, beam: Beam) -> Decoded:
    """Find the most likely captions of images.

    Parameters
    ----------
    model
        What is asked for the likelihood of words.
    features
        `(N, D)` floating, where the model is.
    beam
        How to search.

    Returns
    -------
    Decoded
        `beam.n_best` captions of each image; T is `max_length + 1`.

    Raises
    ------
    ConfigurationError
        If the vocabulary has no `<START>` or no `<END>`.
    """
    search = _Search(model, features, beam)
    for t in range(beam.constraints.max_length + 1):
        if not search.advance(t):
            break
    return search.result()


class _Search:
    """The state of a search.

    A beam is one group of one image; group by group, B = groups · N beams of K / groups places:

        totals      (B, K)      log-probability of the beginning in each place; -inf: none
        said        (B, K, T)   its words
        log_probs   (B, K, T)   theirs
        row         (B, K)      its row in the model's state
        best_...    (B, K, ...) captions that have ended, in the order of ending
        ended       (B,)        how many
    """

    def __init__(self, model: Captioner, features: Array, beam: Beam) -> None:
        self.model, self.beam = model, beam
        self.start_word, self.end = check_words(model)
        self.images, self.places = len(features), beam.width // beam.groups
        self.context, self.state = model.start(features)
        xp = self.xp = namespace(*self.state)
        dtype, K = self.state[0].dtype, self.places
        B, T = beam.groups * self.images, beam.constraints.max_length + 1
        self.totals = xp.full((B, K), -xp.inf, dtype=dtype)
        self.totals[:, 0] = 0
        self.said = xp.full((B, K, T), model.null, dtype=numpy.int32)
        self.log_probs = xp.zeros((B, K, T), dtype=dtype)
        self.row = xp.zeros((B, K), dtype=numpy.int64)
        self.row[:, 0] = xp.arange(B) % self.images
        self.best_scores = xp.full((B, K), -xp.inf, dtype=dtype)
        self.best_said, self.best_log_probs = self.said.copy(), self.log_probs.copy()
        self.ended = xp.zeros(B, dtype=numpy.int64)

    def advance(self, t: int) -> bool:
        """Say the word at place t of every live beginning; tell whether any is left."""
        xp, beam = self.xp, self.beam
        of, place = xp.nonzero(self.totals > -xp.inf)
        if not len(of):
            return False
        said = self.said[of, place, :t]
        words = said[:, -1] if t else xp.full(len(of), self.start_word, dtype=numpy.int32)
        scores, self.state = self.model.step(words, self.row[of, place], self.state, self.context)
        normalizer = log_normalizer(fastest(xp), scores)
        beam.constraints.apply(xp, scores, said, self.end)
        self.row[of, place] = xp.arange(len(of))
        chosen = xp.zeros((self.images, scores.shape[1] * (beam.groups > 1)), dtype=scores.dtype)
        ends = to_host(xp.searchsorted(of, xp.arange(beam.groups + 1) * self.images)).tolist()
        for group, here in enumerate(map(slice, ends, ends[1:])):
            inside = slice(group * self.images, (group + 1) * self.images)
            totals = self.totals[of[here], place[here]] - normalizer[here]
            places = (of[here] - inside.start) * self.places + place[here]
            worth = scores[here]
            if beam.groups > 1:
                worth = worth - beam.diversity * chosen[of[here] - inside.start]
            found = best_continuations(fastest(xp), worth, totals, places, self.images, self.places)
            self._continue(t, inside, *found, scores, normalizer, chosen)
        return True

    def _continue(
        self,
        t: int,
        inside: slice,
        value: Array,
        parent: Array,
        words: Array,
        scores: Array,
        normalizer: Array,
        chosen: Array,
    ) -> None:
        """Go on with the best continuations of a group's beams, `(N, K / groups)` each."""
        xp, beam, K = self.xp, self.beam, self.places
        beams = xp.arange(inside.start, inside.stop)[:, None]
        row = xp.where(value > -xp.inf, self.row[beams, parent], 0)
        last = scores[row, words] - normalizer[row]
        # those that ended keep their places
        kept = (value > -xp.inf) & (xp.arange(K) < K - self.ended[inside][:, None])
        totals = self.totals[beams, parent] + last
        said, spoken = self.said[beams, parent], self.log_probs[beams, parent]
        said[:, :, t], spoken[:, :, t] = words, last
        if beam.groups > 1:
            image, rank = xp.nonzero(kept)
            for k in range(K):
                these = image[rank == k]
                chosen[these, words[these, k]] += 1
        self._end(inside, kept & (words == self.end), totals, said, spoken, t)
        alive = kept & (words != self.end)
        wanted = min(beam.n_best, K)
        worst = -xp.sort(-self.best_scores[inside], axis=1)[:, wanted - 1 : wanted]
        reachable = totals / beam.penalty(beam.constraints.max_length + 1) >= worst
        self.totals[inside] = xp.where(alive & reachable, totals, -xp.inf)
        self.said[inside], self.log_probs[inside] = said, spoken
        self.row[inside] = self.row[beams, parent]

    def _end(
        self, inside: slice, ending: Array, totals: Array, said: Array, spoken: Array, t: int
    ) -> None:
        """Put captions that end with the word at place t beside those that ended before."""
        xp = self.xp
        slots = self.ended[inside][:, None] + xp.cumsum(ending, axis=1) - 1
        image, rank = xp.nonzero(ending)
        to = image + inside.start, slots[image, rank]
        self.best_scores[to] = totals[image, rank] / self.beam.penalty(t + 1)
        self.best_said[to] = said[image, rank]
        self.best_log_probs[to] = spoken[image, rank]
        self.ended[inside] += ending.sum(axis=1)

    def result(self) -> Decoded:
        """Return the best captions of each image, over all its groups."""
        xp, beam, K = self.xp, self.beam, self.places

        def by_image(array: Array) -> Array:
            parts = array.reshape(beam.groups, self.images, K, *array.shape[2:])
            return xp.concatenate(list(parts), axis=1)

        scores = by_image(self.best_scores)
        order = xp.argsort(-scores, axis=1, kind="stable")[:, : beam.n_best]
        image = xp.arange(self.images)[:, None]
        return Decoded(
            by_image(self.best_said)[image, order],
            by_image(self.best_log_probs)[image, order],
            scores[image, order],
        )
