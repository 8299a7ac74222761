"""Decoding options, and the decoder that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from xpcap.cli._options import Positive, length_penalty_option, option, option_name, together

if TYPE_CHECKING:
    from xpcap.data.vocabulary import Vocabulary
    from xpcap.decoding import Beam, Sampling

_BEAM_ONLY = ("beam", "length_penalty", "groups", "diversity")
_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "seed")

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
    option("--max-words", 30, "Maximum number of words of a caption."),
    option(
        "--no-repeat-ngram", 0, "N-gram size that may not repeat in a caption; 0 disables this."
    ),
    click.option("--allow-unk", is_flag=True, help="Allow <UNK> in captions."),
)


def make_decoder(
    vocabulary: Vocabulary, options: Mapping[str, Any], count: int = 1
) -> Beam | Sampling:
    """Translate the options into a decoding of `count` captions per image (`--n-best`)."""
    from xpcap.decoding import Beam, Constraints, Sampling
    from xpcap.runs import banned_tokens

    _check(options, count)
    constraints = Constraints(
        options["min_words"],
        options["max_words"],
        options["no_repeat_ngram"],
        banned_tokens(vocabulary, options["allow_unk"]),
    )
    if options["sample"]:
        chosen = {name: options[name] for name in _SAMPLING_ONLY}
        return Sampling(count, **chosen, constraints=constraints)
    return Beam(
        width=options["beam"],
        n_best=count,
        length_penalty=options["length_penalty"],
        groups=options["groups"],
        diversity=options["diversity"],
        constraints=constraints,
    )


def used(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that apply: without those of beam search or those of sampling."""
    unused = _BEAM_ONLY if options["sample"] else _SAMPLING_ONLY
    return {name: value for name, value in options.items() if name not in unused}


def _check(options: Mapping[str, Any], count: int) -> None:
    """Refuse options that contradict each other or have no effect."""
    source = click.get_current_context().get_parameter_source
    for name in options.keys() - used(options).keys():
        if source(name) is ParameterSource.COMMANDLINE:
            goes = "does not go" if options["sample"] else "goes"
            raise click.UsageError(f"{option_name(name)} {goes} with --sample")
    if not options["sample"] and count > options["beam"]:
        raise click.UsageError(
            f"--n-best {count} is more than --beam {options['beam']} can find; expected --beam"
            f" {count} or more, or --sample"
        )
