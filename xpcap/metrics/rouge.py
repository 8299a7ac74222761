"""ROUGE-L: the longest common subsequence of a caption and its references.

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
    one empty word: its ROUGE-L is 1 with another such reference, else 0. Values are from 0 to 1;
    the corpus value is the mean over images.
    """
    check_sentences(candidates, references)
    return Score.mean_of([_rouge_l(*pair) for pair in zip(candidates, references, strict=True)])


def _rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    tokens, *known = ([*words] or [""] for words in (candidate, *references))
    common = [_common_length(tokens, words) for words in known]
    precision = max(common) / len(tokens)
    recall = max(length / len(words) for length, words in zip(common, known, strict=True))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_length(a: Words, b: Words) -> int:
    """Return the LCS length; `row[j]` is that of the words of `a` so far and the first j of `b`."""
    row = [0] * (len(b) + 1)
    for word in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return row[-1]
