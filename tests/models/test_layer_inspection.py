"""Attention and gradients in each layer of a Transformer."""

import numpy
import pytest

from xpcap.backend import namespace, to_host
from xpcap.models import AttentionRNN
from xpcap.models.inspection import (
    attention_heads,
    attention_maps,
    layer_gradients,
    self_attention,
    word_gradients,
)
from xpcap.models.transformer import Transformer

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3, "cat": 4, "dog": 5}
CAPTIONS = numpy.array(
    [[1, 5, 2, 0, 0], [1, 3, 4, 2, 0], [1, 3, 3, 5, 2], [1, 4, 4, 2, 0], [1] + [0] * 4]
)
N, T, LAYERS, HEADS, H, L, D = 5, 4, 2, 2, 8, 3, 5
COUNTED = CAPTIONS[:, 1:] != 0


@pytest.fixture
def model(backend):
    return Transformer(
        WORDS, D, H, numpy.float64, layers=LAYERS, heads=HEADS, positions="learned", seed=0,
        backend=backend,
    )  # fmt: skip


@pytest.fixture
def features():
    found = numpy.random.default_rng(0).standard_normal((N, L, D))
    found[1, 0] = 0  # an absent region
    return found


def ask(model, layer, part, head, name):
    """Make the queries of one head 0, so that it looks at everything alike."""
    for key in (f"W_{name}", f"b_{name}"):
        own = slice(head * H // HEADS, (head + 1) * H // HEADS)
        model.params[f"layer.{layer}.{part}.{key}"][..., own] = 0


def test_each_head_has_its_own_weights_of_regions(model, features, backend):
    given = backend.to_device(features), backend.to_device(CAPTIONS[:, 1:])
    ask(model, 0, "cross", 1, "query")
    heads = attention_heads(model, *given)
    assert namespace(heads) is backend.xp
    numpy.testing.assert_allclose(
        to_host(attention_maps(model, *given)), to_host(heads)[:, -1].mean(axis=1), rtol=1e-12
    )
    found, there = to_host(heads), features.any(axis=2)
    assert found.shape == (N, LAYERS, HEADS, T, L)
    alike = COUNTED[:, :, None] * (there / there.sum(axis=1, keepdims=True))[:, None]
    for layer, head in numpy.ndindex(LAYERS, HEADS):
        numpy.testing.assert_allclose(found[:, layer, head].sum(axis=2), COUNTED, atol=1e-12)
        near = numpy.allclose(found[:, layer, head], alike, atol=1e-12)
        assert near == ((layer, head) == (0, 1))


def test_each_head_has_its_own_weights_of_words(model, features, backend):
    given = backend.to_device(features), backend.to_device(CAPTIONS[:, 1:])
    ask(model, 1, "self", 0, "qkv")
    found = to_host(self_attention(model, *given))
    assert found.shape == (N, LAYERS, HEADS, T, T)
    alike = COUNTED[:, :, None] * numpy.tri(T) / numpy.arange(1, T + 1)[:, None]
    for layer, head in numpy.ndindex(LAYERS, HEADS):
        numpy.testing.assert_allclose(found[:, layer, head].sum(axis=2), COUNTED, atol=1e-12)
        assert not numpy.triu(found[:, layer, head], 1).any()
        near = numpy.allclose(found[:, layer, head], alike, atol=1e-12)
        assert near == ((layer, head) == (1, 0))


def test_a_recurrent_model_has_one_layer_with_one_head(features):
    model = AttentionRNN(WORDS, D, 4, H, "lstm", numpy.float64, seed=0)
    heads = attention_heads(model, features, CAPTIONS[:, 1:])
    assert heads.shape == (N, 1, 1, T, L)
    numpy.testing.assert_array_equal(
        heads[:, 0, 0], attention_maps(model, features, CAPTIONS[:, 1:])
    )


def test_norms_of_layers_are_those_of_the_gradients_of_their_biases(model, features, backend):
    """A layer adds `b_out` to x at each word: where there is one word, dL/dx is dL/db_out."""
    one_word = numpy.array([[1, 4]])
    given = backend.to_device(features[:1]), backend.to_device(one_word)
    found = layer_gradients(model, *given)
    _, gradients = model.loss(*given)
    assert found.names == tuple(
        f"layer.{k}.{part}" for k in range(LAYERS) for part in ("self", "cross", "feed")
    )
    assert found.words.shape == (len(found.names), 1)
    for name, (norm,) in zip(found.names, to_host(found.words), strict=True):
        expected = numpy.linalg.norm(to_host(gradients[f"{name}.b_out"]))
        assert norm == pytest.approx(expected, rel=1e-10)


def test_norms_of_layers_are_means_over_the_captions_that_go_on(model, features, backend):
    """Each caption alone, together, and the gradients of parameters of their mean loss."""
    every = backend.to_device(features), backend.to_device(CAPTIONS)
    found, (_, gradients) = layer_gradients(model, *every), model.loss(*every)
    alone = numpy.zeros((N, len(found.names), T))
    for n, caption in enumerate(CAPTIONS[:-1]):
        one = backend.to_device(features[n : n + 1]), backend.to_device(caption[None])
        of_one = to_host(layer_gradients(model, *one).words)
        alone[n, :, : of_one.shape[1]] = of_one
    mean = (alone * COUNTED[:, None]).sum(axis=0) / COUNTED.sum(axis=0)
    numpy.testing.assert_allclose(to_host(found.words), mean, rtol=1e-10)
    for name, norm in zip(found.names, to_host(found.parameters), strict=True):
        own = [to_host(value) for key, value in gradients.items() if key.startswith(f"{name}.")]
        squares = sum((value**2).sum() for value in own)
        assert norm == pytest.approx(squares**0.5, rel=1e-10)


def test_word_gradients_are_slopes(model, features, backend):
    moved, h = features.copy(), 1e-6
    moved[0, 1, 2] += h
    found, after = (
        word_gradients(model, backend.to_device(x), backend.to_device(CAPTIONS[:, 1:]))
        for x in (features, moved)
    )
    slopes = (to_host(after[0]) - to_host(found[0]))[0] / h
    numpy.testing.assert_allclose(slopes, to_host(found[1])[0, :, 1, 2], rtol=1e-4, atol=1e-6)
