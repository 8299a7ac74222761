"""METEOR and SPICE: Java programs, run by pycocoevalcap (the extra `coco-eval`).

Both are made for English. They get the same tokens as the other metrics, joined by spaces; the COCO
evaluation uses a tokenizer of its own in Java, so its values differ a little. A missing library,
missing Java and a failing program raise a `ConfigurationError`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy

from xpcap.errors import ConfigurationError, import_extra
from xpcap.metrics.sentences import Score, Words, check_sentences


def meteor(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Score:
    """METEOR 1.5 for English, from 0 to 1: matches of words, stems, synonyms and paraphrases.

    M. Denkowski and A. Lavie, "Meteor universal: language specific translation evaluation for any
    target language", WMT 2014. The corpus value is computed by METEOR from the matches of all
    images; it is not the mean. Java takes 2 GB of memory, and some seconds to start.
    """
    corpus, images = _compute("METEOR", candidates, references)
    return Score(float(corpus), numpy.array(images, numpy.float64))


def spice(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Score:
    """SPICE, from 0 to 1: objects, attributes and relations shared with the references.

    P. Anderson and others, "SPICE: semantic propositional image caption evaluation", ECCV 2016.
    It is NaN for images where SPICE gives no number; the corpus value is the mean over images. Java
    takes up to 8 GB of memory; the first time, pycocoevalcap downloads 385 MB of parsers.
    """
    _, images = _compute("SPICE", candidates, references)
    return Score.mean_of([image["All"]["f"] for image in images])


def _compute(
    metric: str, candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[float, Any]:
    """Return the value of the corpus and those of the images, as pycocoevalcap returns them."""
    check_sentences(candidates, references)
    name = metric.lower()
    module = import_extra(f"pycocoevalcap.{name}.{name}", f"{metric} needs", "coco-eval")
    if shutil.which("java") is None:
        raise ConfigurationError(f"{metric} needs Java, and there is no 'java' on the PATH")
    known = {image: [" ".join(s) for s in sentences] for image, sentences in enumerate(references)}
    tokens = {image: [" ".join(words)] for image, words in enumerate(candidates)}
    scorer = None
    try:
        scorer = getattr(module, metric.capitalize())()
        corpus, images = scorer.compute_score(known, tokens)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        reason = _close(scorer) or error
        raise ConfigurationError(f"{metric}: pycocoevalcap failed: {reason}") from error
    finally:
        _close(scorer)
    return corpus, images


def _close(scorer: Any) -> str:
    """End METEOR's process; return the first line of its standard error.

    After an error or Ctrl-C its lock is still held, and the scorer would wait for it forever.
    """
    if not hasattr(scorer, "meteor_p"):
        return ""
    scorer.meteor_p.kill()
    _, complaint = scorer.meteor_p.communicate()
    if scorer.lock.locked():
        scorer.lock.release()
    return str(complaint.decode(errors="replace").strip().partition("\n")[0])
