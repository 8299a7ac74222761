"""One table of every layer, and the whole captioner, in a form that any check can run over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy

from xpcap import layers
from xpcap.backend import Array, Backend, namespace
from xpcap.gradcheck import eval_numerical_gradient
from xpcap.models import CaptioningRNN

Arguments: TypeAlias = dict[str, Any]


class Sizes(NamedTuple):
    """Sizes of a layer's arguments: batch, steps, inputs, hidden units (or outputs), vocabulary."""

    N: int = 1
    T: int = 1
    D: int = 1
    H: int = 1
    V: int = 1


SMALL = Sizes(N=3, T=4, D=3, H=4, V=5)
SMALL_SEED = 12  # no gradient of these draws is so close to zero that its error is all rounding


class LayerCase(NamedTuple):
    """One layer: forward, backward, and arguments to run them with.

    `forward(**arguments)` returns one or more arrays and a cache; `backward` takes a gradient for
    each of them and the cache. `make_args(rng, sizes)` draws arguments as NumPy arrays, float64 and
    integers; those in `nondiff` have no gradient. Numerical gradients of arguments of such sizes
    as `SMALL` agree with the layer's own to a relative error below `limit`.
    """

    name: str
    forward: Callable[..., tuple[Any, ...]]
    backward: Callable[..., Any]
    make_args: Callable[[numpy.random.Generator, Sizes], Arguments]
    nondiff: tuple[str, ...] = ()
    limit: float = 1e-7

    def differentiable(self, arguments: Mapping[str, Any]) -> list[str]:
        """Name the arguments that have a gradient, in their order."""
        return [name for name in arguments if name not in self.nondiff]


def on_device(backend: Backend, arguments: Mapping[str, Any], dtype: Any = None) -> Arguments:
    """Move arguments to a backend, floating ones as `dtype` if one is given.

    Parameters
    ----------
    backend
        Where to.
    arguments
        NumPy arrays and scalars; scalars stay as they are.
    dtype
        Of the floating arrays; None leaves them as they are.
    """
    return {
        name: backend.to_device(value, dtype if value.dtype.kind == "f" else None)
        if isinstance(value, numpy.ndarray)
        else value
        for name, value in arguments.items()
    }


def run_layer(case: LayerCase, arguments: Arguments, seed: int = 0) -> dict[str, Array]:
    """Run a layer forward and, with random gradients from above, backward.

    Parameters
    ----------
    case
        The layer.
    arguments
        On any device, in any one floating dtype.
    seed
        Of the gradients from above, which have the outputs' dtype and device.

    Returns
    -------
    dict
        `out0`, `out1`, ...: the outputs; and by `d` and the argument's name the gradients.
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
    """Return a backward pass's gradients as a tuple, also where it is one array."""
    return gradients if isinstance(gradients, tuple) else (gradients,)


def captioner_gradients(
    backend: Backend,
    cell_type: str,
    dropout: float,
    *,
    N: int,
    T: int,
    input_dim: int,
    wordvec_dim: int,
    hidden_dim: int,
    h: float,
) -> dict[str, tuple[Array, Array]]:
    """Take all gradients of a whole captioner, by central differences and by its backward pass.

    Parameters
    ----------
    backend
        Where the captioner lives.
    cell_type, dropout
        Which captioner.
    N, T
        Shape of the captions, `<START>`'s place included.
    input_dim, wordvec_dim, hidden_dim
        Sizes of the captioner.
    h
        The step of the differences.

    Returns
    -------
    dict
        For each parameter the numerical gradient and the captioner's own.
    """
    rng = numpy.random.default_rng(0)
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3}
    model = CaptioningRNN(
        words, input_dim, wordvec_dim, hidden_dim, cell_type, numpy.float64,
        dropout=dropout, seed=0, backend=backend,
    )  # fmt: skip
    for name, value in model.params.items():
        spread = math.sqrt(value.shape[0]) if value.ndim == 2 else 1.0
        model.params[name] = backend.to_device(rng.standard_normal(value.shape) / spread)
    features = backend.to_device(rng.standard_normal((N, input_dim)))
    captions = backend.to_device(rng.integers(len(words), size=(N, T)))
    _, gradients = model.loss(features, captions)

    def loss(_: Array) -> Array:
        return model.loss(features, captions)[0]

    return {
        name: (eval_numerical_gradient(loss, value, verbose=False, h=h), gradients[name])
        for name, value in model.params.items()
    }


def _weights(rng: numpy.random.Generator, fan_in: int, fan_out: int) -> numpy.ndarray:
    """Draw weights that keep units off saturation at any size, where gradients would vanish."""
    return rng.standard_normal((fan_in, fan_out)) / math.sqrt(fan_in)


