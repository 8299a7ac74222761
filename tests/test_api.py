import json

"""xpcap from Python, in few lines."""

import inspect
import subprocess
import sys
from dataclasses import fields

import numpy
import pytest
from own import own
from PIL import Image
from tiny import make_tiny

import xpcap
from xpcap import CaptioningRNN
from xpcap.cli import main
from xpcap.data.dataset import Split, open_dataset
from xpcap.decoding import Beam, Sampling
from xpcap.errors import CheckpointError, ConfigurationError, DataError
from xpcap.runs.search import make_search
from xpcap.training.assembly import default_batch_size
from xpcap.training.options import of_others
from xpcap.training.self_critical import SelfCritical

SMALL = {"hidden": 12, "wordvec": 8, "epochs": 2, "lr": 0.02, "device": "cpu"}
WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    own(folder)
    for name, colour in (("a.jpg", "red"), ("b.png", "blue")):
        Image.new("RGB", (30, 20), colour).save(folder / name)
    xpcap.prepare(folder / "captions.json", folder / "mydata", extractor="filter-bank")
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def run(place):
    return xpcap.train(place / "mydata", out=place / "trained", verbose=False, **SMALL)


def test_the_lines_of_the_readme(place, capsys):
    run = xpcap.train("mydata", **SMALL)
    assert str(run.folder) == "runs/mydata-lstm-1"
    captions = run.caption(["a.jpg", "b.png"], beam=3)
    assert len(captions) == 2
    assert all(isinstance(caption, str) for caption in captions)
    assert run.evaluate(split="val")["BLEU-1"] >= 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]


def test_images_are_paths_pillow_images_pixels_or_features(run, place):
    expected = run.caption(["a.jpg", "b.png"])
    pictures = [Image.open(place / name) for name in ("a.jpg", "b.png")]
    assert run.caption(pictures) == expected
    assert run.caption([numpy.asarray(picture) for picture in pictures]) == expected
    assert run.caption([place / "a.jpg", pictures[1]]) == expected
    assert run.caption(run.features_of(["a.jpg", "b.png"])) == expected
    for one in ("a.jpg", pictures[0], numpy.asarray(pictures[0])):
        assert run.caption(one) == expected[:1]
    assert run.caption(numpy.stack([numpy.asarray(pictures[0])] * 2)) == expected[:1] * 2


def test_opened_images_are_read_as_their_files(run, place, tmp_path):
    turned = Image.effect_noise((300, 200), 90).convert("RGB")
    turned.paste("blue", (0, 0, 150, 200))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as picture:
        assert numpy.array_equal(
            run.features_of([picture] * 40), run.features_of([tmp_path / "turned.jpg"] * 40)
        )
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:-2000])
    with (
        Image.open(tmp_path / "cut.jpg") as picture,
        pytest.raises(DataError, match=r"cut\.jpg cannot be opened as an image"),
    ):
        run.caption(picture)


def test_features_of_regions_from_python(place):
    data = xpcap.prepare(
        place / "captions.json", place / "grids", extractor="filter-bank", output="grid"
    )
    assert data.feature_shape == (64, 80)
    run = xpcap.train(place / "grids", out=place / "on-grids", verbose=False, **SMALL)
    features = run.features_of(["a.jpg", "b.png"])
    assert (features.shape, features.dtype) == ((2, 64, 80), numpy.float16)
    assert run.caption(features) == run.caption(["a.jpg", "b.png"])


def test_features_of_a_data_set_are_captioned(run, place):
    data = open_dataset(place / "mydata", lazy=True)
    features = data.splits["val"].features
    assert run.caption(features) == run.caption(features[:])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (numpy.zeros((3, 8, 8), "u1"), r"\(3, 8, 8\) of uint8; expected uint8"),
        ([numpy.zeros((4, 4, 3))], r"\(4, 4, 3\) of float64; expected uint8"),
        (numpy.zeros((4, 4, 3)), r"features are \(4, 4, 3\); expected \(N, 4096\), as .*8-bit"),
        (3, "images are of type int; expected a list"),
        ([3], "an image is of type int; expected a file name"),
        (["absent.jpg"], "absent.jpg"),
    ],
)
def test_what_is_no_image(run, images, message):
    with pytest.raises(DataError, match=message):
        run.caption(images)


