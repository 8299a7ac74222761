import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import cli_reference
import click
import pytest
from click.testing import CliRunner
from own import own
from PIL import Image

import xpcap
from xpcap import prepare
from xpcap.cli import main
from xpcap.data.scenes import make_scenes

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in (".", ".github", "datasets", "tools", "xpcap", "xpcap/*")
    for path in ROOT.glob(f"{folder}/*.md")
}
SNIPPETS = [
    snippet
    for text in PAGES.values()
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]
SHELL_LINES = [
    line.split("#")[0]
    for text in PAGES.values()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = dict(cli_reference.commands(main))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name):
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_the_reference_of_the_command_line_is_current():
    assert cli_reference.FILE.read_text(encoding="utf-8") == cli_reference.reference()


def test_command_lines_in_the_documentation_are_valid():
    lines = re.findall(r"\b(xpcap (?:data )?[a-z-]+)([^\n&`]*)", "\n".join(SHELL_LINES))
    assert len(lines) >= 5
    for name, rest in lines:
        assert name in COMMANDS
        options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert {word for word in shlex.split(rest) if word.startswith("--")} <= options


def test_links_in_the_documentation_lead_somewhere():
    for page, text in PAGES.items():
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages refer to: photographs, captions, and data made of them."""
    folder = tmp_path_factory.mktemp("docs")
    make_scenes(folder / "datasets" / "scenes", train=100, val=4)
    file, records = own(folder, splits=["train"] * 6 + ["val", "test"])
    lines = [f"{r['image']},{c},{r['split']}\n" for r in records for c in r["captions"]]
    (folder / "captions.txt").write_text("image,caption,split\n" + "".join(lines))
    for name in ("new.jpg", "a.jpg", "b.png"):
        Image.new("RGB", (40, 30), "green").save(folder / name)
    prepare(file, folder / "mydata", extractor="filter-bank")
    return folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.split("\n")[0])
def test_snippets_of_the_documentation_run(snippet, place, monkeypatch):
    monkeypatch.chdir(place)
    exec(compile(snippet, "snippet", "exec"), {"__name__": "snippet"})


def test_the_readmes_three_commands_for_photographs(place, monkeypatch, tmp_path):
    shutil.copytree(place, tmp_path / "place", ignore=shutil.ignore_patterns("mydata", "runs"))
    monkeypatch.chdir(tmp_path / "place")
    section = PAGES["README.md"].split("## Your own photographs")[1].split("\n## ")[0]
    lines = re.findall(r"^xpcap .*", section, re.MULTILINE)
    assert [line.split()[1] for line in lines] == ["data", "train", "caption"]
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    assert result.stdout.startswith("new.jpg\n  xpcap ")


def modules():
    yield "xpcap"
    for module in pkgutil.walk_packages(xpcap.__path__, "xpcap."):
        if not module.name.endswith("__main__"):
            yield module.name


NEEDS = {
    "xpcap.kernels.compiled": "numba",
    "xpcap.kernels.compiled_attention": "numba",
    "xpcap.kernels.compiled_sampling": "numba",
    "xpcap.kernels.compiled_transformer": "numba",
    "xpcap.exchange.onnx_graph": "onnx",
    "xpcap.exchange.onnx_operations": "onnx",
    "xpcap.exchange.onnx_recurrent": "onnx",
    "xpcap.exchange.onnx_transformer": "onnx",
}


@pytest.mark.parametrize("name", list(modules()))
def test_docstrings_and_their_examples(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0
