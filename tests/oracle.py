"""Naive versions of what the package computes, written for reading and not for speed.

Recurrent cells take one caption step by step, by the textbook's formulas, a variable for each gate;
attention looks at one region after the other, and not at those that are absent; a Transformer takes
one word and one head at a time; the model feeds them one caption after the other, padding included.
Their gradients come from no rule of
differentiation: with f analytic, f(x + i e) = f(x) + i e f'(x) and e may be so small that nothing
else is left (the complex step). Decoding runs the model from the start for each word; metrics count
in loops.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy

from xpcap.layers import dropout_forward

STEP = 1e-200
NULL, START, END, UNK = range(4)


def logistic(a):
    return 1 / (1 + numpy.exp(-a))


def log_softmax(scores):
    return scores - numpy.log(numpy.exp(scores).sum(axis=-1, keepdims=True))


def times(h, W):
    """Return h W; both may have further axes before theirs."""
    return (h[..., None, :] @ W)[..., 0, :]


def rnn_step(ax, state, Wh):
    (h,) = state
    h = numpy.tanh(ax + times(h, Wh))
    return (h,), (h,)


def lstm_step(ax, state, Wh):
    h, c = state
    a_i, a_f, a_o, a_g = numpy.split(ax + times(h, Wh), 4, axis=-1)
    i, f, o, g = logistic(a_i), logistic(a_f), logistic(a_o), numpy.tanh(a_g)
    c = f * c + i * g
    return (o * numpy.tanh(c), c), (i, f, o, g)


def gru_step(ax, state, Wh, bn):
    (h,) = state
    ax_r, ax_z, ax_n = numpy.split(ax, 3, axis=-1)
    ah_r, ah_z, ah_n = numpy.split(times(h, Wh), 3, axis=-1)
    r, z = logistic(ax_r + ah_r), logistic(ax_z + ah_z)
    n = numpy.tanh(ax_n + r * (ah_n + bn))
    return ((1 - z) * n + z * h,), (r, z, n)


CELL_STEPS = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}
"""`x Wx + b`, the state and the cell's weights give the next state and the gates."""


def first_state(cell, h0):
    """Return the state before the first word; c0 is zero."""
    return (h0, numpy.zeros_like(h0)) if cell == "lstm" else (h0,)


def weights_of(params):
    """Return what a cell's step takes of parameters or arguments: `Wh`, and `bn` of a GRU."""
    return {name: params[name] for name in ("Wh", "bn") if name in params}


def hidden_states(cell, ax, state, weights):
    """Return the hidden states `(T, H)` of one caption.

    `ax (T, kH)`: x Wx + b of each step; `state`: h0 and further first states, `(H,)` each;
    `weights`: `Wh` and further biases of the cell, by name.
    """
    found = []
    for t in range(ax.shape[-2]):
        state, _ = CELL_STEPS[cell](ax[..., t, :], state, **weights)
        found.append(state[0])
    return numpy.stack(found, axis=-2)


def inputs(params, words, mask=1.0):
    """Return `x Wx + b` of each word; `mask` scales word vectors."""
    x = params["W_embed"][..., words, :] * mask
    return x @ params["Wx"] + params["b"][..., None, :]


def looks(params):
    """Whether they are of the captioner with attention, which looks at regions."""
    return "W_grid" in params


def regions_there(image):
    """Return the numbers of the regions of an image `(L, D)` that are not all zero."""
    *_, some = (abs(image.real) > 0).any(axis=-1).reshape(-1, image.shape[-2])
    return [number for number, there in enumerate(some) if there]


def mean_region(image):
    """Return the mean `(D,)` of the regions that are there, 0 without any."""
    there = regions_there(image)
    return sum((image[..., l, :] for l in there), 0 * image[..., 0, :]) / max(len(there), 1)  # noqa: E741


def summary(params, image):
    """Return what the captioner with these parameters takes of an image: regions, or a vector."""
    if "regions.w_norm" in params:
        return image if image.ndim == 2 else image[None]
    return mean_region(image) if image.ndim == 2 and not looks(params) else image


