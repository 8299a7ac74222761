"""`xpcap inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from xpcap.cli._options import AnyPath, json_option, print_json, print_result


@click.command()
@click.argument("path", type=AnyPath, metavar="FILE|RUN")
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Show the contents of a checkpoint: a FILE, or the last one of a RUN.

    Prints what wrote it, the training progress, the model, data and options, the vocabulary size,
    and the dtype and shape of every array. Incomplete checkpoints are refused.
    """
    from xpcap.runs.checkpoint import read_checkpoint
    from xpcap.runs.folder import checkpoint_of

    file = checkpoint_of(path)
    found = _contents(file, read_checkpoint(file))
    if as_json:
        print_json(found)
        return
    arrays, config = found.pop("arrays"), found.pop("config")
    for name, value in [*found.items(), *config.items()]:
        line = ", ".join(f"{key} {text}".lstrip() for key, text in _leaves("", value))
        print_result(f"{name.replace('_', ' '):<11} {line}")
    width = max((len(array["name"]) for array in arrays), default=0)
    for array in arrays:
        shape = " × ".join(map(str, array["shape"]))
        print_result(
            f"{array['name']:<{width}}  {array['dtype']}  {shape}  {array['bytes']:,} bytes"
        )


def _contents(file: Path, checkpoint: Any) -> dict[str, Any]:
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


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the values of nested objects as text, by dotted names such as `schedule.epochs`."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), part)
    else:
        yield name, f"{value:,}" if type(value) is int else str(value)
