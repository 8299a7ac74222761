"""Oracle of decoding in plain loops: exhaustive search, and beam search of one image."""

import math

import numpy

NULL, START, END, UNK = range(4)


def next_log_probs(model, words, features):
    """Return the log-probabilities of all next words, with the model run from the start."""
    context, state = model.start(features[None])
    scores = None
    for word in [START, *words]:
        scores, state = model.step(numpy.array([word]), None, state, context)
    top = scores[0].max()
    return scores[0] - top - math.log(sum(math.exp(s - top) for s in scores[0]))


def allowed(words, word, limits):
    """Whether a word may come next, apart from a forced `<END>`."""
    if word in limits.banned:
        return False
    if len(words) >= limits.max_length:
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
    for _ in range(beam.constraints.max_length + 1):
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