def initial(cell, params, image):
    """Return the state that an image gives."""
    vector = mean_region(image) if looks(params) else image
    return first_state(cell, times(vector, params["W_proj"]) + params["b_proj"])


def look(params, h, grid):
    """Return what attention finds `(H,)`, and the weights of the projected regions `(H,)`."""
    query = times(h, params["W_query"]) + params["b_query"]
    powers = []
    for region in grid:
        if "w_score" in params:
            score = (params["w_score"] * numpy.tanh(query + region)).sum(axis=-1)
        else:
            score = (query * region).sum(axis=-1) / math.sqrt(region.shape[-1])
        powers.append(numpy.exp(score))
    weights = [power / sum(powers) for power in powers]
    context = 0 * h
    for weight, region in zip(weights, grid, strict=True):
        context = context + weight[..., None] * region
    gate = logistic(times(h, params["W_gate"]) + params["b_gate"])
    return gate * context, weights


class Step(NamedTuple):
    """A step that was taken; `found` and `weights` are of `look`, None without attention."""

    state: tuple[Any, ...]
    gates: tuple[Any, ...]
    found: Any
    weights: Any

    def output(self, params):
        """Return what gives the scores."""
        h = self.state[0]
        return h if self.found is None else h + times(self.found, params["W_context"])


def read(cell, params, image, words, state=None, mask=1.0):
    """Return the step after each word, from the first state on or another one.

    `mask` scales the word vectors `(T, W)`.
    """
    ax, weights_of_cell = inputs(params, words, mask), weights_of(params)
    state, grid, steps = state or initial(cell, params, image), [], []
    if looks(params):
        regions = (image[..., number, :] for number in regions_there(image))
        grid = [times(a, params["W_grid"]) + params["b_grid"] for a in regions]
    for t in range(len(words)):
        ax_t, found, weights = ax[..., t, :], None, None
        if looks(params):
            found, weights = look(params, state[0], grid)
            ax_t = ax_t + times(found, params["Wz"])
        state, gates = CELL_STEPS[cell](ax_t, state, **weights_of_cell)
        steps.append(Step(state, gates, found, weights))
    return steps


def normalized(params, layer, x):
    """Return x `(H,)` with mean 0 and variance 1, times the layer's gain and with its shift."""
    centered = x - x.mean(axis=-1, keepdims=True)
    deviation = numpy.sqrt((centered * centered).mean(axis=-1, keepdims=True) + 1e-5)
    return params[f"{layer}w_norm"] * centered / deviation + params[f"{layer}b_norm"]


def affine(params, layer, name, x):
    """Return x W + b."""
    return times(x, params[f"{layer}W_{name}"]) + params[f"{layer}b_{name}"]


