"""The kinds of captioners that tests run over: a new family is a row, as a new cell is."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy

from xpcap.models import AttentionRNN, CaptioningRNN, CaptionModel


class Kind(NamedTuple):
    """A family, its cell, how many regions its images have (0: they are vectors), and options."""

    cell: str
    family: type[CaptionModel] = CaptioningRNN
    regions: int = 0
    options: Mapping[str, Any] = MappingProxyType({})

    def build(self, words, D, W, H, dtype=numpy.float64, **options):
        return self.family(words, D, W, H, self.cell, dtype, **self.options, **options)

    def features(self, N, D, seed):
        """Draw features; image n lacks its first n regions modulo L + 1, so that some have none."""
        rng = numpy.random.default_rng(seed)
        if not self.regions:
            return rng.standard_normal((N, D))
        found = rng.standard_normal((N, self.regions, D))
        for n, regions in enumerate(found):
            regions[: n % (self.regions + 1)] = 0
        return found


RECURRENT = {cell: Kind(cell) for cell in ("rnn", "lstm", "gru")}
LOOKING = {
    "attention lstm": Kind("lstm", AttentionRNN, 3),
    "attention gru dot": Kind("gru", AttentionRNN, 2, {"scoring": "dot"}),
    "attention rnn": Kind("rnn", AttentionRNN, 1),
}
KINDS = {**RECURRENT, "lstm on regions": Kind("lstm", regions=2), **LOOKING}
