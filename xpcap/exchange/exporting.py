"""A run, written for others to use."""

from __future__ import annotations

from pathlib import Path

from xpcap.errors import ConfigurationError
from xpcap.exchange.contents import contents_of
from xpcap.exchange.course import write_npz
from xpcap.exchange.onnx_graph import write_onnx
from xpcap.exchange.tensors import write_safetensors
from xpcap.runs import Run, banned_tokens

FORMATS = {"torch": ".safetensors", "npz": ".npz", "onnx": ".onnx"}
"""What a run can be exported to, and how the names of such files end."""


def export_run(run: Run, to: str, path: Path) -> None:
    """Write a run's captioner into a file, which is replaced if it is there.

    Parameters
    ----------
    run
        An open run.
    to
        `"torch"`: a state dict of PyTorch's layers, in safetensors, with words and configuration;
        `"npz"`: the course's dict of parameters; `"onnx"`: a graph that captions as `xpcap caption`
        does, greedily and without `<UNK>`.
    path
        The file.

    Raises
    ------
    ConfigurationError
        If `to` is unknown, or a library is missing.
    DataError
        If the file cannot be written.
    """
    if to not in FORMATS:
        raise ConfigurationError(f"format '{to}' is unknown; expected {', '.join(FORMATS)}")
    contents = contents_of(run)
    if to == "torch":
        write_safetensors(path, contents)
    elif to == "npz":
        write_npz(path, contents.params)
    else:
        write_onnx(path, contents, banned_tokens(contents.vocabulary))
