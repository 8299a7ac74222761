"""What is the Transformer's own: caches, the limit of its captions, and PyTorch's layers."""

import functools
import math

import numpy
import pytest
from kinds import TRANSFORMERS
from small_captioners import WORDS as FEW
from small_captioners import model_of, some_features

from xpcap.backend import CPU, to_host
from xpcap.decoding import (
    Beam,
    Constraints,
    Ensemble,
    Sampling,
    beam_search,
    sample,
    score_captions,
)
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.models import Transformer
from xpcap.models.objective import Objective
from xpcap.selfcheck.cases import scaled_difference

WORDS = {word: k for k, word in enumerate(FEW)}
CAPTIONS = numpy.array([[1, 4, 5, 3, 6], [1, 6, 6, 4, 2], [1, 5, 3, 3, 4], [1, 3, 4, 5, 2]])
every_kind = pytest.mark.parametrize("kind", TRANSFORMERS)


def forward_scores(model, features):
    """Return the scores after each word of `CAPTIONS`, `(N, T, V)`, of the forward pass."""
    batch, hidden, _ = Objective(model).read(features, CAPTIONS)
    W, b = model.vocabulary_layer(model.params)
    found = to_host(hidden @ W + b)
    by_step = found.reshape(len(batch.packing.rows), len(CAPTIONS), -1)
    return by_step[:, numpy.argsort(to_host(batch.images))].swapaxes(0, 1)


@pytest.mark.parametrize("moved", [False, True])
@every_kind
def test_a_step_with_caches_is_the_forward_pass(kind, moved, backend):
    """Where hypotheses move to other rows, their caches go with them; the old ones stay."""
    model, features = model_of(kind, backend), backend.to_device(some_features(kind=kind))
    expected = forward_scores(model, features)
    context, state = model.start(features)
    rows = numpy.arange(len(CAPTIONS))
    for t in range(CAPTIONS.shape[1] - 1):
        parents, before = None, [to_host(part).copy() for part in state]
        if moved:
            parents = numpy.array([1, 0, 3, 3, 2])[: len(rows) + 1]
            rows, parents = rows[parents], backend.to_device(parents)
        words = backend.to_device(CAPTIONS[rows, t])
        scores, after = model.step(words, parents, state, context)
        numpy.testing.assert_allclose(to_host(scores), expected[rows, t], rtol=1e-12, atol=1e-12)
        if moved:
            for part, old in zip(state, before, strict=True):
                numpy.testing.assert_array_equal(to_host(part), old)
        else:  # a step does not copy what was before it
            assert all(new is old for new, old in zip(after[:-1], state[:-1], strict=True))
        state = after


def limited(backend=CPU):
    """Make a captioner whose captions have at most seven words and `<END>`."""
    sizes = {"input_dim": 5, "hidden_dim": 4, "layers": 1, "heads": 1, "max_length": 8}
    return Transformer(WORDS, **sizes, dtype=numpy.float64, seed=0, backend=backend)


def test_captions_are_as_long_as_the_model_can(backend):
    model, features = limited(backend), backend.to_device(some_features())
    model.params["b_vocab"][WORDS["<END>"]] = -1e3
    for captioner in (model, Ensemble([model_of("lstm", backend), model])):
        for search, how in ((beam_search, Beam), (sample, Sampling)):
            found = search(captioner, features, how(constraints=Constraints(max_length=7)))
            assert found.words.shape == (4, 1, 8)
            with pytest.raises(ConfigurationError, match=r"at most 7 \(max_words=N\)"):
                search(captioner, features, how(constraints=Constraints(max_length=8)))
    assert model.sample(features).shape == model.sample(features, 8).shape == (4, 8)
    with pytest.raises(ConfigurationError, match="max_length must be at most 8, got 9"):
        model.sample(features, 9)


def test_captions_that_are_longer_cannot_be_read(backend):
    model, features = limited(backend), backend.to_device(some_features())
    captions = numpy.full((4, 12), WORDS["a"])
    captions[:, 9:] = WORDS["<NULL>"]
    assert score_captions(model, features, backend.to_device(captions)).shape == (4, 11)
    captions[2, 9] = WORDS["a"]
    with pytest.raises(ShapeError, match="captions have more than 8 words"):
        score_captions(model, features, backend.to_device(captions))
    with pytest.raises(ShapeError, match="captions of 9 words; expected at most max_length = 8"):
        Objective(model).evaluate(features, captions)


def test_initial_parameters():
    H, D, layers = 64, 300, 3
    words = {"<NULL>": 0, **{str(k): k for k in range(1, 50)}}
    model = Transformer(
        words, D, H, layers=layers, heads=4, encoder_layers=1, positions="learned", seed=0
    )
    added = 3 * layers + 2
    spread = {
        "W_embed": H**-0.5, "W_position": H**-0.5, "W_proj": D**-0.5, "W_vocab": H**-0.5,
        "W_qkv": H**-0.5, "W_query": H**-0.5, "W_key": H**-0.5, "W_value": H**-0.5,
        "W_in": (2 / (5 * H)) ** 0.5,
        "self.W_out": (added * H) ** -0.5, "cross.W_out": (added * H) ** -0.5,
        "feed.W_out": (2 / (5 * H * added)) ** 0.5,
    }  # fmt: skip
    assert model.params["layer.2.self.W_qkv"].shape == (H, 3 * H)
    assert model.params["encoder.0.feed.W_in"].shape == (H, 4 * H)
    assert not any(name.startswith(("encoder.1", "layer.3")) for name in model.params)
    for name, value in model.params.items():
        *_, last = name.split(".")
        scale = spread.get(last) or spread.get(".".join(name.split(".")[-2:]))
        if scale is None:
            assert (value == (last == "w_norm")).all(), name
        else:
            assert value.std() == pytest.approx(scale, rel=0.05), name
            assert abs(value.mean()) < 4 * scale / value.size**0.5, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "Transformer: expected heads that divide H = 8, got 3"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"encoder_layers": -1}, "encoder_layers must be at least 0"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"tie_embeddings": "no"}, "tie_embeddings is 'no'; expected True or False"),
        ({"positions": "none"}, "positions 'none' are unknown; expected sinusoidal or learned"),
    ],
)
def test_settings_that_are_refused(options, message):
    with pytest.raises((ConfigurationError, ShapeError), match=message):
        Transformer(WORDS, 5, 8, **options)


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 6), (4, 2, 5, 1)])
def test_features_that_do_not_fit(shape):
    for call in (lambda x: limited().evaluate(x, CAPTIONS), limited().sample):
        with pytest.raises(ShapeError, match="features"):
            call(numpy.zeros(shape))


