"""The tutorial notebooks run from their first cells to their last."""

import ast
import json
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


def run_cell(source, names):
    """Run a cell; return the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "notebook", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "notebook", "eval"), names)


def run_notebook(name):
    """Run all cells; return their values, and the names they define."""
    pytest.importorskip("matplotlib", reason="needs the extra report").use("agg")
    cells = json.loads((TOOLS / name).read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code), "outputs are stripped"
    names = {}
    return [run_cell("".join(cell["source"]), names) for cell in code], names


def test_the_tutorial_runs(capsys):
    values, names = run_notebook("tutorial.ipynb")
    printed = capsys.readouterr().out
    assert "epoch 10/10" in printed
    errors = [value for value in values if isinstance(value, dict) and "Wh" in value]
    assert max(errors[0].values()) < 1e-6, "gradient check"
    assert names["losses"][-1] < 0.2 * names["losses"][0], "overfitting"
    assert values[-1] is None


def test_the_tutorial_of_attention_runs():
    _, names = run_notebook("tutorial_attention.ipynb")
    assert max(names["attention_errors"].values()) < 1e-6
    errors = {k: v for k, v in names["block_errors"].items() if k != "self.b_qkv"}
    assert len(errors) == 22
    assert max(errors.values()) < 1e-6
    assert not names["db_key"].any()
    assert names["db_query"].any()
    assert (names["reach"] > 0).tolist() == (names["numpy"].tri(8) > 0).tolist(), "causal"
    assert names["cross_difference"] < 1e-12
    assert all(score["CIDEr-D"] > 2 for score in names["scores"].values()), "both have learned"
    first, last = names["by_layer"].words[[0, -1], 0]
    assert last < first < 2.5 * last, "as the text says"
    assert names["cache_difference"] < 1e-12
