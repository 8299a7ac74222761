"""Captioners of random weights, and what PyTorch's layers compute, in plain loops."""

import numpy

from xpcap.data.vocabulary import Vocabulary
from xpcap.exchange.contents import Contents
from xpcap.models import CaptioningRNN

CELLS = ("rnn", "lstm", "gru")
WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat", "dog", "sits"]
V, D, W, H = len(WORDS), 5, 4, 6


def captioner(cell, seed=0, dtype=numpy.float32, scale=0.3):
    """Build a captioner none of whose parameters is zero; scores are about 1."""
    vocabulary = Vocabulary(WORDS)
    model = CaptioningRNN(vocabulary.word_to_idx, D, W, H, cell, dtype, seed=0, backend="cpu")
    rng = numpy.random.default_rng(seed)
    model.params = {
        name: (scale * rng.standard_normal(value.shape)).astype(dtype)
        for name, value in model.params.items()
    }
    return model


def contents(model, transform=None):
    sizes = {"input_dim": D, "wordvec_dim": W, "hidden_dim": H, "cell_type": model.cell_type}
    data = {"folder": "nowhere", "kind": "fc7" if transform is None else "pca"}
    return Contents(model.params, Vocabulary(WORDS), {"model": sizes, "data": data}, transform)


def images(count=3, seed=1, dtype=numpy.float32):
    return numpy.random.default_rng(seed).standard_normal((count, D)).astype(dtype)


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


GATES = {"rnn": 1, "lstm": 4, "gru": 3}


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
