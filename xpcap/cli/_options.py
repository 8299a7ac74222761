"""Options that several commands share, and how results are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xpcap import distributed
from xpcap.errors import ConfigurationError, printable

if TYPE_CHECKING:
    from xpcap.backend import Backend
    from xpcap.distributed import Ranks
    from xpcap.runs import Run

device_option = click.option(
    "--device",
    metavar="auto|cpu|gpu|gpu:K",
    default="auto",
    envvar="XPCAP_DEVICE",
    help="Where to compute; auto takes a GPU if one answers. Also XPCAP_DEVICE.",
)


def _use_threads(context: click.Context, parameter: click.Parameter, value: str) -> None:
    from xpcap.threads import use_threads

    try:
        context.with_resource(use_threads(value))
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from error


threads_option = click.option(
    "--threads",
    metavar="auto|N",
    default="auto",
    envvar="XPCAP_THREADS",
    expose_value=False,
    callback=_use_threads,
    help="Number of threads on the CPU; auto uses the processors that this process may use, at"
    " most as many as OMP_NUM_THREADS says. Also XPCAP_THREADS.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")

AnyPath = click.Path(path_type=Path)

runs_argument = click.argument("runs", type=AnyPath, nargs=-1, required=True, metavar="RUN...")


def talk(message: str) -> None:
    """Say something that is no result, in a line that a terminal does not obey.

    Of several processes the first one speaks.
    """
    if not distributed.rank():
        click.echo(printable(message), err=True)


def show(line: object) -> None:
    """Print a line of a result, in which nothing is left that a terminal obeys."""
    click.echo(printable(str(line)))


def refuse_ranks(*others: str) -> None:
    """Refuse the group's command, unless it is among `others`, where `mpirun` starts several.

    Raises
    ------
    ConfigurationError
        If it has: all of them would do the same, and write the same files.
    """
    context = click.get_current_context()
    name = context.invoked_subcommand
    if distributed.launched() and name not in others:
        raise ConfigurationError(
            f"'{context.info_name} {name}' is the work of one process; expected no mpirun"
        )


def open_device(name: str) -> Any:
    """Open a device for the rest of the command; say which, and why where `auto` chose."""
    from xpcap.backend import open_backend

    backend = open_backend(name, distributed.local_rank())
    click.get_current_context().with_resource(backend.activate())
    talk(f"device: {backend.name}" + (f" ({backend.remark})" if backend.remark else ""))
    return backend


def join_others(backend: Backend) -> Ranks:
    """Join the processes that `mpirun` has started beside this one, all by the same command.

    Devices may have other names on another machine.

    Raises
    ------
    ConfigurationError
        If one was started with another option, which is named.
    """
    ranks = distributed.join(backend)
    context = click.get_current_context()
    options = {
        parameter.opts[0]: context.params[parameter.name]
        for parameter in context.command.params
        if parameter.name in context.params and parameter.name != "device"
    }
    distributed.check_alike(ranks, {"commands": context.info_name, **options})
    return ranks


def open_runs(runs: Sequence[Path], device: str) -> Run:
    """Open runs that decide together, for all the processes that `mpirun` has started."""
    from xpcap.runs import ensemble, open_run

    backend = open_device(device)
    ranks = join_others(backend)
    return replace(ensemble([open_run(run, backend) for run in runs]), ranks=ranks)


def show_json(value: Any) -> None:
    """Print a result for a program, in ASCII."""
    click.echo(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def show_captions(shown: Sequence[dict[str, Any]]) -> None:
    """Print captions, each with its image and with what people said, if known.

    Where an image has several, each is led by its log-probability in nats.
    """
    several = any(len(entry["captions"]) > 1 for entry in shown)
    for entry in shown:
        show(entry["image"])
        for found in entry["captions"]:
            log_prob = f"{found['log_prob']:7.2f}  " if several else ""
            show(f"  xpcap   {log_prob}{found['caption']}")
        for sentence in entry.get("references", []):
            show(f"  people  {' '.join(sentence.split())}")
