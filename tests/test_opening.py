"""A checkpoint whose configuration, vocabulary and arrays disagree is refused."""

from dataclasses import replace

import numpy
import pytest

from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import CheckpointError
from xpcap.models import FAMILIES, CaptioningRNN
from xpcap.runs.checkpoint import Checkpoint, TrainingState, read_checkpoint, write_checkpoint
from xpcap.runs.opening import build_model, open_run

WORDS = Vocabulary(["<NULL>", "<START>", "<END>", "<UNK>", "cat"])
SIZES = {"input_dim": 3, "wordvec_dim": 2, "hidden_dim": 4, "cell_type": "gru"}


def checkpoint(model=None, **more):
    shapes = CaptioningRNN.shapes(len(WORDS), **SIZES)
    parameters = {name: numpy.ones(shape, "f4") for name, shape in shapes.items()}
    config = {"model": {**SIZES, "dropout": 0.5, **(model or {})},
              "data": {"kind": "fc7", "folder": "x"}}  # fmt: skip
    parameters = {
        name: value for name, value in {**parameters, **more}.items() if value is not None
    }
    return Checkpoint(config, WORDS, TrainingState(parameters))


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ({"family": "none"}, {}, "family 'none' is unknown; expected recurrent"),
        ({"family": []}, {}, "'model' cannot be built"),
        ({"hidden_dim": 5}, {}, r"'W_proj' is of shape \(3, 4\); expected \(3, 5\)"),
        ({"hidden_dim": 10**30}, {}, r"expected \(3, 10{30}\)"),
        ({"input_dim": "3"}, {}, r"expected \('3', 4\)"),
        ({"cell_type": "lstm"}, {}, r"expected \(2, 16\)"),
        ({"cell_type": "none"}, {}, "'model' cannot be built: cell 'none' is unknown"),
        ({"dropout": 2}, {}, "'model' cannot be built"),
        ({"other": 2}, {}, "'model' cannot be built"),
        ({}, {"W_proj": None}, r"'W_proj' is of shape None; expected \(3, 4\)"),
        ({}, {"more.0": numpy.ones(3, "f4")}, r"'more\.0' is of shape \(3,\); expected None"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_memory_is_taken(
    tmp_path, monkeypatch, model, more, message
):
    if "cannot" not in message:
        monkeypatch.setattr(CaptioningRNN, "__init__", lambda *args, **sizes: pytest.fail("built"))
    with pytest.raises(CheckpointError, match=message):
        build_model(tmp_path / "a", checkpoint(model, **more))


@pytest.mark.parametrize("shape", [[], [3.0], [2, 3, 4], "3", [True]])
def test_a_shape_of_features_is_one_or_two_numbers(shape, tmp_path):
    wrong = checkpoint()
    wrong.config["data"]["shape"] = shape
    with pytest.raises(
        CheckpointError, match=r"expected 'shape' of 'data' to be \[D\] or \[L, D\]"
    ):
        build_model(tmp_path / "x.safetensors", wrong)


def test_a_family_is_found_by_its_name_and_may_use_dots(tmp_path, monkeypatch):
    class Dotted(CaptioningRNN):
        family = "dotted"

        @classmethod
        def shapes(cls, words, **sizes):
            return {**super().shapes(words, **sizes), "blocks.0.attention.Wq": (2, 3)}

    monkeypatch.setitem(FAMILIES, "dotted", Dotted)
    given = checkpoint({"family": "dotted"}, **{"blocks.0.attention.Wq": numpy.ones((2, 3), "f4")})
    memory = {"m": given.state.parameters}
    write_checkpoint(tmp_path / "a", replace(given, state=replace(given.state, memory=memory)))
    model = open_run(tmp_path / "a", "cpu").model
    assert type(model) is Dotted
    assert model.params["blocks.0.attention.Wq"].tolist() == [[1, 1, 1]] * 2
    assert read_checkpoint(tmp_path / "a").state.memory["m"].keys() == model.params.keys()
