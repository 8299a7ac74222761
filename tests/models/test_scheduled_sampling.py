"""Scheduled sampling: which words are read, and that the rest of a step is as ever."""

import numpy
import pytest
from kinds import KINDS

from xpcap.backend import CPU, to_host
from xpcap.data.minibatch import Share
from xpcap.models.objective import Objective
from xpcap.models.packed_batch import pack_captions
from xpcap.models.scheduled_sampling import ScheduledSampling
from xpcap.training.shared import SharedLoss

V, D, W, H, N, T = 9, 3, 4, 6, 12, 5
NULL, START, END = range(3)
WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, **{f"w{k}": k for k in range(3, V)}}
SPECIAL = (NULL, START, END)


def some_captions():
    rng = numpy.random.default_rng(1)
    captions = numpy.full((N, T + 1), NULL, numpy.int32)
    captions[:, 0] = START
    for row, length in zip(captions, rng.integers(1, T, N), strict=True):
        row[1 : 1 + length] = rng.integers(3, V, length)
        row[1 + length] = END
    return captions


def by_place(batch):
    found = numpy.full(N * T, -1)
    found[to_host(batch.places)] = to_host(batch.words)
    return found.reshape(N, T)


def drawn(step=10, share=None, captions=None, backend=CPU, rate=0.5):
    """Draw words where the word after `<START>` is 3, that after any other word one more."""
    captions = some_captions() if captions is None else captions
    batch = pack_captions(captions, NULL, numpy.float64, backend.to_device, share)
    words = to_host(batch.words)
    following = numpy.where(words == START, 3, 3 + (words - 2) % (V - 3))
    scores = backend.to_device(100.0 * (numpy.arange(V) == following[:, None]))
    return ScheduledSampling(rate, 10).draw(scores, batch, SPECIAL, 3, step)


def test_a_word_read_is_the_reference_or_what_is_predicted_before_it(backend):
    captions = some_captions()
    read, before = by_place(drawn(backend=backend)), captions[:, :-1]
    predicted = numpy.where(before == START, 3, 3 + (before - 2) % (V - 3))[:, :-1]
    inside = read[:, 1:] >= 0
    own, same = read[:, 1:] == predicted, read[:, 1:] == captions[:, 1:-1]
    assert (read[:, 0] == START).all()
    assert (own | same)[inside].all()
    assert 0.2 < (own & ~same)[inside].mean() < 0.6


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)])
def test_the_probability_rises_to_the_rate(step, share):
    captions = numpy.full((N * 50, T + 1), 7, numpy.int32)
    captions[:, 0] = START
    read = drawn(step, captions=captions, rate=0.8)
    words = to_host(read.words)[N * 50 :]
    assert (words != 7).mean() == pytest.approx(0.8 * share, abs=0.03)


def test_special_words_are_not_drawn():
    batch = pack_captions(some_captions(), NULL, numpy.float64, CPU.to_device)
    for word in SPECIAL:
        scores = numpy.tile(100.0 * (numpy.arange(V) == word), (len(batch.words), 1))
        read = ScheduledSampling(1.0, 1).draw(scores, batch, SPECIAL, 0, 1)
        numpy.testing.assert_array_equal(read.words, batch.words)


def test_ranks_and_threads_read_the_words_of_one_process():
    captions, whole = some_captions(), by_place(drawn())
    for places in (numpy.array([3, 0, 7]), numpy.arange(1, 12, 2)):
        part = by_place(drawn(share=Share(places, N, 0), captions=captions[places]))
        numpy.testing.assert_array_equal(part[places], whole[places])


@pytest.fixture(params=["lstm", "attention gru dot", "transformer"])
def kind(request):
    return KINDS[request.param]


def test_the_words_replaced_are_read_and_not_predicted(kind, backend):
    """The loss is that of the references, given what is read; and the first pass leaves nothing."""
    model = kind.build(WORDS, D, W, H, seed=0, backend=backend)
    features, captions = backend.to_device(kind.features(N, D, 0)), some_captions()
    empty = {name: backend.xp.empty_like(value) for name, value in model.params.items()}
    gradients = [dict(empty) for _ in range(2)]
    for found in gradients:
        found.update({name: value.copy() for name, value in empty.items()})
    with backend.activate():
        objective = Objective(model, scheduled=ScheduledSampling(1.0, 1))
        loss = objective.loss(features, captions, 1, gradients[0])
        plain = Objective(model)
        batch = plain._pack(features, captions)
        read = objective._read_own(features, batch, 1, objective.scheduled)
        losses = plain.compute(features, read, None, gradients[1])
        assert float(loss) == pytest.approx(float(losses.sum()), rel=1e-12)
        assert float(loss) != pytest.approx(float(plain.evaluate(features, captions)), rel=1e-6)
    for name, value in gradients[1].items():
        numpy.testing.assert_allclose(to_host(gradients[0][name]), to_host(value), atol=1e-12)


def test_threads_agree(kind, monkeypatch):
    model = kind.build(WORDS, D, W, H, seed=0)
    features, captions, found = kind.features(N, D, 0), some_captions(), []
    for parts in (1, 3):
        monkeypatch.setattr(
            "xpcap.threads.spans", lambda count, least=1, parts=parts: [slice(0, 1)] * parts
        )
        gradients = {name: numpy.empty_like(value) for name, value in model.params.items()}
        shared = SharedLoss(model, scheduled=ScheduledSampling(1.0, 1))
        found.append(shared.loss(features, captions, 1, gradients))
    assert found[0] == pytest.approx(found[1], rel=1e-12)
