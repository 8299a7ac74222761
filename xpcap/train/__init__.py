"""Training: the loop, its schedule and events, validation, and the CS231n solver."""

from xpcap.train.solver import CaptioningSolver, CaptioningTrainer
from xpcap.train.trainer import Schedule, Trainer, evaluate

__all__ = [
    "CaptioningSolver",
    "CaptioningTrainer",
    "Schedule",
    "Trainer",
    "evaluate",
]
