"""Curves over steps, plotted in the terminal by plotext (the extra `curves`)."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import click
import numpy

from xpcap.errors import import_extra, printable

MARKS, BEST = "●▲■◆○△□◇", "★"
COLOURS, GREY, RED = (33, 208, 35, 170, 37), 244, 203  # xterm-256, legible on dark and light
_LINE = "⠒"
_ROWS = 24  # of the tallest chart, and of a terminal of unknown size
_STEEP = 1 / 20  # share of the first steps that may lie above the chart
_MARGIN = 0.04  # of the range of values
_LARGE = 1e7  # ticks from here on are written with an exponent
_BRAILLE = "".join(map(chr, range(0x2801, 0x2900)))
_ASCII = str.maketrans(
    _BRAILLE + "─│┌┐└┘├┤┬┴┼" + MARKS + BEST,
    "." * len(_BRAILLE) + "-|+++++++++" + "o^#%OA@&" + "*",
)


class Series(NamedTuple):
    """A curve of finite points, with its legend, xterm-256 colour, and mark (or a line only)."""

    label: str
    step: numpy.ndarray
    value: numpy.ndarray
    colour: int
    mark: str = ""


@dataclass(frozen=True)
class Screen:
    """Size in characters and abilities of what a chart is shown on."""

    columns: int
    rows: int
    colours: bool
    ascii: bool

    @classmethod
    def of_standard_output(cls) -> Screen:
        """Examine stdout; without a terminal, 80 columns and no colours."""
        columns, rows = shutil.get_terminal_size((80, _ROWS))
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        try:
            (MARKS + BEST + _LINE + "┤").encode(sys.stdout.encoding or "utf-8")
            ascii = False
        except UnicodeEncodeError:
            ascii = True
        return cls(columns, rows, sys.stdout.isatty() and not plain, ascii)


def draw(series: Sequence[Series], unit: str, screen: Screen) -> str:
    """Plot one or more curves over steps from 0 to the last, with a legend of one line each.

    Later curves are drawn above earlier ones. The chart is as wide as the screen, with at most 24
    rows. `unit` is that of the values.
    """
    plotext = import_extra("plotext", "charts (but not --json) need", "curves")
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
    """Return the lower and upper end of the value axis."""
    low = min(curve.value.min() for curve in series)
    high = max(curve.value[curve.step >= _STEEP * last].max(initial=low) for curve in series)
    flat = high - low <= 1e-9 * abs(high)
    margin = _MARGIN * (max(abs(high), 1.0) if flat else high - low)
    return low - margin, high + margin


def _ticks(
    low: float, high: float, count: float, least: float = 0.0
) -> tuple[list[float], list[str]]:
    """Return about `count` round numbers at least `least` apart, and their labels."""
    spacing = max((high - low) / count, least)
    power = math.floor(math.log10(spacing))
    spacing = min(nice for k in (1, 2, 5, 10) if (nice := k * 10.0**power) >= spacing)
    numbers = [k * spacing for k in range(math.ceil(low / spacing), math.floor(high / spacing) + 1)]
    style = f",.{max(0, -power)}f" if high < _LARGE else ".3g"
    return numbers, [format(number, style) for number in numbers]
