"""Searches for captions by the names of the command line's options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xpcap.data.vocabulary import NULL, START, UNK, Vocabulary
from xpcap.decoding import MAX_LENGTH, Beam, Constraints, Sampling
from xpcap.errors import ConfigurationError
from xpcap.options import check_options

BEAM_ONLY = ("beam", "length_penalty", "groups", "diversity")
SAMPLING_ONLY = ("temperature", "top_k", "top_p", "seed")


def make_search(
    vocabulary: Vocabulary,
    *,
    beam: int = 1,
    length_penalty: str = "none",
    groups: int = 1,
    diversity: float = 0.5,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    min_words: int = 0,
    max_words: int | None = None,
    no_repeat_ngram: int = 0,
    allow_unk: bool = False,
    n_best: int = 1,
) -> Beam | Sampling:
    """Return a beam search, or sampling, of `n_best` captions per image.

    A beam of 1 is greedy. `<UNK>` is not generated unless `allow_unk`. The options are described at
    `Beam`, `Sampling` and `Constraints`; if `max_words` is None, a run uses its own.
    """
    constraints = Constraints(
        min_words, max_words, no_repeat_ngram, banned_tokens(vocabulary, allow_unk)
    )
    if sample:
        return Sampling(n_best, temperature, top_k, top_p, seed, constraints)
    return Beam(
        beam, n_best, length_penalty, groups=groups, diversity=diversity, constraints=constraints
    )


def with_length(how: Beam | Sampling, max_words: int) -> Beam | Sampling:
    """Return a search for captions of at most `max_words` words, unless it has a limit already."""
    if how.constraints.max_length is not None:
        return how
    return replace(how, constraints=replace(how.constraints, max_length=max_words))


def check_search(options: Mapping[str, Any], n_best: int = 1) -> None:
    """Raise `ConfigurationError` if options are unknown, or have no effect with the others."""
    known = inspect.signature(make_search).parameters
    defaults = {n: p.default for n, p in known.items() if n not in ("vocabulary", "n_best")}
    check_options(options, {**defaults, "max_words": MAX_LENGTH})
    sampling = options.get("sample", False)
    for name in BEAM_ONLY if sampling else SAMPLING_ONLY:
        if name in options:
            goes = "does not go" if sampling else "goes"
            raise ConfigurationError(f"{name} {goes} with sample")
    beam = options.get("beam", 1)
    if not sampling and 1 <= beam < n_best:
        raise ConfigurationError(
            f"n_best {n_best} is more than beam {beam} can find; expected beam {n_best} or more, or"
            " sample"
        )


def banned_tokens(vocabulary: Vocabulary, allow_unk: bool = False) -> tuple[int, ...]:
    """Return the special tokens that captions must not contain; `<UNK>` may be allowed."""
    tokens = (NULL, START) if allow_unk else (NULL, START, UNK)
    return tuple(vocabulary.word_to_idx[token] for token in tokens)
