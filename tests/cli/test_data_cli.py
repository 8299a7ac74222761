import json
from pathlib import Path

import h5py
import pytest
from commands import one_line
from own import own
from PIL import Image
from tiny import make_tiny

from xpcap.runs.checkpoint import read_checkpoint, write_checkpoint

SMALL = ["--hidden", "16", "--wordvec", "8", "--epochs", "2", "--lr", "0.02", "--device", "cpu"]


def test_own_images_to_a_caption_in_three_commands(call, tmp_path):
    own(tmp_path)
    Image.new("RGB", (40, 30), "green").save(tmp_path / "new.png")
    result = call("data", "prepare", "captions.json", "--out", "mine", "--extractor", "filter-bank")
    assert result.exit_code == 0, result.output
    assert result.stdout == "mine\n"
    assert "train: 23 images, 46 captions" in result.stderr
    assert "val: every tenth training image, as no image is in val" in result.stderr
    assert "images left out: 0 broken, 0 without captions, 0 without a split" in result.stderr
    assert call("train", "--data", "mine", *SMALL).exit_code == 0
    result = call("caption", "runs/mine-lstm-1", "--image", "new.png")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "new.png"
    assert result.stdout.splitlines()[1].startswith("  xpcap   ")


def test_own_images_as_grids(call, tmp_path):
    own(tmp_path)
    Image.new("RGB", (40, 30), "green").save(tmp_path / "new.png")
    grid = ["--extractor", "filter-bank", "--output", "grid"]
    assert call("data", "prepare", "captions.json", "--out", "mine", *grid).exit_code == 0
    assert "fc7  23 x 64 x 80 float16" in call("data", "info", "mine").stdout
    assert call("data", "pca", "mine", "--dim", "3", "--device", "cpu").exit_code == 0
    assert "pca  23 x 64 x 3 float16" in call("data", "info", "mine").stdout
    for model in ("recurrent", "attention"):
        for kind in ("fc7", "pca"):
            run = ["--model", model, "--features", kind, "--out", f"{model}-{kind}"]
            assert call("train", "--data", "mine", *SMALL, *run).exit_code == 0
            result = call("caption", f"{model}-{kind}", "new.png", "--device", "cpu")
            assert result.exit_code == 0, result.output
    result = call("caption", "recurrent-pca", "attention-pca", "--count", "2", "--device", "cpu")
    assert result.exit_code == 0, result.output


def test_regions_that_are_absent_are_shown(call, tmp_path):
    make_tiny(tmp_path / "tiny", regions=True)
    with h5py.File(tmp_path / "tiny" / "val2014_vgg16_fc7.h5", "r+") as file:
        file["features"][1] = 1
    result = call("data", "info", "tiny")
    assert "fc7  24 x 3 x 7 float16, 0.0 MiB, 2 of 3 regions there" in result.stdout
    assert "fc7  12 x 3 x 7 float16, 0.0 MiB, 2 to 3 of 3 regions there, mean 2.1" in result.stdout


def test_scenes_may_have_grids(call, tmp_path):
    words = ["data", "scenes", "--out", "made", "--train", "3", "--val", "1"]
    assert call(*words, "--output", "grid").exit_code == 0
    assert "fc7  3 x 64 x 80 float16" in call("data", "info", "made").stdout


def test_another_extractor_than_the_runs_is_refused(call, tmp_path):
    own(tmp_path)
    call("data", "prepare", "captions.json", "--out", "mine", "--extractor", "filter-bank")
    call("train", "--data", "mine", *SMALL)
    path = tmp_path / "runs" / "mine-lstm-1" / "best.safetensors"
    checkpoint = read_checkpoint(path)
    checkpoint.config["data"]["extractor"]["version"] = 2
    write_checkpoint(path, checkpoint)
    one_line(
        call("caption", "runs/mine-lstm-1", "--image", "photos/1.png", "--device", "cpu"),
        "the features come from .*'version': 2.*; expected .*'version': 1",
    )


