"""A recurrent captioner as one ONNX graph: features in, whole captions out.

The step of each cell is written in elementary operators, in our order of gates. ONNX's `Loop` over
words ends when all captions have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

import xpcap
from xpcap.data.vocabulary import END, NULL, START
from xpcap.errors import DataError
from xpcap.exchange.contents import TEXT, Contents, description
from xpcap.files import new_file

_OPSET, _IR_VERSION = 17, 8  # of 2022, which all runtimes read
_LARGEST = 2**31  # bytes of an ONNX file
_FLOATS, _INTEGERS, _BOOLEANS = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

Operation: TypeAlias = tuple[Any, ...]
"""An operator, its inputs, its outputs, and optionally its attributes."""

_PRODUCTS: list[Operation] = [
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
    ("Where", "active best null", "token"),
    ("Where", "active log_best zero", "log_prob"),
    ("Equal", "best end", "ends"),
    ("Not", "ends", "continues"),
    ("And", "active continues", "next_active"),
    ("Cast", "next_active", "ones", {"to": _INTEGERS}),
    ("ReduceSum", "ones", "count_active", {"keepdims": 0}),
    ("Cast", "count_active", "any_active", {"to": _BOOLEANS}),
]


def write_onnx(path: Path, contents: Contents, max_length: int, banned: Sequence[int] = ()) -> None:
    """Write the graph of `greedy_graph`."""
    content = greedy_graph(contents, max_length, banned).SerializeToString()
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def greedy_graph(
    contents: Contents, max_length: int, banned: Sequence[int] = ()
) -> onnx.ModelProto:
    """Build a float32 graph that captions greedily: always the most probable next word.

    Its input is `features (N, D)` as the extractor computes them; the graph includes the transform
    of `contents`. Its outputs are `words (N, T)` int64, where T is the length of the longest
    caption, `<NULL>` after `<END>`; and `log_probs (N, T)` in nats, 0 after `<END>`. Its metadata
    have the text `description`. Captions have at most `max_length` words, with `<END>`, and none of
    the `banned` ones. A captioner that is larger than ONNX allows raises a `DataError`.
    """
    cell, index = contents.config["model"]["cell_type"], contents.vocabulary.word_to_idx
    D, H = contents.params["W_proj"].shape
    mask = numpy.zeros(len(index))
    mask[list(banned)] = -numpy.inf
    constants = {**contents.params, "mask": mask, "zero": numpy.zeros(())}
    operations: list[Operation] = []
    if contents.transform is not None:
        pca = contents.transform
        D = len(pca.mean)
        rounded = pca.mean.astype(numpy.float32)  # as PCA.transform does
        constants |= {"mean": rounded, "components": pca.components}
        constants["remainder"] = (rounded - pca.mean) @ pca.components.T
        operations = [
            ("Sub", "features mean", "centred"),
            ("Gemm", "centred components remainder", "reduced", {"transB": 1}),
        ]
    size = sum(4 * value.size for value in constants.values())
    if size >= _LARGEST:
        raise DataError(f"the captioner has {size} bytes; expected less than {_LARGEST} for ONNX")
    constants = {name: value.astype(numpy.float32) for name, value in constants.items()}
    constants |= {"end": numpy.array(index[END]), "null": numpy.array(index[NULL])}
    constants |= {"max_length": numpy.array(max_length), "true": numpy.array(True)}
    states = ["h", "c"] if cell == "lstm" else ["h"]
    carried = ["word", "active", *states]
    operations += [
        ("Gemm", f"{'reduced' if operations else 'features'} W_proj b_proj", "first_h"),
        ("Shape", "features", "count", {"start": 0, "end": 1}),
        ("ConstantOfShape", "count", "first_word", _filled(index[START])),
        ("ConstantOfShape", "count", "first_active", _filled(True)),
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
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
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
    """Build the body of the loop: one word of each caption."""
    return helper.make_graph(
        _nodes([*_PRODUCTS, *_CELLS[cell], *_CHOICE]),
        "step",
        [
            *_values(["t"], _INTEGERS),
            *_values(["go"], _BOOLEANS),
            *_values(["word"], _INTEGERS, "N"),
            *_values(["active"], _BOOLEANS, "N"),
            *_values(states, _FLOATS, "N", H),
        ],
        [
            *_values(["any_active"], _BOOLEANS),
            *_values(["best"], _INTEGERS, "N"),
            *_values(["next_active"], _BOOLEANS, "N"),
            *_values([f"next_{state}" for state in states], _FLOATS, "N", H),
            *_values(["token"], _INTEGERS, "N"),
            *_values(["log_prob"], _FLOATS, "N"),
        ],
    )


def _nodes(operations: Sequence[Operation]) -> list[onnx.NodeProto]:
    return [
        helper.make_node(operator, inputs.split(), outputs.split(), **dict(*attributes))
        for operator, inputs, outputs, *attributes in operations
    ]


def _values(names: Sequence[str], kind: int, *shape: str | int) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, kind, shape) for name in names]


def _filled(value: Any) -> dict[str, Any]:
    return {"value": numpy_helper.from_array(numpy.array([value]))}
