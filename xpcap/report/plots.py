"""The report's plots, drawn by matplotlib as SVG with the colours of the page."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy

from xpcap.errors import import_extra
from xpcap.models.inspection import GateSaturation, GradientFlow, LayerGradients
from xpcap.report.contents import SORTED_BY, RunPart
from xpcap.training.samples import FIGURES

# placeholders in the SVG for colour variables of the page's style, which has two themes
_INK, _GRID = "#010101", "#020202"
_SERIES = ("#030303", "#040404")
_VARIABLES = {
    _INK: "var(--ink)",
    _GRID: "var(--line)",
    _SERIES[0]: "var(--first)",
    _SERIES[1]: "var(--second)",
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: accessible and searchable
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_WIDTH = 5.4  # inches; the page scales them
_LEGEND_LINE, _LEGEND_WIDTH = 0.2, 50  # inches, characters
_POINTS, _SMOOTH = 400, 50  # of a curve, and of one that varies much from step to step
_DASHES = ("solid", "dashed")
_BINS = 25
_WORDS = "words read"
_METADATA = ("Date", "Creator", "Format", "Type")  # left out of the files


load = partial(import_extra, need="a report needs", extra="report")


@dataclass(frozen=True)
class Plot:
    """A plot as SVG, and a text alternative."""

    svg: str
    text: str


def plots(runs: Sequence[RunPart]) -> dict[str, Any]:
    """Draw all plots of one or two runs: `scores`, and lists `training` and `inside`."""
    matplotlib = load("matplotlib")
    with matplotlib.rc_context(_STYLE):
        drawn = [name for name in FIGURES if any(name in run.curves.samples for run in runs)]
        training = [
            *(
                _by_step(runs, name, name.replace("_", " "), f"{FIGURES[name].capitalize()}.")
                for name in drawn
            ),
            _losses(runs),
            _by_step(runs, "lr", "learning rate", "The learning rate of each step."),
        ]
        if any(numpy.isfinite(run.curves.grad_norm).any() for run in runs):
            text = "The norm of all gradients together, before clipping."
            training.append(_by_step(runs, "grad_norm", "gradient norm", text, scale="log"))
        if any(numpy.isfinite(run.curves.attention_entropy).any() for run in runs):
            training.append(_entropies(runs))
        training += [
            _metric(runs, name) for name in dict.fromkeys(n for r in runs for n in r.curves.metrics)
        ]
        flows = [(k, run.name, run.flow) for k, run in enumerate(runs) if run.flow]
        inside = [_gradients(flows)] if flows else []
        layers = [(k, run.name, run.layers) for k, run in enumerate(runs) if run.layers]
        inside += [_layers(layers)] if layers else []
        for k, run in enumerate(runs):
            if run.saturation is not None:
                inside.append(_saturation(run.name, run.saturation, k))
        return {"scores": _scores(runs), "training": training, "inside": inside}


def _losses(runs: Sequence[RunPart]) -> Plot:
    figure, axes = _axes("step", "nats per word")
    ends = []
    for k, run in enumerate(runs):
        curves = run.curves
        axes.plot(
            *curves.smoothed("loss", _POINTS)[1:],
            color=_SERIES[k], linewidth=0.8, alpha=0.6,
            label=f"{run.name}: {'captions drawn' if curves.samples else 'training'}",
        )  # fmt: skip
        axes.plot(
            curves.epoch_step, curves.val_loss,
            "o-", color=_SERIES[k], markersize=3, label=f"{run.name}: validation",
        )  # fmt: skip
        if curves.best is not None:
            epoch, loss = curves.epoch_number[curves.best], curves.val_loss[curves.best]
            ends.append(f"{run.name} is best after epoch {epoch}, with {loss:.3f} in validation")
    _legend(figure)
    text = f"Loss in training and validation: {'; '.join(ends) or 'no epoch yet'}."
    if any(run.curves.samples for run in runs):
        text += (
            " Self-critical training has as its loss the entropy of the captions drawn; its"
            " validation loss, of references, rises because they are not what is trained."
        )
    return _plot(figure, text)


def _by_step(
    runs: Sequence[RunPart], name: str, label: str, text: str, scale: str = "linear"
) -> Plot:
    figure, axes = _axes("step", label, height=2.0)
    for k, run in enumerate(runs):
        if name in FIGURES and name not in run.curves.samples:
            continue
        axes.plot(
            *run.curves.smoothed(name, _SMOOTH if name in FIGURES else _POINTS)[1:],
            color=_SERIES[k], linestyle=_DASHES[k], linewidth=0.8, label=run.name,
        )  # fmt: skip
    axes.set_yscale(scale)
    _legend(figure)
    return _plot(figure, text)


def _entropies(runs: Sequence[RunPart]) -> Plot:
    ends = []
    for run in runs:
        entropy, share = run.curves.attention_entropy, run.curves.attention_entropy_share
        known = numpy.isfinite(entropy)
        if known.any():
            ends.append(
                f"{run.name} {entropy[known][-1]:.2f} nats, {share[known][-1]:.0%} of the most"
                " possible"
            )
    text = (
        "Entropy of attention on validation captions, the mean over words: 0 if the model looks at"
        f" one region, log L if at all L alike. At the end: {'; '.join(ends)}."
    )
    return _by_epoch(runs, [run.curves.attention_entropy for run in runs], "nats", text)


def _metric(runs: Sequence[RunPart], name: str) -> Plot:
    """Plot the metric that selects the best epoch of one of the runs, or of both."""
    values = [run.curves.metrics.get(name) for run in runs]
    bests = [
        f"{run.name} after epoch {run.curves.epoch_number[run.curves.best]}, {numpy.nanmax(of):.3f}"
        for run, of in zip(runs, values, strict=True)
        if of is not None
    ]
    text = (
        f"{name} of greedy validation captions, which selects the best epoch: {'; '.join(bests)}."
    )
    return _by_epoch(runs, values, name, text)


def _by_epoch(
    runs: Sequence[RunPart], values: Sequence[numpy.ndarray | None], label: str, text: str
) -> Plot:
    """Plot values of each epoch `(E,)` from 0 on; None is a run without them."""
    figure, axes = _axes("step", label, height=2.0)
    for k, (run, of_run) in enumerate(zip(runs, values, strict=True)):
        if of_run is not None and (known := numpy.isfinite(of_run)).any():
            axes.plot(
                run.curves.epoch_step[known], of_run[known],
                marker="o", color=_SERIES[k], markersize=3, linestyle=_DASHES[k], label=run.name,
            )  # fmt: skip
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    _legend(figure)
    return _plot(figure, text)


def _gradients(flows: Sequence[tuple[int, str, GradientFlow]]) -> Plot:
    figure, axes = _axes(_WORDS, "norm of the gradient")
    _whole_numbers(axes)
    for k, name, flow in flows:
        words = 1 + numpy.arange(len(flow.hidden))
        axes.plot(words, flow.hidden, "o-", color=_SERIES[k], label=f"{name}: hidden state")
        if flow.cell is not None:
            axes.plot(
                words, flow.cell, "s--",
                color=_SERIES[k], markerfacecolor="none", label=f"{name}: cell state",
            )  # fmt: skip
    axes.set_yscale("log")
    _legend(figure)
    first = "; ".join(f"{name} {flow.first:.3g}" for _, name, flow in flows)
    return _plot(
        figure,
        "Mean norm of the gradient of a caption's loss with respect to the state after each word"
        f" read, over active sequences; with respect to the initial state: {first}.",
    )


def _layers(layers: Sequence[tuple[int, str, LayerGradients]]) -> Plot:
    figure, axes = _axes("", "norm of the gradient", height=3.2)
    for k, name, found in layers:
        places = numpy.arange(len(found.names))
        words = found.words.mean(axis=1)
        axes.plot(places, words, "o-", color=_SERIES[k], label=f"{name}: residual stream")
        axes.plot(
            places, found.parameters, "s--",
            color=_SERIES[k], markerfacecolor="none", label=f"{name}: parameters",
        )  # fmt: skip
    longest = max((found.names for _, _, found in layers), key=len)
    axes.set_xticks(range(len(longest)), longest, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yscale("log")
    _legend(figure)
    ends = "; ".join(
        f"{name} {of.words[0].mean():.3g} after the first layer, {of.words[-1].mean():.3g} after"
        " the last"
        for _, name, of in layers
    )
    return _plot(
        figure,
        "Norms of gradients by layer: that of a caption's loss with respect to the residual stream"
        f" after the layer, mean over captions and positions ({ends}); and that of the mean loss"
        " with respect to the layer's parameters.",
    )


def _saturation(name: str, saturation: GateSaturation, number: int) -> Plot:
    gates = saturation.names
    figure = _figure(_WIDTH, 1.9 * math.ceil(len(gates) / 2))
    axes = figure.subplots(
        math.ceil(len(gates) / 2), min(2, len(gates)), squeeze=False, sharey=True
    )
    shares = []
    panels = axes.flat[: len(gates)]
    for panel, gate, low, high in zip(panels, gates, saturation.low, saturation.high, strict=True):
        words = 1 + numpy.arange(len(low))
        panel.fill_between(words, 1 - high, 1, color=_SERIES[number], alpha=0.55)
        panel.fill_between(words, 0, low, color=_SERIES[number], alpha=0.25)
        panel.set(title=gate, ylim=(0, 1), xlabel=_WORDS)
        _whole_numbers(panel)
        shares.append(f"{gate} {low.mean():.0%} low, {high.mean():.0%} high")
    for panel in axes.flat[len(gates) :]:
        panel.set_visible(False)
    return _plot(figure, f"{name}: shares of saturated units: {'; '.join(shares)}.")


def _scores(runs: Sequence[RunPart]) -> Plot:
    figure, axes = _axes(SORTED_BY, "images")
    values = [run.evaluation.scores.images[SORTED_BY] for run in runs]
    bins = numpy.linspace(0, max(float(value.max()) for value in values) or 1.0, _BINS + 1)
    for k, (run, value) in enumerate(zip(runs, values, strict=True)):
        axes.hist(
            value, bins, histtype="stepfilled" if k == 0 else "step",
            color=_SERIES[k], alpha=0.6 if k == 0 else 1, linewidth=1.5, label=run.name,
        )  # fmt: skip
    _legend(figure)
    medians = "; ".join(
        f"{run.name}: median {numpy.median(value):.2f}, {(value == 0).mean():.0%} at zero"
        for run, value in zip(runs, values, strict=True)
    )
    return _plot(figure, f"Distribution of {SORTED_BY} over images. {medians}.")


def _axes(x: str, y: str, height: float = 2.8) -> tuple[Any, Any]:
    figure = _figure(_WIDTH, height)
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _legend(figure: Any) -> None:
    """Put a legend above the plot, where it hides nothing; a single line needs none."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        labels = [textwrap.fill(label, _LEGEND_WIDTH) for label in labels]
        lines = "\n".join(labels).count("\n") + 1
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * lines)
        figure.legend(handles, labels, loc="outside upper left")


def _whole_numbers(axes: Any) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)


def _figure(width: float, height: float) -> Any:
    return load("matplotlib.figure").Figure(figsize=(width, height))


def _plot(figure: Any, text: str) -> Plot:
    file = io.StringIO()
    with load("matplotlib").rc_context({"svg.hashsalt": text}):  # ids differ from plot to plot
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    svg = re.sub(r'<g id="[^"]*"', "<g", file.getvalue())
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return Plot(svg[svg.index("<svg") :], text)