def test_prepare_names_broken_images(call, tmp_path):
    own(tmp_path)
    (tmp_path / "photos" / "4.png").write_bytes(b"x")
    words = ["data", "prepare", "captions.json", "--out", "mine", "--extractor", "filter-bank"]
    one_line(call(*words), r"photos/4\.png cannot be opened as an image")
    result = call(*words, "--skip-broken", "--json", "--workers", "3")
    found = json.loads(result.stdout)
    assert found["built"]["images"] == {"train": 22, "val": 2}
    assert found["broken"][0]["image"] == "photos/4.png"
    assert "cannot be opened" in found["broken"][0]["reason"]


def test_the_test_split_from_captions_to_results(call, tmp_path):
    own(tmp_path, 30, splits=["train", "train", "val"])
    prepare = ["data", "prepare", "--extractor", "filter-bank", "--out"]
    assert call(*prepare, "without", "captions.json").exit_code == 0
    (tmp_path / "captions.csv").write_text(
        "".join(["ID;Filename;Comment\n", *(f"n{k};photos/{k}.png;a picture\n" for k in range(30))])
    )
    for name, some in (("train", range(20)), ("val", range(20, 25)), ("test", range(25, 28))):
        (tmp_path / f"{name}.txt").write_text("".join(f"{k}.png\n" for k in some))
    result = call(*prepare, "mine", "captions.csv", "--splits", "none=test, eval=test")
    assert result.exit_code == 0, result.output
    assert "splits from test.txt, train.txt, val.txt" in result.stderr
    assert "test: 5 images, 5 captions" in result.stderr
    found = json.loads(call(*prepare, "again", "captions.csv", "--json").stdout)
    assert found["built"]["images"] == {"train": 20, "val": 5, "test": 3}
    assert found["without_split"] == 2
    assert found["lists"] == ["test.txt", "train.txt", "val.txt"]
    assert call("data", "pca", "mine", "--dim", "4", "--device", "cpu").exit_code == 0
    assert "test: 5 images, 5 captions" in call("data", "info", "mine").stdout

    assert call("train", "--data", "mine", *SMALL).exit_code == 0
    resumed = call("train", "--resume", "runs/mine-lstm-1", "--epochs", "3", "--device", "cpu")
    assert resumed.exit_code == 0, resumed.output
    test = ["runs/mine-lstm-1", "--split", "test", "--device", "cpu"]
    result = call("evaluate", *test, "--results", "results.json", "--metrics", "bleu-1")
    assert result.exit_code == 0, result.output
    assert "5 images of 'test'" in result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["image_id"] for entry in results] == [f"n{k}" for k in range(25, 30)]
    assert "photos/29.png\n" in call("caption", *test).stdout

    assert call("train", "--data", "without", *SMALL).exit_code == 0
    other = ["runs/without-lstm-1", "--split", "test", "--device", "cpu"]
    for command in ("evaluate", "caption"):
        one_line(call(command, *other), "without has no split 'test'; expected train or val$")


def test_a_run_opens_on_a_folder_without_the_test_split(call, tmp_path):
    _, records = own(tmp_path, 30, splits=["train", "val", "test"])
    prepare = ["data", "prepare", "captions.json", "--extractor", "filter-bank", "--out"]
    assert call(*prepare, "mine").exit_code == 0
    assert call("train", "--data", "mine", *SMALL).exit_code == 0
    (tmp_path / "captions.json").write_text(
        json.dumps([record for record in records if record["split"] != "test"])
    )
    assert call(*prepare, "less").exit_code == 0
    more = ["--data", "less", "--device", "cpu"]
    assert call("evaluate", "runs/mine-lstm-1", *more).exit_code == 0
    resumed = call("train", "--resume", "runs/mine-lstm-1", "--epochs", "3", *more)
    assert resumed.exit_code == 0, resumed.output
    one_line(call("evaluate", "runs/mine-lstm-1", "--split", "test", *more), "has no split 'test'")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("eval", "'eval'; expected pairs such as none=train"),
        ("eval=", "'eval='; expected pairs such as none=train"),
        ("eval=dev", "'eval' cannot mean 'dev'; expected train or val or test"),
        ("none=train", "entry 0: split is 'eval'; expected .*--splits eval=train"),
    ],
)
def test_splits_that_cannot_be_mapped(call, tmp_path, splits, message):
    own(tmp_path, splits=["eval"])
    one_line(call("data", "prepare", "captions.json", "--out", "x", "--splits", splits), message)


