"""A captioner as one ONNX graph: features in, whole captions out.

The step of each cell is written in elementary operators, in our order of gates. ONNX's `Loop` over
words ends when all captions have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

import xpcap
from xpcap.data.pca import PCA
from xpcap.data.vocabulary import END, NULL, START
from xpcap.errors import DataError
from xpcap.exchange.contents import TEXT, Contents, description
from xpcap.files import new_file

_OPSET, _IR_VERSION = 17, 8  # of 2022, which all runtimes read
_LARGEST = 2**31  # bytes of an ONNX file
_FLOATS, _INTEGERS, _BOOLEANS = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

Operation: TypeAlias = tuple[Any, ...]
"""An operator, its inputs, its outputs, and optionally its attributes."""

_PRESENT: list[Operation] = [
    ("Abs", "features", "sizes_of_numbers"),
    ("ReduceMax", "sizes_of_numbers", "largest", {"axes": [2], "keepdims": 0}),
    ("Greater", "largest zero", "present"),
    ("Where", "present one zero", "is_present"),
    ("Unsqueeze", "is_present axis_2", "is_present_column"),
]
_MEAN: list[Operation] = [
    ("ReduceSum", "is_present axis_1", "count_present", {"keepdims": 1}),
    ("Max", "count_present one", "at_least_one"),
    ("ReduceSum", "given axis_1", "sum_of_regions", {"keepdims": 0}),
    ("Div", "sum_of_regions at_least_one", "vector"),
]

_READ: list[Operation] = [
    ("Gather", "W_embed word", "x"),
    ("Gemm", "x Wx b", "ax"),
    ("MatMul", "h Wh", "ah"),
]
_SCORINGS: dict[str, list[Operation]] = {
    "additive": [
        ("Unsqueeze", "query axis_1", "query_of_all"),
        ("Add", "grid query_of_all", "before_tanh"),
        ("Tanh", "before_tanh", "compared"),
        ("MatMul", "compared w_score", "region_scores"),
    ],
    "dot": [
        ("Unsqueeze", "query axis_2", "query_column"),
        ("MatMul", "grid query_column", "dot_column"),
        ("Squeeze", "dot_column axis_2", "dots"),
        ("Div", "dots root_of_width", "region_scores"),
    ],
}


def _look(scoring: str) -> list[Operation]:
    """Return how a step looks and reads; see `xpcap.models.attention`."""
    return [
        ("Gemm", "h W_query b_query", "query"),
        *_SCORINGS[scoring],
        ("Where", "present region_scores lowest", "scores_of_present"),
        ("Softmax", "scores_of_present", "shares", {"axis": 1}),
        ("Mul", "shares is_present", "alpha"),  # all 0 where no region is present
        ("Unsqueeze", "alpha axis_1", "alpha_row"),
        ("MatMul", "alpha_row grid", "seen_row"),
        ("Squeeze", "seen_row axis_1", "seen"),
        ("Gemm", "h W_gate b_gate", "before_gate"),
        ("Sigmoid", "before_gate", "beta"),
        ("Mul", "beta seen", "context"),
        ("Gather", "W_embed word", "x"),
        ("Gemm", "x Wx b", "ax_of_word"),
        ("MatMul", "context Wz", "ax_of_image"),
        ("Add", "ax_of_word ax_of_image", "ax"),
        ("MatMul", "h Wh", "ah"),
    ]


class _Graph(NamedTuple):
    """What a family computes: of `given` before the loop, to `ax` and `ah`, and to `hidden`."""

    start: list[Operation]
    read: list[Operation]
    hidden: list[Operation]


_GRAPHS: dict[str, Callable[[Mapping[str, Any]], _Graph]] = {
    "recurrent": lambda sizes: _Graph([], _READ, [("Identity", "next_h", "hidden")]),
    "attention": lambda sizes: _Graph(
        [("MatMul", "given W_grid", "unbiased_grid"), ("Add", "unbiased_grid b_grid", "grid")],
        _look(sizes["scoring"]),
        [("MatMul", "context W_context", "of_image"), ("Add", "next_h of_image", "hidden")],
    ),
}
"""By family, from a model's sizes."""

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
    ("Gemm", "hidden W_vocab b_vocab", "scores"),
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

    Its input is `features (N, D)` or, of regions, `(N, L, D)` as the extractor computes them, for
    any L; the graph includes the transform of `contents`. Its outputs are `words (N, T)` int64,
    where T is the length of the longest caption, `<NULL>` after `<END>`; and `log_probs (N, T)` in
    nats, 0 after `<END>`. Its metadata have the text `description`. Captions have at most
    `max_length` words, with `<END>`, and none of the `banned` ones. A captioner that is larger than
    ONNX allows raises a `DataError`.
    """
    sizes, index = contents.config["model"], contents.vocabulary.word_to_idx
    cell, family = sizes["cell_type"], sizes.get("family", "recurrent")
    of_family = _GRAPHS[family](sizes)
    D, H = contents.params["W_proj"].shape
    regions = family == "attention" or len(contents.config["data"].get("shape", [D])) == 2
    mask = numpy.zeros(len(index))
    mask[list(banned)] = -numpy.inf
    constants = {
        **contents.params, "mask": mask, "zero": numpy.zeros(()), "one": numpy.ones(()),
        "lowest": numpy.array(-1e30), "root_of_width": numpy.sqrt(H),
    }  # fmt: skip
    operations: list[Operation] = [("Identity", "features", "given")]
    if contents.transform is not None:
        operations, more = _transformed(contents.transform, regions)
        constants |= more
        D = len(contents.transform.mean)
    size = sum(4 * value.size for value in constants.values())
    if size >= _LARGEST:
        raise DataError(f"the captioner has {size} bytes; expected less than {_LARGEST} for ONNX")
    constants = {name: value.astype(numpy.float32) for name, value in constants.items()}
    constants |= {"end": numpy.array(index[END]), "null": numpy.array(index[NULL])}
    constants |= {"max_length": numpy.array(max_length), "true": numpy.array(True)}
    constants |= {"axis_1": numpy.array([1]), "axis_2": numpy.array([2])}
    states = ["h", "c"] if cell == "lstm" else ["h"]
    carried = ["word", "active", *states]
    step = [*of_family.read, *_CELLS[cell], *of_family.hidden, *_CHOICE]
    operations = [
        *(_PRESENT if regions else []),
        *operations,
        *(_MEAN if regions else [("Identity", "given", "vector")]),
        *of_family.start,
        ("Gemm", "vector W_proj b_proj", "first_h"),
        ("Shape", "features", "count", {"start": 0, "end": 1}),
        ("ConstantOfShape", "count", "first_word", _filled(index[START])),
        ("ConstantOfShape", "count", "first_active", _filled(True)),
        ("Shape", "first_h", "shape"),
        ("ConstantOfShape", "shape", "first_c", _filled(numpy.float32(0))),
        (
            "Loop",
            " ".join(["max_length", "true", *(f"first_{name}" for name in carried)]),
            " ".join([*(f"last_{name}" for name in carried), "words_by_step", "log_probs_by_step"]),
            {"body": _body(step, H, states)},
        ),
        ("Transpose", "words_by_step", "words", {"perm": [1, 0]}),
        ("Transpose", "log_probs_by_step", "log_probs", {"perm": [1, 0]}),
    ]
    read = {name for _, inputs, *_ in [*operations, *step] for name in inputs.split()}
    graph = helper.make_graph(
        _nodes(operations),
        "captioner",
        _values(["features"], _FLOATS, "N", *(["L"] if regions else []), D),
        [*_values(["words"], _INTEGERS, "N", "T"), *_values(["log_probs"], _FLOATS, "N", "T")],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in read],
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


def _transformed(transform: PCA, regions: bool) -> tuple[list[Operation], dict[str, numpy.ndarray]]:
    """Return how `given` is computed of `features`, and the constants for it."""
    rounded = transform.mean.astype(numpy.float32)  # as PCA.transform does
    components = transform.components.T
    constants = {
        "mean": rounded, "components": components,
        "remainder": (rounded - transform.mean) @ components,
    }  # fmt: skip
    zeros_for_absent: list[Operation] = [("Mul", "projected is_present_column", "given")]
    return [
        ("Sub", "features mean", "centred"),
        ("MatMul", "centred components", "unshifted"),
        ("Add", "unshifted remainder", "projected" if regions else "given"),
        *(zeros_for_absent if regions else []),
    ], constants


def _body(step: Sequence[Operation], H: int, states: Sequence[str]) -> onnx.GraphProto:
    """Build the body of the loop: one word of each caption."""
    return helper.make_graph(
        _nodes(step),
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
