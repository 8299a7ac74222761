"""Options that several commands share, and the printing of results and messages."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from xpcap import distributed
from xpcap.errors import ConfigurationError, printable

if TYPE_CHECKING:
    from xpcap.backend import Backend
    from xpcap.distributed import Ranks
    from xpcap.runs import Run


def _use_threads(context: click.Context, parameter: click.Parameter, value: str) -> None:
    from xpcap.threads import use_threads

    try:
        context.with_resource(use_threads(value))
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from error


AnyPath = click.Path(path_type=Path)
NonNegative, Positive = click.IntRange(min=0), click.IntRange(min=1)


def option(name: str, default: Any, help: str, **settings: Any) -> Callable[..., Any]:
    """Make an option of the type of its default, unless `type` is set."""
    return click.option(name, default=default, help=help, **settings)


def choice(name: str, values: str, help: str) -> Callable[..., Any]:
    """Make an option with choices `first|second|...`, the first of which is the default."""
    choices = values.split("|")
    return option(name, choices[0], help, type=click.Choice(choices))


def path(name: str, help: str, **settings: Any) -> Callable[..., Any]:
    """Make an option that is a path; `name` may end with that of the command's argument."""
    return click.option(*name.split(), type=AnyPath, help=help, **settings)


def together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator that adds several options to a command."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate


runs_argument = click.argument("runs", type=AnyPath, nargs=-1, required=True, metavar="RUN...")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
split_option = choice("--split", "val|train|test", "Split to caption.")
data_option = path("--data", "Data folder, if it has moved since training.")
length_penalty_option = option(
    "--length-penalty",
    "none",
    "Divide beam scores by nothing, by the length, or by GNMT's length penalty.",
    metavar="none|average|gnmt",
)
threads_option = option(
    "--threads",
    "auto",
    "Number of threads on the CPU; auto uses the processors that this process may use, at most"
    " OMP_NUM_THREADS. Also XPCAP_THREADS.",
    metavar="auto|N",
    envvar="XPCAP_THREADS",
    expose_value=False,
    callback=_use_threads,
)
compute_options = together(
    option(
        "--device",
        "auto",
        "Device to compute on; auto uses a GPU if one is available. Also XPCAP_DEVICE.",
        metavar="auto|cpu|gpu|gpu:K",
        envvar="XPCAP_DEVICE",
    ),
    threads_option,
)


def option_name(parameter: str) -> str:
    """Return `--some-option` for `some_option`; `from` is a word of Python."""
    return "--from" if parameter == "from_run" else f"--{parameter.replace('_', '-')}"


_NAMES = (
    "data|epochs|extractor|from_run|heads|images|keep|lazy|max_words|out|patience|replace|save_every"
    "|skip_broken|splits|vocab|warmup|weights"
)
_IN_PYTHON = re.compile(rf"(?<![\w'/-])({_NAMES})=(True|[A-Z]+|\{{'(.+?)': '(\w+)'\}})(?![\w'])")


def with_options(message: str) -> str:
    """Write `--skip-broken` for `skip_broken=True` in a message of the library.

    And `--data FOLDER` for `data=FOLDER`, `--splits none=val` for `splits={'none': 'val'}`.
    """

    def written(found: re.Match[str]) -> str:
        name, value, key, of_key = found.groups()
        if value == "True":
            return option_name(name)
        return f"{option_name(name)} {value if key is None else f'{key}={of_key}'}"

    return _IN_PYTHON.sub(written, message)


@contextlib.contextmanager
def named_as_options() -> Iterator[None]:
    """Write `--some-option` for the names of the command's parameters in a message."""
    try:
        yield
    except ConfigurationError as error:
        names = [parameter.name or "" for parameter in click.get_current_context().command.params]
        message = re.sub(
            rf"(?<!['\w-])({'|'.join(names)})(?!['\w-])",
            lambda name: option_name(name[0]),
            str(error),
        )
        raise ConfigurationError(message) from error


def echo(text: str, err: bool = False) -> None:
    """Print text to stdout or stderr as it is, in the stream's own encoding.

    Without `file`, click writes UTF-8 where that is ASCII.
    """
    click.echo(text, file=sys.stderr if err else sys.stdout)


def print_message(message: str) -> None:
    """Print a line to stderr, control characters escaped; of several processes the first does."""
    if not distributed.rank():
        echo(printable(message), err=True)


def print_result(line: object) -> None:
    """Print a line of a result to stdout, control characters escaped."""
    echo(printable(str(line)))


def print_json(value: Any) -> None:
    """Print a result as ASCII JSON to stdout."""
    echo(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def print_captions(images: Sequence[dict[str, Any]]) -> None:
    """Print images with their captions and references.

    If an image has several captions, each is preceded by its log-probability in nats.
    """
    several = any(len(image["captions"]) > 1 for image in images)
    for image in images:
        print_result(image["image"])
        for found in image["captions"]:
            log_prob = f"{found['log_prob']:7.2f}  " if several else ""
            print_result(f"  xpcap   {log_prob}{found['caption']}")
        for sentence in image.get("references", []):
            print_result(f"  people  {' '.join(sentence.split())}")


def refuse_ranks(*others: str) -> None:
    """Refuse to run the group's command under `mpirun`, unless it is one of `others`.

    All processes would do the same work, and write the same files.
    """
    context = click.get_current_context()
    name = context.invoked_subcommand
    if distributed.launched() and name not in others:
        raise ConfigurationError(
            f"'{context.info_name} {name}' runs in one process; expected no mpirun"
        )


def open_device(name: str) -> Any:
    """Open and print the device for the rest of the command.

    Why `auto` chose the CPU is printed if it was asked for, or CuPy is installed.
    """
    from xpcap.backend import open_backend

    backend, context = open_backend(name, distributed.local_rank()), click.get_current_context()
    context.with_resource(backend.activate())
    asked = context.get_parameter_source("device") is not ParameterSource.DEFAULT
    why = f" ({backend.remark})" if backend.remark and (asked or find_spec("cupy")) else ""
    print_message(f"device: {backend.name}{why}")
    return backend


def join_ranks(backend: Backend) -> Ranks:
    """Join the processes that `mpirun` has started; all must have the same options.

    The device may differ: another machine may name its devices differently.
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


def open_shared_device(name: str) -> tuple[Backend, Ranks]:
    """Open the device, and join the processes that `mpirun` has started."""
    backend = open_device(name)
    return backend, join_ranks(backend)


def open_runs(runs: Sequence[Path], device: str) -> Run:
    """Open an ensemble of runs, shared by all processes that `mpirun` has started."""
    from xpcap.runs import ensemble, open_run

    backend, ranks = open_shared_device(device)
    return replace(ensemble([open_run(run, backend) for run in runs]), ranks=ranks)
