"""`xpcap caption` of image files, and the files that it writes."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import one_line
from own import own
from PIL import Image

from xpcap.cli import main
from xpcap.runs import open_run
from xpcap.runs.captions import caption_dataset, write_csv, write_json
from xpcap.runs.dataset import open_data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on features that xpcap computes from pixels."""
    folder = tmp_path_factory.mktemp("made")
    file, _ = own(folder)
    for words in (
        ["data", "prepare", file, "--extractor", "filter-bank", "--out", folder / "data"],
        ["train", "--data", folder / "data", "--out", folder / "run", "--epochs", 20, "--lr", 0.02,
         "--hidden", 16, "--wordvec", 8, "--batch-size", 10, "--device", "cpu"],
    ):  # fmt: skip
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def caption(call, made, tmp_path):
    """Caption with a copy of the run, beside some photographs."""
    shutil.copytree(made / "run", tmp_path / "run")
    for name, colour in (("b/10.png", "red"), ("b/2.PNG", "green"), ("b/c/x.jpg", "blue"),
                         ("a.png", "white")):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), colour).save(tmp_path / name)
    return lambda *words: call("caption", *words, "--device", "cpu")


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "b" / "3.png").write_bytes(b"")
    (tmp_path / "b" / "4.heic").write_bytes(b"\0\0\0\x18ftypheic")


def found(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_files_folders_and_patterns_in_their_order(caption):
    entries = found(caption("run", "b", "a.png", "*.png", "--image", "b/10.png", "--json"))
    assert [entry["image"] for entry in entries] == [
        "b/2.PNG", "b/10.png", "b/c/x.jpg", "a.png", "b/10.png",
    ]  # fmt: skip
    said = [entry["caption"] for entry in entries]
    assert said[0].split() != said[1].split()
    assert said[1] == said[4]
    for colour, sentence in zip(("green", "red", "blue"), said, strict=False):
        assert colour in sentence


def test_all_runs_before_the_first_image_form_an_ensemble(caption):
    alone = caption("run", "b").stdout
    assert alone.splitlines()[0] == "b/2.PNG"
    assert caption("run", "run", "run/best.safetensors", "b").stdout == alone


def test_many_images_are_captioned_as_one_by_one(caption, tmp_path):
    """In more than one batch."""
    names = []
    for k in range(70):
        names.append(f"many/{k}.png")
        (tmp_path / "many").mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (3 * k, 255 - 3 * k, 99)).save(tmp_path / names[-1])
    features = open_run(tmp_path / "run", "cpu").features_of([tmp_path / name for name in names])
    expected = open_run(tmp_path / "run", "cpu").caption(features)
    entries = found(caption("run", "many", "--json"))
    assert [entry["image"] for entry in entries] == names
    assert [entry["caption"] for entry in entries] == expected
    assert len(set(expected)) > 1


def test_a_broken_image_stops_the_command_by_name(caption, broken):
    one_line(caption("run", "b"), r"b/3\.png cannot be opened as an image: it is empty")
    one_line(caption("run", "b/4.heic", "--out", "a.csv"), r"4\.heic .* convert it to JPEG")
    one_line(caption("run", "none.png"), "cannot read none.png: No such file")


