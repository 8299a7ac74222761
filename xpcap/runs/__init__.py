"""Training runs on disk: the run folder, its checkpoints, and captioning with them."""

from xpcap.runs.averaging import average_checkpoints
from xpcap.runs.folder import BEST, HISTORY, LAST, check_new_run, create_run, is_run
from xpcap.runs.opening import open_run
from xpcap.runs.run import BATCH, Run, ensemble
from xpcap.runs.search import banned_tokens, make_search

__all__ = [
    "BATCH",
    "BEST",
    "HISTORY",
    "LAST",
    "Run",
    "average_checkpoints",
    "banned_tokens",
    "check_new_run",
    "create_run",
    "ensemble",
    "is_run",
    "make_search",
    "open_run",
]
