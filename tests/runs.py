"""Runs of a few steps that are stopped, killed and gone on with."""

import signal
from pathlib import Path

from xpcap.backend import CPU
from xpcap.training import Schedule
from xpcap.training.options import RunOptions
from xpcap.training.run import RunContext, resume_run, train_run
from xpcap.training.trainer import Priority

SMALL = {"hidden": 8, "wordvec": 4, "batch_size": 10, "lr": 0.02}
TRANSFORMER = {
    "model": "transformer", "wordvec": RunOptions.wordvec, "layers": 1, "heads": 2,
    "encoder_layers": 1, "positions": "learned", "dropout": 0.3,
}  # fmt: skip
STEPS = 5  # an epoch of the 48 captions of `tiny`, the last of eight
NEVER = 10**9


class Killed(BaseException):
    """What the test does to a process; nothing in xpcap expects it."""


def begin(data, out, backend=CPU, *, epochs=2, patience=None, clip_norm=5.0, cosine=True,
          warmup=0, watch=None, warn=None, **options):  # fmt: skip
    """Train a new run; `warn` collects warnings."""
    schedule = Schedule(
        epochs, cosine=cosine, clip_norm=clip_norm, patience=patience, warmup=warmup
    )
    chosen = RunOptions(schedule=schedule, **{**SMALL, **options})
    return train_run(data, out, chosen, backend, _context(watch, warn))


def resume(out, backend=CPU, change=None, data=None, watch=None, warn=None):
    """Go on with a run."""
    return resume_run(out, backend, change, data, _context(watch, warn))


def _context(watch, warn):
    return RunContext(watch=watch, warn=(lambda message: None) if warn is None else warn.append)


def at(event, count, act, before=True):
    """Make a `watch` that acts, with the trainer, at the event of that count.

    It does so before or after all else that happens then.
    """

    def watch(trainer):
        seen = 0

        def tell(trainer):
            nonlocal seen
            seen += 1
            if seen == count:
                act(trainer)

        trainer.on(event, tell, Priority.CHECK + 1 if before else Priority.WATCH)

    return watch


def stopping(event="step", count=1, before=True, number=signal.SIGTERM):
    """Make a `watch` that sends this process a signal at the event of that count."""
    return at(event, count, lambda trainer: signal.raise_signal(number), before)


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a run, byte by byte."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def same(one: Path, other: Path) -> None:
    """Assert that two runs have the same files, bit for bit."""
    found, expected = content(one), content(other)
    assert found.keys() == expected.keys()
    for name, file in expected.items():
        assert found[name] == file, name
