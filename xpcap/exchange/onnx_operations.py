"""What ONNX graphs of captioners are built of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOATS, INTEGERS, BOOLEANS = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

Operation: TypeAlias = tuple[Any, ...]
"""An operator, its inputs, its outputs, and optionally its attributes."""


class Graph(NamedTuple):
    """What a family computes: what precedes the loop, and a step of it.

    From `given`, the features, `start` computes each state's `first_NAME`. From `word (N,)`, its
    number `t` and the states, `step` computes `hidden (N, H)` and each state's `next_NAME`.
    """

    start: Sequence[Operation]
    step: Sequence[Operation]
    states: Mapping[str, Sequence[str | int | None]]  # the shape of each; None changes
    constants: Mapping[str, numpy.ndarray]


def present(regions: str) -> list[Operation]:
    """Return how booleans `present (N, L)`, and as numbers `is_present`, are computed."""
    return [
        ("Abs", regions, "sizes_of_numbers"),
        ("ReduceMax", "sizes_of_numbers", "largest", {"axes": [2], "keepdims": 0}),
        ("Greater", "largest zero", "present"),
        ("Where", "present one zero", "is_present"),
        ("Unsqueeze", "is_present axis_2", "is_present_column"),
    ]


def nodes(operations: Sequence[Operation]) -> list[onnx.NodeProto]:
    """Convert operations."""
    return [
        helper.make_node(operator, inputs.split(), outputs.split(), **dict(*attributes))
        for operator, inputs, outputs, *attributes in operations
    ]


def value(name: str, kind: int, *shape: str | int | None) -> onnx.ValueInfoProto:
    """Describe an input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def filled(value: Any) -> dict[str, Any]:
    """Return the attributes of a `ConstantOfShape`."""
    return {"value": numpy_helper.from_array(numpy.array([value]))}
