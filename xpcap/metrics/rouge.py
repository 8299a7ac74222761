"""ROUGE-L: the longest run of words, gaps allowed, that a caption shares with its references.

C.-Y. Lin, "ROUGE: a package for automatic evaluation of summaries", ACL workshop, 2004.
"""

from __future__ import annotations

from collections.abc import Sequence

from xpcap.metrics.sentences import Score, Words, check_sentences

BETA = 1.2  # pycocoevalcap's: recall counts more than precision


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Score:
    """Compute ROUGE-L, as pycocoevalcap does.

        ROUGE-L = (1 + β²) P R / (R + β² P),   β = 1.2
        P       = max over references of LCS(candidate, reference) / length of the candidate
        R       = max over references of LCS(candidate, reference) / length of the reference

    where LCS is the length of the longest common subsequence. A sentence without words counts as
    one that has the empty word only: beside another such its ROUGE-L is 1, beside all others 0.

    Parameters
    ----------
    candidates
        The words of a caption for each image.
    references
        The words of what people said, at least one sentence an image.

    Returns
    -------
    Score
        From 0 to 1; the corpus' is the mean over images.

    Raises
    ------
    DataError
        If there is no candidate, one has no reference, or a sentence is not cut into words.
    """
    check_sentences(candidates, references)
    return Score.mean_of([_rouge_l(*pair) for pair in zip(candidates, references, strict=True)])


def _rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    said = candidate or [""]
    known = [words or [""] for words in references]
    common = [_common_length(said, words) for words in known]
    precision = max(common) / len(said)
    recall = max(length / len(words) for length, words in zip(common, known, strict=True))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_length(a: Words, b: Words) -> int:
    """Return the length of the longest common subsequence.

    `row[j]` is that of the words of `a` so far and the first j of `b`.
    """
    row = [0] * (len(b) + 1)
    for word in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return row[-1]
