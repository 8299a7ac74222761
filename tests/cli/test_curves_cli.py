"""Curves in the terminal: positions of points, legends, and screens."""

import contextlib
import json
import math
import os
import re
import struct
import subprocess
import sys

import numpy
import pytest
from commands import one_line

from xpcap.cli._chart import Screen, Series, draw
from xpcap.training.history import read_history

STEPS = 40
VALIDATION = {10: 3.0, 20: 2.0, 30: 1.0, 40: 2.5}


def line(step, epoch, **figures):
    return json.dumps({"step": step, "epoch": epoch, **figures}) + "\n"


def write_run(folder, validation=VALIDATION, steps=STEPS, loss=lambda step: 1 + 2 / step):
    folder.mkdir(parents=True)
    (folder / "last.safetensors").touch()
    epochs = {step: number for number, step in enumerate(validation, start=1)}
    text = ""
    for step in range(1, steps + 1):
        text += line(step, 1 + sum(step > end for end in epochs), lr=0.1, loss=loss(step))
        if step in epochs:
            value = validation[step]
            text += line(step, epochs[step], val_loss=value, val_perplexity=math.exp(value))
    (folder / "history.jsonl").write_text(text)
    return folder


@pytest.fixture
def plotext():
    return pytest.importorskip("plotext", reason="needs plotext")


@pytest.fixture(autouse=True)
def _screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "30")
    monkeypatch.delenv("NO_COLOR", raising=False)


def places(rows, marks):
    """Return where marks are drawn, from left to right: column, row."""
    chart = [(k, row) for k, row in enumerate(rows) if row.rstrip().endswith("│")]
    return sorted((c, k) for k, row in chart for c, mark in enumerate(row) if mark in marks)


def test_points_match_the_axis_labels(call, tmp_path, plotext):
    write_run(tmp_path / "run")
    result = call("curves", "run")
    assert result.exit_code == 0, result.output
    rows = result.stdout.splitlines()
    found = places(rows, "●★")
    labels = [rows[row].split("┤")[0].strip() for _, row in found]
    assert labels == ["3.0", "2.0", "1.0", "2.5"]
    (axis,) = (row for row in rows if "┬" in row)
    ticks = [column for column, sign in enumerate(axis) if sign == "┬"]
    assert rows[rows.index(axis) + 1].split() == ["0", "10", "20", "30", "40"]
    for (column, _), tick in zip(found, ticks[1:], strict=True):
        assert abs(column - tick) <= 1
    assert [rows[row][column] for column, row in found] == ["●", "●", "★", "●"]
    assert rows[-3:] == [
        "⠒ training loss: 3 to 1.05",
        "● validation loss",
        "★ best epoch 3 of 4: loss 1.0000, perplexity 2.72",
    ]
    assert "\x1b" not in result.stdout


def test_steep_first_steps_may_lie_above_the_chart(call, tmp_path, plotext):
    write_run(tmp_path / "run", loss=lambda step: 100.0 if step == 1 else 2.0)
    rows = call("curves", "run").stdout.splitlines()
    labels = [float(row.split("┤")[0]) for row in rows if "┤" in row]
    assert max(labels) == 3.0
    assert min(row for _, row in places(rows, "●")) <= 4  # title, frame, margin
    assert "⠒ training loss: 100 to 2" in rows


@pytest.mark.parametrize(
    "values", [(2.0, 2.0), (0.0, 0.0), (1e30, 1e30), (1e-30, 1e35), (5, 5 + 1e-15)]
)
def test_values_of_any_size_are_drawn(plotext, values):
    curve = Series("", numpy.array([1, 2]), numpy.array(values), 1, "●")
    rows = draw([curve], "nats", Screen(80, 24, False, False)).splitlines()
    assert len(places(rows, "●")) == 2
    assert 2 <= sum("┤" in row for row in rows) <= 6
    assert max(map(len, rows)) == 80


def test_charts_have_the_width_of_their_screen_and_no_state(plotext):
    one = Series("one", numpy.array([10, 20]), numpy.array([1.0, 2.0]), 1, "●")
    other = Series("other", numpy.array([10, 20]), numpy.array([2.0, 1.5]), 2, "▲")
    narrow, wide = (Screen(columns, 40, False, False) for columns in (70, 150))
    first = draw([one], "nats", narrow)
    both = draw([other, one], "nats", wide)
    assert [max(map(len, chart.splitlines())) for chart in (first, both)] == [70, 150]
    assert draw([one], "nats", narrow) == first


@pytest.mark.parametrize("count", [1, 59, 60, 61, 121, 1000])
def test_smoothed_losses_are_means_of_groups(tmp_path, count):
    losses = numpy.random.default_rng(count).uniform(1, 5, count)
    write_run(tmp_path / "run", {}, count, lambda step: losses[step - 1])
    size, step, loss = read_history(tmp_path / "run" / "history.jsonl").smoothed("loss", 60)
    groups = [range(first, min(first + size, count)) for first in range(0, count, size)]
    assert len(groups) <= 60 < count / (size - 1 or 1 / 99)
    assert step.tolist() == pytest.approx([sum(k + 1 for k in g) / len(g) for g in groups])
    assert loss.tolist() == pytest.approx([sum(losses[k] for k in g) / len(g) for g in groups])


