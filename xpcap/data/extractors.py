"""From pixels to 4,096 numbers: the built-in filter bank, in the role of VGG-16's fc7.

Nothing here is learned: every filter is a formula. A picture goes through three steps.

1. Eight colour maps `m`, values 0 to 1. With R, G, B from 0 to 1, the opponent co-ordinates
   α = R - (G + B)/2 and β = √3/2 · (G - B), chroma c, hue h and ρ = c² / (c² + c₀²) (contrast
   saturation: K. Naka and W. Rushton, Journal of Physiology, 1966):

       six hues θ      m = ρ · exp(κ (cos(h - θ) - 1))
       light and dark  m = (1 - ρ) · q⁴ / (q⁴ + ½⁴),   q = max(0, ±(2L - 1)),  L = (R + G + B)/3

2. Eight measures of each map, from its Gaussian derivatives mₓ ... m_yy at scale σ, which are
   convolutions with fixed filters (J. Koenderink and A. van Doorn, "Representation of local
   geometry in the visual system", Biological Cybernetics, 1987). With w = mₓ² + m_y² and φ the
   direction of the gradient, measured from the vertical:

       oriented edges     w · cos kφ,  k = 3, 4, 5: steered (W. Freeman and E. Adelson, "The design
                          and use of steerable filters", IEEE PAMI, 1991)
       bends              max(0, ±v),  v = -(mₓ² m_yy - 2 mₓ m_y m_xy + m_y² mₓₓ) / (w + ε)
       blobs and saddles  √max(0, ±det),  det = mₓₓ m_yy - m_xy²
       area               m itself

   All but the area are divided by the mean of w over the picture, so that they tell the form of
   what has this colour, not how much of it there is (D. Heeger, "Normalization of cell responses
   in cat striate cortex", Visual Neuroscience, 1992).

3. Each of the 64 channels is averaged under Gaussian windows around the centres of 8 x 8 cells:
   wide ones for the form, which hardly depends on the place, narrower ones for the area, which
   tells the place.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import Array, Namespace, namespace
from xpcap.errors import DataError, ShapeError
from xpcap.files import explained

_HUES = (0, 33, 57, 128, 242, 285)  # θ in degrees: red, orange, yellow, green, blue, purple
_TUNING = 6.0  # κ
_HALF_CHROMA = 0.35  # c₀
_SIGMA = 0.9  # of the derivatives, in pixels
_HARMONICS = (3, 4, 5)
_CELLS = 8
_FORM_WINDOW, _AREA_WINDOW = 20.0, 8.0  # standard deviations, in pixels
_LEAST_ENERGY = 1e-3  # ε
_TINY = 1e-6  # against division by zero where there is no colour or no edge
_BLOCK = 32  # pictures at a time: about 100 MB


class FilterBank:
    """The built-in extractor: 64 channels on 8 x 8 cells, computed where the pictures are.

    The module's text gives the formulas.
    """

    name = "filter-bank"
    version = 1
    dim = 4096
    size = 64

    def __init__(self) -> None:
        self._derivatives = tuple(
            _gaussian_derivative(self.size, order).astype(numpy.float32) for order in range(3)
        )
        self._form_window = _windows(self.size, _FORM_WINDOW)
        self._area_window = _windows(self.size, _AREA_WINDOW)

    def __call__(self, images: Array) -> Array:
        """Compute the features of pictures.

        Parameters
        ----------
        images
            `(N, 64, 64, 3)` uint8, red, green, blue; NumPy or CuPy.

        Returns
        -------
        Array
            `(N, 4096)` float32 of the same library: channel by channel, each 8 x 8 cells.

        Raises
        ------
        ShapeError
            If `images` have another shape or dtype.
        """
        xp = namespace(images)
        expected = (self.size, self.size, 3)
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != numpy.uint8:
            raise ShapeError(
                f"images has shape {images.shape} and dtype {images.dtype};"
                f" expected (N, {self.size}, {self.size}, 3) uint8"
            )
        out = xp.empty((len(images), self.dim), dtype=xp.float32)
        for start in range(0, len(images), _BLOCK):
            block = images[start : start + _BLOCK]
            out[start : start + _BLOCK] = self._features(xp, block).reshape(len(block), -1)
        return out

    def describe(self) -> dict[str, Any]:
        """Return what `open_extractor` needs to find this extractor again: name and version."""
        return {"name": self.name, "version": self.version}

    def _features(self, xp: Namespace, images: Array) -> Array:
        """Turn `(N, 64, 64, 3)` uint8 into `(N, 8 maps, 8 measures, 8, 8)` float32."""
        maps = _colour_maps(xp, images)
        form, energy = _measure(xp, maps, *(xp.asarray(matrix) for matrix in self._derivatives))
        form = _average(form, xp.asarray(self._form_window))
        form /= energy.mean(axis=(2, 3))[:, :, None, None, None] + _LEAST_ENERGY
        area = _average(maps, xp.asarray(self._area_window))
        return xp.concatenate([form, area[:, :, None]], axis=2)


def _colour_maps(xp: Namespace, images: Array) -> Array:
    """Turn `(N, 64, 64, 3)` uint8 into eight maps, `(N, 8, 64, 64)` float32, 0 to 1."""
    red, green, blue = (images[..., index].astype(xp.float32) / 255 for index in range(3))
    alpha = red - (green + blue) / 2
    beta = math.sqrt(0.75) * (green - blue)
    chroma = xp.hypot(alpha, beta)
    response = chroma**2 / (chroma**2 + _HALF_CHROMA**2)
    maps = []
    for hue in map(math.radians, _HUES):
        along = alpha * math.cos(hue) + beta * math.sin(hue)
        maps.append(response * xp.exp(_TUNING * (along / (chroma + _TINY) - 1)))
    contrast = (red + green + blue) / 1.5 - 1
    for sign in (1, -1):
        fourth = xp.maximum(sign * contrast, 0) ** 4
        maps.append((1 - response) * fourth / (fourth + 0.5**4))
    return xp.stack(maps, axis=1)


def _measure(
    xp: Namespace, maps: Array, smooth: Array, first: Array, second: Array
) -> tuple[Array, Array]:
    """Measure the form of what is in each map.

    Parameters
    ----------
    maps
        `(N, 8, 64, 64)`.
    smooth, first, second
        Matrices `(64, 64)` of the Gaussian and its derivatives: `A · m · Bᵀ` convolves the
        columns of `m` with one and its rows with another.

    Returns
    -------
    tuple of Array
        Seven measures of every pixel, `(N, 8, 7, 64, 64)`, and w, `(N, 8, 64, 64)`.
    """
    smooth_columns, first_columns = smooth @ maps, first @ maps
    m_x, m_y = smooth_columns @ first.T, first_columns @ smooth.T
    m_xx, m_xy = smooth_columns @ second.T, first_columns @ first.T
    m_yy = (second @ maps) @ smooth.T
    energy = m_x**2 + m_y**2
    cosine = m_y / (xp.sqrt(energy) + _TINY)
    # cos kφ by Chebyshev's recurrence
    cosines = [xp.ones_like(cosine), cosine]
    while len(cosines) <= max(_HARMONICS):
        cosines.append(2 * cosine * cosines[-1] - cosines[-2])
    bend = (2 * m_x * m_y * m_xy - m_x**2 * m_yy - m_y**2 * m_xx) / (energy + _LEAST_ENERGY)
    determinant = m_xx * m_yy - m_xy**2
    measures = [
        *(energy * cosines[k] for k in _HARMONICS),
        xp.maximum(bend, 0),
        xp.maximum(-bend, 0),
        xp.sqrt(xp.maximum(determinant, 0)),
        xp.sqrt(xp.maximum(-determinant, 0)),
    ]
    return xp.stack(measures, axis=2), energy


def _average(channels: Array, window: Array) -> Array:
    """Average `(..., 64, 64)` under the windows of 8 x 8 cells: `(..., 8, 8)`."""
    return (window @ channels) @ window.T


def _gaussian_derivative(size: int, order: int) -> numpy.ndarray:
    """Return the matrix `(size, size)` that convolves with a Gaussian's derivative of an order.

    Derivatives are with respect to x/σ, so that all have one unit; beyond its ends a line goes on
    as its mirror image.
    """
    steps = numpy.arange(-size, 2 * size) / _SIGMA
    places = numpy.arange(size)[:, None] / _SIGMA
    distance = places - steps
    weights = numpy.exp(-(distance**2) / 2)
    weights /= weights.sum(axis=1, keepdims=True)
    weights *= (1, -distance, distance**2 - 1)[order]
    before, inside, after = numpy.split(weights, 3, axis=1)
    return numpy.asarray(before[:, ::-1] + inside + after[:, ::-1])


def _windows(size: int, width: float) -> numpy.ndarray:
    """Return Gaussian weights `(8, size)` float32, each row of sum 1, around the cells' centres."""
    centres = (numpy.arange(_CELLS) + 0.5) * size / _CELLS - 0.5
    weights = numpy.exp(-(((numpy.arange(size) - centres[:, None]) / width) ** 2) / 2)
    return numpy.asarray(weights / weights.sum(axis=1, keepdims=True), numpy.float32)


