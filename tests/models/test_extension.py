"""A new cell is two functions and an entry; a new model family is a class and an entry."""

from dataclasses import replace

import numpy
import pytest
from click.testing import CliRunner
from tiny import make_tiny

from xpcap.backend import CPU, to_host
from xpcap.cli import main
from xpcap.decoding import Beam
from xpcap.exchange.exporting import export_run
from xpcap.layers.activations import sigmoid
from xpcap.layers.recurrence import Cell, split_gates
from xpcap.models.recurrent import CELLS
from xpcap.operations import Operation
from xpcap.runs import open_run
from xpcap.selfcheck.cases import captioner_gradients
from xpcap.selfcheck.check import scaled_difference
from xpcap.train.options import RunOptions
from xpcap.train.run import resume_run, train_run
from xpcap.train.trainer import Schedule


def mgu_cell(xp, gates, ah, prev_h, ah_n, h):
    """Minimal gated unit (Zhou et al. 2016): f = sigma(a_f), n = tanh(ax_n + f ah_n)."""
    ax_f, n = split_gates(gates, 2)
    ah_f, ah_n[...] = split_gates(ah, 2)
    f = ax_f
    f[...] = sigmoid(xp, ax_f + ah_f)
    n[...] = xp.tanh(n + f * ah_n)
    h[...] = (1 - f) * prev_h + f * n


def mgu_cell_gradient(xp, above, back, gates, prev_h, ah_n, dax, dah):
    f, n = split_gates(gates, 2)
    dax_f, dax_n = split_gates(dax, 2)
    dah_f, dah_n = split_gates(dah, 2)
    dh = above + back
    dax_n[...] = dh * f * (1 - n * n)
    dax_f[...] = (dh * (n - prev_h) + dax_n * ah_n) * f * (1 - f)
    dah_f[...], dah_n[...] = dax_f, dax_n * f
    back[...] = dh * (1 - f)


MGU = Cell(
    Operation(mgu_cell),
    Operation(mgu_cell_gradient),
    gates=("forget", "candidate"),
    kept=("ah_n",),
    direct=True,
)


@pytest.fixture
def mgu(monkeypatch):
    monkeypatch.setitem(CELLS, "mgu", MGU)


@pytest.mark.usefixtures("mgu")
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_new_cell_is_gradient_checked(backend, dropout):
    sizes = {"N": 2, "T": 4, "input_dim": 3, "wordvec_dim": 3, "hidden_dim": 2}
    pairs = captioner_gradients(backend, "mgu", dropout, **sizes, h=1e-5)
    assert "Wh" in pairs
    for name, (numerical, own) in pairs.items():
        assert abs(to_host(numerical)).max() > 1e-5, name
        assert scaled_difference(own, numerical) < 1e-7, name


@pytest.mark.usefixtures("mgu")
def test_a_new_cell_trains_decodes_resumes_and_exports(tmp_path):
    data = make_tiny(tmp_path / "tiny")
    options = RunOptions(
        cell="mgu", hidden=8, wordvec=4, batch_size=10, lr=1e-2, schedule=Schedule(epochs=4)
    )
    train_run(data, tmp_path / "whole", options, CPU)
    train_run(data, tmp_path / "run", replace(options, schedule=Schedule(epochs=2)), CPU)
    resume_run(tmp_path / "run", CPU, lambda found: replace(found, schedule=Schedule(epochs=4)))
    whole, run = (open_run(tmp_path / name, CPU) for name in ("whole", "run"))
    for name, value in whole.model.params.items():
        numpy.testing.assert_array_equal(run.model.params[name], value)
    features = numpy.eye(7, dtype=numpy.float32)
    assert len(run.caption(features, Beam(width=3))) == 7
    export_run(run, "npz", tmp_path / "params.npz")
    with numpy.load(tmp_path / "params.npz") as exported:
        assert exported.keys() == run.model.params.keys()


@pytest.mark.usefixtures("mgu")
def test_a_new_cell_stands_in_a_report(tmp_path):
    pytest.importorskip("matplotlib", reason="reports need the extra 'report'")
    options = RunOptions(cell="mgu", hidden=8, wordvec=4, schedule=Schedule(epochs=1))
    train_run(make_tiny(tmp_path / "tiny"), tmp_path / "run", options, CPU)
    done = CliRunner().invoke(main, ["report", str(tmp_path / "run"), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "candidate" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
