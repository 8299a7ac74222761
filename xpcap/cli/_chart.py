"""Curves over steps, drawn in the terminal by plotext (the extra `curves`)."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import click
import numpy

from xpcap.errors import ConfigurationError, printable

MARKS, BEST = "●▲■◆○△□◇", "★"
COLOURS, GREY, RED = (33, 208, 35, 170, 37), 244, 203  # of 256, seen on dark and light alike
_LINE = "⠒"
_ROWS = 24  # of a terminal that does not say, and of the tallest chart
_STEEP = 1 / 20  # of the steps: curves that begin high may begin above the chart, but not longer
_MARGIN = 0.04  # of the values' range
_LONG = 1e7  # numbers from here on are written with an exponent
_BRAILLE = "".join(map(chr, range(0x2801, 0x2900)))
_ASCII = str.maketrans(
    _BRAILLE + "─│┌┐└┘├┤┬┴┼" + MARKS + BEST,
    "." * len(_BRAILLE) + "-|+++++++++" + "o^#%OA@&" + "*",
)


class Series(NamedTuple):
    """A curve of at least one point, all of them finite.

    Parameters
    ----------
    label
        What the legend says.
    step, value
        Where its points are.
    colour
        Of a terminal's colours, by number.
    mark
        What its points are drawn as; without one there is only the line through them.
    """

    label: str
    step: numpy.ndarray
    value: numpy.ndarray
    colour: int
    mark: str = ""


@dataclass(frozen=True)
class Screen:
    """What a chart is shown on.

    Parameters
    ----------
    columns, rows
        Its size in characters.
    colours
        Whether it has colours.
    ascii
        Whether it has nothing but ASCII.
    """

    columns: int
    rows: int
    colours: bool
    ascii: bool

    @classmethod
    def of_standard_output(cls) -> Screen:
        """Look what standard output is; where it is no terminal, 80 columns without colours."""
        columns, rows = shutil.get_terminal_size((80, _ROWS))
        silent = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        try:
            (MARKS + BEST + _LINE + "┤").encode(sys.stdout.encoding or "utf-8")
            plain = False
        except UnicodeEncodeError:
            plain = True
        return cls(columns, rows, sys.stdout.isatty() and not silent, plain)


def draw(series: Sequence[Series], unit: str, screen: Screen) -> str:
    """Draw curves over steps, from 0 to the last, and a legend of a line each.

    Parameters
    ----------
    series
        At least one; the later lie above the earlier.
    unit
        Of the values.
    screen
        For what; the chart has its width, and as many rows as are left by the legend, or 24.

    Raises
    ------
    ConfigurationError
        If plotext is missing.
    """
    plotext = _plotext()
    plotext.terminal.limit(False, False)
    figure = plotext.figure.clear()
    figure.theme("colorless")
    height = min(max(screen.rows - len(series) - 2, 10), _ROWS)
    figure.plot_size(screen.columns, height)
    for curve in series:
        points = (curve.step.tolist(), curve.value.tolist())
        line = plotext.marker("braille", curve.colour)
        figure.draw(figure.signal(*points, marker=line).lines())
        if curve.mark:
            figure.draw(figure.signal(*points, marker=plotext.marker(curve.mark, curve.colour)))
    last = float(max(curve.step.max() for curve in series))
    limits = {"x": (0.0, last), "y": _limits(series, last)}
    ticks = {
        "x": _ticks(*limits["x"], screen.columns / 12, least=1.0),
        "y": _ticks(*limits["y"], height / 4),
    }
    for axis in ("x", "y"):
        figure.ruler(axis).lim(*limits[axis])
        figure.ruler(axis).ticks(*ticks[axis])
    figure.label("step", "x")
    figure.title(unit)
    chart = figure.build().string(not screen.colours)
    text = "\n".join([*(row.rstrip() for row in chart.splitlines()), *_legend(series, screen)])
    return text.translate(_ASCII) if screen.ascii else text


def _legend(series: Sequence[Series], screen: Screen) -> list[str]:
    lines = []
    for curve in series:
        mark = curve.mark or _LINE
        painted = click.style(mark, fg=curve.colour) if screen.colours else mark
        lines.append(f"{painted} {printable(curve.label)}")
    return lines


def _limits(series: Sequence[Series], last: float) -> tuple[float, float]:
    """Return the values between which the chart lies."""
    low = min(curve.value.min() for curve in series)
    high = max(curve.value[curve.step >= _STEEP * last].max(initial=low) for curve in series)
    flat = high - low <= 1e-9 * abs(high)
    margin = _MARGIN * (max(abs(high), 1.0) if flat else high - low)
    return low - margin, high + margin


def _ticks(
    low: float, high: float, count: float, least: float = 0.0
) -> tuple[list[float], list[str]]:
    """Return about so many round numbers between two, at least so far apart, and their texts."""
    apart = max((high - low) / count, least)
    power = math.floor(math.log10(apart))
    apart = min(nice for k in (1, 2, 5, 10) if (nice := k * 10.0**power) >= apart)
    numbers = [k * apart for k in range(math.ceil(low / apart), math.floor(high / apart) + 1)]
    how = f",.{max(0, -power)}f" if high < _LONG else ".3g"
    return numbers, [format(number, how) for number in numbers]


def _plotext() -> Any:
    try:
        import plotext
    except ImportError as error:
        raise ConfigurationError(
            f"charts need plotext, which cannot be imported ({error}); install xpcap with its"
            " extra 'curves', or take --json"
        ) from error
    return plotext