def test_broken_images_are_named_and_left_out_if_asked(caption, broken):
    result = caption("run", "b", "none.png", "--skip-broken")
    assert result.exit_code == 0
    shown = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert shown == ["b/2.PNG", "b/10.png", "b/c/x.jpg"]
    left_out = [line for line in result.stderr.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 3
    assert left_out[0] == "left out: b/3.png cannot be opened as an image: it is empty"
    one_line(caption("run", "b/3.png", "--skip-broken"), r"none of the images .*: b/3\.png")


def test_json_has_the_reason_instead_of_a_caption(caption, broken):
    result = caption("run", "b", "--skip-broken", "--json")
    entries = json.loads(result.stdout)
    assert [entry["image"] for entry in entries] == [
        "b/2.PNG", "b/3.png", "b/4.heic", "b/10.png", "b/c/x.jpg",
    ]  # fmt: skip
    assert ["error" in entry for entry in entries] == [False, True, True, False, False]
    assert "it is empty" in entries[1].pop("error")
    assert entries[1] == {"image": "b/3.png", "caption": None, "captions": []}
    assert "green" in entries[0]["caption"]
    assert "red" in entries[3]["caption"]


def test_a_json_file_is_what_json_prints(caption, tmp_path):
    printed = caption("run", "b", "--json").stdout
    assert caption("run", "b", "--out", "new/a.JSON").stdout == "new/a.JSON\n"
    assert (tmp_path / "new" / "a.JSON").read_text() == printed


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_csv_of_the_best_captions_and_of_all(caption, broken, tmp_path):
    (tmp_path / "a.png").rename(tmp_path / 'né, "=1".png')
    words = ["run", 'né, "=1".png', "b", "--skip-broken", "--beam", "3"]
    entries = [entry for entry in found(caption(*words, "--json")) if entry["captions"]]
    assert caption(*words, "--out", "best.csv").stdout == "best.csv\n"
    header, *rows = rows_of(tmp_path / "best.csv")
    assert header == ["image", "caption", "log_prob"]
    assert rows == [
        [entry["image"], entry["caption"], str(entry["captions"][0]["log_prob"])]
        for entry in entries
    ]
    assert rows[0][0] == 'né, "=1".png'
    entries = found(caption(*words, "--n-best", "2", "--json"))
    caption(*words, "--n-best", "2", "--out", "all.csv")
    header, *rows = rows_of(tmp_path / "all.csv")
    assert header == ["image", "rank", "caption", "log_prob"]
    assert rows == [
        [entry["image"], str(rank), each["caption"], str(each["log_prob"])]
        for entry in entries
        for rank, each in enumerate(entry["captions"], start=1)
    ]
    assert [row[1] for row in rows] == ["1", "2"] * 4
    write_csv(tmp_path / "first.csv", entries)
    assert rows_of(tmp_path / "first.csv")[1:] == [
        [image, said, log_prob] for image, rank, said, log_prob in rows if rank == "1"
    ]


def test_out_of_a_split(caption, made, tmp_path):
    caption("run", "--count", "2", "--data", made / "data", "--out", "a.csv")
    assert [row[0] for row in rows_of(tmp_path / "a.csv")[1:]] == [
        str(made / "photos" / f"{k}.png") for k in (9, 19)
    ]
    result = caption("run", "--count", "2", "--data", made / "data", "--out", "a.html")
    assert result.exit_code == 0
    text = (tmp_path / "a.html").read_text()
    assert text.count('<img src="data:image/png;base64,') == 2
    assert "<li>A black picture.</li>" in text


def test_an_html_file_needs_no_library_of_reports(caption, broken, tmp_path, monkeypatch):
    for library in ("jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, library, None)
    result = caption("run", "b", "--skip-broken", "--out", "a.html")
    assert result.stdout == "a.html\n"
    text = (tmp_path / "a.html").read_text()
    assert text.count("<img ") == 3
    assert "5 images, 2 of which cannot be opened." in text


def test_what_is_written_replaces_a_file_as_a_whole(caption, broken, tmp_path):
    (tmp_path / "a.csv").write_text("before")
    one_line(caption("run", "b", "--out", "a.csv"), r"3\.png")
    assert (tmp_path / "a.csv").read_text() == "before"
    assert caption("run", "a.png", "--out", "a.csv").exit_code == 0
    assert len(rows_of(tmp_path / "a.csv")) == 2
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png"], "a.png is no run; expected a run, then images"),
        (["b", "run"], "b is not a run; expected a folder made by xpcap train"),
        (["run", "https://example.org/a.jpg"], "https://example.org/a.jpg is a URL"),
        (["run", "--image", "http://example.org/a.jpg"], "http://example.org/a.jpg is a URL"),
        (["run", "*.gif"], r"no file matches \*\.gif"),
        (["run", "a.png", "run"], "run is a run; expected runs before images"),
        (["run", "a.png", "--out", "a.txt"], r"a\.txt has another ending than \.json, \.csv, "),
        (["nowhere", "--out", "a"], "'--out': a has another ending"),  # before any work
        (["run", "a.png", "--out", "a.csv", "--json"], "--json prints"),
        (["run", "a.png", "--count", "3"], "--count goes with the images of a data set, not"),
        (["run", "a.png", "--data", "b"], "--data goes with the images of a data set"),
        (["run", "--skip-broken"], "--skip-broken goes with image files, not with"),
        (["run", "--weights", "a.onnx"], "--weights goes with image files"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(caption, words, message, tmp_path):
    before = sorted(tmp_path.iterdir())
    one_line(caption(*words), message)
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def looking(made):
    """A run with attention to the 8 x 8 cells of pictures."""
    for words in (
        ["data", "prepare", made / "captions.json", "--extractor", "filter-bank",
         "--output", "grid", "--out", made / "grid"],
        ["train", "--data", made / "grid", "--out", made / "looks", "--model", "attention",
         "--epochs", 2, "--hidden", 8, "--wordvec", 4, "--device", "cpu"],
    ):  # fmt: skip
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    return str(made / "looks")


def test_attention_is_drawn_for_each_image_beside_its_caption(caption, looking, broken, tmp_path):
    words = [looking, "b", "a.png", "--skip-broken", "--beam", "2", "--json"]
    alone = caption(*words)
    result = caption(*words, "--attention", "new/maps")
    assert result.exit_code == 0, result.output
    assert result.stdout == alone.stdout
    names = ["10.png", "2.png", "a.png", "x.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "maps").iterdir()) == names
    captions = {Path(e["image"]).stem: e["caption"] for e in json.loads(alone.stdout)}
    for name in names:
        with Image.open(tmp_path / "new" / "maps" / name) as figure:
            tiles = 1 + len(captions[name[:-4]].split())
            assert figure.format == "PNG"
            assert figure.width == 12 + 236 * min(5, max(3, tiles))


def test_attention_to_images_of_a_split(caption, made, looking, tmp_path):
    words = [looking, "--data", made / "grid", "--count", "2", "--out", "a.csv"]
    result = caption(*words, "--attention", "maps")
    assert result.stdout == "a.csv\n", result.output
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["19.png", "9.png"]


def test_attention_is_written_as_lists(looking, tmp_path):
    run = open_run(Path(looking), "cpu")
    captioned = caption_dataset(run, open_data(run), "val", 2, attention=True)
    write_json(tmp_path / "a.json", captioned)
    written = json.loads((tmp_path / "a.json").read_text())
    for entry in written:
        assert [len(weights) for weights in entry["attention"]] == (
            [64] * len(entry["captions"][0]["words"])
        )
    assert written == captioned


def test_characters_that_figures_lack_are_said_once(caption, looking, monkeypatch):
    monkeypatch.setattr("xpcap.report.attention_figure.not_in_font", lambda _: "ñ日")
    result = caption(looking, "a.png", "a.png", "--attention", "maps")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("the font of the figures lacks ñ 日: drawn as boxes") == 1


def test_attention_that_cannot_be_drawn_is_one_line_before_any_work(
    caption, looking, tmp_path, monkeypatch
):
    for work in ("caption_images", "caption_dataset"):
        monkeypatch.setattr(f"xpcap.runs.captions.{work}", lambda *_: pytest.fail("work"))
    one_line(caption(looking, "--attention", "a.png/x"), r"cannot write a\.png/x: .* no")
    one_line(caption("run", "b", "--attention", "maps"), "family 'recurrent' has no attention")
    one_line(
        caption(looking, "a.png", "--attention", "."), r"a\.png exists; expected another folder"
    )
    one_line(caption(looking, "b", "--attention", "a.png/x"), r"cannot write a\.png/x: .* no")
    assert not (tmp_path / "maps").exists()
