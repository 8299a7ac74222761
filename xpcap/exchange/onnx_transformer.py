"""The ONNX graph of a Transformer captioner; see `xpcap.models.transformer`.

Keys and values of the words before are states of the loop, one row longer after each step; those of
the regions are computed before it. Rows are `(N, T, H)`, in a step `(N, 1, H)`, and heads
`(N, A, T, d)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy

from xpcap.exchange.onnx_operations import Graph, Operation, filled, present
from xpcap.layers.feed_forward import CUBIC, SLOPE
from xpcap.layers.normalization import EPSILON
from xpcap.layers.positions import sinusoids


def transformer_graph(sizes: Mapping[str, Any], regions: bool) -> Graph:
    """Return the graph for the sizes of a model, and features that are regions or not."""
    H, A = sizes["hidden_dim"], sizes["heads"]
    constants = {
        "root_of_width": numpy.sqrt(H), "scale_of_scores": 1 / numpy.sqrt(H // A),
        "slope": numpy.array(SLOPE), "cubic": numpy.array(CUBIC), "half": numpy.array(0.5),
        "split": numpy.array([0, 0, A, H // A]), "joined": numpy.array([0, 0, H]),
        "no_rows": numpy.array([A, 0, H // A]), "axes_1_2": numpy.array([1, 2]),
    }  # fmt: skip
    if sizes["positions"] == "sinusoidal":
        constants["W_position"] = sinusoids(numpy, sizes["max_length"], H) / math.sqrt(H)
    start = [
        *([("Identity", "given", "rows")] if regions else _one_region()),
        ("Unsqueeze", "present axes_1_2", "present_keys"),
        ("Unsqueeze", "is_present axes_1_2", "is_present_keys"),
        *_affine("rows", "W_proj", "b_proj", "encoder.x"),
    ]
    x = "encoder.x"
    for k in range(sizes["encoder_layers"]):
        start += _self(x, f"encoder.{k}.self")
        start += _feed(f"encoder.{k}.self.x", f"encoder.{k}.feed")
        x = f"encoder.{k}.feed.x"
    start += [
        _norm(x, "regions.", "regions"),
        ("Concat", "count no_rows", "shape_of_no_rows", {"axis": 0}),
    ]
    step: list[Operation] = [
        ("Gather", "W_embed word", "vector_of_word"),
        ("Gather", "W_position t", "vector_of_position"),
        ("Add", "vector_of_word vector_of_position", "vector"),
        ("Mul", "vector root_of_width", "scaled_vector"),
        ("Unsqueeze", "scaled_vector axis_1", "layer.x"),
    ]
    x, states = "layer.x", []
    for k in range(sizes["layers"]):
        layer = f"layer.{k}"
        for part, W in (("keys", "W_key"), ("values", "W_value")):
            states.append(name := f"{layer}.self.{part}")
            start += [
                ("ConstantOfShape", "shape_of_no_rows", f"first_{name}", filled(numpy.float32(0))),
                ("MatMul", f"regions {layer}.cross.{W}", f"{layer}.cross.{part}"),
                *_heads(f"{layer}.cross.{part}"),
            ]
        step += _self(x, f"{layer}.self", kept=True)
        step += _cross(f"{layer}.self.x", f"{layer}.cross")
        step += _feed(f"{layer}.cross.x", f"{layer}.feed")
        x = f"{layer}.feed.x"
    step += [_norm(x, "", "hidden_row"), ("Squeeze", "hidden_row axis_1", "hidden")]
    return Graph(start, step, dict.fromkeys(states, ("N", A, None, H // A)), constants)


def _one_region() -> list[Operation]:
    return [("Unsqueeze", "given axis_1", "rows"), *present("rows")]


def _self(x: str, layer: str, kept: bool = False) -> list[Operation]:
    """Return a layer in which rows look at all that are present, or at those kept and at itself."""
    q, k, v = (f"{layer}.{part}" for part in "qkv")
    parts = [
        _norm(x, f"{layer}.", f"{layer}.n"),
        *_affine(f"{layer}.n", f"{layer}.W_qkv", f"{layer}.b_qkv", f"{layer}.qkv"),
        ("Split", f"{layer}.qkv", f"{q} {k} {v}", {"axis": 2}),
        *(operation for part in (q, k, v) for operation in _heads(part)),
    ]
    if kept:
        parts += [
            ("Concat", f"{layer}.keys {k}.heads", f"next_{layer}.keys", {"axis": 2}),
            ("Concat", f"{layer}.values {v}.heads", f"next_{layer}.values", {"axis": 2}),
        ]
        looking = _look(layer, f"{q}.heads", f"next_{layer}.keys", f"next_{layer}.values", False)
    else:
        looking = _look(layer, f"{q}.heads", f"{k}.heads", f"{v}.heads", True)
    return [*parts, *looking, *_added(x, f"{layer}.context", layer)]


def _cross(x: str, layer: str) -> list[Operation]:
    """Return a layer in which a word looks at the regions that are present."""
    q, k, v = (f"{layer}.{part}" for part in ("q", "keys", "values"))
    return [
        _norm(x, f"{layer}.", f"{layer}.n"),
        *_affine(f"{layer}.n", f"{layer}.W_query", f"{layer}.b_query", q),
        *_heads(q),
        *_look(layer, f"{q}.heads", f"{k}.heads", f"{v}.heads", True),
        ("Add", f"{layer}.context {layer}.b_value", f"{layer}.biased"),
        *_added(x, f"{layer}.biased", layer),
    ]


def _feed(x: str, layer: str) -> list[Operation]:
    a = f"{layer}.a"
    return [
        _norm(x, f"{layer}.", f"{layer}.n"),
        *_affine(f"{layer}.n", f"{layer}.W_in", f"{layer}.b_in", a),
        ("Mul", f"{a} {a}", f"{a}.square"),
        ("Mul", f"{a}.square cubic", f"{a}.more"),
        ("Add", f"{a}.more one", f"{a}.factor"),
        ("Mul", f"{a} {a}.factor", f"{a}.bent"),
        ("Mul", f"{a}.bent slope", f"{a}.u"),
        ("Tanh", f"{a}.u", f"{a}.t"),
        ("Add", f"{a}.t one", f"{a}.twice"),
        ("Mul", f"{a}.twice half", f"{a}.share"),
        ("Mul", f"{a} {a}.share", f"{a}.active"),
        *_added(x, f"{a}.active", layer),
    ]


def _look(layer: str, query: str, keys: str, values: str, masked: bool) -> list[Operation]:
    """Return how heads look, and their `context` side by side; 0 where no region is present."""
    name = f"{layer}.scores"
    scores: list[Operation] = [
        ("Transpose", keys, f"{layer}.columns", {"perm": [0, 1, 3, 2]}),
        ("MatMul", f"{query} {layer}.columns", f"{layer}.products"),
        ("Mul", f"{layer}.products scale_of_scores", name),
    ]
    if masked:
        scores += [
            ("Where", f"present_keys {name} lowest", f"{name}.present"),
            ("Softmax", f"{name}.present", f"{layer}.shares", {"axis": 3}),
            ("Mul", f"{layer}.shares is_present_keys", f"{layer}.alpha"),
        ]
    else:
        scores.append(("Softmax", name, f"{layer}.alpha", {"axis": 3}))
    return [
        *scores,
        ("MatMul", f"{layer}.alpha {values}", f"{layer}.seen"),
        ("Transpose", f"{layer}.seen", f"{layer}.seen.rows", {"perm": [0, 2, 1, 3]}),
        ("Reshape", f"{layer}.seen.rows joined", f"{layer}.context"),
    ]


def _heads(rows: str) -> list[Operation]:
    """Return how rows are split into `ROWS.heads`."""
    return [
        ("Reshape", f"{rows} split", f"{rows}.split"),
        ("Transpose", f"{rows}.split", f"{rows}.heads", {"perm": [0, 2, 1, 3]}),
    ]


def _norm(x: str, layer: str, out: str) -> Operation:
    return (
        "LayerNormalization", f"{x} {layer}w_norm {layer}b_norm", out, {"epsilon": EPSILON},
    )  # fmt: skip


def _affine(x: str, W: str, b: str, out: str) -> list[Operation]:
    return [("MatMul", f"{x} {W}", f"{out}.unbiased"), ("Add", f"{out}.unbiased {b}", out)]


def _added(x: str, rows: str, layer: str) -> list[Operation]:
    """Return how `LAYER.x` is computed, x and what a layer adds."""
    return [
        *_affine(rows, f"{layer}.W_out", f"{layer}.b_out", f"{layer}.out"),
        ("Add", f"{x} {layer}.out", f"{layer}.x"),
    ]
