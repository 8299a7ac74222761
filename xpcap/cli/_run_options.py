"""What the options of `xpcap train` say of a run, and how a run's options are said there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from xpcap.errors import ConfigurationError

if TYPE_CHECKING:
    from xpcap.train.options import RunOptions

CHANGEABLE = ("epochs", "patience", "lazy", "save_every", "keep", "on_nan", "on_nan_limit")
_ALWAYS_GIVEN = "--data, --device, --tensorboard"


def saved_every(value: str | None) -> tuple[int | None, float | None]:
    """Return how many steps or minutes `500` or `10m` are, one of them None."""
    if value is None:
        return None, None
    try:
        return (None, float(value[:-1])) if value.endswith("m") else (int(value), None)
    except ValueError as error:
        raise click.BadParameter(
            f"'{value}' is neither a number of steps nor one of minutes, such as 500 or 10m"
        ) from error


def to_options(said: Mapping[str, Any]) -> RunOptions:
    """Return what a run is made of, said by the command's options."""
    from xpcap.train import Schedule
    from xpcap.train.options import RunOptions
    from xpcap.train.recovery import OnNaN
    from xpcap.train.saving import Saving

    said = dict(said)
    schedule = Schedule(
        epochs=said.pop("epochs"),
        lr_decay=said.pop("lr_decay"),
        cosine=said.pop("schedule") == "cosine",
        clip_norm=said.pop("clip") or None,
        patience=said.pop("patience"),
    )
    steps, minutes = said.pop("save_every")
    saving = Saving(steps, minutes, said.pop("keep"))
    on_nan = OnNaN(said.pop("on_nan"), said.pop("on_nan_limit"))
    try:
        return RunOptions(schedule=schedule, saving=saving, on_nan=on_nan, **said)
    except ConfigurationError as error:  # it begins with the name of the argument
        message = re.sub(r"^\w+(?= must be)", lambda name: _option(name[0]), str(error))
        raise ConfigurationError(message) from error


def to_words(options: RunOptions) -> dict[str, Any]:
    """Return what `to_options` makes the same options of."""
    said = asdict(options)
    schedule, saving, on_nan = (said.pop(name) for name in ("schedule", "saving", "on_nan"))
    return {
        **said,
        "epochs": schedule["epochs"],
        "lr_decay": schedule["lr_decay"],
        "schedule": "cosine" if schedule["cosine"] else "constant",
        "clip": schedule["clip_norm"] or 0.0,
        "patience": schedule["patience"],
        "save_every": (saving["steps"], saving["minutes"]),
        "keep": saving["keep"],
        "on_nan": on_nan["policy"],
        "on_nan_limit": on_nan["limit"],
    }


def changed(before: RunOptions, given: Mapping[str, Any]) -> RunOptions:
    """Return the options of a run that is resumed with some of them given anew.

    Raises
    ------
    click.UsageError
        If one was given that is another than before and cannot be.
    """
    said = to_words(before)
    for name, value in given.items():
        same = value == said[name] or (name, value) == ("features", "auto")
        if name not in CHANGEABLE and not same:
            can = ", ".join(map(_option, CHANGEABLE))
            raise click.UsageError(
                f"{_option(name)} cannot be changed when a run is resumed (it was {said[name]});"
                f" these can: {can}, {_ALWAYS_GIVEN}"
            )
    return to_options({**said, **{name: given[name] for name in given if name in CHANGEABLE}})


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
