"""The names of Stanford's CS231n, assignment 3, so that its notebooks run on xpcap.

`from xpcap.compat.cs231n import *` stands in for the imports of the assignment's modules
`rnn_layers`, `layers`, `layer_utils`, `classifiers.rnn`, `captioning_solver`, `coco_utils`,
`image_utils`, `gradient_check` and `optim`. Most names are xpcap's own functions; this package
defines those that only the notebooks need. Arrays may be NumPy's or CuPy's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy

from xpcap.backend import Array, namespace
from xpcap.compat.captioner import CaptioningRNN
from xpcap.compat.solver import CaptioningSolver, CaptioningTrainer, adam
from xpcap.data import images
from xpcap.data.coco import load_coco_data
from xpcap.data.minibatch import sample_coco_minibatch
from xpcap.data.vocabulary import decode_captions
from xpcap.data.web import is_url
from xpcap.errors import ShapeError, XpcapError
from xpcap.gradcheck import (
    check_step,
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    rel_error,
)
from xpcap.layers import (
    affine_backward,
    affine_forward,
    gru_backward,
    gru_forward,
    gru_step_backward,
    gru_step_forward,
    lstm_backward,
    lstm_forward,
    lstm_step_backward,
    lstm_step_forward,
    relu_backward,
    relu_forward,
    rnn_backward,
    rnn_forward,
    rnn_step_backward,
    rnn_step_forward,
    temporal_affine_backward,
    temporal_affine_forward,
    temporal_softmax_loss,
    word_embedding_backward,
    word_embedding_forward,
)
from xpcap.layers._checks import check_floating, check_numbers
from xpcap.layers.activations import ReLUCache
from xpcap.layers.activations import sigmoid as logistic
from xpcap.layers.affine import AffineCache, AffineGradients
from xpcap.optim import rmsprop, sgd, sgd_momentum
from xpcap.options import check_counts, given

__all__ = [  # noqa: RUF022 - by modules of the assignment
    # rnn_layers, with the GRU
    "rnn_step_forward", "rnn_step_backward", "rnn_forward", "rnn_backward",
    "lstm_step_forward", "lstm_step_backward", "lstm_forward", "lstm_backward",
    "gru_step_forward", "gru_step_backward", "gru_forward", "gru_backward",
    "word_embedding_forward", "word_embedding_backward", "sigmoid",
    "temporal_affine_forward", "temporal_affine_backward", "temporal_softmax_loss",
    # layers, layer_utils
    "affine_forward", "affine_backward", "relu_forward", "relu_backward",
    "affine_relu_forward", "affine_relu_backward",
    # classifiers.rnn, captioning_solver, optim
    "CaptioningRNN", "CaptioningSolver", "CaptioningTrainer",
    "sgd", "sgd_momentum", "rmsprop", "adam",
    # coco_utils, image_utils
    "load_coco_data", "sample_coco_minibatch", "decode_captions",
    "SQUEEZENET_MEAN", "SQUEEZENET_STD", "blur_image", "preprocess_image", "deprocess_image",
    "image_from_url", "load_image",
    # gradient_check
    "eval_numerical_gradient", "eval_numerical_gradient_array", "eval_numerical_gradient_blobs",
    "eval_numerical_gradient_net", "grad_check_sparse", "rel_error",
]  # fmt: skip

SQUEEZENET_MEAN = numpy.array([0.485, 0.456, 0.406], dtype=numpy.float32)
"""Mean of red, green and blue, from 0 to 1, subtracted from a SqueezeNet's inputs."""

SQUEEZENET_STD = numpy.array([0.229, 0.224, 0.225], dtype=numpy.float32)
"""Standard deviation of red, green and blue that a SqueezeNet's inputs are divided by."""

BLUR = [[1, 2, 1], [2, 188, 2], [1, 2, 1]]
"""Weights of a pixel and its neighbours in a blurred image, times 200."""


def sigmoid(x: Array) -> Array:
    """Logistic function 1 / (1 + e^-x) of an array of any shape; it never overflows."""
    xp = namespace(x)
    check_numbers("sigmoid", x=x)
    return logistic(xp, x)


AffineReLUCache: TypeAlias = tuple[AffineCache, ReLUCache]


def affine_relu_forward(x: Array, w: Array, b: Array) -> tuple[Array, AffineReLUCache]:
    """Apply an affine layer and a ReLU to `x (N, d1, ..., dk)`; `out` is `(N, M)`."""
    a, affine = affine_forward(x, w, b)
    out, relu = relu_forward(a)
    return out, (affine, relu)


def affine_relu_backward(dout: Array, cache: AffineReLUCache) -> AffineGradients:
    """Gradients `dx`, `dw`, `db` of `affine_relu_forward`, given that of its output, `(N, M)`."""
    affine, relu = cache
    return affine_backward(relu_backward(dout, relu), affine)