def load_image(path: Path, size: int = FilterBank.size) -> numpy.ndarray:
    """Open a picture the way the extractor wants it.

    It is turned as its EXIF orientation says, laid on white where it is transparent, reduced from
    16 bits to 8, and resized to a square, whatever its proportions.

    Parameters
    ----------
    path
        A file of any format that Pillow reads.
    size
        Pixels on each side of the result.

    Returns
    -------
    numpy.ndarray
        `(size, size, 3)` uint8, red, green, blue.

    Raises
    ------
    DataError
        If the file is missing, broken, no picture, or so large that it may be an attack.
    """
    from PIL import Image, ImageOps

    with explained(path, "read"):
        content = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as opened:
                image = ImageOps.exif_transpose(opened)
                if image.mode.startswith("I"):  # 16 bits; Pillow would cut them off at 255
                    image = Image.fromarray((numpy.asarray(image) / 257).astype(numpy.uint8))
                if image.has_transparency_data:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                image = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # each of Pillow's decoders fails in its own way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be opened as a picture: {reason}") from error
    return numpy.array(image)


def open_extractor(description: Mapping[str, Any]) -> FilterBank:
    """Return the extractor that a data set's or a checkpoint's description names.

    Parameters
    ----------
    description
        What `FilterBank.describe` returned.

    Raises
    ------
    DataError
        If it names another extractor, or another version of this one.
    """
    bank = FilterBank()
    if dict(description) != bank.describe():
        raise DataError(
            f"the features come from {dict(description)}, which cannot be computed here;"
            f" expected {bank.describe()}"
        )
    return bank
