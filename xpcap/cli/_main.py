"""The group of all commands, and the translation of errors into exit statuses."""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click

import xpcap
from xpcap import distributed
from xpcap.cli._options import echo, refuse_ranks, with_options
from xpcap.cli.average import average
from xpcap.cli.bench import bench
from xpcap.cli.caption import caption
from xpcap.cli.curves import curves
from xpcap.cli.data import data
from xpcap.cli.evaluate import evaluate
from xpcap.cli.exchange import export, import_
from xpcap.cli.info import info
from xpcap.cli.inspect import inspect
from xpcap.cli.report import report
from xpcap.cli.selfcheck import selfcheck
from xpcap.cli.train import train
from xpcap.errors import Stopped, XpcapError, printable
from xpcap.signals import SIGNALLED, Signalled, ended_by_signals

USER_ERROR = 2


class Commands(click.Group):
    """A group that ends with one line on stderr and exit status 2 if the user made a mistake."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command; in standalone mode, exit with its status."""
        run: Callable[[], Any] = functools.partial(
            super().main, *args, standalone_mode=False, **extra
        )
        if not standalone_mode:
            return run()
        if distributed.rank() or sys.stdout is None:  # the first process prints the results
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is escaped
                stream.reconfigure(errors="backslashreplace")
        try:
            with ended_by_signals():
                result = run()
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(USER_ERROR)
        except click.ClickException as error:
            _end(error.format_message(), USER_ERROR)
        except Stopped as stop:
            if not distributed.rank():  # all others have stopped at the same step
                _print_error(str(stop))
            sys.exit(SIGNALLED + stop.signal)
        except XpcapError as error:
            _end(with_options(str(error)), USER_ERROR)
        except (click.Abort, KeyboardInterrupt):
            _end("interrupted", SIGNALLED + signal.SIGINT)
        except Signalled as error:
            message = "terminated" if error.number == signal.SIGTERM else "interrupted"
            _end(message, SIGNALLED + error.number)
        except BrokenPipeError:
            sys.stdout = None  # the reader has gone: print nothing more
            sys.exit(0)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _end(f"{where}{error.strerror or error}", USER_ERROR)
        except MemoryError as error:
            _end(f"not enough memory: {error}", USER_ERROR)
        except Exception:
            traceback.print_exc()
            distributed.end_all(1)
            sys.exit(1)
        sys.exit(result if isinstance(result, int) else 0)


def _print_error(message: str) -> None:
    who = f"rank {distributed.rank()}: " if distributed.launched() else ""
    echo(f"xpcap: {who}{printable(' '.join(message.split()))}", err=True)


def _end(message: str, status: int) -> NoReturn:
    distributed.wait_for_first()
    _print_error(message)
    distributed.end_all(status)
    sys.exit(status)


@click.group(
    cls=Commands,
    commands=[
        train, curves, average, caption, evaluate, report, inspect, export, import_, data,
        selfcheck, bench, info,
    ],
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)  # fmt: skip
@click.version_option(xpcap.__version__, prog_name="xpcap")
def main() -> None:
    """Train networks to caption images, on a CPU or an NVIDIA GPU.

    `xpcap train` needs no data: it draws its own images and learns to describe them.
    """
    refuse_ranks("train", "caption", "evaluate", "data")