def test_steps_without_a_finite_loss_are_left_out(call, tmp_path, plotext):
    folder = write_run(tmp_path / "run", {}, 6, lambda step: None if step % 2 else float(step))
    size, step, loss = read_history(folder / "history.jsonl").smoothed("loss", 60)
    assert (size, step.tolist(), loss.tolist()) == (1, [2, 4, 6], [2, 4, 6])
    write_run(tmp_path / "none", {}, 6, lambda step: None)
    one_line(call("curves", "none"), "none has no finite loss yet")


def test_unfinished_and_missing_histories(call, tmp_path, plotext):
    folder = write_run(tmp_path / "run", {}, 50)
    history = folder / "history.jsonl"
    history.write_text(history.read_text() + '{"step": 51, "ep')
    result = call("curves", "run")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "⠒ training loss: 3 to 1.04"
    history.write_text(line(1, 1, loss=2.0, lr=0.1))
    assert call("curves", "run").exit_code == 0
    history.unlink()
    one_line(call("curves", "run"), "run has no history.jsonl yet; it is written every 50 steps")


def test_several_runs_have_names_and_marks(call, tmp_path, plotext):
    write_run(tmp_path / "a" / "run")
    write_run(tmp_path / "b" / "run", {20: 2.5, 40: 1.5})
    write_run(tmp_path / "new", {})
    result = call("curves", "a/run", "b/run", "new")
    rows = result.stdout.splitlines()
    assert rows[-2:] == [
        "● a/run: best epoch 3 of 4: loss 1.0000, perplexity 2.72",
        "▲ b/run: best epoch 2 of 2: loss 1.5000, perplexity 4.48",
    ]
    assert len(places(rows, "▲")) == 2
    assert len(places(rows, "●")) in (3, 4)  # one may lie under the other run's
    assert result.stderr == "new has no epoch yet\n"
    failed = call("curves", "new", "new")
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert failed.stderr.splitlines()[-1] == "xpcap: none of the runs has an epoch yet"


