"""`xpcap export` and `xpcap import`."""

from __future__ import annotations

from pathlib import Path

import click

from xpcap.cli._options import AnyPath, show, talk


@click.command()
@click.argument("run", type=AnyPath)
@click.option(
    "--to",
    type=click.Choice(["torch", "npz", "onnx"]),
    required=True,
    help="What for: PyTorch (a state dict in safetensors), the course's notebooks (a dict of"
    " arrays), or runtimes of ONNX (a graph that captions).",
)
@click.option(
    "--out", type=AnyPath, help="The file.", show_default="RUN/captioner.{safetensors,npz,onnx}"
)
def export(run: Path, to: str, out: Path | None) -> None:
    """Write the weights of a RUN for use elsewhere.

    A file that is there already is replaced. Files for PyTorch hold all that `xpcap import` needs.
    """
    from xpcap.exchange import FORMATS, export_run
    from xpcap.runs import open_run

    opened = open_run(run, "cpu")
    path = out or opened.folder / f"captioner{FORMATS[to]}"
    export_run(opened, to, path)
    show(path)


@click.command("import")
@click.argument("file", type=AnyPath)
@click.option("--out", type=AnyPath, required=True, help="The new run folder.")
@click.option(
    "--data",
    type=AnyPath,
    help="The data folder that the weights were trained on; what `xpcap export --to torch` wrote"
    " names its own.",
    show_default=False,
)
@click.option(
    "--features",
    type=click.Choice(["auto", "pca", "fc7"]),
    default="auto",
    help="Which features of --data; auto takes pca if there are as many as the weights take.",
)
@click.option(
    "--vocab",
    type=AnyPath,
    help="The words, such as coco2014_vocab.json, if neither FILE nor --data has them.",
    show_default=False,
)
def import_(file: Path, out: Path, data: Path | None, features: str, vocab: Path | None) -> None:
    """Make a run of the weights in FILE, to caption with.

    FILE is a PyTorch model's state dict in safetensors, of one nn.Embedding, one nn.LSTM, nn.GRU or
    nn.RNN, and two nn.Linear, whatever they are called: from the features to the first hidden
    state, and to the words. Or it is the course's dict of parameters, in an .npz file.
    """
    from xpcap.exchange import import_run

    run = import_run(file, out, data, vocab, features)
    model = run.config["model"]
    talk(
        f"{model['cell_type']}, hidden {model['hidden_dim']}, word vectors {model['wordvec_dim']},"
        f" {len(run.vocabulary)} words, {model['input_dim']} features"
    )
    show(out)
