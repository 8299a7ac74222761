"""Device memory after many calls in one process, as fakegpu (shared/cupy_on_cpu) counts it."""

import gc

import pytest
from tiny import make_tiny

from xpcap.data.dataset import open_dataset
from xpcap.data.minibatch import EpochBatches
from xpcap.models import CaptioningRNN
from xpcap.optim import Optimizer
from xpcap.training import Schedule, Trainer
from xpcap.training.resident import ResidentStep

BATCH = 16


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(make_tiny(tmp_path / "tiny"))


@pytest.fixture
def memory(gpu):
    """Return a function that returns the bytes that CUDA has allocated, and those in arrays.

    The first are read after CuPy's pool has freed all that it can; they also see memory that a
    second pool holds, the others an array for which the pool had room. Python's garbage collector
    is off: device memory in a reference cycle stays allocated until it happens to run.
    """
    fakegpu = pytest.importorskip("fakegpu", reason="only fakegpu counts what CUDA does")
    pool = gpu.xp.get_default_memory_pool()

    def used():
        pool.free_all_blocks()
        return fakegpu.counts()["bytes live"], pool.used_bytes()

    gc.collect()
    gc.disable()
    yield used
    gc.enable()


def model_on(gpu, dataset):
    return CaptioningRNN(
        dataset.vocabulary.word_to_idx, dataset.feature_dim, 4, 8, "lstm", seed=1, backend=gpu
    )


def test_sampling_a_thousand_times(gpu, dataset, memory):
    model = model_on(gpu, dataset)
    features = gpu.to_device(dataset.splits["val"].features[:3])

    def sample(times):
        for k in range(times):
            model.sample(features[: 1 + k % 3], max_length=3)

    sample(6)
    before = memory()
    sample(1000)
    assert memory() == before


@pytest.mark.parametrize("resident", [True, False])
def test_training_twenty_times(gpu, dataset, memory, resident):
    split, val = dataset.splits["train"], dataset.splits["val"]

    def train(times):
        for _ in range(times):
            model, optimizer = model_on(gpu, dataset), Optimizer("adam")
            batches = EpochBatches(split, BATCH, seed=0, with_features=not resident)
            step = ResidentStep(model, optimizer, split, BATCH, 5.0) if resident else None
            validation = {"val": EpochBatches(val, BATCH)}
            Trainer(model, batches, optimizer, Schedule(1, clip_norm=5.0), validation, step).run()
            model.sample(gpu.to_device(val.features[:BATCH]), max_length=3)

    train(1)
    before = memory()
    train(20)
    assert memory() == before
