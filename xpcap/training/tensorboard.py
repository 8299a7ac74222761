"""Scalars as a TensorBoard event file, made with tensorboardX (the extra `tensorboard`).

tensorboardX's own writer uses a thread that dies when the disk is full, and the program waits
forever. Here each batch of events is one write to a file that is closed again.

A file is a sequence of records: length of the data (8 bytes, little-endian), checksum of the
length, data, checksum of the data. Data are a protocol buffer `Event`; checksums are masked CRC-32C
(tensorflow/core/lib/io/record_writer.h).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xpcap.errors import import_extra
from xpcap.files import append, check_new_folder, check_writable, explained
from xpcap.metrics import QUALITY
from xpcap.training.samples import FIGURES

_TAGS = {
    "loss": "loss/step",
    "lr": "learning_rate",
    "grad_norm": "gradient_norm",
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_perplexity": "perplexity/train",
    "val_perplexity": "perplexity/val",
    "attention_entropy": "attention/entropy",
    "attention_entropy_share": "attention/entropy_share",
    **{f"val_{name}": f"captions/{name}" for name in QUALITY},
    **{name: f"self_critical/{name}" for name in FIGURES},
}


def check_events(folder: Path, resumed: bool = False) -> None:
    """Check that tensorboardX is there and an event file can be created in a folder.

    It must be a new one, unless a run is resumed: TensorBoard would mix old and new events.
    """
    _module("proto.event_pb2")
    if not resumed:
        check_new_folder(folder)
    check_writable(folder)


class EventFile:
    """Writes the lines of a `History` as scalars for TensorBoard.

    Of each step `loss/step`, `learning_rate` and `gradient_norm`; of each epoch `loss/train`,
    `loss/val`, `perplexity/train` and `perplexity/val`, at its last step; of models with attention
    `attention/entropy` and `attention/entropy_share` too; and of a metric that selects the best
    epoch `captions/NAME`; of each self-critical step `self_critical/NAME` of its `FIGURES`, whose
    entropy `loss/step` is. Losses are in nats per word. Null values are left out. The file begins
    after `step`: TensorBoard drops later steps of other files in the folder, which is created if
    missing.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        events = _module("proto.event_pb2")
        self._event = events.Event
        self._summary = _module("proto.summary_pb2").Summary
        self._checksum = _module("record_writer").masked_crc32c
        with explained(folder, "write"):
            folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._path = folder / f"events.out.tfevents.{now:.0f}.xpcap.{step}"
        begun = events.SessionLog(status=events.SessionLog.START)
        self._write(
            [
                self._event(wall_time=now, file_version="brain.Event:2"),
                self._event(wall_time=now, step=step + 1, session_log=begun),
            ]
        )

    def write(self, lines: Sequence[tuple[float, Mapping[str, Any]]]) -> None:
        """Write lines of a history, each with its time in seconds since 1970."""
        self._write([self._scalars(when, line) for when, line in lines])

    def _scalars(self, when: float, line: Mapping[str, Any]) -> Any:
        values = [
            self._summary.Value(tag=tag, simple_value=line[name])
            for name, tag in _TAGS.items()
            if line.get(name) is not None
        ]
        return self._event(wall_time=when, step=line["step"], summary=self._summary(value=values))

    def _write(self, events: Sequence[Any]) -> None:
        records = b"".join(self._record(event.SerializeToString()) for event in events)
        append(self._path, records)  # whole records, or nothing can be read after them

    def _record(self, data: bytes) -> bytes:
        length = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (length, data)]
        return length + checksums[0] + data + checksums[1]


def _module(name: str) -> Any:
    return import_extra(f"tensorboardX.{name}", "TensorBoard events need", "tensorboard")
