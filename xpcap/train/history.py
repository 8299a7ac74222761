"""What happened in training, as JSON lines: an object a step, and one an epoch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from xpcap.files import explained
from xpcap.train.trainer import Trainer

FLUSH_EVERY = 50


class History:
    """Writes a run's `history.jsonl`.

    A step is `{"step", "epoch", "loss", "lr"}`, loss in nats a word, or null; an epoch is
    `{"step", "epoch"}` and `{split}_loss`, `{split}_perplexity` for each split measured. Losses are
    fetched from the device a batch of steps at a time, so that it is not stopped at each.

    Parameters
    ----------
    path
        The file; lines are added to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[tuple[dict[str, Any], Any]] = []

    def follow(self, trainer: Trainer) -> None:
        """Write down all that a trainer does from now on."""
        trainer.on("step", self._step)
        trainer.on("epoch", self._epoch)

    def _step(self, trainer: Trainer) -> None:
        batch = trainer.batch
        assert batch is not None
        line = {"step": trainer.step, "epoch": trainer.epoch + 1}
        per_word = trainer.loss * (len(batch.captions) / batch.words)
        self._pending.append(({**line, "lr": trainer.learning_rate}, per_word))
        if len(self._pending) >= FLUSH_EVERY:
            self.flush()

    def _epoch(self, trainer: Trainer) -> None:
        line: dict[str, Any] = {"step": trainer.step, "epoch": trainer.epoch}
        for name, figures in trainer.figures.items():
            line[f"{name}_loss"] = figures.loss
            line[f"{name}_perplexity"] = figures.perplexity
        self.flush()
        self._write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Write what is still pending."""
        lines = [
            json.dumps({**line, "loss": value if math.isfinite(value := float(loss)) else None})
            for line, loss in self._pending
        ]
        self._pending.clear()
        self._write("".join(f"{line}\n" for line in lines))

    def _write(self, text: str) -> None:
        with explained(self.path, "write"), open(self.path, "a", encoding="utf-8") as file:
            file.write(text)
