"""A captioner as one ONNX graph: features in, whole captions out.

ONNX's `Loop` over words ends when all captions have. What a family computes before the loop and in
a step of it is in a file of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
import onnx
from onnx import helper, numpy_helper

import xpcap
from xpcap.data.pca import PCA
from xpcap.data.vocabulary import END, NULL, START
from xpcap.errors import DataError
from xpcap.exchange.contents import TEXT, Contents, description
from xpcap.exchange.onnx_operations import (
    BOOLEANS,
    FLOATS,
    INTEGERS,
    Graph,
    Operation,
    filled,
    nodes,
    present,
    value,
)
from xpcap.exchange.onnx_recurrent import attention_graph, recurrent_graph
from xpcap.exchange.onnx_transformer import transformer_graph
from xpcap.files import new_file
from xpcap.models import FAMILIES

_OPSET, _IR_VERSION = 17, 8  # of 2022, which all runtimes read
_LARGEST = 2**31  # bytes of an ONNX file

_GRAPHS = {
    "recurrent": recurrent_graph, "attention": attention_graph, "transformer": transformer_graph,
}  # fmt: skip
"""By family, from a model's sizes and whether its features are regions."""

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
    ("Cast", "next_active", "ones", {"to": INTEGERS}),
    ("ReduceSum", "ones", "count_active", {"keepdims": 0}),
    ("Cast", "count_active", "any_active", {"to": BOOLEANS}),
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
    family, D = sizes.get("family", "recurrent"), len(contents.params["W_proj"])
    described = contents.config["data"].get("shape", [D])
    regions = FAMILIES[family].needs_regions or len(described) == 2
    captioner = _GRAPHS[family](sizes, regions)
    mask = numpy.zeros(len(index))
    mask[list(banned)] = -numpy.inf
    constants = {
        **contents.params, **captioner.constants, "mask": mask, "zero": numpy.zeros(()),
        "one": numpy.ones(()), "lowest": numpy.array(-1e30), "true": numpy.array(True),
        "end": numpy.array(index[END]), "null": numpy.array(index[NULL]),
        "max_length": numpy.array(max_length), "axis_1": numpy.array([1]),
        "axis_2": numpy.array([2]),
    }  # fmt: skip
    operations: list[Operation] = [("Identity", "features", "given")]
    if contents.transform is not None:
        operations, more = _transformed(contents.transform, regions)
        constants |= more
        D = len(contents.transform.mean)
    size = sum(4 * array.size for array in constants.values())
    if size >= _LARGEST:
        raise DataError(f"the captioner has {size} bytes; expected less than {_LARGEST} for ONNX")
    carried = ["word", "active", *captioner.states]
    step = [*captioner.step, *_CHOICE]
    operations = [
        ("Shape", "features", "count", {"start": 0, "end": 1}),
        *(present("features") if regions else []),
        *operations,
        *captioner.start,
        ("ConstantOfShape", "count", "first_word", filled(index[START])),
        ("ConstantOfShape", "count", "first_active", filled(True)),
        (
            "Loop",
            " ".join(["max_length", "true", *(f"first_{name}" for name in carried)]),
            " ".join([*(f"last_{name}" for name in carried), "words_by_step", "log_probs_by_step"]),
            {"body": _body(step, captioner)},
        ),
        ("Transpose", "words_by_step", "words", {"perm": [1, 0]}),
        ("Transpose", "log_probs_by_step", "log_probs", {"perm": [1, 0]}),
    ]
    read = {name for _, inputs, *_ in [*operations, *step] for name in inputs.split()}
    graph = helper.make_graph(
        nodes(operations),
        "captioner",
        [value("features", FLOATS, "N", *(["L"] if regions else []), D)],
        [value("words", INTEGERS, "N", "T"), value("log_probs", FLOATS, "N", "T")],
        [_constant(name, array) for name, array in constants.items() if name in read],
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


def _constant(name: str, array: numpy.ndarray) -> onnx.TensorProto:
    """Convert a constant; floating numbers are single precision."""
    single = array.dtype.kind == "f"
    return numpy_helper.from_array(array.astype(numpy.float32) if single else array, name)


def _body(step: Sequence[Operation], captioner: Graph) -> onnx.GraphProto:
    """Build the body of the loop: one word of each caption."""
    states = captioner.states.items()
    return helper.make_graph(
        nodes(step),
        "step",
        [
            value("t", INTEGERS),
            value("go", BOOLEANS),
            value("word", INTEGERS, "N"),
            value("active", BOOLEANS, "N"),
            *(value(name, FLOATS, *shape) for name, shape in states),
        ],
        [
            value("any_active", BOOLEANS),
            value("best", INTEGERS, "N"),
            value("next_active", BOOLEANS, "N"),
            *(value(f"next_{name}", FLOATS, *shape) for name, shape in states),
            value("token", INTEGERS, "N"),
            value("log_prob", FLOATS, "N"),
        ],
    )