def feed(params, layer, x):
    a = affine(params, layer, "in", x)
    gelu = a / 2 * (1 + numpy.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
    return affine(params, layer, "out", gelu)


def look_by_heads(heads, query, keys, values):
    """Return what a query `(H,)` finds in values `(H,)`, and the weight of each of them by head."""
    found, weights, d = [], [], query.shape[-1] // heads
    for head in range(heads):
        own = slice(head * d, (head + 1) * d)
        scores = [(query[..., own] * key[..., own]).sum(axis=-1) / math.sqrt(d) for key in keys]
        powers = [numpy.exp(score) for score in scores]
        weights.append([power / sum(powers) for power in powers])
        pairs = zip(weights[-1], values, strict=True)
        found.append(sum((w[..., None] * v[..., own] for w, v in pairs), 0 * query[..., own]))
    return numpy.concatenate(found, axis=-1), weights


def self_attention(params, layer, heads, x, causal):
    """Let each of the vectors x look at those before it and itself, or else at all of them."""
    weights, biases = (numpy.split(params[layer + name], 3, axis=-1) for name in ("W_qkv", "b_qkv"))
    queries, keys, values = (
        [times(one, W) + b for one in x] for W, b in zip(weights, biases, strict=True)
    )
    for t, query in enumerate(queries):
        seen = slice(t + 1 if causal else None)
        found, _ = look_by_heads(heads, query, keys[seen], values[seen])
        yield affine(params, layer, "out", found)


def cross_attention(params, layer, heads, x, regions):
    """Let each of the vectors x look at regions; yields also the mean weight of each of them."""
    keys = [times(region, params[layer + "W_key"]) for region in regions]
    values = [affine(params, layer, "value", region) for region in regions]
    for one in x:
        found, weights = look_by_heads(heads, affine(params, layer, "query", one), keys, values)
        found = found if regions else found + params[layer + "b_value"]
        yield affine(params, layer, "out", found), numpy.mean(weights, axis=0)


def encoded(sizes, params, image):
    """Return the regions of an image that words look at, `(H,)` each."""
    regions = [image[..., number, :] for number in regions_there(image)]
    p = [affine(params, "", "proj", region) for region in regions]
    for k in range(sizes.get("encoder_layers", 0)):
        name = f"encoder.{k}.self."
        normal = [normalized(params, name, one) for one in p]
        added = self_attention(params, name, sizes["heads"], normal, causal=False)
        p = [one + more for one, more in zip(p, added, strict=True)]
        name = f"encoder.{k}.feed."
        added = [feed(params, name, normalized(params, name, one)) for one in p]
        p = [one + more for one, more in zip(p, added, strict=True)]
    return [normalized(params, "regions.", one) for one in p]


def position(params, t, H):
    """Return the vector `(H,)` of the position t."""
    if "W_position" in params:
        return math.sqrt(H) * params["W_position"][..., t, :]
    angles = [t / 10000 ** (2 * (k // 2) / H) for k in range(H)]
    return numpy.array([math.cos(a) if k % 2 else math.sin(a) for k, a in enumerate(angles)])


def transform(sizes, params, image, words, masks):
    """Return the hidden state of a Transformer after each word, and its last mean weights."""
    regions, H = encoded(sizes, params, image), params["b_proj"].shape[-1]
    x = [
        masks.at(0, t) * (math.sqrt(H) * params["W_embed"][..., word, :] + position(params, t, H))
        for t, word in enumerate(words)
    ]
    weights = []
    for k in range(sizes["layers"]):
        for number, kind in enumerate(("self", "cross", "feed"), 3 * k + 1):
            name = f"layer.{k}.{kind}."
            normal = [normalized(params, name, one) for one in x]
            if kind == "self":
                added = self_attention(params, name, sizes["heads"], normal, causal=True)
            elif kind == "cross":
                looked = cross_attention(params, name, sizes["heads"], normal, regions)
                added, weights = zip(*looked, strict=True)
            else:
                added = [feed(params, name, one) for one in normal]
            x = [
                one + masks.at(number, t) * more
                for t, (one, more) in enumerate(zip(x, added, strict=True))
            ]
    return [normalized(params, "", one) for one in x], weights


class Masks(NamedTuple):
    """Scales of dropout in one caption, 1 without.

    By number: word vectors `(T, W)` and what a Transformer's layers add to them `(T, H)`. And
    hidden states `(T, H)` that give scores.
    """

    words: Mapping[int, Any] = collections.defaultdict(lambda: 1.0)
    hidden: Any = 1.0

    def at(self, number, t):
        """Return the scale of word t."""
        found = self.words[number]
        return found[t] if numpy.ndim(found) else found


def to_scores(params, hidden):
    W = params["W_vocab"] if "W_vocab" in params else params["W_embed"].swapaxes(-2, -1)
    return hidden @ W + params["b_vocab"][..., None, :]


def scores_of(params, steps, mask=1.0):
    """Return the scores of the next word `(T, V)` after each step."""
    return to_scores(params, numpy.stack([step.output(params) for step in steps], axis=-2) * mask)


def scores_after(sizes, params, image, words, masks=Masks()):  # noqa: B008 - it is read only
    """Return the scores of the next word `(T, V)` after each word, by a model of these sizes."""
    if "heads" in sizes:
        hidden, _ = transform(sizes, params, image, words, masks)
        return to_scores(params, numpy.stack(hidden, axis=-2) * masks.hidden)
    steps = read(sizes["cell_type"], params, image, words, None, masks.words[0])
    return scores_of(params, steps, masks.hidden)


def attention(sizes, params, image, words):
    """Return the weights of regions that are there, for each word."""
    if "heads" in sizes:
        return transform(sizes, params, image, words, Masks())[1]
    return [step.weights for step in read(sizes["cell_type"], params, image, words)]


def log_probs(sizes, params, image, caption, masks=Masks(), smoothing=0.0):  # noqa: B008
    """Return the log-probability of each word `(T,)` after the first, 0 for `<NULL>`.

    A share `smoothing` is that of all words, on average.
    """
    scores, words = scores_after(sizes, params, image, caption[:-1], masks), caption[1:]
    of_all = log_softmax(scores).mean(axis=-1) * (words != NULL)
    return (1 - smoothing) * of_words(scores, words) + smoothing * of_all


def lacking(sizes, params, image, caption, masks):
    """Return the sum over regions of (1 - sum of their weights)^2, over words to be predicted."""
    steps = read(sizes["cell_type"], params, image, caption[:-1], None, masks.words[0])
    counted = [s.weights for s, word in zip(steps, caption[1:], strict=True) if word != NULL]
    return sum((1 - sum(of_region)) ** 2 for of_region in zip(*counted, strict=True))


def of_words(scores, words):
    """Return the log-probability of each word `(T,)` by its scores `(T, V)`, 0 for `<NULL>`."""
    return log_softmax(scores)[..., range(len(words)), words] * (words != NULL)


def loss(sizes, params, features, captions, masks=None, doubly_stochastic=0.0, smoothing=0.0):
    """Return the loss of a captioner; there are `masks` for each caption."""
    total, masks = 0.0, masks or [Masks()] * len(captions)
    for image, caption, own in zip(features, captions, masks, strict=True):
        image = summary(params, image)
        total = total - log_probs(sizes, params, image, caption, own, smoothing).sum(axis=-1)
        if doubly_stochastic:
            total = total + doubly_stochastic * lacking(sizes, params, image, caption, own)
    return total / len(captions)


def dropout_masks(model, captions, step):
    """Return the masks of each caption at a training step.

    Number k of word vectors is of the stream 2 step + k 2^41; hidden states are of 2 step + 1.
    """
    (N, columns), H = captions.shape, len(model.params["b_proj"])

    def drawn(stream, *shape):
        ones = numpy.ones((N, *shape))
        return dropout_forward(ones, model.dropout, model.seed, 2 * step + stream)[1].mask

    T, W = columns - 1, model.params["W_embed"].shape[1]
    numbers = range(3 * model.sizes.get("layers", 0) + 1)
    words = [drawn(k * 2**41, T, W) for k in numbers]
    return [*map(Masks, zip(*words, strict=True), drawn(1, T, H))]


def sample(sizes, params, features, max_length):
    """Return the most likely next words, `<NULL>` after `<END>`."""
    captions = numpy.full((len(features), max_length), NULL)
    for n, image in enumerate(features):
        words = [START]
        for t in range(max_length):
            scores = scores_after(sizes, params, summary(params, image), words)
            captions[n, t] = word = int(scores[-1].argmax())
            words.append(word)
            if word == END:
                break
    return captions


def gradient(function, x):
    """Return the gradient at the array `x` of a function with numbers as values.

    The function is called once, with as many arrays as `x` has elements, on a first axis.
    """
    steps = STEP * 1j * numpy.eye(x.size).reshape(x.size, *x.shape)
    slopes = numpy.imag(function(x + steps)) / STEP
    return numpy.broadcast_to(slopes, x.size).reshape(x.shape)


def adam_of_the_course(w, dw, m, v, t, rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Return a parameter and its moments after step t; only the rate corrects the moments' bias."""
    m = beta1 * m + (1 - beta1) * dw
    v = beta2 * v + (1 - beta2) * dw * dw
    alpha = rate * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    return w - alpha * m / (numpy.sqrt(v) + epsilon), m, v


def next_log_probs(model, words, features):
    """Return the log-probabilities of all next words."""
    image = summary(model.params, features)
    return log_softmax(scores_after(model.sizes, model.params, image, [START, *words])[-1])


def allowed(words, word, limits):
    """Whether a word may come next, apart from a forced `<END>`."""
    if word in limits.banned:
        return False
    if len(words) >= limits.limit:
        return word == END
    if word == END:
        return len(words) >= limits.min_length
    n = limits.no_repeat_ngram
    after = [*words, word]
    ngrams = [tuple(after[k : k + n]) for k in range(len(after) - n + 1)]
    return not n or len(set(ngrams)) == len(ngrams)


def choices(words, size, limits):
    """Return the words that may come next; `<END>` if there are none."""
    return [word for word in range(size) if allowed(words, word, limits)] or [END]


def every_caption(model, features, beam):
    """Return all allowed captions with scores and log-probabilities, best first."""
    found = []

    def extend(words, log_probs):
        following = next_log_probs(model, words, features)
        for word in choices(words, len(following), beam.constraints):
            caption, values = [*words, word], [*log_probs, following[word]]
            if word == END:
                found.append((sum(values) / beam.penalty(len(caption)), caption, values))
            else:
                extend(caption, values)

    extend([], [])
    return sorted(found, key=lambda entry: -entry[0])


def slow_beam(model, features, beam):
    """Search group by group at each step; finished captions keep their slots."""
    slots = beam.width // beam.groups
    live = [[(0.0, [], [])] for _ in range(beam.groups)]
    ended = [[] for _ in range(beam.groups)]
    for _ in range(beam.constraints.limit + 1):
        chosen = {}
        for group in range(beam.groups):
            candidates = []
            for total, words, log_probs in live[group]:
                following = next_log_probs(model, words, features)
                for word in choices(words, len(following), beam.constraints):
                    value = total + following[word] - beam.diversity * chosen.get(word, 0)
                    new = (total + following[word], [*words, word], [*log_probs, following[word]])
                    candidates.append((value, new))
            candidates.sort(key=lambda entry: -entry[0])
            kept = [new for _, new in candidates[: slots - len(ended[group])]]
            for _, words, _ in kept:
                chosen[words[-1]] = chosen.get(words[-1], 0) + 1
            for total, words, log_probs in kept:
                if words[-1] == END:
                    ended[group].append((total / beam.penalty(len(words)), words, log_probs))
            live[group] = [new for new in kept if new[1][-1] != END]
    return sorted((entry for group in ended for entry in group), key=lambda entry: -entry[0])


def grams(words, n):
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


def cider(candidates, references, robust):
    """CIDEr with dense vectors over all n-grams there are."""
    values = []
    for candidate, known in zip(candidates, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            sentences = [*candidates, *itertools.chain(*references)]
            every = sorted({gram for words in sentences for gram in grams(words, n)})
            for reference in known:
                c, r = numpy.zeros(len(every)), numpy.zeros(len(every))
                for k, gram in enumerate(every):
                    within = sum(any(gram in grams(s, n) for s in image) for image in references)
                    idf = math.log(len(references) / max(1, within))
                    c[k] = grams(candidate, n).count(gram) * idf
                    r[k] = grams(reference, n).count(gram) * idf
                dot = (numpy.minimum(c, r) if robust else c) @ r
                if dot:
                    bigrams = [len(grams(words, 2)) for words in (candidate, reference)]
                    longer = bigrams[0] - bigrams[1]
                    penalty = math.exp(-(longer**2) / (2 * 6.0**2)) if robust else 1
                    norms = numpy.linalg.norm(c) * numpy.linalg.norm(r)
                    total += penalty * dot / norms / (4 * len(known))
        values.append(10 * total)
    return values


def longest_common(a, b):
    """Return the length of the longest common subsequence: try all choices, the long ones first."""

    def is_within(words):
        rest = iter(b)
        return all(word in rest for word in words)

    return next(
        length
        for length in range(len(a), -1, -1)
        if any(is_within(chosen) for chosen in itertools.combinations(a, length))
    )
