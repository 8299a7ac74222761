"""Decoding written out with plain loops: every caption, and a beam search one caption at a time."""

import math

import numpy

NULL, START, END, UNK = range(4)


def next_log_probs(model, words, features):
    """Of every next word after `words`, by running the model from the start."""
    context, state = model.start(features[None])
    scores = None
    for word in [START, *words]:
        scores, state = model.step(numpy.array([word]), None, state, context)
    top = scores[0].max()
    return scores[0] - top - math.log(sum(math.exp(s - top) for s in scores[0]))


def allowed(words, word, limits):
    """Whether a word may come next, had it nowhere else to go."""
    if word in limits.banned:
        return False
    if len(words) >= limits.max_length:
        return word == END
    if word == END:
        return len(words) >= limits.min_length
    n = limits.no_repeat_ngram
    after = [*words, word]
    said = [tuple(after[k : k + n]) for k in range(len(after) - n + 1)]
    return not n or len(set(said)) == len(said)


def choices(words, size, limits):
    """The words that may come next; `<END>` if none may."""
    return [word for word in range(size) if allowed(words, word, limits)] or [END]


def every_caption(model, features, beam):
    """All captions that may be, with score and log-probabilities, the best first."""
    found = []

    def go(words, log_probs):
        following = next_log_probs(model, words, features)
        for word in choices(words, len(following), beam.constraints):
            said, now = [*words, word], [*log_probs, following[word]]
            if word == END:
                found.append((sum(now) / beam.penalty(len(said)), said, now))
            else:
                go(said, now)

    go([], [])
    return sorted(found, key=lambda entry: -entry[0])


def slow_beam(model, features, beam):
    """Groups one after the other at each step; what is ended keeps its place."""
    places = beam.width // beam.groups
    live = [[(0.0, [], [])] for _ in range(beam.groups)]
    ended = [[] for _ in range(beam.groups)]
    for _ in range(beam.constraints.max_length + 1):
        chosen = {}
        for group in range(beam.groups):
            candidates = []
            for total, words, log_probs in live[group]:
                following = next_log_probs(model, words, features)
                for word in choices(words, len(following), beam.constraints):
                    worth = total + following[word] - beam.diversity * chosen.get(word, 0)
                    new = (total + following[word], [*words, word], [*log_probs, following[word]])
                    candidates.append((worth, new))
            candidates.sort(key=lambda entry: -entry[0])
            kept = [new for _, new in candidates[: places - len(ended[group])]]
            for _, words, _ in kept:
                chosen[words[-1]] = chosen.get(words[-1], 0) + 1
            for total, words, log_probs in kept:
                if words[-1] == END:
                    ended[group].append((total / beam.penalty(len(words)), words, log_probs))
            live[group] = [new for new in kept if new[1][-1] != END]
    return sorted((entry for group in ended for entry in group), key=lambda entry: -entry[0])
