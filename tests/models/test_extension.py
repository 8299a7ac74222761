"""A new cell is two functions and an entry; a new model family is a class and an entry."""

from dataclasses import replace

import numpy
import pytest
from click.testing import CliRunner
from tiny import make_tiny

from xpcap.backend import CPU, namespace, to_host
from xpcap.cli import main
from xpcap.decoding import Beam, score_captions
from xpcap.errors import ConfigurationError, DataError
from xpcap.exchange.course import read_npz
from xpcap.exchange.exporting import export_run
from xpcap.gradcheck import eval_numerical_gradient
from xpcap.layers.activations import sigmoid
from xpcap.layers.embedding import add_rows
from xpcap.layers.recurrence import Cell, split_gates
from xpcap.models import FAMILIES, AttentionRNN, CaptioningRNN, CaptionModel
from xpcap.models.objective import Objective
from xpcap.models.recurrent import CELLS
from xpcap.operations import Operation
from xpcap.runs import open_run
from xpcap.selfcheck.cases import captioner_gradients, scaled_difference
from xpcap.training.options import RunOptions
from xpcap.training.run import resume_run, train_run
from xpcap.training.trainer import Schedule


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
    found = captioner_gradients(backend, CaptioningRNN, dropout, **sizes, cell_type="mgu", h=1e-5)
    assert "Wh" in found
    for name, (error, gradient) in found.items():
        assert abs(to_host(gradient)).max() > 1e-5, name
        assert error < 1e-7, name


def test_a_new_cell_may_keep_what_it_likes(monkeypatch):
    """Its names are its own, also where attention has arrays of the same name."""

    def cell(xp, gates, ah, prev_h, z, h):
        mgu_cell(xp, gates, ah, prev_h, z, h)

    def gradient(xp, above, back, gates, prev_h, z, dax, dah):
        mgu_cell_gradient(xp, above, back, gates, prev_h, z, dax, dah)

    keeps = replace(MGU, forward=Operation(cell), backward=Operation(gradient), kept=("z",))
    monkeypatch.setitem(CELLS, "keeps z", keeps)
    sizes = {"N": 2, "T": 4, "input_dim": 3, "wordvec_dim": 3, "hidden_dim": 3, "regions": 2}
    found = captioner_gradients(CPU, AttentionRNN, 0.0, cell_type="keeps z", **sizes, h=1e-5)
    for name, (error, _) in found.items():
        assert error < 1e-7, name


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


def forgets(xp, gates, ah, prev_h, ah_n, h):
    h = gates[:, :3]  # noqa: F841 - another array, not the one to be written


def takes(xp, gates, wrong):
    pass


def adds(xp, gates, ah, h):
    h[...] = gates + ah


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (mgu_cell, "expected a Cell, got function"),
        (replace(MGU, forward=mgu_cell), "forward fails: AttributeError"),
        (
            replace(MGU, forward=Operation(forgets)),
            "forward does not write h in place, as h",
        ),
        (replace(MGU, kept=("ah_n", "f")), "forward does not write f in place"),
        (replace(MGU, kept=()), "forward takes 'ah_n'; expected names among prev_h, above"),
        (replace(MGU, forward=Operation(takes)), "forward takes 'wrong'; expected names among"),
        (replace(MGU, forward=Operation(adds)), "forward fails: ValueError: could not broadcast"),
        (replace(MGU, backward=Operation(takes)), "backward takes 'wrong'"),
        (replace(MGU, backward=Operation(forgets)), "backward does not write da in place"),
        (replace(MGU, gates=("forget",)), "forward fails: ValueError"),
    ],
)
def test_a_mistake_in_a_new_cell_is_named(cell, message, monkeypatch):
    monkeypatch.setitem(CELLS, "mine", cell)
    with pytest.raises(ConfigurationError, match=f"cell 'mine': {message}.*; see layers.recurr"):
        CaptioningRNN({"<NULL>": 0, "cat": 1}, 4, 4, 4, "mine")


@pytest.mark.usefixtures("mgu")
def test_weights_of_a_new_cell_are_not_imported_as_those_of_another(tmp_path):
    model = CaptioningRNN({"<NULL>": 0, "cat": 1}, 4, 4, 4, "mgu", seed=0)
    numpy.savez(tmp_path / "mgu.npz", **model.params)
    with pytest.raises(DataError, match=r"a cell of 2 gates; expected .* rnn \(1\), lstm \(4\)"):
        read_npz(tmp_path / "mgu.npz")


