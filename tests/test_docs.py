import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import click
import pytest

import xpcap
from xpcap.cli import main
from xpcap.data.scenes import make_scenes

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL_LINES = [
    line.split("#")[0]
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def commands(group, path):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, [*path, name])
        else:
            yield [*path, name], command


COMMANDS = list(commands(main, ["xpcap"]))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=lambda x: str(x))
def test_every_command_has_help_and_stands_in_the_readme(path, command):
    assert f"`{' '.join(path)}" in README
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_every_command_line_of_the_readme_is_one():
    known = {" ".join(path[1:]): command for path, command in COMMANDS}
    lines = re.findall(r"\bxpcap ((?:data )?[a-z-]+)([^\n&`]*)", "\n".join(SHELL_LINES))
    assert len(lines) >= 5
    for name, rest in lines:
        assert name in known
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in shlex.split(rest) if word.startswith("--")} <= options


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    make_scenes(folder / "datasets" / "scenes", train=100, val=4)
    return folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.split("\n")[0])
def test_the_readmes_snippets_run(snippet, place, monkeypatch):
    monkeypatch.chdir(place)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})


def test_the_readmes_ten_lines_are_ten():
    lines = [line for line in SNIPPETS[0].splitlines() if line and "import" not in line]
    assert len(lines) <= 10


def modules():
    yield "xpcap"
    for module in pkgutil.walk_packages(xpcap.__path__, "xpcap."):
        if not module.name.endswith("__main__"):
            yield module.name


NEEDS = {"xpcap.kernels.compiled": "numba", "xpcap.exchange.onnx_graph": "onnx"}


@pytest.mark.parametrize("name", list(modules()))
def test_docstrings_and_their_examples(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0
