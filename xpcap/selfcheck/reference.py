"""The worked cases of the captioning system: results of other implementations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib import resources
from typing import Any

import numpy

from xpcap import layers
from xpcap.backend import Backend
from xpcap.gradcheck import rel_error
from xpcap.models import CaptioningRNN
from xpcap.selfcheck.cases import LAYERS, Check, Sizes, captioner_gradients, on_device

SEED = 9  # no gradient of these draws is so close to zero that its relative error is all rounding


def load_cases() -> dict[str, Any]:
    """Read the worked cases from `reference_cases.json`, which documents its own fields."""
    text = resources.files("xpcap.selfcheck").joinpath("reference_cases.json").read_text("utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def reference_checks(backend: Backend) -> Iterator[Check]:
    """Check every output, gradient and loss of the worked cases on a backend."""
    cases = load_cases()
    for function, case in cases.items():
        if function.endswith("_forward"):
            yield from _forward(backend, function, case)
    for number, check in enumerate(cases["temporal_softmax_loss"]["checks"]):
        yield _expected_loss(backend, number, check)
    yield _captioner_loss(backend, cases["captioning_rnn_loss"])
    yield from _gradients(backend, cases["gradient_checks"])


def _array(value: Any) -> numpy.ndarray:
    if isinstance(value, dict):
        (start, stop), shape = value["linspace"], value["shape"]
        return numpy.linspace(start, stop, num=math.prod(shape)).reshape(shape)
    return numpy.asarray(value)


def _forward(backend: Backend, function: str, case: dict[str, Any]) -> Iterator[Check]:
    limit = case["rel_error_below"]
    expected = {name: value for name, value in case.items() if name.startswith("expected_")}
    arguments = {
        name: _array(value)
        for name, value in case.items()
        if name not in expected and name != "rel_error_below"
    }
    *outputs, _ = getattr(layers, function)(**on_device(backend, arguments))
    for (name, value), output in zip(expected.items(), outputs, strict=True):
        what = f"reference {function} {name.removeprefix('expected_')}"
        yield Check(what, rel_error(output, numpy.asarray(value)), limit)


def _expected_loss(backend: Backend, number: int, check: dict[str, Any]) -> Check:
    """Check the loss of nearly equal scores: log(V) per step with a true mask, on average."""
    rng = numpy.random.default_rng(number)
    N, T, V = check["N"], check["T"], check["V"]
    x = backend.to_device(0.001 * rng.standard_normal((N, T, V)))
    y = backend.to_device(rng.integers(V, size=(N, T)))
    mask = backend.to_device(rng.random((N, T)) < check["p"])
    loss = float(layers.temporal_softmax_loss(x, y, mask)[0])
    name = f"reference temporal_softmax_loss N={N} T={T} p={check['p']}"
    return Check(name, abs(loss / check["loss_about"] - 1), 0.05)


def _captioner_loss(backend: Backend, case: dict[str, Any]) -> Check:
    """Check the loss of a float32 captioner whose parameters are replaced by float64."""
    words = case["word_to_idx"]
    model = CaptioningRNN(
        words, case["input_dim"], case["wordvec_dim"], case["hidden_dim"], "rnn",
        seed=0, backend=backend,
    )  # fmt: skip
    for name, value in model.params.items():
        replacement = numpy.linspace(-1.4, 1.3, num=value.size).reshape(value.shape)
        model.params[name] = backend.to_device(replacement)
    features = backend.to_device(_array(case["rnn"]["features"]))
    captions = numpy.arange(case["N"] * case["T"]) % len(words)
    loss, _ = model.loss(features, backend.to_device(captions.reshape(case["N"], case["T"])))
    error = abs(float(loss) - case["rnn"]["expected_loss"])
    return Check("reference captioning_rnn_loss rnn", error, case["abs_error_below"])


def _gradients(backend: Backend, checks: dict[str, Any]) -> Iterator[Check]:
    layer_cases = {case.name: case for case in LAYERS}
    for function, check in checks.items():
        case = layer_cases.get(function.removesuffix("_backward"))
        if case is None:
            continue
        sizes = {name: check[name] for name in Sizes._fields if name in check}
        sizes.setdefault("H", check.get("M", 1))
        rng = numpy.random.default_rng(SEED)
        arguments = {
            name: rng.standard_normal(value.shape) if value.dtype.kind == "f" else value
            for name, value in case.make_args(rng, Sizes(**sizes)).items()
        }
        for name, error in case.gradient_errors(backend, arguments).items():
            yield Check(f"reference {function} d{name}", error, check["below"])
    check = dict(checks["captioning_rnn_parameters"])
    limit = check.pop("below")
    found = captioner_gradients(backend, CaptioningRNN, 0.0, **check, cell_type="rnn")
    for name, (error, _) in found.items():
        yield Check(f"reference captioning_rnn d{name}", error, limit)
