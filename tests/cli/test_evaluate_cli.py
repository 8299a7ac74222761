import json

import pytest
from commands import one_line
from tiny import make_tiny

SMALL = ["--hidden", "16", "--wordvec", "8", "--batch-size", "10", "--lr", "0.02"]


@pytest.fixture
def trained(call, tmp_path):
    make_tiny(tmp_path / "tiny")
    words = ["train", "--data", "tiny", "--out", "run", "--epochs", "20", "--device", "cpu"]
    assert call(*words, *SMALL).exit_code == 0
    return lambda *more: call("evaluate", "run", "--device", "cpu", *more)


def test_a_split_is_captioned_and_measured(trained, tmp_path):
    result = trained("--beam", "3", "--images", "values.jsonl", "--results", "coco.json")
    assert result.exit_code == 0, result.output
    values = dict(line.split() for line in result.stdout.splitlines())
    assert list(values)[:5] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
    assert {"CIDEr", "CIDEr-D", "novel", "vocabulary-use"} < set(values)
    assert float(values["BLEU-1"]) > 0.9
    images = [json.loads(line) for line in (tmp_path / "values.jsonl").read_text().splitlines()]
    assert len(images) == 12
    mean = sum(image["CIDEr-D"] for image in images) / 12
    assert float(values["CIDEr-D"]) == pytest.approx(mean, abs=1e-4)
    results = json.loads((tmp_path / "coco.json").read_text())
    assert [set(entry) for entry in results] == [{"image_id", "caption"}] * 12
    assert [entry["caption"] for entry in results] == [image["caption"] for image in images]


def test_only_images_with_captions_count_and_keep_their_own_numbers(trained, tmp_path):
    path = tmp_path / "tiny" / "references.json"
    references = json.loads(path.read_text())
    for k, image in enumerate(references["val"]):
        image["id"] = 900 + k
    references["val"][3]["captions"] = []
    path.write_text(json.dumps(references))
    assert trained("--results", "coco.json").exit_code == 0
    found = [entry["image_id"] for entry in json.loads((tmp_path / "coco.json").read_text())]
    assert found == [900, 901, 902, *range(904, 912)]


def test_as_json_with_chosen_metrics(trained):
    found = json.loads(trained("--json", "--metric", "CIDEr-D", "--metric", "novel").stdout)
    assert set(found) == {"images", "CIDEr-D", "novel"}
    sampled = [
        json.loads(trained("--json", "--sample", "--seed", seed, "--temperature", "3").stdout)
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled[0]["BLEU-1"] < 0.9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "F1"], "metric 'F1' is unknown; expected one of BLEU-1"),
        (["--beam", "0"], "--beam"),
        (["--beam", "3", "--groups", "2"], "a beam of 3 cannot be divided into 2 groups"),
        (["--length-penalty", "wu"], "length penalty 'wu' is unknown"),
        (["--min-words", "9", "--max-words", "3"], "captions of 9 to 3 words cannot be"),
        (["--sample", "--top-p", "0"], "top-p must be in"),
        (["--data", "none"], "none is not a folder"),
        (["--images", "none/a/b.jsonl", "--split", "x"], "--split"),
    ],
)
def test_a_mistake_is_one_line(trained, words, message):
    one_line(trained(*words), message)
