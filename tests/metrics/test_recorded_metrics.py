"""The values of pycocoevalcap 1.2, recorded by tools/record_metrics.py."""

import json
from pathlib import Path

import numpy
import pytest

from xpcap.metrics import bleu, cider_d, evaluate_captions, rouge_l

CASES = json.loads((Path(__file__).parent / "recorded.json").read_text(encoding="utf-8"))["cases"]
NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
EXACT = {"rtol": 0, "atol": 1e-9}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_recorded_values(case):
    candidates = [sentence.split() for sentence in case["candidates"]]
    references = [[sentence.split() for sentence in known] for known in case["references"]]
    scores = [
        *bleu(candidates, references),
        rouge_l(candidates, references),
        cider_d(candidates, references),
    ]
    assert tuple(case["values"]) == NAMES
    for score, recorded in zip(scores, case["values"].values(), strict=True):
        numpy.testing.assert_allclose(score.images, recorded["images"], **EXACT)
        numpy.testing.assert_allclose(score.corpus, recorded["corpus"], **EXACT)
        assert type(score.corpus) is float
        assert score.images.dtype == numpy.float64


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_recorded_values_from_text(case):
    scores = evaluate_captions(case["candidates"], case["references"], NAMES)
    for name, recorded in case["values"].items():
        numpy.testing.assert_allclose(scores.images[name], recorded["images"], **EXACT)
        numpy.testing.assert_allclose(scores.corpus[name], recorded["corpus"], **EXACT)


def test_the_recorded_cases_have_what_they_are_to_show():
    edges = CASES["edges"]
    assert "" in edges["candidates"]
    assert [""] in edges["references"]
    assert len(CASES["one image"]["candidates"]) == 1
    assert all(len(known) == 1 for known in CASES["one reference"]["references"])
    values = {name: CASES["many images"]["values"][name] for name in NAMES}
    assert all(len(set(value["images"])) > 10 for value in values.values())
    # a ROUGE-L of 1 for no word at all beside a reference of none is what pycocoevalcap gives
    place = next(k for k, known in enumerate(edges["references"]) if "" in known[:1])
    assert edges["candidates"][place] == ""
    assert edges["values"]["ROUGE-L"]["images"][place] == 1
