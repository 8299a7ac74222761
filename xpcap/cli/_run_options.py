"""Translation between the options of `xpcap train` and those of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from xpcap.cli._options import option_name
from xpcap.errors import ConfigurationError

if TYPE_CHECKING:
    from xpcap.training.options import RunOptions

_CHANGEABLE = ("epochs", "patience", "lazy", "save_every", "keep", "on_nan", "on_nan_limit")
CHANGEABLE = ", ".join(map(option_name, (*_CHANGEABLE, "data", "device", "tensorboard")))
"""Options that may be given when a run is resumed."""


def saved_every(value: str | None) -> tuple[int | None, float | None]:
    """Parse `500` or `10m` into a number of steps or one of minutes; the other is None."""
    if value is None:
        return None, None
    try:
        return (None, float(value[:-1])) if value.endswith("m") else (int(value), None)
    except ValueError as error:
        raise click.BadParameter(
            f"'{value}' is neither a number of steps nor one of minutes, such as 500 or 10m"
        ) from error


def to_options(values: Mapping[str, Any]) -> RunOptions:
    """Translate the command's options into those of a run."""
    from xpcap.training import Schedule
    from xpcap.training.options import RunOptions
    from xpcap.training.recovery import OnNaN
    from xpcap.training.saving import Saving

    values = dict(values)
    schedule = Schedule(
        epochs=values.pop("epochs"),
        lr_decay=values.pop("lr_decay"),
        cosine=values.pop("schedule") == "cosine",
        clip_norm=values.pop("clip") or None,
        patience=values.pop("patience"),
    )
    steps, minutes = values.pop("save_every")
    saving = Saving(steps, minutes, values.pop("keep"))
    on_nan = OnNaN(values.pop("on_nan"), values.pop("on_nan_limit"))
    try:
        return RunOptions(schedule=schedule, saving=saving, on_nan=on_nan, **values)
    except ConfigurationError as error:  # it begins with the name of the argument
        message = re.sub(r"^\w+(?= must be)", lambda name: option_name(name[0]), str(error))
        raise ConfigurationError(message) from error


def to_values(options: RunOptions) -> dict[str, Any]:
    """Return the command's options that `to_options` translates into these."""
    values = asdict(options)
    schedule, saving, on_nan = (values.pop(name) for name in ("schedule", "saving", "on_nan"))
    return {
        **values,
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
    """Return the options of a resumed run, some `given` anew; a `UsageError` if they may not be."""
    values = to_values(before)
    for name, value in given.items():
        same = value == values[name] or (name, value) == ("features", "auto")
        if name not in _CHANGEABLE and not same:
            raise click.UsageError(
                f"{option_name(name)} cannot be changed when a run is resumed (it was"
                f" {values[name]}); these can: {CHANGEABLE}"
            )
    return to_options({**values, **{name: given[name] for name in given if name in _CHANGEABLE}})
