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


TRANSFORMERS = {
    "decoder": {"encoder_layers": 0, "positions": "sinusoidal"},
    "encoder and decoder": {"encoder_layers": 2, "positions": "learned"},
}


def transformer(kind, seed=0, dtype=numpy.float32):
    """Build a Transformer with 3 heads, none of whose parameters is zero."""
    words, options = Vocabulary(WORDS).word_to_idx, TRANSFORMERS[kind]
    sizes = {"layers": 2, "heads": 3, "max_length": 13}
    model = FAMILIES["transformer"](words, D, H, dtype, seed=0, backend="cpu", **sizes, **options)
    rng = numpy.random.default_rng(seed)
    for name, value in model.params.items():
        noise = (1 if value.ndim == 2 else 0.3) * rng.standard_normal(value.shape)
        model.params[name] = (value + noise).astype(dtype)
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


def torch_transformer_scores(state, heads, features, captions):
    """Return the scores of a state dict of a Transformer, one caption at a time.

    The layers are as PyTorch's documentation writes them.
    """
    state = {name: value.astype(numpy.float64) for name, value in state.items()}

    def linear(layer, x):
        return x @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]

    def norm(layer, x):
        n = (x - x.mean(1, keepdims=True)) / numpy.sqrt(x.var(1, keepdims=True) + 1e-5)
        return n * state[f"{layer}.weight"] + state[f"{layer}.bias"]

    def attention(layer, x, y, visible):
        weights = numpy.split(state[f"{layer}.in_proj_weight"], 3)
        biases = numpy.split(state[f"{layer}.in_proj_bias"], 3)
        q, k, v = (a @ W.T + b for a, W, b in zip((x, y, y), weights, biases, strict=True))
        found = []
        for columns in numpy.split(numpy.arange(H), heads):
            scores = q[:, columns] @ k[:, columns].T / numpy.sqrt(len(columns))
            powers = numpy.exp(scores) * visible
            found.append(powers / powers.sum(1, keepdims=True) @ v[:, columns])
        return linear(f"{layer}.out_proj", numpy.concatenate(found, 1))

    def feed(layer, x):
        a = linear(f"{layer}.linear1", x)
        gelu = a / 2 * (1 + numpy.tanh(numpy.sqrt(2 / numpy.pi) * (a + 0.044715 * a**3)))
        return linear(f"{layer}.linear2", gelu)

    def layers(stack):
        return sorted({".".join(name.split(".")[:3]) for name in state if name.startswith(stack)})

    T, root = captions.shape[1], numpy.sqrt(H)
    earlier = numpy.tri(T)
    angle = numpy.arange(T)[:, None] / 10000 ** (numpy.arange(0, H, 2) / H)
    positions = numpy.stack([numpy.sin(angle), numpy.cos(angle)], 2).reshape(T, H)
    if "positions.weight" in state:
        positions = root * state["positions.weight"][:T]
    scores = []
    for image, caption in zip(features, captions, strict=True):
        there = image.any(1)
        visible = there if there.any() else ~there
        p = linear("projection", image.astype(numpy.float64))
        for layer in layers("encoder.layers."):
            n = norm(f"{layer}.norm1", p)
            p = p + attention(f"{layer}.self_attn", n, n, visible)
            p = p + feed(layer, norm(f"{layer}.norm2", p))
        memory = norm("regions", p) * there[:, None]
        x = root * state["embedding.weight"][caption] + positions
        for layer in layers("decoder.layers."):
            n = norm(f"{layer}.norm1", x)
            x = x + attention(f"{layer}.self_attn", n, n, earlier)
            n = norm(f"{layer}.norm2", x)
            x = x + attention(f"{layer}.multihead_attn", n, memory, visible)
            x = x + feed(layer, norm(f"{layer}.norm3", x))
        scores.append(linear("vocabulary", norm("decoder.norm", x)))
    return numpy.array(scores)


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
