"""Steps on data that lie on the device, against steps that get their batches from the host."""

import gc
import weakref
from functools import partial

import numpy
import pytest
from guard import counters, open_guard
from tiny import make_tiny

from xpcap.backend import to_host
from xpcap.data.dataset import open_dataset
from xpcap.data.minibatch import EpochBatches
from xpcap.errors import ConfigurationError
from xpcap.models import AttentionRNN, CaptioningRNN, Transformer
from xpcap.optim import Optimizer
from xpcap.training import Schedule, Trainer
from xpcap.training.resident import ResidentStep
from xpcap.training.step import TrainingStep

BATCH = 7  # the last batch of an epoch is smaller


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(make_tiny(tmp_path / "tiny"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "family": AttentionRNN, "doubly_stochastic": 0.5, "dropout": 0.3,
            "label_smoothing": 0.1,
        },
        {"family": AttentionRNN, "scoring": "dot", "cell": "gru", "rule": "sgd"},
        {"family": Transformer, "layers": 1, "heads": 2, "encoder_layers": 1, "dropout": 0.3},
    ],
    ids=["mean", "additive", "dot", "transformer"],
)  # fmt: skip
def test_features_of_regions_lie_on_the_device_too(tmp_path, backend, monkeypatch, options):
    monkeypatch.setattr("xpcap.training.resident._BLOCK", 5 * 3 * 7 * 2)
    regions = open_dataset(
        make_tiny(tmp_path / "regions", regions=True), lazy=True, dtype="float16"
    )
    losses, norms, *_, params = train(regions, "cpu", False, **options)
    found = train(regions, backend, True, **options)
    assert found[0] == pytest.approx(losses, rel=1e-10)
    assert found[1] == pytest.approx(norms, rel=1e-10)
    for name, value in params.items():
        numpy.testing.assert_allclose(found[3][name], value, rtol=1e-9, atol=1e-11)


