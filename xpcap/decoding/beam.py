"""Beam search: the K most probable hypotheses of each image are extended word by word.

A beam has K slots. At each step every active hypothesis is extended by every word, and the K best
extensions are kept. A finished caption keeps its slot, so that fewer hypotheses stay active; those
that can no longer be among the captions asked for are dropped. Images are searched together, with
one row for each active hypothesis.

Scores are log-probabilities divided by a penalty of the length L, `<END>` included:

    none        1
    average     L
    gnmt        ((5 + L) / 6)^α      (Wu et al., "Google's neural machine translation system", 2016)

With groups, a beam consists of G beams of K / G slots. At each step, a group scores a word lower by
`diversity` for each time that an earlier group has chosen it at this step (Vijayakumar et al.,
"Diverse beam search", 2016). The scores of captions do not include that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy

from xpcap.backend import Array, namespace, to_host
from xpcap.decoding.captioner import Captioner, Decoded, start_and_end
from xpcap.decoding.constraints import EXTREME, LARGEST, Constraints
from xpcap.errors import ConfigurationError
from xpcap.kernels import fastest
from xpcap.kernels.top import best_continuations
from xpcap.layers.loss import log_normalizer
from xpcap.options import check_counts, check_number

PENALTIES = ("none", "average", "gnmt")


@dataclass(frozen=True)
class Beam:
    """Options of beam search: K = `width` slots, `n_best` captions per image.

    `alpha` is the exponent of the length penalty `"gnmt"`, at most 10; `diversity` is subtracted
    from a word for each of the `groups` that has chosen it.
    """

    width: int = 3
    n_best: int = 1
    length_penalty: str = "none"
    alpha: float = 0.6
    groups: int = 1
    diversity: float = 0.5
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        check_counts(1, LARGEST, beam=self.width, n_best=self.n_best)
        check_counts(groups=self.groups)
        check_number("alpha", self.alpha, "[0, 10]")
        check_number("diversity", self.diversity, "[0, inf)")
        if self.n_best > self.width:
            raise ConfigurationError(
                f"n_best {self.n_best} is more than beam {self.width} can find"
            )
        if self.length_penalty not in PENALTIES:
            raise ConfigurationError(
                f"length penalty '{self.length_penalty}' is unknown; expected"
                f" {', '.join(PENALTIES)}"
            )
        if self.width % self.groups:
            raise ConfigurationError(
                f"beam {self.width} is not a multiple of groups {self.groups}; expected one"
            )

    def penalty(self, length: int) -> float:
        """Return the divisor of the log-probability of a caption of `length` words."""
        if self.length_penalty == "none":
            return 1.0
        if self.length_penalty == "average":
            return float(length)
        return float(((5 + length) / 6) ** self.alpha)


def beam_search(model: Captioner, features: Array, beam: Beam) -> Decoded:
    """Find the `beam.n_best` most probable captions of each image; T is their limit + 1.

    The model is any captioner with `<START>` and `<END>`; `features (N, D)` are where it is.
    """
    search = _Search(model, features, beam)
    for t in range(beam.constraints.limit + 1):
        if not search.advance(t):
            break
    return search.result()


class _Search:
    """The state of a search.

    Groups are searched as beams of their own: B = groups · N beams of K / groups slots, group by
    group.

        totals        (B, K)        log-probability of the active hypothesis in each slot, or -inf
        tokens        (B, K, T)     its words
        log_probs     (B, K, T)     their log-probabilities
        row           (B, K)        its row in the model's state
        finished      Decoded       captions that have ended, (B, K, T), in order of ending
        count         (B,)          their number
    """

    def __init__(self, model: Captioner, features: Array, beam: Beam) -> None:
        self.model, self.beam = model, beam
        self.start_word, self.end = start_and_end(model, beam.constraints.limit)
        self.images, self.slots = len(features), beam.width // beam.groups
        self.context, self.state = model.start(features)
        xp = self.xp = namespace(*self.state)
        dtype, K = self.state[0].dtype, self.slots
        B, T = beam.groups * self.images, beam.constraints.limit + 1
        self.totals = xp.full((B, K), -xp.inf, dtype=dtype)
        self.tokens = xp.full((B, K, T), model.null, dtype=numpy.int32)
        self.log_probs = xp.zeros((B, K, T), dtype=dtype)
        self.finished = Decoded(self.tokens.copy(), self.log_probs.copy(), self.totals.copy())
        self.count = xp.zeros(B, dtype=numpy.int64)
        self.row = xp.zeros((B, K), dtype=numpy.int64)
        self.totals[:, 0] = 0
        self.row[:, 0] = xp.arange(B) % self.images

    def advance(self, t: int) -> bool:
        """Extend all active hypotheses by word t; return whether there were any."""
        xp, beam = self.xp, self.beam
        of, slot = xp.nonzero(self.totals > -xp.inf)
        if not len(of):
            return False
        tokens = self.tokens[of, slot, :t]
        words = tokens[:, -1] if t else xp.full(len(of), self.start_word, dtype=numpy.int32)
        scores, self.state = self.model.step(words, self.row[of, slot], self.state, self.context)
        normalizer = log_normalizer(fastest(xp), scores)
        beam.constraints.apply(xp, scores, tokens, self.end)
        self.row[of, slot] = xp.arange(len(of))
        chosen = xp.zeros((self.images, scores.shape[1] * (beam.groups > 1)), dtype=scores.dtype)
        ends = to_host(xp.searchsorted(of, xp.arange(beam.groups + 1) * self.images)).tolist()
        for group, here in enumerate(map(slice, ends, ends[1:])):
            beams = slice(group * self.images, (group + 1) * self.images)
            totals = self.totals[of[here], slot[here]] - normalizer[here]
            slots = (of[here] - beams.start) * self.slots + slot[here]
            values = scores[here]
            if beam.groups > 1:
                diversity = min(beam.diversity, EXTREME)
                values = values - diversity * chosen[of[here] - beams.start]
            found = best_continuations(fastest(xp), values, totals, slots, self.images, self.slots)
            self._extend(t, beams, *found, scores, normalizer, chosen)
        return True

    def _extend(
        self,
        t: int,
        group: slice,
        values: Array,
        parent: Array,
        words: Array,
        scores: Array,
        normalizer: Array,
        chosen: Array,
    ) -> None:
        """Replace the hypotheses of a group's beams by their best extensions, `(N, K / groups)`."""
        xp, beam, K = self.xp, self.beam, self.slots
        beams = xp.arange(group.start, group.stop)[:, None]
        row = xp.where(values > -xp.inf, self.row[beams, parent], 0)
        last = scores[row, words] - normalizer[row]
        # finished captions keep their slots
        kept = (values > -xp.inf) & (xp.arange(K) < K - self.count[group][:, None])
        totals = self.totals[beams, parent] + last
        tokens, log_probs = self.tokens[beams, parent], self.log_probs[beams, parent]
        tokens[:, :, t], log_probs[:, :, t] = words, last
        if beam.groups > 1:
            image, rank = xp.nonzero(kept)
            for k in range(K):
                these = image[rank == k]
                chosen[these, words[these, k]] += 1
        ends = words == self.end
        scored = Decoded(tokens, log_probs, totals / beam.penalty(t + 1))
        self._finish(group, kept & ends, scored)
        wanted = min(beam.n_best, K)
        worst = -xp.sort(-self.finished.scores[group], axis=1)[:, wanted - 1 : wanted]
        reachable = totals / beam.penalty(beam.constraints.limit + 1) >= worst
        self.totals[group] = xp.where(kept & ~ends & reachable, totals, -xp.inf)
        self.tokens[group], self.log_probs[group] = tokens, log_probs
        self.row[group] = self.row[beams, parent]

    def _finish(self, group: slice, ends: Array, captions: Decoded) -> None:
        """Store the captions that end at this step after those that ended before."""
        xp = self.xp
        position = self.count[group][:, None] + xp.cumsum(ends, axis=1) - 1
        image, rank = xp.nonzero(ends)
        to = image + group.start, position[image, rank]
        for stored, part in zip(self.finished, captions, strict=True):
            stored[to] = part[image, rank]
        self.count[group] += ends.sum(axis=1)

    def result(self) -> Decoded:
        """Return the best captions of each image, over all its groups."""

        def by_image(array: Array) -> Array:
            parts = array.reshape(self.beam.groups, self.images, self.slots, *array.shape[2:])
            return self.xp.concatenate(list(parts), axis=1)

        return Decoded(*map(by_image, self.finished)).best(self.beam.n_best)