def grad_check_sparse(
    f: Callable[[Array], Any],
    x: Array,
    analytic_grad: Array,
    num_checks: int = 10,
    h: float = 1e-5,
) -> None:
    """Print the numerical and the analytic gradient of a number `f(x)` at a few random places.

    The places are drawn by NumPy's global generator. There, elements of `x` are changed in place
    by `h`, the step of the central differences, and restored. `x` and `h` are as for
    `eval_numerical_gradient`.
    """
    check_counts(num_checks=num_checks)
    check_step(x, h)
    if analytic_grad.shape != x.shape or not x.size:
        raise ShapeError(f"expected gradients {x.shape}, as x, got {analytic_grad.shape}")
    for _ in range(num_checks):
        place = tuple(int(numpy.random.randint(size)) for size in x.shape)
        old = x[place].copy()
        x[place] = old + h
        plus = float(f(x))
        x[place] = old - h
        minus = float(f(x))
        x[place] = old
        numerical, analytic = (plus - minus) / (2 * h), float(analytic_grad[place])
        error = rel_error(numerical, analytic)
        print(f"numerical: {numerical:f} analytic: {analytic:f}, relative error: {error:e}")


class Blob(Protocol):
    """Values and their gradients, as layers of the course's networks exchange them."""

    vals: Array
    diffs: Array


def eval_numerical_gradient_blobs(
    f: Callable[..., Any], inputs: Sequence[Blob], output: Blob, h: float = 1e-5
) -> list[Array]:
    """Return the numerical gradients of a function that writes into a blob, one for each input.

    `f(*inputs, output)` reads the inputs' `vals` and writes `output.vals`; `output.diffs` hold the
    gradient of some loss with respect to these. Elements of the inputs' `vals` are changed in place
    by `h`, the step of the central differences, and restored.
    """

    def written(_: Array) -> Array:
        f(*inputs, output)
        return output.vals.copy()

    return [eval_numerical_gradient_array(written, blob.vals, output.diffs, h) for blob in inputs]


def eval_numerical_gradient_net(
    net: Any, inputs: Sequence[Blob], output: Blob, h: float = 1e-5
) -> list[Array]:
    """As `eval_numerical_gradient_blobs`, of a network whose `forward()` reads and writes blobs."""
    return eval_numerical_gradient_blobs(lambda *_: net.forward(), inputs, output, h)


def blur_image(X: Array) -> Array:
    """Blur images `(N, C, height, width)` slightly: a pixel keeps 94% of its value.

    Its neighbours share the rest; they are zero outside the image. Shape and dtype stay the same.
    """
    xp = namespace(X)
    if X.ndim != 4:
        raise ShapeError(f"blur_image: expected X (N, C, height, width), got {X.shape}")
    check_floating("blur_image", X=X)
    height, width = X.shape[2:]
    padded = xp.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return sum(
        padded[:, :, i : i + height, j : j + width] * (weight / 200)
        for i, row in enumerate(BLUR)
        for j, weight in enumerate(row)
    )


def preprocess_image(img: Array) -> Array:
    """Return `(img / 255 - SQUEEZENET_MEAN) / SQUEEZENET_STD`, float32, of RGB `img (..., 3)`."""
    xp = namespace(img)
    _check_colours("preprocess_image", img)
    check_numbers("preprocess_image", img=img)
    mean, deviation = xp.asarray(SQUEEZENET_MEAN), xp.asarray(SQUEEZENET_STD)
    return (img.astype(numpy.float32) / 255 - mean) / deviation


def deprocess_image(img: Array, rescale: bool = False) -> Array:
    """Undo `preprocess_image` for display: `(..., 3)` floating to uint8, clipped.

    With `rescale` the image is stretched, so that its minimum becomes 0 and its maximum 255.
    """
    xp = namespace(img)
    _check_colours("deprocess_image", img)
    check_floating("deprocess_image", img=img)
    mean = xp.asarray(SQUEEZENET_MEAN, dtype=img.dtype)
    img = img * xp.asarray(SQUEEZENET_STD, dtype=img.dtype) + mean
    if rescale:
        low = img.min()
        spread = img.max() - low
        img = (img - low) / xp.where(spread > 0, spread, img.dtype.type(1))
    return xp.clip(255 * img, 0, 255).astype(numpy.uint8)


def _check_colours(function: str, img: Array) -> None:
    if img.shape[-1:] != (3,) or not img.size:
        raise ShapeError(f"{function}: expected img (..., 3), got {img.shape}")


def image_from_url(url: str) -> numpy.ndarray | None:
    """Return an RGB image `(height, width, 3)` uint8; if that fails, print why and return None.

    `url` is an http or https address, or any other of the `urls` of `load_coco_data`: the path of
    an image file, or one that leads into a zip file.
    """
    try:
        if is_url(url):
            return images.image_from_url(url)
        return numpy.asarray(images.open_stored(url))
    except XpcapError as error:
        print(error)
        return None


def load_image(filename: str | Path, size: int | None = None) -> numpy.ndarray:
    """Read an RGB image `(height, width, 3)` uint8, its shorter side scaled to `size` pixels.

    A file that is missing or is not an image raises a `DataError`.
    """
    from PIL import Image

    check_counts(**given(size=size))
    img = images.open_picture(Path(filename))
    if size is not None:
        scale = size / min(img.size)
        width, height = (round(side * scale) for side in img.size)
        img = img.resize((width, height), Image.Resampling.BILINEAR)
    return numpy.asarray(img)
