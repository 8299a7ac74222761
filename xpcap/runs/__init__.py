"""Training runs on disk: the run folder, its checkpoints, and captioning with them."""

from xpcap.runs.folder import (
    BEST,
    EARLIER,
    HISTORY,
    LAST,
    REPORT,
    TRANSFORM,
    check_new_run,
    checkpoint_of,
    create_run,
    is_run,
    locked,
)
from xpcap.runs.opening import open_run
from xpcap.runs.run import BATCH, Run, banned_tokens, ensemble

__all__ = [
    "BATCH",
    "BEST",
    "EARLIER",
    "HISTORY",
    "LAST",
    "REPORT",
    "TRANSFORM",
    "Run",
    "banned_tokens",
    "check_new_run",
    "checkpoint_of",
    "create_run",
    "ensemble",
    "is_run",
    "locked",
    "open_run",
]