def test_unknown_words_are_banned_unless_asked_for(run):
    unknown = run.vocabulary.word_to_idx["<UNK>"]
    assert unknown in make_search(run.vocabulary).constraints.banned
    assert unknown not in make_search(run.vocabulary, allow_unk=True).constraints.banned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 3}, "option 'beams' is unknown; expected beam"),
        ({"beam": "3"}, "beam is '3'; expected a whole number"),
        ({"n_best": 3}, "option 'n_best' is unknown"),
        ({"top_k": 3}, "top_k goes with sample"),
        ({"sample": True, "beam": 3}, "beam does not go with sample"),
    ],
)
def test_options_of_captions_are_checked(run, options, message):
    for use in (lambda: run.caption(["a.jpg"], **options), lambda: run.evaluate(**options)):
        with pytest.raises(ConfigurationError, match=message):
            use()


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        (Beam(3), {"beam": 2}, r"Beam\(.*\), beam: expected either a Beam or Sampling, or options"),
        (Sampling(), {"temperature": 1.0, "sample": True}, r"Sampling\(.*\), temperature, sample:"),
        (3, {}, "3: expected either a Beam or Sampling, or options such as beam=3"),
        ("beam", {}, "'beam': expected"),
    ],
)
def test_a_search_and_its_options_do_not_go_together(run, how, options, message):
    with pytest.raises(ConfigurationError, match=message):
        run.caption(["missing.jpg"], how, **options)
    assert run.caption(["a.jpg"], Beam(3))


@pytest.mark.parametrize("how", [3, "beam", {"beam": 3}])
def test_decode_takes_a_search(run, how):
    with pytest.raises(ConfigurationError, match="expected either a Beam or Sampling"):
        run.decode(numpy.zeros((1, 4), numpy.float32), how)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "option 'epoch' is unknown; expected epochs"),
        ({"schedule": "linear"}, "schedule 'linear' is unknown; expected cosine or constant"),
        ({"save_every": "soon"}, "save_every 'soon' is neither"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": "32"}, "batch_size must be at least 1, a whole number, got '32'"),
        ({"threads": -1}, "threads must be at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5; expected a whole number"),
        ({"hidden": "128"}, "hidden is '128'; expected a whole number"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"callbacks": {"foo": print}}, "callbacks: expected a dict from step, measured, epoch"),
        ({"callbacks": print}, "callbacks: expected a dict"),
    ],
)
def test_options_of_training_are_checked_before_a_folder_is_made(place, options, message):
    before = sorted((place / "runs").glob("*"))
    with pytest.raises(ConfigurationError, match=message):
        xpcap.train("mydata", **options)
    assert sorted((place / "runs").glob("*")) == before


def test_training_takes_every_option_of_the_command(place):
    own_names = {"data", "out", "from_run", "resume", "device", "tensorboard", "as_json"}
    with main.commands["train"].make_context("train", []) as context:  # which sets the threads
        options = context.params
    given = {name: value for name, value in options.items() if name not in own_names}
    for name in of_others("recurrent"):
        with pytest.raises(ConfigurationError, match=f"{name} goes with model"):
            xpcap.train("mydata", **{name: given.pop(name)})
    for one in fields(SelfCritical):
        with pytest.raises(ConfigurationError, match=f"{one.name} goes with stage self-critical"):
            xpcap.train("mydata", **{one.name: given.pop(one.name)})
    changed = {**given, "epochs": 1, "hidden": 4, "wordvec": 4}
    run = xpcap.train("mydata", out="every", device="cpu", verbose=False, **changed)
    assert run.config["training"]["batch_size"] == 16
    assert own_names - {"as_json"} <= set(inspect.signature(xpcap.train).parameters)