def test_as_json(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotext", None)
    history = write_run(tmp_path / "run", {2: 3.0, 4: 2.5, 6: 2.75}, 6) / "history.jsonl"
    history.write_text(history.read_text() + line(7, 4, lr=0.1, loss=None, grad_norm=1.5))
    (found,) = json.loads(call("curves", "run", "--json").stdout)
    assert found["run"] == "run"
    assert found["steps"] == {
        "step": [1, 2, 3, 4, 5, 6, 7],
        "epoch": [1, 1, 2, 2, 3, 3, 4],
        "loss": [3.0, 2.0, 1 + 2 / 3, 1.5, 1.4, 1 + 2 / 6, None],
        "lr": [0.1] * 7,
        "grad_norm": [None] * 6 + [1.5],
    }
    assert found["epochs"] == {
        "step": [2, 4, 6],
        "epoch": [1, 2, 3],
        "val_loss": [3.0, 2.5, 2.75],
        "val_perplexity": [math.exp(3.0), math.exp(2.5), math.exp(2.75)],
    }
    assert found["best_epoch"] == 2
    entropies = [(1, 3, 2.5), (2, 6, None)]
    (write_run(tmp_path / "looks") / "history.jsonl").write_text(
        "".join(line(step, epoch, attention_entropy=value) for epoch, step, value in entropies)
    )
    (found,) = json.loads(call("curves", "looks", "--json").stdout)
    assert found["epochs"] == {"step": [3, 6], "epoch": [1, 2], "attention_entropy": [2.5, None]}
    write_run(tmp_path / "new", {})
    both = json.loads(call("curves", "run", "new", "--json").stdout)
    assert [run["best_epoch"] for run in both] == [2, None]


def test_a_metric_that_selects_has_its_own_chart(call, tmp_path, plotext):
    values = [(10, 0.5), (20, 0.75), (30, 0.625), (40, None)]
    for name, metric in (("run", "CIDEr-D"), ("other", "BLEU-4")):
        history = write_run(tmp_path / name) / "history.jsonl"
        text = history.read_text()
        for step, value in values:
            figures = f'"val_loss": {VALIDATION[step]}'
            text = text.replace(figures, f'{figures}, "val_{metric}": {json.dumps(value)}')
        history.write_text(text)
    rows = call("curves", "run").stdout.splitlines()
    assert "★ best epoch 2 of 4: loss 2.0000, perplexity 7.39" in rows
    chart = rows[next(k for k, row in enumerate(rows) if row.strip() == "CIDEr-D") :]
    first, second, third = (row for _, row in places(chart, "●"))
    assert second < third < first
    assert chart[-1] == "● run: best epoch 2, CIDEr-D 0.7500"
    write_run(tmp_path / "plain")
    shown = call("curves", "plain", "run", "other").stdout
    assert "▲ run: best epoch 2, CIDEr-D 0.7500\n" in shown
    assert "■ other: best epoch 2, BLEU-4 0.7500\n" in shown
    assert "plain: best epoch 3 of 4" in shown
    (found,) = json.loads(call("curves", "run", "--json").stdout)
    assert found["epochs"]["val_CIDEr-D"] == [0.5, 0.75, 0.625, None]
    assert found["best_epoch"] == 2


def test_self_critical_runs_have_charts_of_captions_drawn(call, tmp_path, plotext):
    """The reward first, which alone is compared."""
    figures = {"reward": 0.5, "advantage": 0.1, "words": 9.5, "repeats": 0.2, "bad_endings": 0.1}
    for name in ("run", "other"):
        text = line(10, 1, lr=0.1, loss=2.0, **figures) + line(20, 1, lr=0.1, loss=1.0, reward=0.75)
        (write_run(tmp_path / name, {}) / "history.jsonl").write_text(text)
    rows = call("curves", "run").stdout.splitlines()
    titles = [row.strip() for row in rows]
    found = [
        titles.index(what) for what in ("reward", "nats per word", "words", "share of captions")
    ]
    assert found == sorted(found)
    assert found[0] == 0
    low, high = (row for _, row in places(rows[: found[1]], "▲"))
    assert low > high
    assert "▲ reward of captions drawn: 0.5 to 0.75" in rows[: found[1]]
    assert "⠒ entropy of captions drawn, the training loss: 2 to 1" in rows
    assert "● captions that repeat a phrase: 0.2 to 0.2" in rows[found[3] :]
    write_run(tmp_path / "plain")
    rows = call("curves", "run", "plain", "other").stdout.splitlines()
    assert {"● run: reward of captions drawn: 0.5 to 0.75"} < {*rows}
    assert "■ other: reward of captions drawn: 0.5 to 0.75" in rows
    assert not any("words per caption" in row for row in rows)
    (shown,) = json.loads(call("curves", "run", "--json").stdout)
    assert shown["steps"]["reward"] == [0.5, 0.75]
    assert shown["steps"]["words"] == [9.5, None]


def test_bad_arguments_are_one_line(call, tmp_path, monkeypatch):
    write_run(tmp_path / "run")
    one_line(call("curves"), "Missing argument 'RUN...'")
    one_line(call("curves", "nowhere"), "nowhere is not a run; expected a folder made by xpcap")
    one_line(call("curves", "run", "run/history.jsonl"), "run/history.jsonl is not a run")
    one_line(call("curves", "x" * 300), "File name too long|is not a run")
    history = tmp_path / "run" / "history.jsonl"
    history.write_text("{}\n" + history.read_text())
    one_line(call("curves", "run", "--json"), r"run/history\.jsonl, line 1: expected 'step'")
    history.write_text(line(1, 1, loss=2.0))
    monkeypatch.setitem(sys.modules, "plotext", None)
    one_line(call("curves", "run"), r"not --json\) need plotext, .* its extra 'curves'")


def on_a_terminal(columns, *words, **environment):
    """Run xpcap on a terminal so wide; return what it prints there."""
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    kept = {name: os.environ[name] for name in os.environ if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "xpcap", *map(str, words)],
        stdout=its,
        env={**kept, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )
    os.close(its)
    printed = b""
    with contextlib.suppress(OSError):  # how Linux says that nobody is at the other end
        while part := os.read(mine, 65536):
            printed += part
    os.close(mine)
    assert process.wait() == 0
    return printed.decode()


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_chart_fits_its_terminal(tmp_path, plotext, columns):
    write_run(tmp_path / "run")
    printed = on_a_terminal(columns, "curves", tmp_path / "run", PYTHONIOENCODING="utf-8")
    assert "\x1b[38;5;33m●" in printed
    rows = re.sub(r"\x1b\[[\d;]*m", "", printed).splitlines()
    assert "\x1b" not in "".join(rows)
    assert max(map(len, rows)) == columns
    assert len(rows) <= 28


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_and_dumb_terminals_get_no_colours(tmp_path, plotext, environment):
    write_run(tmp_path / "run")
    printed = on_a_terminal(80, "curves", tmp_path / "run", PYTHONIOENCODING="utf-8", **environment)
    assert "\x1b" not in printed
    assert "★ best epoch 3 of 4" in printed


def test_a_terminal_without_unicode_gets_ascii(tmp_path, plotext):
    write_run(tmp_path / "run")
    printed = on_a_terminal(80, "curves", tmp_path / "run", PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert printed.isascii()
    rows = printed.splitlines()
    assert rows[-3:] == [
        ". training loss: 3 to 1.05",
        "o validation loss",
        "* best epoch 3 of 4: loss 1.0000, perplexity 2.72",
    ]
    assert sum(row.count("o") for row in rows if row.endswith("|")) == 3
