"""The ONNX graphs of captioners with a cell, with and without attention.

The step of each cell is written in elementary operators, in our order of gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy

from xpcap.exchange.onnx_operations import Graph, Operation, filled

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


def recurrent_graph(sizes: Mapping[str, Any], regions: bool) -> Graph:
    """Return the graph for the sizes of a model, and features that are regions or not."""
    return _with_cell(sizes, regions, [], _READ, [("Identity", "next_h", "hidden")])


def attention_graph(sizes: Mapping[str, Any], regions: bool) -> Graph:
    """Return the graph of a model that looks at regions."""
    return _with_cell(
        sizes,
        regions,
        [("MatMul", "given W_grid", "unbiased_grid"), ("Add", "unbiased_grid b_grid", "grid")],
        _look(sizes["scoring"]),
        [("MatMul", "context W_context", "of_image"), ("Add", "next_h of_image", "hidden")],
    )


def _with_cell(
    sizes: Mapping[str, Any],
    regions: bool,
    start: list[Operation],
    read: list[Operation],
    hidden: list[Operation],
) -> Graph:
    """Return the graph of a family with a cell, which reads to `ax` and `ah`."""
    cell, H = sizes["cell_type"], sizes["hidden_dim"]
    return Graph(
        [
            *(_MEAN if regions else [("Identity", "given", "vector")]),
            *start,
            ("Gemm", "vector W_proj b_proj", "first_h"),
            ("Shape", "first_h", "shape"),
            ("ConstantOfShape", "shape", "first_c", filled(numpy.float32(0))),
        ],
        [*read, *_CELLS[cell], *hidden],
        {"h": ("N", H), **({"c": ("N", H)} if cell == "lstm" else {})},
        {"root_of_width": numpy.sqrt(H)},
    )
