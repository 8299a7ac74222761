"""Training: the loop, its schedule and events, validation, and the solver of the course."""

from xpcap.train.solver import CaptioningSolver, CaptioningTrainer
from xpcap.train.trainer import Figures, Schedule, Trainer, evaluate

__all__ = [
    "CaptioningSolver",
    "CaptioningTrainer",
    "Figures",
    "Schedule",
    "Trainer",
    "evaluate",
]
