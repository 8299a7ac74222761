"""Training: the loop, its schedule and events, and validation."""

from xpcap.training.trainer import Schedule, Trainer, evaluate

__all__ = [
    "Schedule",
    "Trainer",
    "evaluate",
]
