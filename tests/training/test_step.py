"""A training step's memory and its bits."""

import tracemalloc

import numpy
import pytest
from kinds import KINDS

from xpcap.backend import CPU, to_host
from xpcap.benchmark.workload import Configuration, Workload
from xpcap.data.minibatch import Batch
from xpcap.errors import ShapeError
from xpcap.models import CaptioningRNN
from xpcap.optim import Optimizer, adamw
from xpcap.training.step import TrainingStep

SIZE = Configuration(batch_size=64, hidden=128, features=512, vocabulary=1004, wordvec=64)


def model_of(workload, dropout=0.0, dtype=numpy.float32):
    words = workload.model("cpu").word_to_idx
    size = workload.configuration
    return CaptioningRNN(
        words, size.features, size.wordvec, size.hidden, workload.cell, dtype, dropout=dropout,
        seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    ("cell", "rule"),
    [
        ("rnn", "adam"), ("lstm", "adam"), ("gru", "adam"),
        ("rnn", "sgd"), ("rnn", "sgd_momentum"), ("rnn", "rmsprop"),
    ],
)  # fmt: skip
def test_nothing_large_is_allocated_after_the_first_step(
    cell, rule, dropout, compiled, monkeypatch
):
    """The scores alone are 2.8 MB, the parameters 1 MB."""
    if compiled:
        pytest.importorskip("numba")
    monkeypatch.setenv("XPCAP_COMPILED", str(int(compiled)))
    workload = Workload(SIZE, cell)
    step = TrainingStep(model_of(workload, dropout), Optimizer(rule), 5.0)
    batches = [workload.batch(k) for k in range(4)]
    step(batches[0], 0, 1.0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for k, batch in enumerate(batches[1:], start=1):
            step(batch, k, 1.0)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 700_000
    assert now - before < 20_000


@pytest.mark.parametrize("compiled", [False, True])
def test_the_same_seed_gives_the_same_bits(compiled, monkeypatch):
    if compiled:
        pytest.importorskip("numba")
    monkeypatch.setenv("XPCAP_COMPILED", str(int(compiled)))
    found = []
    for _ in range(2):
        workload = Workload(SIZE, "lstm")
        step = TrainingStep(model_of(workload, 0.3), Optimizer("adam"), 1.0)
        for k in range(5):
            step(workload.batch(k), k, 1.0)
        found.append({name: value.copy() for name, value in step.model.params.items()})
    for name, value in found[0].items():
        numpy.testing.assert_array_equal(found[1][name], value)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_compiled_steps_round_no_worse(cell, monkeypatch):
    """Twenty steps beside the same in double precision: no further off than twice NumPy's."""
    pytest.importorskip("numba")
    ends = {}
    single, double = numpy.float32, numpy.float64
    runs = [("exact", "0", double), ("numpy", "0", single), ("compiled", "1", single)]
    for name, compiled, dtype in runs:
        monkeypatch.setenv("XPCAP_COMPILED", compiled)
        workload = Workload(SIZE, cell)
        model = model_of(workload)
        model.params = {key: value.astype(dtype) for key, value in model.params.items()}
        step = TrainingStep(model, Optimizer("sgd", learning_rate=0.1), 5.0)
        for k in range(20):
            step(workload.batch(k), k, 1.0)
        ends[name] = model.params
    for name, true in ends["exact"].items():
        plain = abs(ends["numpy"][name] - true).max()
        ours = abs(ends["compiled"][name] - true).max()
        assert ours <= 2 * plain + 1e-6 * abs(true).max(), name


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_leaves_biases_and_embeddings_alone(kind, backend):
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3}
    model = KINDS[kind].build(words, 3, 4, 5, seed=0, backend=backend)
    before = {name: value.copy() for name, value in model.params.items()}
    step = TrainingStep(model, Optimizer("adamw", learning_rate=0.1, weight_decay=0.5))
    step(Batch(numpy.array([[1, 3, 2]] * 4), KINDS[kind].features(4, 3, seed=1)), 0, 1.0)
    for name, value in before.items():
        decays = value.ndim == 2 and name not in ("W_embed", "W_position")
        config = {"learning_rate": 0.1, "weight_decay": 0.5 if decays else 0.0}
        expected, _ = adamw(value, step.gradients[name], config)
        found = to_host(model.params[name])
        numpy.testing.assert_allclose(found, to_host(expected), rtol=1e-12, err_msg=name)


def test_the_workspace_is_the_models_dtype():
    step = TrainingStep(model_of(Workload(SIZE, "rnn"), dtype=numpy.float64), Optimizer("sgd"))
    step(Workload(SIZE, "rnn").batch(0), 0, 1.0)
    assert step.loss.dtype == numpy.float64
    assert all(view.dtype == numpy.float64 for view in step.gradients.values())
    assert step.model.backend is CPU


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "b_vocab",
            numpy.zeros(1),
            r"parameter b_vocab: training began with \(1004,\), now .*\(1,\)",
        ),
        ("extra", numpy.zeros(3), "parameter extra: training began with none of that name"),
        ("Wx", None, "parameter Wx: training began with .* missing"),
    ],
)
def test_parameters_that_do_not_fit_any_more(name, value, message):
    step = TrainingStep(model_of(Workload(SIZE, "rnn")), Optimizer("sgd"))
    step(Workload(SIZE, "rnn").batch(0), 0, 1.0)
    if value is None:
        del step.model.params[name]
    else:
        step.model.params[name] = value
    with pytest.raises(ShapeError, match=message):
        step(Workload(SIZE, "rnn").batch(1), 1, 1.0)


def test_parameters_of_two_dtypes_are_trained_in_the_wider():
    model = model_of(Workload(SIZE, "rnn"))
    model.params["Wh"] = model.params["Wh"].astype(numpy.float64)
    step = TrainingStep(model, Optimizer("sgd"))
    step(Workload(SIZE, "rnn").batch(0), 0, 1.0)
    assert {value.dtype for value in model.params.values()} == {numpy.dtype(numpy.float64)}


def test_features_of_changing_dtypes():
    """Each gets memory of its own, whichever came first."""
    workload = Workload(SIZE, "rnn")
    losses = []
    for dtypes in (["float64", "float16", "float32"], ["float16", "float64", "float32"]):
        step = TrainingStep(model_of(workload), Optimizer("sgd", learning_rate=1e-9))
        for dtype in dtypes:
            batch = workload.batch(0)
            step(batch._replace(features=batch.features.astype(dtype)), 0, 1.0)
            losses.append(float(step.loss))
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-3)
