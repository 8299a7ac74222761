"""Control characters in untrusted text are escaped by every command."""

import json
import unicodedata

import h5py
import pytest
from own import own
from tiny import make_tiny

from xpcap.data import folder as layout
from xpcap.data.vocabulary import Vocabulary

# a title of the window, a cleared screen, a colour by a single character (C1), turned writing,
# a line of its own, half of a character
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\r\n\u2028\x7f\ud800"
WORD = HOSTILE.replace("\r\n\u2028", "")  # a word has no spaces
ESCAPED = r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066"
NAME, SHOWN = "run\x1b[2J\x9b31m\u202e\n", r"run\x1b[2J\x9b31m\u202e\n"
SMALL = ["--hidden", 8, "--wordvec", 4, "--batch-size", 10, "--epochs", 1, "--device", "cpu"]


def harmless(result, *shown):
    """Assert that a command prints no control characters, and some texts."""
    text = result.stdout + result.stderr
    for line in text.split("\n"):
        for character in line:
            assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp"), repr(line)
            assert unicodedata.bidirectional(character) not in (
                "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
            ), repr(line)  # fmt: skip
    for part in shown:
        assert part in text, text
    return result


def rewritten(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.fixture
def data(tmp_path):
    """A data folder in which every text has control characters."""
    folder = make_tiny(tmp_path / "data")
    rewritten(folder / layout.DESCRIPTION, lambda _: {"name": HOSTILE, "features": HOSTILE})
    words = list(Vocabulary.read(folder / layout.VOCABULARY).idx_to_word)
    words[words.index("a")] = WORD
    word_to_idx = {word: index for index, word in enumerate(words)}
    written = {"idx_to_word": words, "word_to_idx": word_to_idx}
    (folder / layout.VOCABULARY).write_text(json.dumps(written))
    rewritten(
        folder / layout.REFERENCES,
        lambda found: {
            split: [{**image, "captions": [HOSTILE] * 2} for image in images]
            for split, images in found.items()
        },
    )
    address = "http://localhost/\x1b[2J\x9b31m\u202e.png"
    (folder / layout.urls_file("val")).write_text(f"{address}\n" * 12)
    return folder


@pytest.fixture
def run(call, data):
    """The name of a run, with control characters too."""
    result = harmless(call("train", "--data", data, "--out", NAME, *SMALL), f"run: {SHOWN}")
    assert result.exit_code == 0, result.output
    return NAME


def test_train_and_caption(call, run):
    for words in (["caption", run], ["caption", run, "--n-best", 3, "--beam", 3]):
        result = harmless(call(*words, "--device", "cpu"), ESCAPED, r"localhost/\x1b[2J\x9b31m")
        assert result.exit_code == 0
    result = harmless(call("caption", run, "--json", "--device", "cpu"), r"\u001b]0;owned")
    assert WORD in result.stdout or any(
        WORD in entry["caption"] for entry in json.loads(result.stdout)
    )


def test_evaluate_inspect_and_curves(call, run):
    pytest.importorskip("plotext")
    for words in (
        ["evaluate", run, "--results", "r\x1b[2J.json", "--images", "i\x9b31m.json"],
        ["inspect", run],
        ["curves", run, run],
    ):
        options = ["--device", "cpu"] if words[0] == "evaluate" else []
        result = harmless(call(*words, *options), r"\x1b[2J")
        assert result.exit_code == 0, result.output


def test_data_info(call, data):
    (data / layout.REFERENCES).unlink()  # which has other words
    result = harmless(call("data", "info", data), f"data: {ESCAPED}", f"features    {ESCAPED}")
    assert result.exit_code == 0, result.output
    with h5py.File(data / layout.CAPTIONS, "a") as file:
        file.move("val_captions", NAME)
    assert harmless(call("data", "info", data), f"only {SHOWN}").exit_code == 1


def test_data_prepare(call, tmp_path):
    file, records = own(tmp_path, 6)
    records[0]["captions"] = [HOSTILE]
    records[1]["image"] = NAME
    (tmp_path / NAME).write_bytes(b"no picture")
    file.write_text(json.dumps(records))
    words = ["data", "prepare", file, "--out", f"made {NAME}"]
    words += ["--extractor", "filter-bank", "--skip-broken"]
    result = harmless(call(*words), f"left out: {tmp_path}/{SHOWN} ", f"made {SHOWN}\n")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "words",
    [
        ["caption", NAME],
        ["train", "--data", NAME],
        ["train", "--resume", NAME],
        ["train", "--cell", NAME],
        ["inspect", NAME],
        ["curves", NAME],
        ["export", NAME, "--to", "npz"],
        ["data", "info", NAME],
        ["data", "prepare", NAME, "--out", "x"],
        ["evaluate", NAME, "--metrics", NAME],
        ["evaluate", NAME, "--split", NAME],
        ["train", "--device", NAME],
        [NAME],
        ["train", f"--{NAME}"],
    ],
    ids=lambda words: " ".join(words).replace(NAME, "NAME"),
)
def test_error_messages(call, words):
    result = harmless(call(*words), r"\x1b[2J\x9b31m\u202e")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len([line for line in result.stderr.splitlines() if line.startswith("xpcap: ")]) == 1
