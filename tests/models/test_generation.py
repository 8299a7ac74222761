"""Decoders that are kept: what they may and may not remember."""

import gc
import itertools
import weakref

import numpy
import oracle
import pytest
from kinds import KINDS

from xpcap.backend import to_host
from xpcap.kernels.graphs import Repeated
from xpcap.kernels.products import multiplied_in
from xpcap.models import generation

WORDS = {word: k for k, word in enumerate(("<NULL>", "<START>", "<END>", "a", "cat", "sat"))}
D, H = 5, 7


@pytest.fixture(params=["lstm", "attention lstm", "transformer"])
def kind(request):
    return request.param


def build(backend, seed=0, dtype=numpy.float32, kind="lstm"):
    model = KINDS[kind].build(WORDS, D, 4, H, dtype, seed=0, backend=backend)
    rng = numpy.random.default_rng(seed)
    for name, value in model.params.items():
        model.params[name] = backend.to_device(1.5 * rng.standard_normal(value.shape), dtype)
    return model


def some_features(model, N, seed=0):
    kinds = {"recurrent": "lstm", "attention": "attention lstm", "transformer": "transformer"}
    return KINDS[kinds[model.family]].features(N, D, seed).astype(numpy.float32)


def sampled(model, N=6, seed=0, max_length=9):
    features = some_features(model, N, seed)
    features = model.backend.to_device(features, model.params["W_proj"].dtype)
    return to_host(model.sample(features, max_length))


def agrees(model, N=6, seed=0, max_length=9):
    """Assert that captions are those of the naive model."""
    params = {name: to_host(value) for name, value in model.params.items()}
    expected = oracle.sample(model.sizes, params, some_features(model, N, seed), max_length)
    for _ in range(3):  # as it is, captured and replayed
        numpy.testing.assert_array_equal(sampled(model, N, seed, max_length), expected)
    return expected


def test_changed_parameters_are_seen(kind, backend):
    model = build(backend, kind=kind)
    found = [agrees(model)]
    for name, value in build(backend, 1, kind=kind).params.items():
        model.params[name][...] = value
    found.append(agrees(model))
    model.params = build(backend, 2, kind=kind).params
    found.append(agrees(model))
    model.params = build(backend, 3, numpy.float64, kind).params
    found.append(agrees(model))
    model.params["b_vocab"] = build(backend, 4, numpy.float64, kind).params["b_vocab"]
    found.append(agrees(model))
    assert len({words.tobytes() for words in found}) == len(found)


def test_batches_of_all_sizes_in_turn(kind, backend):
    model = build(backend, kind=kind)
    for N, max_length in itertools.product((6, 1, 6), (9, 1, 0)):
        for seed in (0, 1):
            agrees(model, N=N, seed=seed, max_length=max_length)


@pytest.mark.parametrize("compiled", ["0", "1"])
def test_no_images(kind, backend, compiled, monkeypatch):
    monkeypatch.setenv("XPCAP_COMPILED", compiled)
    assert sampled(build(backend, kind=kind), N=0).shape == (0, 9)


@pytest.mark.parametrize(("N", "max_length"), [(6, 9), (1, 9), (6, 1), (1, 1)])
def test_captions_are_not_overwritten_by_later_ones(kind, backend, N, max_length):
    model = build(backend, kind=kind)
    features = backend.to_device(some_features(model, N))
    first = model.sample(features, max_length)
    before = to_host(first).copy()
    model.params["b_vocab"][(before[0, 0] + 1) % len(WORDS)] = 1000.0
    other = to_host(model.sample(features, max_length))
    assert (other != before).any()
    numpy.testing.assert_array_equal(to_host(first), before)


def test_another_end_is_seen(backend):
    model = build(backend)
    before = agrees(model)
    model.end = before[0, 1]
    ended = sampled(model)
    numpy.testing.assert_array_equal(ended[0, :2], before[0, :2])
    assert not ended[0, 2:].any()
    assert before[0, 2:].any()


def test_a_model_with_decoders_is_freed_at_once(kind, backend):
    model = build(backend, kind=kind)
    for N in (3, 4):
        sampled(model, N)
        sampled(model, N)
    dropped = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert dropped() is None
    finally:
        gc.enable()


def test_few_decoders_are_kept_on_cupy(gpu):
    model = build(gpu)
    for N in range(1, 12):
        sampled(model, N)
    kept = generation._decoders[model].by_key
    assert [N for N, *_ in kept] == [8, 9, 10, 11]
    sampled(model, 8)
    sampled(model, 12)
    assert [N for N, *_ in kept] == [10, 11, 8, 12]


def test_a_batch_of_the_same_size_is_captured_once_on_cupy(gpu, monkeypatch):
    captured, captures = Repeated._captured, []
    monkeypatch.setattr(
        Repeated, "_captured", lambda *args: captures.append(args) or captured(*args)
    )
    model = build(gpu)
    for seed in range(5):
        sampled(model, seed=seed)
    assert len(captures) == 1
    with multiplied_in("bf16"):
        sampled(model)
    assert len(captures) == 2


def test_decoding_leaks_no_memory_on_cupy(gpu):
    def free_after_decoding():
        for seed in range(3):
            model = build(gpu, seed)
            for N in (2, 3):
                sampled(model, N)
        del model
        gpu.xp.get_default_memory_pool().free_all_blocks()
        return gpu.free_memory()

    before = free_after_decoding()
    assert [free_after_decoding() for _ in range(3)] == [before] * 3
