"""Texts that the encoding of stdout or stderr lacks are escaped; no command fails."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from own import own

from xpcap.cli import main

ENCODINGS = ["ascii", "latin-1", "cp1252"]
SMALL = ["--hidden", 8, "--wordvec", 4, "--batch-size", 10, "--epochs", 1]
WORD = "日本🐈"
ESCAPED = r"\u65e5\u672c\U0001f408"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a data folder and a run, whose captions and names ASCII does not have."""
    folder = tmp_path_factory.mktemp("made")
    file, records = own(folder, 12)
    for record in records:
        record["captions"] = [f"{WORD} {caption}" for caption in record["captions"]]
    file.write_text(json.dumps(records))
    data = f"data-{WORD}"
    for words in (
        ["data", "prepare", file, "--out", data, "--extractor", "filter-bank"],
        ["train", "--data", data, "--out", f"run-{WORD}", *SMALL],
    ):
        with contextlib.chdir(folder):
            result = CliRunner().invoke(main, list(map(str, words)))
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["train", "--data", "data-@", "--out", "new-@", *SMALL], f"new-{ESCAPED}"),
        (["train", "--data", "data-@", "--out", "new-@", "--json", *SMALL], "new-"),
        (["caption", "run-@", "--count", 2], f"people  {ESCAPED}"),
        (["caption", "run-@", "--count", 2, "--json"], "references"),
        (["caption", "run-@", "photos/1.png", "--out", "@.csv"], f"{ESCAPED}.csv"),
        (["evaluate", "run-@"], "BLEU-1"),
        (["inspect", "run-@"], f"run-{ESCAPED}"),
        (["data", "info", "data-@"], f"data-{ESCAPED}"),
        (["data", "info", "no-@"], f"no-{ESCAPED} is not a folder"),
        (["export", "run-@", "--to", "npz"], f"run-{ESCAPED}"),
        (["train", "--cell", "@"], ESCAPED),
        (["@"], ESCAPED),
        (["curves", "run-@"], "nats per word"),
        (["curves", "run-@", "run-@"], f"run-{ESCAPED}: best"),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, list) else "",
)
def test_results_and_messages(place, encoding, words, shown):
    if "curves" in words:
        pytest.importorskip("plotext")
    given = [str(word).replace("@", WORD) for word in words]
    result = CliRunner(charset=encoding).invoke(main, given)
    assert result.exit_code in (0, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    for stream in (result.stdout_bytes, result.stderr_bytes):
        stream.decode(encoding)
    assert shown in result.output
    if "--json" in words:
        found = json.loads(result.stdout)
        assert WORD in str(found)


def commands(command, *above):
    """Yield the words of each command and group."""
    yield list(above)
    for name, other in getattr(command, "commands", {}).items():
        yield from commands(other, *above, name)


@pytest.mark.parametrize("words", [*commands(main)], ids=" ".join)
def test_help_is_ascii(words):
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0
    assert result.output.isascii()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_process(place, encoding):
    done = subprocess.run(
        [sys.executable, "-m", "xpcap", "caption", f"run-{WORD}", "--count", "2"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": encoding},
        check=True,
    )
    assert f"people  {ESCAPED} " in done.stdout.decode("ascii")


@pytest.mark.skipif(sys.platform == "win32", reason="closes a stream as shells do")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_process_without_a_stream(place, closed):
    pytest.importorskip("plotext")
    done = subprocess.run(
        f"{sys.executable} -m xpcap curves run-{WORD} {closed}",
        shell=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_progress_in_a_terminal(place, encoding):
    train = ["train", "--data", f"data-{WORD}", "--out", f"new-{WORD}", *map(str, SMALL)]
    code = (
        f"import pty, sys; sys.exit(pty.spawn([{sys.executable!r}, '-m', 'xpcap', *sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *train],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": encoding},
        check=False,
    )
    text = done.stdout.decode("ascii")
    assert done.returncode == 0, text
    assert "epoch 1 " in text
    assert f"run: new-{ESCAPED}" in text