def test_prepare_without_features_says_so(call, tmp_path):
    own(tmp_path)
    result = call("data", "prepare", "captions.json", "--out", "mine", "--extractor", "none")
    assert "features are missing" in result.stderr
    one_line(
        call("data", "prepare", "captions.json", "--out", "other", "--weights", "a.onnx"),
        r"weights, output and preprocessing need an extractor \(--extractor NAME\)",
    )
    one_line(call("data", "prepare", "captions.json", "--out", "mine"), "not an empty folder")


def test_an_onnx_network_with_its_own_preprocessing(call, tmp_path):
    pytest.importorskip("onnx", reason="building networks needs onnx (the extra dev)")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra onnx)")
    from networks import flat_product

    own(tmp_path)
    flat_product(tmp_path / "net.onnx")
    (tmp_path / "how.json").write_text(json.dumps({"size": 8, "shorter_side": None}))
    words = ["data", "prepare", "captions.json", "--out", "mine", "--extractor", "onnx"]
    one_line(call(*words), "'onnx' needs the weights of its network")
    one_line(call(*words, "--weights", "none.onnx"), r"none\.onnx: No such file")
    one_line(call(*words, "--weights", "net.onnx"), "takes x tensor")
    result = call(*words, "--weights", "net.onnx", "--preprocessing", "how.json")
    assert result.exit_code == 0, result.output
    assert call("train", "--data", "mine", *SMALL).exit_code == 0
    picture = ["--image", "photos/3.png", "--device", "cpu"]
    assert call("caption", "runs/mine-lstm-1", *picture).exit_code == 0
    Path("net.onnx").rename("moved.onnx")
    one_line(
        call("caption", "runs/mine-lstm-1", *picture), r"say where they are \(--weights FILE\)"
    )
    moved = call("caption", "runs/mine-lstm-1", *picture, "--weights", "moved.onnx")
    assert moved.exit_code == 0, moved.output
    flat_product(tmp_path / "other.onnx")
    one_line(
        call("caption", "runs/mine-lstm-1", *picture, "--weights", "other.onnx"),
        "is another file than the features were computed with",
    )


def test_a_data_set_of_another_extractor_or_reduction_is_refused(call, tmp_path):
    own(tmp_path)
    prepare = ["data", "prepare", "captions.json", "--extractor", "filter-bank", "--out"]
    for name in ("mine", "other"):
        assert call(*prepare, name).exit_code == 0
        assert call("data", "pca", name, "--dim", "4", "--device", "cpu").exit_code == 0
    assert call("train", "--data", "mine", *SMALL).exit_code == 0
    caption = ["caption", "runs/mine-lstm-1", "--device", "cpu", "--data"]
    assert call(*caption, "other").exit_code == 0
    whiten = ["--dim", "4", "--whiten", "--replace", "--device", "cpu"]
    assert call("data", "pca", "other", *whiten).exit_code == 0
    one_line(call(*caption, "other"), "has other principal components than runs/mine-lstm-1")
    description = tmp_path / "mine" / "dataset.json"
    changed = json.loads(description.read_text())
    changed["extractor"]["version"] = 2
    description.write_text(json.dumps(changed))
    one_line(call(*caption, "mine"), "has features from .*'version': 2.*; expected those from")


def test_captions_and_vocabulary_are_checked_before_features(call, tmp_path):
    own(tmp_path)
    words = ["data", "prepare", "captions.json", "--out", "x", "--extractor", "filter-bank"]
    one_line(call(*words, "--vocab", "none.json"), r"none\.json")
    one_line(call(*words, "--max-words", "1"), "has a caption of 1 to 1 words")
    (tmp_path / "how.json").write_text('["size"]')
    words = [*words[:-1], "onnx", "--weights", "captions.json"]
    one_line(call(*words, "--preprocessing", "how.json"), "expected an object")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".x")]


def test_options_of_image_files_and_of_the_data_set_do_not_mix(call, tmp_path):
    own(tmp_path)
    call("data", "prepare", "captions.json", "--out", "mine", "--extractor", "filter-bank")
    call("train", "--data", "mine", *SMALL)
    one_line(
        call("caption", "runs/mine-lstm-1", "--image", "photos/1.png", "--data", "mine"),
        "--data goes with the images of a data set, not with image files",
    )
    one_line(
        call("caption", "runs/mine-lstm-1", "--weights", "a.onnx"),
        "--weights goes with image files, not with the images of a data set",
    )