def _affine_arguments(rng: numpy.random.Generator, s: Sizes) -> Arguments:
    return {
        "x": rng.standard_normal((s.N, s.T, s.D)),
        "w": _weights(rng, s.T * s.D, s.H),
        "b": rng.standard_normal(s.H),
    }


def _temporal_affine_arguments(rng: numpy.random.Generator, s: Sizes) -> Arguments:
    return {
        "x": rng.standard_normal((s.N, s.T, s.D)),
        "w": _weights(rng, s.D, s.H),
        "b": rng.standard_normal(s.H),
    }


def _step_arguments(gates: int, *states: str) -> Callable[[numpy.random.Generator, Sizes], Any]:
    def make(rng: numpy.random.Generator, s: Sizes) -> Arguments:
        return {
            "x": rng.standard_normal((s.N, s.D)),
            **{state: rng.standard_normal((s.N, s.H)) for state in states},
            **_recurrent_weights(rng, s, gates),
        }

    return make


def _sequence_arguments(gates: int) -> Callable[[numpy.random.Generator, Sizes], Any]:
    def make(rng: numpy.random.Generator, s: Sizes) -> Arguments:
        return {
            "x": rng.standard_normal((s.N, s.T, s.D)),
            "h0": rng.standard_normal((s.N, s.H)),
            **_recurrent_weights(rng, s, gates),
        }

    return make


def _recurrent_weights(rng: numpy.random.Generator, s: Sizes, gates: int) -> Arguments:
    weights = {
        "Wx": _weights(rng, s.D, gates * s.H),
        "Wh": _weights(rng, s.H, gates * s.H),
        "b": rng.standard_normal(gates * s.H),
    }
    return {**weights, "bn": rng.standard_normal(s.H)} if gates == 3 else weights


def _embedding_arguments(rng: numpy.random.Generator, s: Sizes) -> Arguments:
    return {"x": rng.integers(s.V, size=(s.N, s.T)), "W": rng.standard_normal((s.V, s.D))}


def _loss_arguments(rng: numpy.random.Generator, s: Sizes) -> Arguments:
    return {
        "x": rng.standard_normal((s.N, s.T, s.V)),
        "y": rng.integers(s.V, size=(s.N, s.T)),
        "mask": rng.random((s.N, s.T)) < 0.5,
    }


def _loss_forward(x: Array, y: Array, mask: Array) -> tuple[Array, Array]:
    """Give the loss the form of a layer: its gradient is its cache."""
    loss, dx = layers.temporal_softmax_loss(x, y, mask)
    return loss.reshape(1), dx


def _loss_backward(dloss: Array, dx: Array) -> Array:
    return dloss * dx


def _relu_arguments(rng: numpy.random.Generator, s: Sizes) -> Arguments:
    return {"x": rng.standard_normal((s.N, s.T, s.D))}


def _dropout_arguments(rng: numpy.random.Generator, s: Sizes) -> Arguments:
    return {"x": rng.standard_normal((s.N, s.T, s.D)), "rate": 0.25, "seed": 7, "stream": 3}


LAYERS = (
    LayerCase("affine", layers.affine_forward, layers.affine_backward, _affine_arguments),
    LayerCase(
        "temporal_affine",
        layers.temporal_affine_forward,
        layers.temporal_affine_backward,
        _temporal_affine_arguments,
    ),
    LayerCase(
        "rnn_step",
        layers.rnn_step_forward,
        layers.rnn_step_backward,
        _step_arguments(1, "prev_h"),
    ),
    LayerCase("rnn", layers.rnn_forward, layers.rnn_backward, _sequence_arguments(1)),
    LayerCase(
        "lstm_step",
        layers.lstm_step_forward,
        layers.lstm_step_backward,
        _step_arguments(4, "prev_h", "prev_c"),
    ),
    LayerCase("lstm", layers.lstm_forward, layers.lstm_backward, _sequence_arguments(4)),
    LayerCase(
        "gru_step",
        layers.gru_step_forward,
        layers.gru_step_backward,
        _step_arguments(3, "prev_h"),
    ),
    LayerCase("gru", layers.gru_forward, layers.gru_backward, _sequence_arguments(3)),
    LayerCase(
        "word_embedding",
        layers.word_embedding_forward,
        layers.word_embedding_backward,
        _embedding_arguments,
        nondiff=("x",),
    ),
    LayerCase(
        "temporal_softmax_loss",
        _loss_forward,
        _loss_backward,
        _loss_arguments,
        nondiff=("y", "mask"),
    ),
    LayerCase("relu", layers.relu_forward, layers.relu_backward, _relu_arguments),
    LayerCase(
        "dropout",
        layers.dropout_forward,
        layers.dropout_backward,
        _dropout_arguments,
        nondiff=("rate", "seed", "stream"),
    ),
)
