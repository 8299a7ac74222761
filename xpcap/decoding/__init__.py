"""Decoding: beam search, sampling and scoring with any captioner."""

from xpcap.decoding.beam import Beam, beam_search
from xpcap.decoding.captioner import Captioner, Decoded
from xpcap.decoding.constraints import MAX_LENGTH, Constraints
from xpcap.decoding.ensemble import Ensemble
from xpcap.decoding.sampling import Sampling, sample
from xpcap.decoding.scoring import score_captions

__all__ = [
    "MAX_LENGTH",
    "Beam",
    "Captioner",
    "Constraints",
    "Decoded",
    "Ensemble",
    "Sampling",
    "beam_search",
    "sample",
    "score_captions",
]
