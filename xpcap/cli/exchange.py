"""`xpcap export` and `xpcap import`."""

from __future__ import annotations

from pathlib import Path

import click

from xpcap.cli._options import AnyPath, Positive, choice, option, path, print_message, print_result


@click.command()
@click.argument("run", type=AnyPath)
@click.option(
    "--to",
    type=click.Choice(["torch", "npz", "onnx"]),
    required=True,
    help="Target: PyTorch (a state dict in safetensors), the course's notebooks (a dict of"
    " arrays), or ONNX runtimes (a graph that captions).",
)
@path("--out", "File to write.", show_default="RUN/captioner.{safetensors,npz,onnx}")
def export(run: Path, to: str, out: Path | None) -> None:
    """Write the weights of a RUN for use elsewhere.

    An existing file is replaced. Files for PyTorch contain all that `xpcap import` needs.
    """
    from xpcap.exchange import FORMATS, export_run
    from xpcap.runs import open_run

    opened = open_run(run, "cpu")
    file = out or opened.folder / f"captioner{FORMATS[to]}"
    export_run(opened, to, file)
    print_result(file)


@click.command("import")
@click.argument("file", type=AnyPath)
@path("--out", "Run folder to create.", required=True)
@path(
    "--data",
    "Data folder that the weights were trained on; not needed for files of `xpcap export --to"
    " torch`.",
)
@choice(
    "--features",
    "auto|pca|fc7",
    "Features of --data; auto uses pca if their number matches the weights.",
)
@path("--vocab", "Vocabulary file such as coco2014_vocab.json, if neither FILE nor --data has one.")
@option(
    "--heads",
    None,
    "Number of heads of a Transformer's attention; not needed for files of `xpcap export --to"
    " torch`.",
    type=Positive,
)
def import_(
    file: Path,
    out: Path,
    data: Path | None,
    features: str,
    vocab: Path | None,
    heads: int | None,
) -> None:
    """Make a run from the weights in FILE, to caption with.

    FILE is a PyTorch state dict in safetensors, of one nn.Embedding, one nn.LSTM, nn.GRU or nn.RNN,
    and two nn.Linear (from the features to the first hidden state, and to the words), with any
    names, or one of a captioner with attention, or a Transformer, with the names that `xpcap
    export` gives; or the dict of parameters of an .npz file.
    """
    from xpcap.exchange import import_run

    run = import_run(file, out, data, vocab, features, heads)
    print_message(repr(run.model))
    print_result(out)
