"""Features from any vision network in ONNX format, run by onnxruntime (the extra `onnx`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from xpcap import threads
from xpcap.data.extractors.preprocessing import Preprocessing
from xpcap.errors import DataError, first_line, import_extra
from xpcap.files import explained

_TYPES = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16}
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first that is available


class OnnxExtractor:
    """A network from images to features of the shape `shape`: `(D,)`, or `(L, D)` of L regions.

    Its input is `(N, 3, size, size)` or `(N, size, size, 3)`, float32 or float16, and may have a
    fixed batch size. Its output is `(N, D)`, `(N, L, D)`, or maps `(N, D, rows, columns)`, whose
    regions are taken row by row; they are `(N, rows, columns, D)` if the channels of the input are
    last too. Features of only one region are vectors.

    `weights` is the ONNX file, `output` the name of the output to take, or else its only one, and
    `name` is `"onnx"` or the preset's. A file that cannot be used raises a `DataError`, and a
    missing onnxruntime a `ConfigurationError`. `graph` is the network itself, if the file holds
    only its weights.
    """

    version = 1

    def __init__(
        self,
        weights: Path,
        preprocessing: Preprocessing,
        output: str | None = None,
        name: str = "onnx",
        graph: bytes | None = None,
    ) -> None:
        self.name = name
        self.preprocessing = preprocessing
        self.weights = weights
        self.sha256 = digest(weights)
        self._session = _open_session(weights, graph)
        self.output = self._choose_output(output)
        self._input = self._check_input()
        self._dtype = _TYPES[self._input.type]
        self._channels_last = self._input.shape[1] not in (3, None) and self._input.shape[3] == 3
        batch = self._input.shape[0]
        self._batch = batch if isinstance(batch, int) else None
        size = preprocessing.size
        self._cells: dict[str, list[int]] = {}
        self.shape: tuple[int, ...] = self(numpy.zeros((1, 3, size, size), numpy.float32)).shape[1:]

    def describe(self) -> dict[str, Any]:
        """Return all that `open_onnx` needs, ready for JSON; of maps, `grid`: rows and columns."""
        return {
            "name": self.name,
            "version": self.version,
            "weights": str(self.weights.resolve()),
            "sha256": self.sha256,
            "output": self.output,
            "preprocessing": vars(self.preprocessing),
            **self._cells,
        }

    def prepare(self, image: Any) -> numpy.ndarray:
        """Preprocess an image: `(3, size, size)` float32."""
        return self.preprocessing(image)

    def __call__(self, images: numpy.ndarray) -> numpy.ndarray:
        """Compute the features `(N, *shape)` float32 of prepared images `(N, 3, size, size)`."""
        step = self._batch or max(1, len(images))
        parts = [self._rows(images[first : first + step]) for first in range(0, len(images), step)]
        return numpy.concatenate(parts) if parts else numpy.empty((0, *self.shape), numpy.float32)

    def _rows(self, images: numpy.ndarray) -> numpy.ndarray:
        count = len(images)
        if self._batch and count < self._batch:
            fill = numpy.zeros((self._batch - count, *images.shape[1:]), images.dtype)
            images = numpy.concatenate([images, fill])
        found = self._run(images, self.output)
        shape, N = found.shape, len(images)
        if found.ndim not in (2, 3, 4) or shape[0] != N or 0 in shape or found.dtype.kind != "f":
            raise DataError(
                f"{self.weights}: output '{self.output}' is {found.dtype} of shape {shape};"
                f" expected floating ({N}, D), ({N}, L, D) or ({N}, D, rows, columns)"
            )
        if found.ndim == 4:
            channels = 3 if self._channels_last else 1
            found = numpy.moveaxis(found, channels, 3)
            self._cells = {"grid": list(found.shape[1:3])}
            found = found.reshape(N, -1, shape[channels])
        if found.ndim == 3 and found.shape[1] == 1:
            found = found[:, 0]
        return numpy.asarray(found[:count], numpy.float32, order="C")

    def _run(self, images: numpy.ndarray, output: str) -> numpy.ndarray:
        if self._channels_last:
            images = numpy.ascontiguousarray(images.transpose(0, 2, 3, 1))
        feed = {self._input.name: images.astype(self._dtype, copy=False)}
        try:
            (found,) = self._session.run([output], feed)
        except Exception as error:  # onnxruntime has many exception types
            raise DataError(f"{self.weights} cannot be run: {first_line(error)}") from error
        return numpy.asarray(found)

    def _choose_output(self, output: str | None) -> str:
        names = [found.name for found in self._session.get_outputs()]
        if output is None and len(names) != 1:
            raise DataError(
                f"{self.weights} has the outputs {', '.join(names)}; expected the name of one"
            )
        if output is not None and output not in names:
            raise DataError(
                f"{self.weights} has no output '{output}'; expected {' or '.join(names)}"
            )
        return output or names[0]

    def _check_input(self) -> Any:
        inputs = self._session.get_inputs()
        size = self.preprocessing.size
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        if len(inputs) == 1 and inputs[0].type in _TYPES and len(inputs[0].shape or ()) == 4:
            for expected in ((3, size, size), (size, size, 3)):
                sides = zip(inputs[0].shape[1:], expected, strict=True)
                if all(not isinstance(side, int) or side == number for side, number in sides):
                    return inputs[0]
        raise DataError(
            f"{self.weights} takes {found or 'nothing'}; expected one input of float (N, 3, {size},"
            f" {size}) or (N, {size}, {size}, 3), where {size} is the preprocessing's size"
        )


def open_onnx(description: Mapping[str, Any], weights: Path | None = None) -> OnnxExtractor:
    """Return the extractor of a `description` by `OnnxExtractor.describe`, as `open_extractor`."""
    fields = {"name": str, "weights": str, "sha256": str, "output": str, "preprocessing": dict}
    if description.get("version") != OnnxExtractor.version or not all(
        isinstance(description.get(name), kind) for name, kind in fields.items()
    ):
        raise DataError(
            f"the features come from {dict(description)}; expected version"
            f" {OnnxExtractor.version} of an extractor with {', '.join(fields)}"
        )
    path, sha256 = weights or Path(description["weights"]), description["sha256"]
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; expected the weights of '{description['name']}' with SHA-256"
            f" {sha256[:16]}...: say where they are (weights=FILE)"
        )
    found = digest(path)
    if found != sha256:
        raise DataError(
            f"{path} is another file than the features were computed with: SHA-256"
            f" {found[:16]}...; expected {sha256[:16]}..."
        )
    preprocessing = Preprocessing().changed(description["preprocessing"])
    return OnnxExtractor(path, preprocessing, description["output"], description["name"])


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, followed by its external data if there is any."""
    hashed = hashlib.sha256()
    for part in (path, _data_of(path)):
        if part == path or part.is_file():
            with explained(part, "read"), open(part, "rb") as file:
                hashlib.file_digest(file, lambda: hashed)  # updates it
    return hashed.hexdigest()


def _data_of(path: Path) -> Path:
    """Return the file to which PyTorch's exporter writes the weights of a large network."""
    return path.with_name(f"{path.name}.data")


def _open_session(weights: Path, graph: bytes | None) -> Any:
    onnxruntime = import_extra("onnxruntime", f"{weights} needs", "onnx")
    available = onnxruntime.get_available_providers()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads.number()
    options.log_severity_level = 4  # errors are raised
    if graph is None:
        graph = _read(weights, options)
    try:
        return onnxruntime.InferenceSession(
            graph, options, providers=[name for name in _PROVIDERS if name in available]
        )
    except Exception as error:  # onnxruntime has many exception types
        raise DataError(f"{weights} cannot be opened as ONNX: {first_line(error)}") from error


def _read(weights: Path, options: Any) -> bytes:
    """Read a network as bytes, so that onnxruntime reads no other file than its external data."""
    data = _data_of(weights)
    with explained(weights, "read"):
        graph = weights.read_bytes()
        if data.is_file():
            content = data.read_bytes()
            options.add_external_initializers_from_files_in_memory(
                [data.name], [content], [len(content)]
            )
    return graph
