"""The tutorial notebook runs from its first cell to its last."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "tools" / "tutorial.ipynb"


def run_cell(source, names):
    """Run a cell; return the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, NOTEBOOK.name, "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)


def test_the_tutorial_runs(monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra report").use("agg")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names = {}
    values = [
        run_cell("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"
    ]
    printed = capsys.readouterr().out
    assert "epoch 10/10" in printed
    errors = [value for value in values if isinstance(value, dict) and "Wh" in value]
    assert max(errors[0].values()) < 1e-6, "gradient check"
    assert names["losses"][-1] < 0.2 * names["losses"][0], "overfitting"
    assert values[-1] is None
