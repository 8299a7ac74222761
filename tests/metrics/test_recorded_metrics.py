"""The values of pycocoevalcap 1.2, recorded by tools/record_metrics.py."""

import json
from pathlib import Path

import numpy
import pytest

from xpcap.metrics import bleu, cider_d, rouge_l

CASES = json.loads((Path(__file__).parent / "recorded.json").read_text(encoding="utf-8"))["cases"]
NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
EXACT = {"rtol": 0, "atol": 1e-9}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_equal_those_recorded_from_pycocoevalcap(case):
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


def test_the_recorded_cases_contain_the_edge_cases():
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