def test_options_may_be_numbers_of_numpy(place):
    options = {"epochs": numpy.int64(1), "lr": numpy.float32(0.01), "hidden": numpy.int64(4)}
    run = xpcap.train("mydata", out="numbers", device="cpu", verbose=False, **options)
    assert xpcap.open_run("numbers", device="cpu").config["model"]["hidden_dim"] == 4
    assert run.caption("a.jpg", beam=numpy.int64(2))


def test_callbacks_and_resuming(place):
    seen = []
    options = {**SMALL, "epochs": 1, "schedule": "constant", "verbose": False}
    xpcap.train("mydata", out="first", callbacks={"step": lambda t: seen.append(t.step)}, **options)
    assert seen == list(range(1, len(seen) + 1))
    again = xpcap.train(
        resume=xpcap.open_run("first", device="cpu"), epochs=2, verbose=False, device="cpu"
    )
    assert again.config["training"]["schedule"]["epochs"] == 2
    with pytest.raises(ConfigurationError, match=r"hidden cannot be changed .*; these can: epochs"):
        xpcap.train(resume="first", hidden=9, device="cpu")


def test_an_ensemble(run):
    together = xpcap.open_run("trained", run.folder, device="cpu")
    assert together.caption(["a.jpg"]) == run.caption(["a.jpg"])


def test_metrics_by_name(run):
    names = run.evaluate(metrics=["BLEU-4", "CIDEr-D"])
    assert run.evaluate(metrics="BLEU-4, cider-d") == names
    assert list(names) == ["BLEU-4", "CIDEr-D"]


