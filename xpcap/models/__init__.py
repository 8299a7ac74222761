"""Captioners: what they have in common, and a file for each family."""

from xpcap.models.attention import AttentionRNN
from xpcap.models.model import CaptionModel
from xpcap.models.recurrent import CaptioningRNN
from xpcap.models.transformer import Transformer

FAMILIES: dict[str, type[CaptionModel]] = {
    family.family: family for family in (CaptioningRNN, AttentionRNN, Transformer)
}
"""Model families by name, as checkpoints have it."""

__all__ = ["FAMILIES", "AttentionRNN", "CaptionModel", "CaptioningRNN", "Transformer"]
