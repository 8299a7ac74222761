"""Small networks in ONNX format."""

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = numpy.random.default_rng(0)


def saved(path, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(value, name) for name, value in dict(weights).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def flat_product(path, shape=("N", 3, 8, 8), kind=TensorProto.FLOAT, dim=5):
    """Flatten and multiply: the smallest network that sees every pixel."""
    dtype = numpy.float16 if kind == TensorProto.FLOAT16 else numpy.float32
    W = RNG.standard_normal((3 * 8 * 8, dim)).astype(dtype)
    nodes = [node("Flatten", "x", "flat", axis=1), node("MatMul", "flat W", "y")]
    saved(path, nodes, [("x", kind, shape)], [("y", kind, (shape[0], dim))], {"W": W})
    return W
