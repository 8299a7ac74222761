"""Options that say how captions are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from xpcap.data.vocabulary import Vocabulary
    from xpcap.decoding import Beam, Sampling

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
    """Return what the options ask for, `count` captions an image."""
    from xpcap.data.vocabulary import NULL, START, UNK
    from xpcap.decoding import Beam, Constraints, Sampling

    marks = (NULL, START) if options["allow_unk"] else (NULL, START, UNK)
    constraints = Constraints(
        options["min_words"],
        options["max_words"],
        options["no_repeat_ngram"],
        tuple(vocabulary.word_to_idx[mark] for mark in marks),
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
