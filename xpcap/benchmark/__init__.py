"""Timing of training steps, losses and greedy decoding, and of their matrix products alone."""

from xpcap.benchmark.contenders import Ours, Products
from xpcap.benchmark.timing import Result, Times, interleave
from xpcap.benchmark.workload import CONFIGURATIONS, TASKS, Configuration, Workload, draw_captions

__all__ = [
    "CONFIGURATIONS",
    "TASKS",
    "Configuration",
    "Ours",
    "Products",
    "Result",
    "Times",
    "Workload",
    "draw_captions",
    "interleave",
]
