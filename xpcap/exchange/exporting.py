"""Export of a run to a file for other programs."""

from __future__ import annotations

from pathlib import Path

from xpcap.errors import ConfigurationError
from xpcap.exchange.contents import contents_of
from xpcap.exchange.course import write_npz
from xpcap.exchange.parameters import GATES
from xpcap.exchange.tensors import write_safetensors
from xpcap.runs import Run, banned_tokens

FORMATS = {"torch": ".safetensors", "npz": ".npz", "onnx": ".onnx"}
"""Export formats, and the extensions of their files."""


def export_run(run: Run, to: str, path: Path) -> None:
    """Write a run's captioner to a file, which is replaced if it exists.

    Formats are `"torch"`, a state dict of PyTorch's layers, in safetensors, with words and
    configuration; `"npz"`, the course's dict of parameters, of any model; and `"onnx"`, a graph
    that captions as `xpcap caption` does, greedily and without `<UNK>`.

    Raises
    ------
    ConfigurationError
        If the format is unknown or cannot express the model, or a library is missing.
    DataError
        If the file cannot be written.
    """
    if to not in FORMATS:
        raise ConfigurationError(f"format '{to}' is unknown; expected {', '.join(FORMATS)}")
    contents = contents_of(run)
    if to == "npz":
        return write_npz(path, contents.params)
    model = contents.config["model"]
    family, cell = model.get("family", "recurrent"), model.get("cell_type")
    if family != "recurrent" or cell not in GATES:
        what = f"the cell '{cell}'" if family == "recurrent" else f"the family '{family}'"
        raise ConfigurationError(
            f"{what} has no conversion to {to}; expected a recurrent model with {', '.join(GATES)},"
            " or the format npz"
        )
    if to == "torch":
        return write_safetensors(path, contents)
    try:
        from xpcap.exchange.onnx_graph import write_onnx
    except ImportError as error:
        raise ConfigurationError(
            "an ONNX file needs onnx, which is not installed; expected the extra 'export'"
            " (pip install 'xpcap[export]')"
        ) from error
    return write_onnx(path, contents, banned_tokens(contents.vocabulary))