def test_preparing_takes_what_the_command_takes(tmp_path, capsys):
    file, _ = own(tmp_path, splits=["train", "validation", None])
    given = {"splits": "none=test, validation=val"}
    found = xpcap.prepare(file, tmp_path / "out", extractor="filter-bank", **given)
    assert found.splits.keys() == {"train", "val", "test"}
    assert xpcap.prepare(file, tmp_path / "bare", extractor="none") is None
    assert not list((tmp_path / "bare").glob("*fc7*"))
    assert "tokens=" not in capsys.readouterr().out
    records = [{"image": f"photos/{k}.png", "captions": ["一张红色的图片"]} for k in range(4)]
    file.write_text(json.dumps(records))
    assert xpcap.prepare(file, tmp_path / "words", extractor="none") is None
    assert 'tokens="characters" makes each character a token' in capsys.readouterr().out
    options = {"extractor": "filter-bank", "tokens": "characters"}
    assert xpcap.prepare(file, tmp_path / "letters", **options).references("val") == [
        ["一张红色的图片"]
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_word": 3}, "option 'max_word' is unknown; expected max_words"),
        ({"vocab": "v.json"}, "option 'vocab' is unknown; expected vocabulary"),
        ({"min_count": "3"}, "min_count is '3'; expected a whole number"),
        ({"tokens": "bytes"}, "tokens are 'bytes'; expected words or characters"),
        ({"splits": "none"}, "splits: 'none'; expected pairs such as none=train"),
        ({"splits": {"none": "dev"}}, "splits: 'none' cannot mean 'dev'"),
        ({"extractor": "none", "weights": "a.onnx"}, "weights, .* need an extractor"),
        ({"ranks": 3}, "option 'ranks' is unknown"),
    ],
)
def test_options_of_preparing_are_checked(place, tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        xpcap.prepare("captions.json", tmp_path / "out", **{"extractor": "filter-bank", **options})
    assert not (tmp_path / "out").exists()


def test_a_run_must_be_named():
    with pytest.raises(ConfigurationError, match="takes the path of one run or more"):
        xpcap.open_run()


@pytest.mark.parametrize(
    ("captions", "size"), [(5, 5), (100, 16), (1500, 20), (9600, 128), (10**6, 128)]
)
def test_small_data_sets_have_small_batches(captions, size):
    images = numpy.arange(captions) // 5
    split = Split(numpy.zeros((captions, 3), int), images, numpy.zeros((1, 1)), [])
    assert default_batch_size(split) == size
    assert default_batch_size(split, "self-critical") == min(16, captions // 5)


def test_a_report(run, tmp_path):
    pytest.importorskip("jinja2", reason="needs the extra report")
    pytest.importorskip("matplotlib", reason="needs the extra report")
    page = run.report(tmp_path / "page.html", beam=2)
    assert "<html" in page.read_text(encoding="utf-8")


def test_what_is_printed_of_models_runs_and_data_sets(run, place):
    assert repr(run.model) == (
        "CaptioningRNN(13 words, input_dim=4096, wordvec_dim=8, hidden_dim=12, cell_type='lstm'):"
        " 50,445 parameters, float32 on cpu"
    )
    first, second = repr(run).splitlines()
    assert first == f"Run({str(run.folder)!r}) on mydata, features: fc7 of filter-bank"
    assert second == f"  {run.model!r}"
    assert repr(xpcap.prepare("captions.json", "other", extractor="filter-bank")).splitlines() == [
        "Dataset('other'): 13 words, 4096 features (fc7) of filter-bank",
        "  train: 23 images, 46 captions",
        "  val: 2 images, 4 captions",
    ]


def test_models_are_saved_and_loaded(tmp_path):
    sizes = numpy.array([5, 4, 3])
    model = CaptioningRNN(WORDS, *sizes, cell_type="gru", dtype="float64", seed=3, backend="cpu")
    model.save(tmp_path / "model")
    again = CaptioningRNN.load(tmp_path / "model", "cpu")
    assert again.sizes == model.sizes
    assert again.word_to_idx == WORDS
    for name, value in model.params.items():
        assert numpy.array_equal(value, again.params[name])
    features, captions = numpy.ones((2, 5)), numpy.array([[1, 3, 2], [1, 2, 0]])
    assert again.loss(features, captions)[0] == model.loss(features, captions)[0]


@pytest.mark.parametrize("keep", [0, 30, 200])
def test_a_damaged_file_of_a_model_is_refused(tmp_path, keep):
    CaptioningRNN(WORDS, 5, 4, 3, backend="cpu").save(tmp_path / "model")
    whole = (tmp_path / "model").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=r"cut is no file of CaptioningRNN\.save"):
        CaptioningRNN.load(tmp_path / "cut", "cpu")


def test_completion_shows_what_users_need():
    shown = [name for name in dir(xpcap) if not name.startswith("_")]
    assert {"train", "open_run", "prepare", "CaptioningRNN"} <= set(shown)
    assert not {"threads", "files", "operations", "kernels", "api"} & set(shown)


def test_importing_is_light():
    code = "import sys, xpcap; print([m for m in ('xpcap.api', 'PIL', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_processes_that_choose_a_name_at_once_choose_others(tmp_path):
    make_tiny(tmp_path / "tiny")
    code = (
        "import xpcap; xpcap.train('tiny', hidden=4, wordvec=4, epochs=1, device='cpu',"
        " verbose=False)"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in range(4)]
    assert [process.wait() for process in started] == [0] * 4
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"tiny-lstm-{k}" for k in range(1, 5)
    ]


def test_what_takes_long_prints_its_progress(run, tmp_path, monkeypatch, capsys):
    xpcap.prepare("captions.json", tmp_path / "again", extractor="filter-bank")
    assert capsys.readouterr().out == ""  # not within seconds
    monkeypatch.setattr("xpcap.api._PROGRESS_SECONDS", 0.0)
    xpcap.prepare("captions.json", tmp_path / "more", extractor="filter-bank")
    assert "images: 25 of 25\n" in capsys.readouterr().out
    for extra in ("matplotlib", "jinja2"):
        pytest.importorskip(extra)
    run.report(tmp_path / "report.html")
    assert "evaluation: 1 of 1\n" in capsys.readouterr().out


def test_a_run_that_has_ended_says_what_would_continue_it(run, capsys):
    xpcap.train(resume=run, device="cpu")
    assert capsys.readouterr().out == (
        "training has ended, after epoch 2 of 2; more epochs would continue it (epochs=N)\n"
    )


def test_hints_are_options_of_python(tmp_path):
    own(tmp_path, 3)
    (tmp_path / "photos" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"it is empty \(skip_broken=True leaves it out\)$"):
        xpcap.prepare(tmp_path / "captions.json", tmp_path / "out", extractor="filter-bank")
