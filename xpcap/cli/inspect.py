"""`xpcap inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from xpcap.cli._options import AnyPath, json_option, show, show_json


@click.command()
@click.argument("path", type=AnyPath, metavar="FILE|RUN")
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Show what a checkpoint says of itself: of a FILE, or the last one of a RUN.

    What wrote it, how far training is, the model, its data and options, how many words it knows,
    and the type and shape of every array. Anything but a whole checkpoint is refused.
    """
    from xpcap.runs import checkpoint_of
    from xpcap.runs.checkpoint import read_checkpoint

    file = checkpoint_of(path)
    found = _contents(file, read_checkpoint(file))
    if as_json:
        show_json(found)
        return
    arrays, config = found.pop("arrays"), found.pop("config")
    for name, value in [*found.items(), *config.items()]:
        show(f"{name.replace('_', ' '):<11} {_said(value)}")
    width = max((len(array["name"]) for array in arrays), default=0)
    for array in arrays:
        shape = " × ".join(map(str, array["shape"]))
        show(f"{array['name']:<{width}}  {array['dtype']}  {shape}  {array['bytes']:,} bytes")


def _contents(file: Path, checkpoint: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from xpcap.runs.checkpoint import FORMAT, named_arrays

    state = checkpoint.state
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "format": FORMAT,
        "written_by": checkpoint.written_by,
        "progress": asdict(state.progress),
        "config": checkpoint.config,
        "optimizer": state.optimizer,
        "words": len(checkpoint.vocabulary),
        "arrays": [
            {
                "name": ".".join(name),
                "dtype": str(value.dtype),
                "shape": list(value.shape),
                "bytes": value.nbytes,
            }
            for name, value in named_arrays(state)
        ],
    }


def _said(value: Any) -> str:
    """Put a value in a line; objects inside one another as `schedule.epochs 6`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(part)}" for name, part in _flat(value))
    return f"{value:,}" if type(value) is int else str(value)


def _flat(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = []
    for name, part in value.items():
        if isinstance(part, Mapping):
            found += [(f"{name}.{inner}", deep) for inner, deep in _flat(part)]
        else:
            found.append((name, part))
    return found
