"""Training: the loop, its schedule and events, validation, and the CS231n solver."""

from xpcap.training.solver import CaptioningSolver, CaptioningTrainer
from xpcap.training.trainer import Schedule, Trainer, evaluate

__all__ = [
    "CaptioningSolver",
    "CaptioningTrainer",
    "Schedule",
    "Trainer",
    "evaluate",
]
