import json
import math

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


def test_evaluate_prints_metrics_and_writes_images_and_results(trained, tmp_path):
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
    # each image has 10 words
    mean = math.prod(image["perplexity"] for image in images) ** (1 / 12)
    assert float(values["perplexity"]) == pytest.approx(mean, abs=1e-4)
    results = json.loads((tmp_path / "coco.json").read_text())
    assert [set(entry) for entry in results] == [{"image_id", "caption"}] * 12
    assert [entry["caption"] for entry in results] == [image["caption"] for image in images]


def test_images_without_references_are_left_out_and_ids_kept(trained, tmp_path):
    path = tmp_path / "tiny" / "references.json"
    references = json.loads(path.read_text())
    for k, image in enumerate(references["val"]):
        image["id"] = 900 + k
    references["val"][3]["captions"] = []
    path.write_text(json.dumps(references))
    assert trained("--results", "coco.json").exit_code == 0
    found = [entry["image_id"] for entry in json.loads((tmp_path / "coco.json").read_text())]
    assert found == [900, 901, 902, *range(904, 912)]


def test_json_has_the_chosen_metrics_and_the_decoding(trained):
    found = json.loads(trained("--json", "--metrics", " cider-d,Novel, CIDEr-D").stdout)
    assert list(found) == ["images", "decoding", "CIDEr-D", "novel"]
    assert found["images"] == 12
    assert found["decoding"] == {
        "beam": 1, "length_penalty": "none", "groups": 1, "diversity": 0.5, "sample": False,
        "min_words": 0, "max_words": 6, "no_repeat_ngram": 0, "allow_unk": False,
    }  # fmt: skip
    sampled = [
        json.loads(trained("--json", "--sample", "--seed", seed, "--temperature", "3").stdout)
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled[0]["BLEU-1"] < 0.9
    assert sampled[0]["decoding"] == {
        "sample": True, "temperature": 3.0, "top_k": 0, "top_p": 1.0, "seed": 1,
        "min_words": 0, "max_words": 6, "no_repeat_ngram": 0, "allow_unk": False,
    }  # fmt: skip


def test_perplexity_is_the_exponential_of_the_best_validation_loss(trained, tmp_path):
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    best = min(entry["val_loss"] for entry in map(json.loads, lines) if "val_loss" in entry)
    found = json.loads(trained("--json", "--metrics", "perplexity").stdout)
    assert found["perplexity"] == pytest.approx(math.exp(best), rel=1e-6)
    assert trained("--metrics", "perplexity").stdout == f"perplexity      {math.exp(best):.4f}\n"


def test_an_ensemble_averages_its_runs(trained, call):
    words = ["--data", "tiny", "--epochs", "2", "--device", "cpu", "--cell", "gru", "--seed", "1"]
    assert call("train", *words, "--out", "other", *SMALL).exit_code == 0

    def measured(*runs):
        return json.loads(call("evaluate", *runs, "--json", "--device", "cpu").stdout)

    one, other, both = measured("run"), measured("other"), measured("run", "other")
    assert one["perplexity"] < both["perplexity"] < other["perplexity"]
    itself = measured("run", "run")
    assert itself.pop("decoding") == one.pop("decoding")
    assert itself == pytest.approx(one, rel=1e-6)


def test_an_ensemble_of_different_vocabularies_is_refused(trained, call, tmp_path):
    make_tiny(tmp_path / "fewer", shapes=("circle", "square"))
    words = ["--data", "fewer", "--epochs", "1", "--device", "cpu", *SMALL]
    assert call("train", *words, "--out", "other").exit_code == 0
    one_line(trained("other"), "other has another vocabulary than run; expected the same")
    one_line(trained("none"), "none is not a run; expected a folder made by xpcap train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "F1"], "metric 'F1' is unknown; expected one of BLEU-1.*, perplexity"),
        (["--metrics", "BLEU-1,,CIDEr"], "metric '' is unknown"),
        (["--top-k", "5"], "--top-k goes with --sample"),
        (["--sample", "--length-penalty", "gnmt"], "--length-penalty does not go with --sample"),
        (["--beam", "0"], "--beam"),
        (["--beam", "3", "--groups", "2"], "--beam 3 is not a multiple of --groups 2"),
        (["--length-penalty", "wu"], "length penalty 'wu' is unknown"),
        (["--min-words", "9", "--max-words", "3"], "captions of 9 to 3 words cannot be"),
        (["--sample", "--top-p", "0"], r"--top-p must be a number in \(0, 1\], got 0.0"),
        (["--data", "none"], "none is not a folder"),
        (["--images", "none/a/b.jsonl", "--split", "x"], "--split"),
    ],
)
def test_bad_options_are_one_line(call_beside_a_run, words, message):
    one_line(call_beside_a_run("evaluate", "run", "--device", "cpu", *words), message)


def test_cider_of_a_single_image_is_remarked(trained, tmp_path):
    path, remark = tmp_path / "tiny" / "references.json", "CIDEr of a single image is 0"
    references = json.loads(path.read_text())
    assert remark not in trained().stderr
    for image in references["val"][1:]:
        image["captions"] = ["..."]
    path.write_text(json.dumps(references))
    result = trained()
    assert "CIDEr-D         0.0000\n" in result.stdout
    assert sum(remark in line for line in result.stderr.splitlines()) == 1
    assert remark not in trained("--metrics", "BLEU-1").stderr