def torch_peer(torch, model):
    """Return the same captioner of PyTorch's layers: features, captions, which regions are absent
    give the loss; and a function that returns its gradients by our names."""
    nn, sizes, params = torch.nn, model.sizes, model.params
    H, heads = sizes["hidden_dim"], sizes["heads"]
    gelu = functools.partial(nn.functional.gelu, approximate="tanh")
    gradients = {}

    def tensor(name, *parts):
        """Take a parameter over, of which the gradient is asked for; weights stand on the left."""
        found = torch.tensor(params[name], requires_grad=True)
        gradients[name] = lambda: found.grad.numpy()
        return found

    leaves = {name: tensor(name) for name in params}

    def set_norm(norm, name):
        return {norm + ".weight": leaves[name + "w_norm"], norm + ".bias": leaves[name + "b_norm"]}

    def set_linear(layer, weight, bias):
        return {layer + ".weight": leaves[weight].T, layer + ".bias": leaves[bias]}

    def own(kind, name, attentions):
        """Return a layer, and its state of our leaves."""
        layer = kind(H, heads, 4 * H, 0.0, gelu, batch_first=True, norm_first=True).double()
        state, feed = {}, f"{name}.feed."
        for number, (theirs, ours) in enumerate(attentions.items(), 1):
            at = f"{name}.{ours}."
            state |= set_norm(f"norm{number}", at)
            state |= set_linear(f"{theirs}.out_proj", at + "W_out", at + "b_out")
            if ours == "self":
                weight, bias = leaves[at + "W_qkv"], leaves[at + "b_qkv"]
            else:
                parts = [leaves[at + part] for part in ("W_query", "W_key", "W_value")]
                weight, query = torch.cat(parts, dim=1), leaves[at + "b_query"]
                bias = torch.cat([query, torch.zeros_like(query), leaves[at + "b_value"]])
            state |= {f"{theirs}.in_proj_weight": weight.T, f"{theirs}.in_proj_bias": bias}
        state |= set_norm(f"norm{len(attentions) + 1}", feed)
        state |= set_linear("linear1", feed + "W_in", feed + "b_in")
        state |= set_linear("linear2", feed + "W_out", feed + "b_out")
        return functools.partial(torch.func.functional_call, layer, state)

    def normed(x, name):
        return nn.functional.layer_norm(x, (H,), leaves[name + "w_norm"], leaves[name + "b_norm"])

    def loss(features, captions):
        absent = torch.tensor(~features.any(axis=2))
        memory = torch.tensor(features) @ leaves["W_proj"] + leaves["b_proj"]
        for k in range(sizes["encoder_layers"]):
            layer = own(nn.TransformerEncoderLayer, f"encoder.{k}", {"self_attn": "self"})
            memory = layer((memory,), {"src_key_padding_mask": absent})
        memory, words = normed(memory, "regions."), torch.tensor(captions)
        T = words.shape[1] - 1
        x = math.sqrt(H) * (leaves["W_embed"][words[:, :-1]] + leaves["W_position"][:T])
        causal = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
        for k in range(sizes["layers"]):
            attentions = {"self_attn": "self", "multihead_attn": "cross"}
            layer = own(nn.TransformerDecoderLayer, f"layer.{k}", attentions)
            masks = {"tgt_mask": causal, "memory_key_padding_mask": absent}
            x = layer((x, memory), masks)
        scores = normed(x, "") @ leaves["W_vocab"] + leaves["b_vocab"]
        found = nn.functional.cross_entropy(
            scores.reshape(-1, scores.shape[2]), words[:, 1:].reshape(-1), ignore_index=0,
            reduction="sum",
        )  # fmt: skip
        return found / len(words)

    return loss, gradients


def test_loss_and_gradients_are_those_of_pytorchs_layers(backend):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    sizes = {"input_dim": 5, "hidden_dim": 12, "layers": 2, "heads": 3, "encoder_layers": 1}
    model = Transformer(
        WORDS, **sizes, positions="learned", max_length=9, dtype=numpy.float64, seed=0,
        backend="cpu",
    )  # fmt: skip
    rng = numpy.random.default_rng(0)
    for value in model.params.values():
        value += 0.3 * rng.standard_normal(value.shape)
    features = rng.standard_normal((4, 6, 5))
    for n, regions in enumerate(features):
        regions[6 - n :] = 0
    captions = CAPTIONS.copy()
    captions[1, 3:] = captions[2, 4:] = 0
    loss, expected = torch_peer(torch, model)
    total = loss(features, captions)
    total.backward()
    model.to(backend)
    found, gradients = model.loss(backend.to_device(features), backend.to_device(captions))
    assert float(found) == pytest.approx(float(total.detach()), rel=1e-12)
    for name, gradient in gradients.items():
        assert scaled_difference(gradient, expected[name]()) < 1e-10, name
