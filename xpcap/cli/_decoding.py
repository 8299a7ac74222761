"""Decoding options, and the decoder that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from xpcap.cli._options import Positive, length_penalty_option, named_as_options, option, together

if TYPE_CHECKING:
    from xpcap.decoding import Beam, Sampling
    from xpcap.runs import Run

decoding_options = together(
    option("--beam", 1, "Beam width; 1 is greedy decoding.", type=Positive),
    length_penalty_option,
    option("--groups", 1, "Number of groups of diverse beam search."),
    option("--diversity", 0.5, "Penalty for words that other groups chose."),
    click.option("--sample", is_flag=True, help="Sample captions instead of searching."),
    option("--temperature", 1.0, "Sampling temperature; lower is more conservative."),
    option("--top-k", 0, "Sample from the K most probable words; 0 for all."),
    option(
        "--top-p",
        1.0,
        "Nucleus (top-p) sampling: keep the smallest set of words with this total probability.",
    ),
    option("--seed", 0, "Random seed of sampling."),
    option("--min-words", 0, "Minimum number of words of a caption."),
    click.option(
        "--max-words",
        type=int,
        help="Maximum number of words of a caption.",
        show_default="that of the training captions",
    ),
    option(
        "--no-repeat-ngram", 0, "N-gram size that may not repeat in a caption; 0 disables this."
    ),
    click.option("--allow-unk", is_flag=True, help="Allow <UNK> in captions."),
)


def search_of(run: Run, options: Mapping[str, Any], n_best: int = 1) -> Beam | Sampling:
    """Translate the options into a run's search; those that were given must go together."""
    from xpcap.runs.search import check_search, make_search, with_length

    source = click.get_current_context().get_parameter_source
    given = {n: v for n, v in options.items() if source(n) is ParameterSource.COMMANDLINE}
    with named_as_options():
        check_search(given, n_best)
    return with_length(make_search(run.vocabulary, n_best=n_best, **options), run.max_words)


def used(options: Mapping[str, Any], search: Beam | Sampling) -> dict[str, Any]:
    """Return the options of a search: without those of beam search or those of sampling."""
    from xpcap.runs.search import BEAM_ONLY, SAMPLING_ONLY

    unused = BEAM_ONLY if options["sample"] else SAMPLING_ONLY
    known = {**options, "max_words": search.constraints.limit}
    return {name: value for name, value in known.items() if name not in unused}
