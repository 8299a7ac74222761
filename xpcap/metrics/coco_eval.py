"""METEOR and SPICE, which are Java programs: run by pycocoevalcap (the extra `coco-eval`).

Both are made for English. They are given words joined by spaces, the same as the other metrics;
the COCO evaluation gives them Java's own tokens, so that its values differ a little.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy

from xpcap.errors import ConfigurationError
from xpcap.metrics.sentences import Score, Words, check_sentences


def meteor(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Score:
    """Compute METEOR 1.5 for English: matches of words, stems, synonyms and paraphrases.

    M. Denkowski and A. Lavie, "Meteor universal: language specific translation evaluation for any
    target language", WMT 2014. Java takes 2 GB of memory, and some seconds to begin.

    Parameters
    ----------
    candidates
        The words of a caption for each image.
    references
        The words of what people said, at least one sentence an image.

    Returns
    -------
    Score
        From 0 to 1; the corpus' is METEOR's own, from the matches of all images, and not the mean.

    Raises
    ------
    ConfigurationError
        If pycocoevalcap or Java is missing, or the Java program fails.
    DataError
        If there is no candidate, one has no reference, or a sentence is not cut into words.
    """
    check_sentences(candidates, references)
    scorer = _scorer("METEOR", "pycocoevalcap.meteor.meteor", "Meteor")()
    try:
        corpus, images = scorer.compute_score(*_by_image(candidates, references))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"METEOR: Java failed: {_close(scorer) or error}") from error
    finally:
        _close(scorer)
    return Score(float(corpus), numpy.array(images, numpy.float64))


def spice(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Score:
    """Compute SPICE: the objects, attributes and relations that captions and references share.

    P. Anderson and others, "SPICE: semantic propositional image caption evaluation", ECCV 2016.
    Java takes up to 8 GB of memory; the first time, pycocoevalcap downloads 385 MB of parsers.

    Parameters
    ----------
    candidates
        The words of a caption for each image.
    references
        The words of what people said, at least one sentence an image.

    Returns
    -------
    Score
        From 0 to 1, or NaN where SPICE gives no number; the corpus' is the mean over images.

    Raises
    ------
    ConfigurationError
        If pycocoevalcap or Java is missing, the download or the Java program fails.
    DataError
        If there is no candidate, one has no reference, or a sentence is not cut into words.
    """
    check_sentences(candidates, references)
    scorer = _scorer("SPICE", "pycocoevalcap.spice.spice", "Spice")
    try:
        _, images = scorer().compute_score(*_by_image(candidates, references))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise ConfigurationError(f"SPICE: pycocoevalcap failed: {error}") from error
    return Score.mean_of([image["All"]["f"] for image in images])


def _scorer(metric: str, module: str, name: str) -> Any:
    """Find a class of pycocoevalcap, and Java, which it takes to be there."""
    try:
        scorer = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigurationError(
            f"{metric} needs pycocoevalcap, which cannot be imported ({error});"
            " install xpcap with its extra 'coco-eval'"
        ) from error
    if shutil.which("java") is None:
        raise ConfigurationError(f"{metric} needs Java, and there is no 'java' on the PATH")
    return scorer


def _by_image(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return references and candidates as pycocoevalcap takes them."""
    known = {image: [" ".join(s) for s in sentences] for image, sentences in enumerate(references)}
    return known, {image: [" ".join(words)] for image, words in enumerate(candidates)}


def _close(scorer: Any) -> str:
    """End METEOR's process; return the first line it complained with.

    After an error or Ctrl-C its lock is still held, and the scorer would wait for it forever.
    """
    scorer.meteor_p.kill()
    _, complaint = scorer.meteor_p.communicate()
    if scorer.lock.locked():
        scorer.lock.release()
    return str(complaint.decode(errors="replace").strip().partition("\n")[0])