def train(
    dataset, backend, resident, *, family=CaptioningRNN, cell="lstm", rule="adam",
    label_smoothing=0.0, **options,
):  # fmt: skip
    """Train two epochs; return losses, gradient norms and parameters."""
    cells = {} if family is Transformer else {"wordvec_dim": 8, "cell_type": cell}
    model = family(
        dataset.vocabulary.word_to_idx, dataset.feature_dim, hidden_dim=16, dtype="float64", seed=1,
        backend=backend, **cells, **options,
    )  # fmt: skip
    split, optimizer = dataset.splits["train"], Optimizer(rule, learning_rate=0.02)
    schedule = Schedule(epochs=2, cosine=True, clip_norm=1.0)
    make = partial(ResidentStep, split=split, batch_size=BATCH) if resident else TrainingStep
    trainer = Trainer(
        model,
        EpochBatches(split, BATCH, seed=0, with_features=not resident),
        optimizer,
        schedule,
        {"val": EpochBatches(dataset.splits["val"], BATCH)},
        make(model, optimizer, clip_norm=1.0, label_smoothing=label_smoothing),
    )
    seen = []
    trainer.on("step", lambda t: seen.append((*t.training_step.figures, t.learning_rate)))
    trainer.run()
    losses, norms, rates = zip(*seen, strict=True)
    params = {name: to_host(value) for name, value in model.params.items()}
    return [float(v) for v in losses], [float(v) for v in norms], rates, params


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_they_are_the_same_steps(dataset, backend, cell, dropout, rule):
    settings = {"cell": cell, "dropout": dropout, "rule": rule}
    losses, norms, rates, params = train(dataset, "cpu", False, **settings)
    found = train(dataset, backend, True, **settings)
    assert found[0] == pytest.approx(losses, rel=1e-10)
    assert found[1] == pytest.approx(norms, rel=1e-10)
    assert found[2] == rates
    for name, value in params.items():
        numpy.testing.assert_allclose(found[3][name], value, rtol=1e-9, atol=1e-11)
    assert len(losses) == 2 * -(-len(dataset.splits["train"]) // BATCH)


@pytest.mark.parametrize("family", [CaptioningRNN, AttentionRNN])
def test_a_step_waits_for_nothing_and_takes_nothing_from_the_host(tmp_path, family):
    guard = open_guard()
    dataset = open_dataset(make_tiny(tmp_path / "regions", regions=True))
    split = dataset.splits["train"]
    model = family(
        dataset.vocabulary.word_to_idx, dataset.feature_dim, 8, 16, "gru", dropout=0.2, seed=0,
        backend=guard,
    )  # fmt: skip
    step = ResidentStep(model, Optimizer("adam"), split, BATCH, 5.0)
    batches = EpochBatches(split, BATCH, 0, with_features=False)
    taken = step.epoch(batches, 0, 0, 0, [1.0] * len(batches))
    next(taken)
    counters.reset()
    next(taken)
    assert counters.synchronizations == 0


def test_parameters_that_are_replaced_are_taken_over(dataset):
    split = dataset.splits["train"]

    model = CaptioningRNN(dataset.vocabulary.word_to_idx, dataset.feature_dim, 8, 16, seed=0)
    batches = EpochBatches(split, BATCH, 0)
    step = ResidentStep(model, Optimizer("sgd"), split, BATCH)
    taken = step.epoch(batches, 0, 0, 0, [1.0] * len(batches))
    next(taken)
    model.params["W_vocab"] = numpy.zeros_like(model.params["W_vocab"])
    next(taken)
    assert 0 < abs(model.params["W_vocab"]).max() < 0.1


def test_nothing_outside_shares_memory_with_what_a_graph_has_recorded(dataset, backend):
    """A graph goes on writing where it was told to: what others hold or need lies elsewhere."""
    split = dataset.splits["train"]
    model = CaptioningRNN(
        dataset.vocabulary.word_to_idx, dataset.feature_dim, 8, 16, seed=0, backend=backend
    )
    step = ResidentStep(model, Optimizer("adam"), split, BATCH, 5.0)
    batches = EpochBatches(split, BATCH, 0, with_features=False)
    next(step.epoch(batches, 0, 0, 0, [1.0] * len(batches)))
    step._totals[...] = -1
    assert float(step.loss) > 0
    assert float(step.gradient_norm) > 0
    memory = {name: id(array) for name, array in step.packed._space._memory.items()}
    longer = numpy.ones((3 * BATCH, 3 * split.captions.shape[1]), numpy.int32)
    features = numpy.zeros((3 * BATCH, dataset.feature_dim), "float32")
    step.measuring.evaluate(backend.to_device(features), longer)
    assert memory == {name: id(array) for name, array in step.packed._space._memory.items()}


def test_a_step_that_is_dropped_is_freed_at_once(dataset, backend):
    """With all its memory, its graph's too; it does not wait for the garbage collector."""
    split = dataset.splits["train"]
    model = CaptioningRNN(
        dataset.vocabulary.word_to_idx, dataset.feature_dim, 8, 16, seed=0, backend=backend
    )
    optimizer = Optimizer("adam")
    batches = EpochBatches(split, BATCH, 0, with_features=False)

    def used():
        on_gpu = backend.device is not None
        return backend.xp.get_default_memory_pool().used_bytes() if on_gpu else 0

    def train():
        step = ResidentStep(model, optimizer, split, BATCH, 5.0)
        taken = step.epoch(batches, 0, 0, 0, [1.0] * len(batches))
        for _ in range(3):
            next(taken)
        return weakref.ref(step)

    gc.collect()
    gc.disable()
    try:
        assert train()() is None
        before = used()  # with parameters in one array, and moments
        assert train()() is None
        assert used() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [TrainingStep, ResidentStep])
def test_a_precision_that_only_a_gpu_has_is_refused(make, dataset):
    model = CaptioningRNN(dataset.vocabulary.word_to_idx, dataset.feature_dim, 8, 16)
    data = (dataset.splits["train"], BATCH) if make is ResidentStep else ()
    with pytest.raises(ConfigurationError, match="precision 'tf32' needs a GPU"):
        make(model, Optimizer("adam"), *data, precision="tf32")
