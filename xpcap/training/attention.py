"""How spread attention is on validation captions, measured after each epoch."""

from __future__ import annotations

import numpy

from xpcap.backend import to_host
from xpcap.data.minibatch import EpochBatches
from xpcap.distributed import Ranks
from xpcap.models import CaptionModel
from xpcap.models.inspection import attention_maps
from xpcap.training.trainer import Priority, Trainer


class AttentionEntropy:
    """Adds the entropy of attention after an epoch to the `figures` of a trainer.

    It is `attention_entropy`, the mean over words in nats: 0 if the model looks at one region, log
    L if at all L alike; and `attention_entropy_share`, its share of that log L, where L counts the
    regions that are present.

    Parameters
    ----------
    batches
        Some validation captions; each rank has its share of every batch.
    ranks
        The processes that train together.
    """

    def __init__(self, batches: EpochBatches, ranks: Ranks) -> None:
        self._batches = batches
        self._ranks = ranks

    def follow(self, trainer: Trainer) -> None:
        """Measure after each epoch from now on, before it is recorded."""
        trainer.on("epoch", self._measure, Priority.CHECK)

    def _measure(self, trainer: Trainer) -> None:
        totals = numpy.zeros(3)
        for batch in self._batches.epoch(0):
            if len(batch.captions):  # a small batch may leave nothing to this rank
                captions, features = to_host(batch.captions), to_host(batch.features)
                totals += entropy_of_attention(trainer.model, features, captions[:, 1:])
        entropy, most, words = numpy.sum(self._ranks.gather(tuple(totals)), axis=0)
        trainer.figures["attention_entropy"] = float(entropy / max(words, 1))
        trainer.figures["attention_entropy_share"] = float(entropy / most) if most else 0.0


def entropy_of_attention(
    model: CaptionModel, features: numpy.ndarray, words: numpy.ndarray
) -> tuple[float, float, int]:
    """Add up the entropy of attention over the words of captions `(N, T)`, in nats.

    Also returns the sum of the largest entropies possible, and the number of words. Arguments are
    those of `attention_maps`, on the host.
    """
    to_device = model.backend.to_device
    maps = to_host(attention_maps(model, to_device(features), to_device(words)))
    looked = maps.astype(numpy.float64)[words != model.null]
    regions = numpy.broadcast_to(features.any(axis=2).sum(axis=1)[:, None], words.shape)
    most = numpy.log(numpy.maximum(regions[words != model.null], 1)).sum()
    logs = numpy.log(looked, out=numpy.zeros_like(looked), where=looked > 0)
    return float(-(looked * logs).sum()), float(most), len(looked)
