"""Reuse of memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
from guard import open_guard
from small_captioners import model_of, some_features

from xpcap.decoding import Beam, beam_search
from xpcap.workspace import Workspace, passing


def address(array):
    return array.__array_interface__["data"][0]


def test_a_name_reuses_its_memory_if_the_array_fits():
    space = Workspace(numpy, numpy.float32)
    large = space.empty("a", 4, 5)
    assert large.shape == (4, 5)
    assert large.dtype == numpy.float32
    assert address(space.empty("a", 3, 2)) == address(large)
    assert address(space.empty("b", 4, 5)) != address(large)
    assert not numpy.shares_memory(space.empty("a", 5, 5), large)
    assert space.empty("a", 2, dtype=numpy.int64).dtype == numpy.int64
    assert (space.zeros("c", 3) == 0).all()


def test_memory_is_allocated_for_the_largest_first_dimension():
    space = Workspace(numpy, numpy.float32)
    few = space.empty("a", 2, 3, most=10)
    assert numpy.shares_memory(space.empty("a", 10, 3), few)


def test_temporary_workspaces_are_per_thread_and_dtype():
    mine = passing(numpy, numpy.float32)
    assert passing(numpy, "float32") is mine
    assert passing(numpy, numpy.float64) is not mine
    assert passing(numpy, numpy.float64).dtype == numpy.float64
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(passing, numpy, numpy.float32).result()
    assert theirs is not mine
    guard = open_guard().xp
    assert passing(guard, numpy.float32) is not passing(guard, numpy.float32)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_threads_can_decode_with_one_model_at_once(cell):
    model, beam = model_of(cell), Beam(width=4, n_best=4)
    features = [some_features(50, seed) for seed in range(8)]
    expected = [beam_search(model, images, beam) for images in features]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            found = threads.map(lambda images: beam_search(model, images, beam), features)
            for these, those in zip(found, expected, strict=True):
                numpy.testing.assert_array_equal(these.words, those.words)
                numpy.testing.assert_array_equal(these.log_probs, those.log_probs)