def test_info_shows_counts_lengths_and_problems(call, tmp_path):
    own(tmp_path)
    call("data", "prepare", "captions.json", "--out", "mine", "--extractor", "filter-bank")
    result = call("data", "info", "mine")
    assert result.exit_code == 0, result.output
    assert "train: 23 images, 46 captions, <UNK> 0.0% of their words" in result.stdout
    assert "  fc7  23 x 4096 float32" in result.stdout
    assert "    3 words       46  " + "#" * 40 in result.stdout
    (tmp_path / "mine" / "val2014_urls.txt").unlink()
    result = call("data", "info", "mine")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("problem: cannot read mine/val2014_urls.txt")
    found = json.loads(call("data", "info", "mine", "--json").stdout)
    assert len(found["problems"]) == 1
    one_line(call("data", "info", "nowhere"), "nowhere is not a folder")


CHINESE = {"red": "一张红色的图片。", "green": "绿色图片，很亮", "blue": "这是蓝色的"}


def chinese(folder):
    _, records = own(folder, 24)
    for k, record in enumerate(records):
        record["captions"] = [list(CHINESE.values())[k % 3]]
        Image.new("RGB", (30, 20), list(CHINESE)[k % 3]).save(folder / record["image"])
    (folder / "captions.json").write_text(json.dumps(records))


def test_languages_without_spaces_are_noticed_and_have_characters(call, tmp_path):
    chinese(tmp_path)
    prepare = ["data", "prepare", "captions.json", "--extractor", "filter-bank", "--out"]
    noticed = "seem to be written without spaces, so that most are one word: --tokens characters"
    assert noticed in call(*prepare, "words").stderr
    result = call(*prepare, "mine", "--tokens", "characters")
    assert result.exit_code == 0, result.output
    assert noticed not in result.stderr
    assert "0 captions over 60 characters, 0 empty" in result.stderr
    assert "<UNK> is 0.0% of all characters" in result.stderr
    shown = call("data", "info", "mine")
    assert shown.exit_code == 0, shown.output
    assert "17 characters\n" in shown.stdout
    assert "    7 characters" in shown.stdout
    train = ["--hidden", "32", "--wordvec", "16", "--lr", "0.02", "--device", "cpu"]
    assert call("train", "--data", "mine", *train, "--epochs", "25").exit_code == 0
    run = "runs/mine-lstm-1"
    (found,) = json.loads(call("caption", run, "photos/1.png", "--json").stdout)
    assert found["caption"] == "绿色图片很亮"
    assert [word["word"] for word in found["captions"][0]["words"]] == [*"绿色图片很亮", "<END>"]
    for references in (True, False):
        if not references:
            (tmp_path / "mine" / "references.json").unlink()
        result = call("evaluate", run, "--results", "coco.json", "--images", "i.jsonl", "--json")
        values = json.loads(result.stdout)
        assert values["BLEU-4"] == pytest.approx(1)
        assert (values["novel"], values["vocabulary-use"]) == (0, 10 / 13)
        captions = [entry["caption"] for entry in json.loads((tmp_path / "coco.json").read_text())]
        assert set(captions) <= {"一张红色的图片", "绿色图片很亮", "这是蓝色的"}
    known = json.loads((tmp_path / "i.jsonl").read_text().splitlines()[0])["references"]
    assert known == ["一张红色的图片"]
    exported = call("export", run, "--to", "torch", "--out", "w.safetensors")
    assert exported.exit_code == 0, exported.output
    assert call("import", "w.safetensors", "--out", "again").exit_code == 0
    (again,) = json.loads(call("caption", "again", "photos/1.png", "--json").stdout)
    assert again["caption"] == found["caption"]
    one_line(
        call(*prepare, "x", "--tokens", "words", "--vocab", "mine/coco2014_vocab.json"),
        "coco2014_vocab.json is of characters; expected tokens words",
    )
    assert call(*prepare, "other", "--vocab", "mine/coco2014_vocab.json").exit_code == 0
    vocabulary = json.loads((tmp_path / "other" / "coco2014_vocab.json").read_text())
    assert vocabulary["tokens"] == "characters"
    one_line(call("evaluate", run, "--data", "words"), "words has another vocabulary than")
