"""Random numbers against published ones, NumPy's own generator, and element by element."""

import numpy
import pytest

from xpcap.backend import to_host
from xpcap.layers.random import keep_mask, philox

# The known answers of Random123, file kat_vectors, philox4x64 with 10 rounds.
KNOWN = [
    ("0 0 0 0", "0 0", "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, answer, xp):
    c = [int(word, 16) for word in counter.split()]
    k = [int(word, 16) for word in key.split()]
    words = philox(xp, start=c[0], count=1, seed=k[0], stream=c[1])
    assert words.shape == (1, 4)
    assert [f"{word:016x}" for word in to_host(words)[0].tolist()] == answer.split()


@pytest.mark.parametrize("stream", [0, 1, 2**63 + 7, 2**64 - 1])
@pytest.mark.parametrize("start", [0, 1, 2**32 - 1, 2**64 - 3])
def test_philox_is_the_generator_of_numpy(start, stream, xp):
    """Which counts up before it draws."""
    seed = 2**63 + 12345
    counter = ((start | stream << 64) - 1) % 2**256
    words = [(counter >> shift) & (2**64 - 1) for shift in (0, 64, 128, 192)]
    generator = numpy.random.Philox(
        key=numpy.array([seed, 0], numpy.uint64), counter=numpy.array(words, numpy.uint64)
    )
    found = to_host(philox(xp, start, 3, seed, stream))
    numpy.testing.assert_array_equal(found, generator.random_raw(12).reshape(3, 4))


def test_philox_goes_through_the_counters(xp):
    many = to_host(philox(xp, 2**32 - 2, 4, seed=3, stream=4))
    one_by_one = [to_host(philox(xp, 2**32 - 2 + k, 1, seed=3, stream=4))[0] for k in range(4)]
    numpy.testing.assert_array_equal(many, one_by_one)
    assert len(numpy.unique(many)) == 16


def mask(xp, size, *which):
    out = xp.asarray(numpy.zeros(size, bool))
    keep_mask(xp, *which, out)
    return to_host(out)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 65_536, 65_537])
def test_keep_mask_takes_sixteen_elements_of_each_counter(size, xp):
    """Element e is quarter e % 4 of word e // 4, lowest first."""
    threshold = 30_000
    found = mask(xp, size, threshold, 17, 5)
    for e in {0, 3, 4, 7, 15, 16, size // 2, size - 1} & set(range(size)):
        word = int(philox(numpy, e // 16, 1, 17, 5)[0, e % 16 // 4])
        assert found[e] == (((word >> 16 * (e % 4)) & 0xFFFF) >= threshold)


def test_keep_mask_is_a_beginning_of_every_longer_one(xp):
    short, long = mask(xp, 1001, 32_768, 1, 2), mask(xp, 100_000, 32_768, 1, 2)
    numpy.testing.assert_array_equal(short, long[:1001])
