"""Export of a run to a file for other programs."""

from __future__ import annotations

from pathlib import Path

from xpcap.backend import to_host
from xpcap.errors import ConfigurationError
from xpcap.exchange.contents import Contents
from xpcap.exchange.course import write_npz
from xpcap.exchange.parameters import GATES
from xpcap.exchange.tensors import write_safetensors
from xpcap.exchange.torch_layout import CONVERTERS
from xpcap.runs import Run, banned_tokens

FORMATS = {"torch": ".safetensors", "npz": ".npz", "onnx": ".onnx"}
"""Export formats, and the extensions of their files."""


def export_run(run: Run, to: str, path: Path) -> None:
    """Write a run's captioner to a file, which is replaced if it exists.

    Formats are `"torch"`, a state dict of PyTorch's layers, in safetensors, with words and
    configuration; `"npz"`, the course's dict of parameters, of any model; and `"onnx"`, a graph
    that captions as `xpcap caption` does, greedily and without `<UNK>`. An unknown format, one that
    cannot express the model, and a missing library raise a `ConfigurationError`.
    """
    if to not in FORMATS:
        raise ConfigurationError(f"format '{to}' is unknown; expected {', '.join(FORMATS)}")
    params = {name: to_host(value) for name, value in run.model.params.items()}
    model = run.config["model"]
    if model.get("tie_embeddings"):  # elsewhere the vocabulary layer has weights of its own
        params["W_vocab"] = params["W_embed"].T.copy()
        model = {**model, "tie_embeddings": False}
    if to == "npz":
        return write_npz(path, params)
    family, cell = model.get("family", "recurrent"), model.get("cell_type")
    if family not in CONVERTERS or cell not in (None, *GATES):
        what = f"the cell '{cell}'" if family in CONVERTERS else f"the family '{family}'"
        raise ConfigurationError(
            f"{what} has no conversion to {to}; expected a model of {', '.join(CONVERTERS)}, cells"
            f" {', '.join(GATES)}, or the format npz"
        )
    config = {"model": model, "data": run.config["data"]}
    contents = Contents(params, run.vocabulary, config, run.transform)
    if to == "torch":
        return write_safetensors(path, contents)
    try:
        from xpcap.exchange.onnx_graph import write_onnx
    except ImportError as error:
        raise ConfigurationError(
            "an ONNX file needs onnx, which is not installed; expected the extra 'export'"
            " (pip install 'xpcap[export]')"
        ) from error
    return write_onnx(path, contents, run.max_words, banned_tokens(contents.vocabulary))
