"""What is checked: a table of all layers, and gradients of whole captioners; and one comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy

from xpcap import layers
from xpcap.backend import Array, Backend, namespace, to_host
from xpcap.gradcheck import directional_error, gradcheck
from xpcap.models import AttentionRNN, CaptioningRNN, CaptionModel, Transformer
from xpcap.models.attention import SCORINGS
from xpcap.models.recurrent import CELLS

Arguments: TypeAlias = dict[str, Any]


class Check(NamedTuple):
    """What was compared, the error, and its limit."""

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.limit


def scaled_difference(ours: Array, expected: Array) -> float:
    """Return the largest difference of two arrays relative to the largest expected value.

    Each may be on any device, or a number; for different shapes the result is infinite.
    """
    ours, expected = numpy.asarray(to_host(ours)), numpy.asarray(to_host(expected))
    if ours.shape != expected.shape:
        return float("inf")
    scale = numpy.max(abs(expected), initial=0.0)
    difference = numpy.max(abs(ours - expected), initial=0.0)
    return float(difference / scale if scale > 0 else difference)


class Sizes(NamedTuple):
    """Sizes of arguments: batch, steps, inputs, hidden units or outputs, vocabulary, regions."""

    N: int = 1
    T: int = 1
    D: int = 1
    H: int = 1
    V: int = 1
    L: int = 3

    def product(self, factors: str) -> int:
        """Return a product such as `4H` or `TD`."""
        return math.prod(int(f) if f.isdigit() else getattr(self, f) for f in factors)


SMALL = Sizes(N=3, T=4, D=3, H=4, V=5)
SMALL_SEED = 12  # no gradient of these draws is so close to zero that its error is all rounding


class LayerCase(NamedTuple):
    """One layer: forward, backward, and the layouts of its arguments.

    `forward(**arguments)` returns one or more arrays and a cache; `backward` takes a gradient for
    each array and the cache. A layout is `"N T D"` for floats of that shape, `"N T <V"` for
    integers below V, `"N T ?"` for booleans, or a constant. For arguments of sizes like `SMALL`,
    numerical gradients agree with the layer's own to a relative error below `limit`. They are those
    of `differentiated`, which is `forward` but for arguments that do not matter.
    """

    name: str
    forward: Callable[..., tuple[Any, ...]]
    backward: Callable[..., Any]
    layouts: Mapping[str, Any]
    limit: float = 1e-7
    differentiated: Callable[..., tuple[Any, ...]] | None = None

    def make_args(self, rng: numpy.random.Generator, sizes: Sizes) -> Arguments:
        """Draw arguments as NumPy arrays, float64, int64 and bool."""
        return {name: _draw(rng, sizes, name, layout) for name, layout in self.layouts.items()}

    def differentiable(self, arguments: Mapping[str, Any]) -> list[str]:
        """Return the names of the arguments that have a gradient, in order."""
        arrays = {name: value for name, value in arguments.items() if hasattr(value, "shape")}
        return [name for name, value in arrays.items() if value.dtype.kind == "f"]

    def gradient_errors(self, backend: Backend, arguments: Arguments) -> dict[str, float]:
        """Compare the gradients of NumPy arrays with numerical ones, on a backend."""
        names = self.differentiable(arguments)
        forward = self.differentiated or self.forward
        return gradcheck(forward, self.backward, on_device(backend, arguments), names)


def _draw(rng: numpy.random.Generator, sizes: Sizes, name: str, layout: Any) -> Any:
    if not isinstance(layout, str):
        return layout
    *shape, last = layout.split()
    dims = tuple(map(sizes.product, shape))
    if last == "?":
        return rng.random(dims) < 0.5
    if last.startswith("<"):
        return rng.integers(sizes.product(last[1:]), size=dims)
    array = rng.standard_normal((*dims, sizes.product(last)))
    # weights are scaled to keep units off saturation, where gradients would vanish
    return array / math.sqrt(len(array)) if name[0] in "wW" else array


def on_device(backend: Backend, arguments: Mapping[str, Any], dtype: Any = None) -> Arguments:
    """Move NumPy arrays to a backend, floating ones as `dtype` if given; keep scalars."""
    return {
        name: backend.to_device(value, dtype if value.dtype.kind == "f" else None)
        if isinstance(value, numpy.ndarray)
        else value
        for name, value in arguments.items()
    }


def run_layer(case: LayerCase, arguments: Arguments, seed: int = 0) -> dict[str, Array]:
    """Run a layer forward and, with random gradients from above, backward.

    Returns the outputs as `out0`, `out1`, ..., and the gradient of each argument `x` as `dx`.
    """
    *outputs, cache = case.forward(**arguments)
    above = gradients_above(outputs, seed)
    results = {f"out{k}": output for k, output in enumerate(outputs)}
    gradients = as_tuple(case.backward(*above, cache))
    names = case.differentiable(arguments)
    results.update((f"d{name}", gradient) for name, gradient in zip(names, gradients, strict=True))
    return results


def gradients_above(outputs: list[Array], seed: int) -> list[Array]:
    """Draw a gradient for each output, of its shape and dtype, on its device."""
    rng = numpy.random.default_rng(seed)
    return [
        namespace(output).asarray(rng.standard_normal(output.shape).astype(output.dtype))
        for output in outputs
    ]


def as_tuple(gradients: Any) -> tuple[Any, ...]:
    """Return the gradients of a backward pass, which may be a single array, as a tuple."""
    return gradients if isinstance(gradients, tuple) else (gradients,)


def captioner_gradients(
    backend: Backend,
    family: Callable[..., CaptionModel],
    dropout: float,
    *,
    N: int,
    T: int,
    h: float,
    regions: int = 0,
    **sizes: Any,
) -> dict[str, tuple[float, Array]]:
    """Return the gradients of a small captioner, each with its `directional_error`.

    `N` captions have `T` words with `<START>`; `h` is the step of the differences, and `sizes` are
    arguments of `family`. Images are vectors, or so many `regions`, of which the first image lacks
    the last one.
    """
    rng = numpy.random.default_rng(0)
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3}
    model = family(words, **sizes, dtype=numpy.float64, dropout=dropout, seed=0, backend=backend)
    for name, value in model.params.items():
        spread = math.sqrt(value.shape[0]) if value.ndim == 2 else 1.0
        model.params[name] = backend.to_device(rng.standard_normal(value.shape) / spread)
    shape = (N, regions, sizes["input_dim"]) if regions else (N, sizes["input_dim"])
    images = rng.standard_normal(shape)
    if regions:
        images[0, -1] = 0
    features = backend.to_device(images)
    captions = backend.to_device(rng.integers(len(words), size=(N, T)))
    _, gradients = model.loss(features, captions)

    def loss(name: str, value: Array) -> Array:
        before, model.params[name] = model.params[name], value
        found = model.loss(features, captions)[0]
        model.params[name] = before
        return found

    return {
        name: (directional_error(partial(loss, name), value, gradients[name], h=h), gradients[name])
        for name, value in model.params.items()
    }


def _layer(name: str, case: str = "", /, **layouts: Any) -> LayerCase:
    forward, backward = (getattr(layers, f"{name}_{way}") for way in ("forward", "backward"))
    return LayerCase(name + case, forward, backward, layouts)


def _loss_forward(x: Array, y: Array, mask: Array) -> tuple[Array, Array]:
    """Give the loss the form of a layer, whose cache is the gradient."""
    loss, dx = layers.temporal_softmax_loss(x, y, mask)
    return loss.reshape(1), dx


def _without_bias_of_keys(b_qkv: Array, **others: Any) -> tuple[Array, Any]:
    """Set the biases of keys to 0: softmax does not see them, and what is left is rounding."""
    b_qkv = b_qkv.copy()
    b_qkv[len(b_qkv) // 3 : -len(b_qkv) // 3] = 0
    return layers.self_attention_forward(b_qkv=b_qkv, **others)


_REGIONS = {"query": "N H", "keys": "N T H", "values": "N T D"}
_SELF = {"x": "N T H", "W_qkv": "H 3H", "b_qkv": "3H", "W_out": "H H", "b_out": "H", "heads": 2}
_CROSS = {
    "x": "N T H", "regions": "N L D", "W_query": "H H", "b_query": "H", "W_key": "D H",
    "W_value": "D H", "b_value": "H", "W_out": "H H", "b_out": "H", "heads": 2,
}  # fmt: skip

LAYERS = (
    _layer("affine", x="N T D", w="TD H", b="H"),
    _layer("temporal_affine", x="N T D", w="D H", b="H"),
    _layer("rnn_step", x="N D", prev_h="N H", Wx="D H", Wh="H H", b="H"),
    _layer("rnn", x="N T D", h0="N H", Wx="D H", Wh="H H", b="H"),
    _layer("lstm_step", x="N D", prev_h="N H", prev_c="N H", Wx="D 4H", Wh="H 4H", b="4H"),
    _layer("lstm", x="N T D", h0="N H", Wx="D 4H", Wh="H 4H", b="4H"),
    _layer("gru_step", x="N D", prev_h="N H", Wx="D 3H", Wh="H 3H", b="3H", bn="H"),
    _layer("gru", x="N T D", h0="N H", Wx="D 3H", Wh="H 3H", b="3H", bn="H"),
    _layer("word_embedding", x="N T <V", W="V D"),
    LayerCase(
        "temporal_softmax_loss", _loss_forward, lambda dloss, dx: dloss * dx,
        {"x": "N T V", "y": "N T <V", "mask": "N T ?"},
    ),
    _layer("dot_product_attention", **_REGIONS),
    _layer("dot_product_attention", " masked", **_REGIONS, mask="N T ?"),
    _layer("additive_attention", **_REGIONS, w="H"),
    _layer("additive_attention", " masked", **_REGIONS, w="H", mask="N T ?"),
    _layer("layer_norm", x="N D", w="D", b="D"),
    _layer("feed_forward", x="N D", W_in="D H", b_in="H", W_out="H V", b_out="V"),
    _layer("self_attention", **_SELF)._replace(differentiated=_without_bias_of_keys),
    _layer("self_attention", " masked", **_SELF, mask="N T ?")._replace(
        differentiated=_without_bias_of_keys
    ),
    _layer("cross_attention", **_CROSS),
    _layer("cross_attention", " masked", **_CROSS, mask="N L ?"),
    _layer("relu", x="N T D"),
    _layer("dropout", x="N T D", rate=0.25, seed=7, stream=3),
)  # fmt: skip

_SIZES = {"input_dim": 2, "wordvec_dim": 3, "hidden_dim": 3}

CAPTIONERS: dict[str, tuple[type[CaptionModel], dict[str, Any]]] = {
    **{cell: (CaptioningRNN, {**_SIZES, "cell_type": cell}) for cell in CELLS},
    **{
        f"attention {scoring}": (
            AttentionRNN,
            {**_SIZES, "cell_type": "lstm", "scoring": scoring, "doubly_stochastic": 0.5,
             "regions": 3},
        )
        for scoring in SCORINGS
    },
    "transformer": (
        Transformer,
        {"input_dim": 2, "hidden_dim": 4, "layers": 1, "heads": 2, "encoder_layers": 1,
         "positions": "learned", "max_length": 3, "regions": 3},
    ),
}  # fmt: skip
"""Families, and the sizes of small captioners, for `captioner_gradients`."""
