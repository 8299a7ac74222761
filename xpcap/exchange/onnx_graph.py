"""A captioner as one ONNX graph that says whole captions: features in, words out.

The step is written in plain operators, in our order of gates; the loop over words is ONNX's `Loop`,
which ends when the last caption has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy

import xpcap
from xpcap.data.vocabulary import END, NULL, START
from xpcap.errors import ConfigurationError, DataError
from xpcap.exchange.contents import TEXT, Contents, description
from xpcap.files import explained, new_file

if TYPE_CHECKING:
    import onnx

MAX_LENGTH = 30

_OPSET, _IR_VERSION = 17, 8  # those of the year 2022, which every runtime reads
_LARGEST = 2**31  # bytes of an ONNX file
_FLOATS, _INTEGERS, _BOOLEANS = 1, 7, 9  # TensorProto's float32, int64 and bool

Operation: TypeAlias = tuple[Any, ...]
"""An operator, its inputs, its outputs, and perhaps its attributes."""

_MARKS = {"end": END, "null": NULL}
_HALVES: list[Operation] = [
    ("Gather", "W_embed word", "x"),
    ("Gemm", "x Wx b", "ax"),
    ("MatMul", "h Wh", "ah"),
]
_CELLS: dict[str, list[Operation]] = {
    "rnn": [("Add", "ax ah", "a"), ("Tanh", "a", "next_h")],
    "lstm": [
        ("Add", "ax ah", "a"),
        ("Split", "a", "a_i a_f a_o a_g", {"axis": 1}),
        ("Sigmoid", "a_i", "i"),
        ("Sigmoid", "a_f", "f"),
        ("Sigmoid", "a_o", "o"),
        ("Tanh", "a_g", "g"),
        ("Mul", "f c", "kept"),
        ("Mul", "i g", "added"),
        ("Add", "kept added", "next_c"),
        ("Tanh", "next_c", "tanh_c"),
        ("Mul", "o tanh_c", "next_h"),
    ],
    "gru": [
        ("Split", "ax", "ax_r ax_z ax_n", {"axis": 1}),
        ("Split", "ah", "ah_r ah_z ah_n", {"axis": 1}),
        ("Add", "ax_r ah_r", "a_r"),
        ("Add", "ax_z ah_z", "a_z"),
        ("Sigmoid", "a_r", "r"),
        ("Sigmoid", "a_z", "z"),
        ("Add", "ah_n bn", "biased_n"),
        ("Mul", "r biased_n", "reset_n"),
        ("Add", "ax_n reset_n", "a_n"),
        ("Tanh", "a_n", "n"),
        ("Sub", "h n", "h_less_n"),
        ("Mul", "z h_less_n", "moved"),
        ("Add", "n moved", "next_h"),
    ],
}
_CHOICE: list[Operation] = [
    ("Gemm", "next_h W_vocab b_vocab", "scores"),
    ("Add", "scores mask", "allowed"),
    ("ArgMax", "allowed", "best", {"axis": 1, "keepdims": 0}),
    ("LogSoftmax", "scores", "log_softmax", {"axis": 1}),
    ("Add", "log_softmax mask", "log_allowed"),
    ("ReduceMax", "log_allowed", "log_best", {"axes": [1], "keepdims": 0}),
    ("Where", "going_on best null", "said"),
    ("Where", "going_on log_best zero", "log_prob"),
    ("Equal", "best end", "ends"),
    ("Not", "ends", "goes_on"),
    ("And", "going_on goes_on", "still_going_on"),
    ("Cast", "still_going_on", "ones", {"to": _INTEGERS}),
    ("ReduceSum", "ones", "still", {"keepdims": 0}),
    ("Cast", "still", "any", {"to": _BOOLEANS}),
]


def write_onnx(path: Path, contents: Contents, banned: Sequence[int] = ()) -> None:
    """Write the graph of `greedy_graph`.

    Raises
    ------
    ConfigurationError
        If the package onnx is missing.
    DataError
        If the file cannot be written, or the captioner is larger than ONNX allows.
    """
    content = greedy_graph(contents, MAX_LENGTH, banned).SerializeToString()
    with new_file(path) as temporary, explained(path, "write"):
        temporary.write_bytes(content)


def greedy_graph(
    contents: Contents, max_length: int = MAX_LENGTH, banned: Sequence[int] = ()
) -> onnx.ModelProto:
    """Build a graph, all in float32, that captions greedily: always the most likely next word.

    Its input is `features (N, D)`, as the captioner's extractor gives them; if it is known how they
    are reduced, the graph does that. Its outputs are `words (N, T)` int64, T being the length of
    the longest caption, after `<END>` all `<NULL>`; and `log_probs (N, T)` in nats, after `<END>`
    all 0. Its metadata have the text `description`.

    Parameters
    ----------
    contents
        The captioner.
    max_length
        How many words at most, `<END>` included.
    banned
        Indices of words that are never said.

    Raises
    ------
    ConfigurationError
        If the package onnx is missing.
    DataError
        If the captioner is larger than ONNX allows.
    """
    try:
        from onnx import helper
    except ImportError as error:
        raise ConfigurationError(
            "an ONNX file needs onnx, which is not installed; expected the extra 'export'"
            " (pip install 'xpcap[export]')"
        ) from error
    cell, place = contents.config["model"]["cell_type"], contents.vocabulary.word_to_idx
    D, H = contents.params["W_proj"].shape
    mask = numpy.zeros(len(place))
    mask[list(banned)] = -numpy.inf
    constants = {**contents.params, "mask": mask, "zero": numpy.zeros(())}
    operations: list[Operation] = []
    if contents.transform is not None:
        pca = contents.transform
        D = len(pca.mean)
        near = pca.mean.astype(numpy.float32)  # as PCA.transform does
        constants |= {"mean": near, "components": pca.components}
        constants["minus_rest"] = (near - pca.mean) @ pca.components.T
        operations = [
            ("Sub", "features mean", "centred"),
            ("Gemm", "centred components minus_rest", "reduced", {"transB": 1}),
        ]
    size = sum(4 * value.size for value in constants.values())
    if size >= _LARGEST:
        raise DataError(f"the captioner has {size} bytes; expected less than {_LARGEST} for ONNX")
    states = ["h", "c"] if cell == "lstm" else ["h"]
    carried = ["word", "going_on", *states]
    operations += [
        ("Gemm", f"{'reduced' if operations else 'features'} W_proj b_proj", "first_h"),
        ("Shape", "features", "count", {"start": 0, "end": 1}),
        ("ConstantOfShape", "count", "first_word", _filled(place[START])),
        ("ConstantOfShape", "count", "first_going_on", _filled(True)),
        ("Shape", "first_h", "shape"),
        ("ConstantOfShape", "shape", "first_c", _filled(numpy.float32(0))),
        (
            "Loop",
            " ".join(["max_length", "true", *(f"first_{name}" for name in carried)]),
            " ".join([*(f"last_{name}" for name in carried), "words_by_step", "log_probs_by_step"]),
            {"body": _step(cell, H, states)},
        ),
        ("Transpose", "words_by_step", "words", {"perm": [1, 0]}),
        ("Transpose", "log_probs_by_step", "log_probs", {"perm": [1, 0]}),
    ]
    graph = helper.make_graph(
        _nodes(operations),
        "captioner",
        _values(["features"], _FLOATS, "N", D),
        [*_values(["words"], _INTEGERS, "N", "T"), *_values(["log_probs"], _FLOATS, "N", "T")],
        [
            *(_constant(name, value.astype(numpy.float32)) for name, value in constants.items()),
            *(_constant(name, numpy.array(place[mark])) for name, mark in _MARKS.items()),
            _constant("max_length", numpy.array(max_length)),
            _constant("true", numpy.array(True)),
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="xpcap",
        producer_version=xpcap.__version__,
    )
    helper.set_model_props(model, {TEXT: description(contents)})
    return model


def _step(cell: str, H: int, states: Sequence[str]) -> onnx.GraphProto:
    """Build the body of the loop: one word of every caption."""
    from onnx import helper

    return helper.make_graph(
        _nodes([*_HALVES, *_CELLS[cell], *_CHOICE]),
        "step",
        [
            *_values(["t"], _INTEGERS),
            *_values(["go"], _BOOLEANS),
            *_values(["word"], _INTEGERS, "N"),
            *_values(["going_on"], _BOOLEANS, "N"),
            *_values(states, _FLOATS, "N", H),
        ],
        [
            *_values(["any"], _BOOLEANS),
            *_values(["best"], _INTEGERS, "N"),
            *_values(["still_going_on"], _BOOLEANS, "N"),
            *_values([f"next_{state}" for state in states], _FLOATS, "N", H),
            *_values(["said"], _INTEGERS, "N"),
            *_values(["log_prob"], _FLOATS, "N"),
        ],
    )


def _nodes(operations: Sequence[Operation]) -> list[onnx.NodeProto]:
    from onnx import helper

    return [
        helper.make_node(operator, inputs.split(), outputs.split(), **dict(*attributes))
        for operator, inputs, outputs, *attributes in operations
    ]


def _values(names: Sequence[str], kind: int, *shape: str | int) -> list[onnx.ValueInfoProto]:
    from onnx import helper

    return [helper.make_tensor_value_info(name, kind, shape) for name in names]


def _constant(name: str, value: numpy.ndarray) -> onnx.TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(value, name)


def _filled(value: Any) -> dict[str, Any]:
    return {"value": _constant("", numpy.array([value]))}
