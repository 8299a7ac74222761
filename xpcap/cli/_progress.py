"""Progress bars, on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from xpcap import distributed

if TYPE_CHECKING:
    from xpcap.training import Trainer

REFRESH_SECONDS = 0.5


@contextmanager
def stages(in_bytes: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield `show(what, done, total)`, which draws one bar for each `what`."""
    from rich.progress import DownloadColumn, TextColumn, TransferSpeedColumn

    figures = TextColumn("{task.completed}/{task.total}")
    tasks: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done, total=total)

    with _bars(*([DownloadColumn(), TransferSpeedColumn()] if in_bytes else [figures])) as progress:
        yield show


@contextmanager
def training() -> Iterator[Callable[[Trainer], None]]:
    """Yield `watch(trainer)`: one bar per epoch, with loss or reward, and a line after each."""
    from rich.progress import TextColumn

    with _bars(TextColumn("{task.fields[figures]}")) as progress:
        yield _TrainingBar(progress).watch


class _TrainingBar:
    """A bar that restarts at each epoch; a loss is fetched at most every `REFRESH_SECONDS`."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress

    def watch(self, trainer: Trainer) -> None:
        total = len(trainer.batches)
        done = trainer.step - trainer.epoch * total
        self.task = self.progress.add_task(
            f"epoch {trainer.epoch + 1}", total=total, completed=done, figures=""
        )
        self.started = self.stepped = self.shown = time.perf_counter()
        self.seen = 0
        trainer.on("step", self._step)
        trainer.on("epoch", self._epoch)

    def _step(self, trainer: Trainer) -> None:
        assert trainer.batch is not None
        assert trainer.result is not None
        self.seen += trainer.batch.total
        now = self.stepped = time.perf_counter()
        self.progress.update(self.task, advance=1)
        if now - self.shown >= REFRESH_SECONDS:
            self.shown = now
            reward = trainer.training_step.measured.get("reward")
            shown = f"loss {trainer.result.loss:.3f}" if reward is None else f"reward {reward:.3f}"
            rate = self.seen / (now - self.started)
            self.progress.update(self.task, figures=f"{shown}  {rate:,.0f} captions/s")

    def _epoch(self, trainer: Trainer) -> None:
        from xpcap.training.trainer import epoch_line

        rate = self.seen / max(self.stepped - self.started, 1e-9)
        speed = f"; {rate:,.0f} captions/s" if self.seen else ""  # resumed at the epoch's end
        total = trainer.schedule.epochs
        self.progress.console.print(  # above the bar, which click.echo would run into
            f"{epoch_line(trainer)}{speed}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        description = f"epoch {min(trainer.epoch + 1, total)}"
        self.progress.reset(self.task, description=description, figures="")
        self.started, self.seen = time.perf_counter(), 0


@contextmanager
def _bars(*figures: Any) -> Iterator[Any]:
    """Draw bars inside the context; without a terminal, print nothing, not even a final newline."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=distributed.rank() > 0)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *figures,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with nullcontext() if progress.disable else progress:
        yield progress