class Bigram(CaptionModel):
    """A toy family: the image and the last word alone predict the next word."""

    family = "bigram"

    @classmethod
    def shapes(cls, words, *, input_dim, hidden_dim, **others):
        return {
            "image": (input_dim, hidden_dim),
            "words.vectors": (words, hidden_dim),
            "W_vocab": (hidden_dim, words),
            "b_vocab": (words,),
        }

    def forward(self, features, batch, space):
        vectors = self.params["words.vectors"][batch.words]
        batch.drop(vectors)
        images = batch.to_captions(features @ self.params["image"], "images", space)
        rows = space.xp.concatenate([images[: r.stop - r.start] for r in batch.packing.rows])
        return space.xp.tanh(rows + vectors), (features, rows + vectors, batch, space)

    def backward(self, dhidden, cache, gradients):
        features, sums, batch, space = cache
        dsums = dhidden * (1 - space.xp.tanh(sums) ** 2)
        dimages = space.zeros("dimages", len(batch.images), dsums.shape[1])
        for rows in batch.packing.rows:
            dimages[: rows.stop - rows.start] += dsums[rows]
        gradients["image"][...] = features.T @ batch.to_images(dimages, "images", space)
        batch.drop(dsums)
        add_rows(space.xp, batch.words, dsums, gradients["words.vectors"])

    def start(self, features):
        return None, (features.astype(self.dtype, copy=False) @ self.params["image"],)

    def advance(self, words, parents, state, context):
        xp, images = namespace(words, *state), state[0] if parents is None else state[0][parents]
        return xp.tanh(images + self.params["words.vectors"][words]), (images,)


@pytest.fixture
def bigram(monkeypatch):
    monkeypatch.setitem(FAMILIES, Bigram.family, Bigram)


def small_bigram(backend, dropout=0.0):
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "sits": 4}
    sizes = {"input_dim": 3, "hidden_dim": 4}
    model = Bigram(words, dtype=numpy.float64, seed=0, dropout=dropout, backend=backend, **sizes)
    rng = numpy.random.default_rng(1)
    features = backend.to_device(rng.standard_normal((3, 3)))
    captions = backend.to_device(numpy.array([[1, 3, 4, 2], [1, 4, 2, 0], [1, 2, 0, 0]]))
    return model, features, captions


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_new_family_is_gradient_checked(backend, dropout):
    model, features, captions = small_bigram(backend, dropout)
    _, gradients = model.loss(features, captions)

    def loss(_):
        return model.loss(features, captions)[0]

    for name, value in model.params.items():
        numerical = eval_numerical_gradient(loss, value, verbose=False, h=1e-5)
        assert scaled_difference(gradients[name], numerical) < 1e-7, name


def test_a_new_family_reads_captions_of_one_image(backend):
    model, features, captions = small_bigram(backend)
    images = numpy.array([1, 1, 1])
    _, expected = model.loss(features[backend.to_device(images)], captions)
    found = {name: backend.xp.empty_like(value) for name, value in model.params.items()}
    Objective(model).loss(features, to_host(captions), 0, found, images=images)
    for name, gradient in expected.items():
        numpy.testing.assert_allclose(to_host(found[name]), to_host(gradient), rtol=1e-12)


def test_likelihoods_of_a_new_family_are_its_loss(backend):
    model, features, captions = small_bigram(backend)
    log_probs = to_host(score_captions(model, features, captions))
    assert -log_probs.sum() / 3 == pytest.approx(float(model.evaluate(features, captions)))


@pytest.mark.usefixtures("bigram")
def test_a_new_family_trains_decodes_resumes_and_stands_in_a_report(tmp_path):
    data = make_tiny(tmp_path / "tiny")
    options = RunOptions(model="bigram", hidden=8, batch_size=10, schedule=Schedule(epochs=4))
    train_run(data, tmp_path / "whole", options, CPU)
    train_run(data, tmp_path / "run", replace(options, schedule=Schedule(epochs=2)), CPU)
    resume_run(tmp_path / "run", CPU, lambda found: replace(found, schedule=Schedule(epochs=4)))
    whole, run = (open_run(tmp_path / name, CPU) for name in ("whole", "run"))
    assert isinstance(run.model, Bigram)
    for name, value in whole.model.params.items():
        numpy.testing.assert_array_equal(run.model.params[name], value)
    features = numpy.eye(7, dtype=numpy.float32)
    assert len(run.caption(features, Beam(width=3))) == 7
    export_run(run, "npz", tmp_path / "params.npz")
    with pytest.raises(ConfigurationError, match="'bigram' has no conversion to torch"):
        export_run(run, "torch", tmp_path / "params.safetensors")
    pytest.importorskip("matplotlib", reason="reports need the extra 'report'")
    done = CliRunner().invoke(main, ["report", str(tmp_path / "run"), "--device", "cpu"])
    assert done.exit_code == 0, done.output
