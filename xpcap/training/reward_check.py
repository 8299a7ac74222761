"""The self-test of rewards: their words, document frequencies and special tokens are the model's.

Where they are not, self-critical training raises a reward that means nothing, and nothing fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy

from xpcap.data.dataset import Split
from xpcap.data.vocabulary import END, UNK, decode_captions
from xpcap.errors import DataError
from xpcap.metrics import DocumentFrequencies, bleu, cider_d
from xpcap.metrics.sentences import Words
from xpcap.training.rewards import Rewards

IMAGES = 200  # whose captions are rewarded, at most
TOLERANCE = 1e-6
UNKNOWN = "<unknown>"  # no token of a reference


def check_rewards(
    rewards: Rewards,
    references: Sequence[Sequence[Words]],
    split: Split,
    idx_to_word: Sequence[str] | Mapping[int, str],
) -> None:
    """Check that rewards of training captions are those of the text that they stand for.

    All encoded captions of up to 200 evenly spaced images are rewarded. The rewards must be those
    that `xpcap.metrics` computes of the decoded captions. And the decoded captions must agree with
    the other references of their images, in CIDEr-D, at least half as well as the references do
    themselves; an image with a single caption is compared with that.

    Parameters
    ----------
    rewards, references
        The rewards of a run, and the tokenized training references as text.
    split
        The training split: the captions that the model learns, and their images.
    idx_to_word
        The vocabulary of the model.

    Raises
    ------
    DataError
        If a check fails, an image with captions has no reference, or most captions lack `<END>`.
    """
    captioned = numpy.unique(split.image_idxs)
    lacking = [row for row in captioned.tolist() if not references[row]]
    if lacking:
        raise DataError(f"training image {lacking[0]} has no reference to reward its captions by")
    places = numpy.linspace(0, len(captioned) - 1, min(IMAGES, len(captioned))).astype(int)
    chosen = captioned[places]
    rows = numpy.flatnonzero(numpy.isin(split.image_idxs, chosen))
    images, captions = split.image_idxs[rows], split.captions[rows, 1:]
    decoded = [
        sentence.replace(UNK, UNKNOWN).split()
        for sentence in decode_captions(captions, idx_to_word)
    ]
    ended = sum(words[-1:] == [END] for words in decoded)
    if 2 * ended < len(decoded):
        raise DataError(
            f"only {ended} of {len(decoded)} training captions end with {END}, so that a model"
            " cannot learn to end its own; expected all (xpcap data prepare)"
        )

    with_end = [[[*words, END] for words in of_image] for of_image in references]
    known = [with_end[image] for image in images]
    frequencies = DocumentFrequencies.of(with_end)
    metrics = {
        "CIDEr-D": cider_d(decoded, known, frequencies).images,
        "BLEU-4": bleu(decoded, known)[3].images,
    }
    expected = numpy.sum([weight * metrics[n] for n, weight in rewards.terms.items()], axis=0)
    found = rewards(images, captions)
    worst = numpy.argmax(abs(found - expected))
    if not abs(found[worst] - expected[worst]) <= TOLERANCE:
        raise DataError(
            f"the reward of '{' '.join(decoded[worst])}' for training image {images[worst]} is"
            f" {found[worst]:.6g}, and of the same text {expected[worst]:.6g}: the vocabulary,"
            " references or special tokens of rewards are not those of the model and its data"
        )

    listed = idx_to_word.values() if isinstance(idx_to_word, Mapping) else idx_to_word
    vocabulary = {*listed} - {UNK}
    others = [
        [words for words in of_image if [w if w in vocabulary else UNKNOWN for w in words] != own]
        or of_image
        for own, of_image in zip(decoded, known, strict=True)
    ]
    agreement = cider_d(decoded, others, frequencies).corpus
    written = [(own, with_end[image]) for image in chosen for own in with_end[image]]
    of_people = cider_d(
        [own for own, _ in written],
        [[words for words in of_image if words != own] or of_image for own, of_image in written],
        frequencies,
    ).corpus
    if agreement < of_people / 2:
        raise DataError(
            f"training captions agree with other references of their images by {agreement:.3f} in"
            f" CIDEr-D, the references themselves by {of_people:.3f}: the vocabulary or the images"
            " of captions and references differ; expected at least half (xpcap data prepare)"
        )
