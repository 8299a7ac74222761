"""Write the reference of the command line, `xpcap/cli/README.md`, from the commands' own help."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from xpcap.cli import main

FILE = Path(__file__).parents[1] / "xpcap" / "cli" / "README.md"


def commands(group: click.Group, path: str = "xpcap") -> Iterator[tuple[str, click.Command]]:
    """Yield all commands with their full names."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def reference() -> str:
    """Return the text of the file."""
    parts = ["# The command line\n\nWritten by `python tools/cli_reference.py`.\n"]
    for name, command in sorted(commands(main)):
        options = [p for p in command.params if isinstance(p, click.Option)]
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        usage = " ".join([name, *map(_argument, arguments), "[OPTIONS]"])
        rows = "".join(
            f"| {_names(o)} | {_default(o)} | {_cell(o.help or '')} |\n" for o in options
        )
        parts.append(
            f"## {name}\n\n`{usage}`\n\n{inspect.cleandoc(command.help or '')}\n\n"
            f"| option | default | |\n|---|---|---|\n{rows}"
        )
    return "\n".join(parts)


def _argument(argument: click.Argument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    if argument.nargs == -1 and not name.endswith("..."):
        name += "..."
    return name if argument.required else f"[{name}]"


def _names(option: click.Option) -> str:
    value = option.metavar or (
        "|".join(map(str, option.type.choices))
        if isinstance(option.type, click.Choice)
        else option.type.name.split()[0].upper()
    )
    return _cell(f"`{max(option.opts, key=len)}{'' if option.is_flag else f' {value}'}`")


def _default(option: click.Option) -> str:
    if isinstance(option.show_default, str):
        return _cell(option.show_default)
    if option.is_flag or not isinstance(option.default, str | int | float):
        return ""
    return f"`{option.default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
