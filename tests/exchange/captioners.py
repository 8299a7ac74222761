"""Captioners with random weights, and the computation of PyTorch's layers in plain loops."""

import numpy

from xpcap.data.vocabulary import Vocabulary
from xpcap.exchange.contents import Contents
from xpcap.models import FAMILIES

CELLS = ("rnn", "lstm", "gru")
WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat", "dog", "sits"]
V, D, W, H = len(WORDS), 5, 4, 6


SCORINGS = ("additive", "dot")


def captioner(cell, seed=0, dtype=numpy.float32, scale=0.3, family="recurrent", **options):
    """Build a captioner none of whose parameters is zero; scores are about 1."""
    words = Vocabulary(WORDS).word_to_idx
    model = FAMILIES[family](words, D, W, H, cell, dtype, seed=0, backend="cpu", **options)
    rng = numpy.random.default_rng(seed)
    model.params = {
        name: (scale * rng.standard_normal(value.shape)).astype(dtype)
        for name, value in model.params.items()
    }
    return model


def contents(model, transform=None):
    sizes = {"family": model.family, **model.sizes}
    data = {"folder": "nowhere", "kind": "fc7" if transform is None else "pca"}
    return Contents(model.params, Vocabulary(WORDS), {"model": sizes, "data": data}, transform)


def images(count=3, seed=1, dtype=numpy.float32):
    return numpy.random.default_rng(seed).standard_normal((count, D)).astype(dtype)


def regions(count=3, L=5, seed=1, dtype=numpy.float32, width=D):
    """Draw features `(count, L, width)`; of some images regions are absent, of the second all."""
    features = numpy.random.default_rng(seed).standard_normal((count, L, width)).astype(dtype)
    features[::2, 3:] = 0
    features[1:2] = 0
    return features


def sentences(count=3, length=6, seed=2):
    return numpy.random.default_rng(seed).integers(V, size=(count, length))


def scores_of(model, features, captions):
    """Return the scores `(N, T, V)` after each word, as captioning computes them."""
    (context, state), scores = model.start(features), []
    for words in captions.T:
        found, state = model.step(words, None, state, context)
        scores.append(found)
    return numpy.stack(scores, axis=1)


def sigma(a):
    return 1 / (1 + numpy.exp(-a))


def torch_step(cell, weight_ih, weight_hh, bias_ih, bias_hh, x, h, c):
    """Take a step of `torch.nn.RNN`, `GRU` or `LSTM`, as their documentation writes it."""
    from_x, from_h = weight_ih @ x + bias_ih, weight_hh @ h + bias_hh
    if cell == "rnn":
        return numpy.tanh(from_x + from_h), c
    if cell == "lstm":
        i, f, g, o = numpy.split(from_x + from_h, 4)
        c = sigma(f) * c + sigma(i) * numpy.tanh(g)
        return sigma(o) * numpy.tanh(c), c
    (x_r, x_z, x_n), (h_r, h_z, h_n) = numpy.split(from_x, 3), numpy.split(from_h, 3)
    r, z = sigma(x_r + h_r), sigma(x_z + h_z)
    return (1 - z) * numpy.tanh(x_n + r * h_n) + z * h, c


def torch_scores(cell, state, features, captions):
    """Return the scores of a state dict under our names, one word and one caption at a time."""
    state = {name: value.astype(numpy.float64) for name, value in state.items()}
    recurrent = [
        state[f"recurrent.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    scores = numpy.zeros((*captions.shape, V))
    for n, (image, caption) in enumerate(zip(features, captions, strict=True)):
        h = state["projection.weight"] @ image + state["projection.bias"]
        c = numpy.zeros(H)
        for t, word in enumerate(caption):
            h, c = torch_step(cell, *recurrent, state["embedding.weight"][word], h, c)
            scores[n, t] = state["vocabulary.weight"] @ h + state["vocabulary.bias"]
    return scores


def torch_attention_scores(cell, state, features, captions):
    """Return the scores of a state dict of a captioner with attention, region by region."""
    state = {name: value.astype(numpy.float64) for name, value in state.items()}
    recurrent = [
        state[f"recurrent.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]

    def linear(layer, x):
        return state[f"{layer}.weight"] @ x + state.get(f"{layer}.bias", 0)

    scores = numpy.zeros((*captions.shape, V))
    for n, (image, caption) in enumerate(zip(features, captions, strict=True)):
        there = [region.astype(numpy.float64) for region in image if region.any()]
        h = linear("projection", sum(there, numpy.zeros(D)) / max(len(there), 1))
        c, places = numpy.zeros(H), [linear("grid", region) for region in there]
        for t, word in enumerate(caption):
            query = linear("query", h)
            if "score.weight" in state:
                powers = [numpy.exp(linear("score", numpy.tanh(query + p))[0]) for p in places]
            else:
                powers = [numpy.exp(query @ p / numpy.sqrt(H)) for p in places]
            parts = [power / sum(powers) * p for power, p in zip(powers, places, strict=True)]
            z = sigma(linear("gate", h)) * sum(parts, numpy.zeros(H))
            x = numpy.concatenate([state["embedding.weight"][word], z])
            h, c = torch_step(cell, *recurrent, x, h, c)
            scores[n, t] = linear("vocabulary", h + linear("context", z))
    return scores


GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def random_attention_state(cell, scoring, seed=0):
    """Draw a state dict with attention, of which all biases are not zero."""
    draw = numpy.random.default_rng(seed + 1).standard_normal
    state = {name.replace("_l0", ""): value for name, value in random_state(cell, seed).items()}
    shapes = {
        "recurrent.weight_ih": (GATES[cell] * H, W + H), "grid.weight": (H, D), "grid.bias": (H,),
        "query.weight": (H, H), "query.bias": (H,), "gate.weight": (1, H), "gate.bias": (1,),
        "context.weight": (H, H), **({"score.weight": (1, H)} if scoring == "additive" else {}),
    }  # fmt: skip
    return state | {name: draw(shape).astype("f4") / 2 for name, shape in shapes.items()}


def random_state(cell, seed=0, dtype=numpy.float32):
    """Draw a state dict as PyTorch has it, with two biases that are both not zero."""
    draw, gates = numpy.random.default_rng(seed).standard_normal, GATES[cell]
    shapes = {
        "projection.weight": (H, D),
        "projection.bias": (H,),
        "embedding.weight": (V, W),
        "recurrent.weight_ih_l0": (gates * H, W),
        "recurrent.weight_hh_l0": (gates * H, H),
        "recurrent.bias_ih_l0": (gates * H,),
        "recurrent.bias_hh_l0": (gates * H,),
        "vocabulary.weight": (V, H),
        "vocabulary.bias": (V,),
    }
    return {name: (0.3 * draw(shape)).astype(dtype) for name, shape in shapes.items()}
