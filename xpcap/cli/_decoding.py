"""Options that say how captions are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from xpcap.data.vocabulary import Vocabulary
    from xpcap.decoding import Beam, Sampling

_OF_BEAMS = ("beam", "length_penalty", "groups", "diversity")
_OF_DRAWS = ("temperature", "top_k", "top_p", "seed")

_OPTIONS = (
    click.option(
        "--beam", type=click.IntRange(min=1), default=1, help="Width of the beam; 1 is greedy."
    ),
    click.option(
        "--length-penalty",
        metavar="none|average|gnmt",
        default="none",
        help="What scores of the beam are divided by.",
    ),
    click.option("--groups", type=int, default=1, help="Groups of the beam that differ."),
    click.option("--diversity", type=float, default=0.5, help="How much they differ."),
    click.option("--sample", is_flag=True, help="Draw captions at random instead."),
    click.option("--temperature", type=float, default=1.0, help="Of the draw; low is careful."),
    click.option("--top-k", type=int, default=0, help="Draw among so many words; 0: all."),
    click.option("--top-p", type=float, default=1.0, help="Draw among words of this share."),
    click.option("--seed", type=int, default=0, help="Of the draw."),
    click.option("--min-words", type=int, default=0, help="Fewest words of a caption."),
    click.option("--max-words", type=int, default=30, help="Most words of a caption."),
    click.option(
        "--no-repeat-ngram", type=int, default=0, help="So many words in a row never come twice."
    ),
    click.option("--allow-unk", is_flag=True, help="Let captions hold <UNK>."),
)


def decoding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; `make_decoder` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_decoder(
    vocabulary: Vocabulary, options: Mapping[str, Any], count: int = 1
) -> Beam | Sampling:
    """Return what the options ask for, `count` captions an image (`--n-best`)."""
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
        return Sampling(
            count,
            options["temperature"],
            options["top_k"],
            options["top_p"],
            options["seed"],
            constraints,
        )
    return Beam(
        width=options["beam"],
        n_best=count,
        length_penalty=options["length_penalty"],
        groups=options["groups"],
        diversity=options["diversity"],
        constraints=constraints,
    )


def used(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without those that only the other way of finding captions has."""
    unused = _OF_BEAMS if options["sample"] else _OF_DRAWS
    return {name: value for name, value in options.items() if name not in unused}


def _check(options: Mapping[str, Any], count: int) -> None:
    """Refuse options that contradict each other, or that would do nothing."""
    source = click.get_current_context().get_parameter_source
    for name in options.keys() - used(options).keys():
        if source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')} {'does not go' if options['sample'] else 'goes'} with"
                " --sample"
            )
    if not options["sample"] and count > options["beam"]:
        raise click.UsageError(
            f"--n-best {count} is more than --beam {options['beam']} can find; expected --beam"
            f" {count} or more, or --sample"
        )
