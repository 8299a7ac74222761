"""The kinds of captioners that tests run over: a new family is a row, as a new cell is."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy

from xpcap.models import AttentionRNN, CaptioningRNN, CaptionModel, Transformer


class Kind(NamedTuple):
    """A family, its options, and how many regions its images have (0: they are vectors)."""

    family: type[CaptionModel]
    options: Mapping[str, Any]
    regions: int = 0

    def sizes(self, D, W, H):
        """Return the sizes that the family takes; hidden units are more than H if heads need it."""
        heads = self.options.get("heads", 1)
        sizes = {"input_dim": D, "hidden_dim": -(-H // heads) * heads, **self.options}
        return {**sizes, "wordvec_dim": W} if "wordvec_dim" in self.family.options else sizes

    def build(self, words, D, W, H, dtype=numpy.float64, **options):
        return self.family(words, **self.sizes(D, W, H), dtype=dtype, **options)

    def features(self, N, D, seed):
        """Draw features; image n lacks its first n regions modulo L + 1, so that some have none."""
        rng = numpy.random.default_rng(seed)
        if not self.regions:
            return rng.standard_normal((N, D))
        found = rng.standard_normal((N, self.regions, D))
        for n, regions in enumerate(found):
            regions[: n % (self.regions + 1)] = 0
        return found


def _with_cell(cell, family=CaptioningRNN, regions=0, **options):
    return Kind(family, {"cell_type": cell, **options}, regions)


RECURRENT = {cell: _with_cell(cell) for cell in ("rnn", "lstm", "gru")}
LOOKING = {
    "attention lstm": _with_cell("lstm", AttentionRNN, 3),
    "attention gru dot": _with_cell("gru", AttentionRNN, 2, scoring="dot"),
    "attention rnn": _with_cell("rnn", AttentionRNN, 1),
}
WITH_A_CELL = {**RECURRENT, "lstm on regions": _with_cell("lstm", regions=2), **LOOKING}
TRANSFORMERS = {
    "transformer": Kind(Transformer, {"layers": 1, "heads": 2}, 3),
    "transformer with encoder": Kind(
        Transformer,
        {"layers": 1, "heads": 2, "encoder_layers": 1, "positions": "learned", "max_length": 12},
        2,
    ),
    "transformer on a vector": Kind(Transformer, {"layers": 2, "heads": 1, "tie_embeddings": True}),
}
KINDS = {**WITH_A_CELL, **TRANSFORMERS}
