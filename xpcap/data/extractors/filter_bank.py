"""From pixels to 4,096 numbers: the built-in filter bank, in the role of VGG-16's fc7.

Nothing here is learned: every filter is a formula. It suits images of a few coloured things on
muted backgrounds, and separates large from small ones. Four steps:

1. Eight colour maps `m`, values 0 to 1. With R, G, B from 0 to 1, the opponent co-ordinates
   α = R - (G + B)/2 and β = √3/2 · (G - B), chroma c, hue h and ρ = c⁴ / (c⁴ + c₀⁴), a response
   that saturates (K. Naka and W. Rushton, Journal of Physiology, 1966):

       six hues θ      m = ρ · exp(κ (cos(h - θ) - 1))
       light and dark  m = (1 - ρ) · q⁸ / (q⁸ + q₀⁸),   q = max(0, ±(2L - 1)),  L = (R + G + B)/3

2. How coarse each map is: a Gaussian of 5 pixels attenuates small things more than large ones.
   With E_s the mean square of the map after a Gaussian of s pixels and r = E₅ / E₁, the map
   counts with p · g as coarse and with p · (1 - g) as fine, where g = r¹² / (r¹² + r₀¹²), and
   p = E₁² / (E₁² + e₀²) drops weak maps. The weighted sums are a coarse and a fine form map.

3. Twelve measures of both form maps at two scales σ, from Gaussian derivatives mₓ ... m_yy, which
   are convolutions with fixed filters (J. Koenderink and A. van Doorn, "Representation of local
   geometry in the visual system", Biological Cybernetics, 1987). With w = mₓ² + m_y², φ the
   direction of the gradient from the vertical, and det = mₓₓ m_yy - m_xy²:

       oriented edges  w · cos kφ,  k = 3, 4, 5, 6, 8, 10: steered (W. Freeman and E. Adelson, "The
                       design and use of steerable filters", IEEE PAMI, 1991)
       bends           max(0, ±v),  v = -(mₓ² m_yy - 2 mₓ m_y m_xy + m_y² mₓₓ) / (w + ε)
       blobs, saddles  √max(0, ±det)
       edges, area     √w and m

   Each is divided by the mean of w over the image, the last two by that of m: so they measure
   form, not contrast (D. Heeger, "Normalization of cell responses in cat
   striate cortex", Visual Neuroscience, 1992).

4. These 48 channels and the 8 colour maps, each twice, weighted and normalised as above, are
   averaged under Gaussian windows around the centres of 8 x 8 cells: wide ones for the form, nearly
   independent of position, narrow ones for area and colours, which encode position.
   Each channel has a fixed gain.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy

from xpcap.backend import Array, Namespace, namespace
from xpcap.errors import ConfigurationError, ShapeError

_HUES = (0, 33, 57, 128, 242, 285)  # θ in degrees: red, orange, yellow, green, blue, purple
_TUNING = 25.0  # κ
_HALF_CHROMA, _HALF_CONTRAST = 0.3, 0.7  # c₀, q₀
_FINE, _COARSE = 1.0, 5.0  # of the Gaussians that tell large from small, in pixels
_HALF_RATIO, _HALF_ENERGY = 0.335, 8e-4  # r₀, e₀
_SCALES = (0.9, 1.8)  # σ of the derivatives, in pixels
_HARMONICS = (3, 4, 5, 6, 8, 10)  # k
_SMALLEST_EDGE = 1e-3  # ε
_CELLS, _CHANNELS = 8, 64
_FORM_WINDOW, _PLACE_WINDOW = 40.0, 12.0  # standard deviations, in pixels
_CELL_WINDOW = 6.0  # of both in a grid
_FORM_GAINS = (4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 2.0, 4.0, 2.5, 2.0, 6.0)
_AREA_GAIN, _COLOUR_GAIN = 2.0, 2.0
_FLOOR = 2e-4  # added to means in denominators
_TINY = 1e-6  # against division by zero without any colour or edge
_BLOCK = 50  # images at a time: about 30 MB


class _Windows(NamedTuple):
    """Weights of an image's rows and columns, `(..., K, 64)` each."""

    rows: Array
    columns: Array


class FilterBank:
    """The built-in extractor: 64 channels on 8 x 8 cells; see the module for the formulas.

    With the `output` `"grid"` its features are `(64, 64)`: of each cell, row by row, its channels.
    Another one raises a `ConfigurationError`.
    """

    name = "filter-bank"
    version = 1
    size = 64

    def __init__(self, output: str | None = None) -> None:
        if output not in (None, "grid"):
            raise ConfigurationError(f"'{self.name}' has no output '{output}'; expected grid")
        self.output = output
        cells = _CELLS * _CELLS
        self.shape: tuple[int, ...] = (cells, _CHANNELS) if output else (cells * _CHANNELS,)
        self._fine, self._coarse = (
            _gaussian_derivative(self.size, scale, 0) for scale in (_FINE, _COARSE)
        )
        self._derivatives = [
            [_gaussian_derivative(self.size, scale, order) for order in range(3)]
            for scale in _SCALES
        ]
        widths = (_CELL_WINDOW, _CELL_WINDOW) if output else (_FORM_WINDOW, _PLACE_WINDOW)
        windows = [_windows(self.size, width) for width in widths]
        self._whole = [_Windows(window, window) for window in windows]
        self._by_region = [_cut(window) for window in windows]

    def __call__(self, images: Array) -> Array:
        """Compute the features of RGB images `(N, 64, 64, 3)` uint8, of NumPy or CuPy.

        They are `(N, 4096)` float32 of the same library: channel by channel, each 8 x 8 cells; or
        `(N, 64, 64)`, cell by cell. A `ShapeError` is raised if `images` have another shape or
        dtype.
        """
        features = self._in_blocks(images, (), self._whole)
        if not self.output:
            return features
        by_cell = features.reshape(len(images), _CHANNELS, -1).swapaxes(1, 2)
        return namespace(images).ascontiguousarray(by_cell)

    def regions(self, images: Array) -> Array:
        """Decompose the features of images `(N, 64, 64, 3)` uint8 into contributions of regions.

        A feature is an average over the image under a window, which may be far wider than its cell,
        divided by a mean over the image. A region's contribution is what its pixels add to the
        average, with the mean held constant. So a gradient with respect to the features, times
        these contributions, is an attribution to regions.

        They are `(N, 8, 8, 4096)` float32 of the same library, 1 MiB per image: for each region of
        8 x 8 pixels its contribution to every feature. Summed over regions, they are the features.
        """
        return self._in_blocks(images, (_CELLS, _CELLS), self._by_region)

    def describe(self) -> dict[str, Any]:
        """Return name and version, and the output if chosen, for `open_extractor`."""
        output = {"output": self.output} if self.output else {}
        return {"name": self.name, "version": self.version, **output}

    def prepare(self, image: Any) -> numpy.ndarray:
        """Resize an image to a square of 64 pixels, whatever its aspect ratio."""
        from PIL import Image

        resized = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return numpy.array(resized)

    def _in_blocks(self, images: Array, regions: tuple[int, ...], windows: list[_Windows]) -> Array:
        """Return features `(N, *regions, 4096)`, computed in blocks of images."""
        xp = namespace(images)
        form, place = (_Windows(*map(xp.asarray, window)) for window in windows)
        expected = (self.size, self.size, 3)
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != numpy.uint8:
            raise ShapeError(
                f"images has shape {images.shape} and dtype {images.dtype};"
                f" expected (N, {self.size}, {self.size}, 3) uint8"
            )
        width = _CHANNELS * _CELLS * _CELLS
        out = xp.empty((len(images), *regions, width), dtype=xp.float32)
        for start in range(0, len(images), _BLOCK):
            block = images[start : start + _BLOCK]
            features = xp.moveaxis(self._features(xp, block, form, place), -4, 0)
            out[start : start + _BLOCK] = features.reshape(len(block), *regions, width)
        return out

    def _features(self, xp: Namespace, images: Array, form: _Windows, place: _Windows) -> Array:
        """Compute `(*regions, N, 64, 8, 8)` float32 of `(N, 64, 64, 3)` uint8."""
        maps = _colour_maps(xp, images)
        gains = xp.asarray(_FORM_GAINS, dtype=xp.float32)[:, None, None]
        colours = _COLOUR_GAIN * _average(maps, place) / (_mean(maps) + _FLOOR)
        channels = []
        for weight in self._weights(xp, maps):
            form_map = (weight * maps).sum(axis=1, keepdims=True)
            area = _AREA_GAIN * _average(form_map, place) / (_mean(form_map) + _FLOOR)
            for matrices in self._derivatives:
                measures = _measure(xp, form_map, [xp.asarray(matrix) for matrix in matrices])
                channels += [gains * _average(measures, form), area]
            channels.append(weight * colours)
        return xp.concatenate(channels, axis=-3)

    def _weights(self, xp: Namespace, maps: Array) -> tuple[Array, Array]:
        """Return the weights of each map as coarse and as fine, both `(N, 8, 1, 1)`."""
        fine, coarse = (
            _mean(_average(maps, _Windows(gauss, gauss)) ** 2)
            for gauss in map(xp.asarray, (self._fine, self._coarse))
        )
        present = fine**2 / (fine**2 + _HALF_ENERGY**2)
        ratio = (coarse / (fine + _TINY)) ** 12
        large = ratio / (ratio + _HALF_RATIO**12)
        return present * large, present * (1 - large)


def _mean(maps: Array) -> Array:
    """Return the mean of each map `(..., 64, 64)`, as `(..., 1, 1)`."""
    return maps.mean(axis=(-2, -1), keepdims=True)


def _colour_maps(xp: Namespace, images: Array) -> Array:
    """Compute eight colour maps `(N, 8, 64, 64)` float32 of `(N, 64, 64, 3)` uint8."""
    red, green, blue = (images[..., index].astype(xp.float32) / 255 for index in range(3))
    alpha = red - (green + blue) / 2
    beta = math.sqrt(0.75) * (green - blue)
    chroma = xp.hypot(alpha, beta)
    response = chroma**4 / (chroma**4 + _HALF_CHROMA**4)
    maps = []
    for hue in map(math.radians, _HUES):
        along = alpha * math.cos(hue) + beta * math.sin(hue)
        maps.append(response * xp.exp(_TUNING * (along / (chroma + _TINY) - 1)))
    contrast = (red + green + blue) / 1.5 - 1
    for sign in (1, -1):
        eighth = xp.maximum(sign * contrast, 0) ** 8
        maps.append((1 - response) * eighth / (eighth + _HALF_CONTRAST**8))
    return xp.stack(maps, axis=1)


def _measure(xp: Namespace, maps: Array, derivatives: list[Array]) -> Array:
    """Compute eleven measures of form `(N, 11, 64, 64)` of maps `(N, 1, 64, 64)`.

    `derivatives` are three matrices `(64, 64)`, the Gaussian and its derivatives: `A · m · Bᵀ`
    convolves the columns of `m` with one and its rows with another.
    """
    smooth, first, second = derivatives
    smooth_columns, first_columns = smooth @ maps, first @ maps
    m_x, m_y = smooth_columns @ first.T, first_columns @ smooth.T
    m_xx, m_xy = smooth_columns @ second.T, first_columns @ first.T
    m_yy = (second @ maps) @ smooth.T
    energy = m_x**2 + m_y**2
    gradient = xp.sqrt(energy)
    cosines = [xp.ones_like(m_y), m_y / (gradient + _TINY)]
    while len(cosines) <= max(_HARMONICS):  # cos kφ by Chebyshev's recurrence
        cosines.append(2 * cosines[1] * cosines[-1] - cosines[-2])
    bend = (2 * m_x * m_y * m_xy - m_x**2 * m_yy - m_y**2 * m_xx) / (energy + _SMALLEST_EDGE)
    determinant = m_xx * m_yy - m_xy**2
    measures = [
        *(energy * cosines[k] for k in _HARMONICS),
        *(xp.maximum(sign * bend, 0) for sign in (1, -1)),
        *(xp.sqrt(xp.maximum(sign * determinant, 0)) for sign in (1, -1)),
    ]
    by_energy = xp.concatenate(measures, axis=1) / (_mean(energy) + _FLOOR)
    by_area = gradient / (_mean(maps) + _FLOOR)
    return xp.concatenate([by_energy, by_area], axis=1)


def _average(channels: Array, windows: _Windows) -> Array:
    """Average `(..., 64, 64)` under the windows of K x K cells: `(..., K, K)`."""
    return (windows.rows @ channels) @ windows.columns.swapaxes(-1, -2)


def _gaussian_derivative(size: int, scale: float, order: int) -> numpy.ndarray:
    """Return the matrix `(size, size)` float32 that convolves with a derivative of a Gaussian.

    Derivatives are with respect to x/σ, so that all have one unit; borders are reflected.
    """
    steps = numpy.arange(-size, 2 * size)
    distance = (numpy.arange(size)[:, None] - steps) / scale
    weights = numpy.exp(-(distance**2) / 2)
    weights /= weights.sum(axis=1, keepdims=True)
    weights *= (1, -distance, distance**2 - 1)[order]
    before, inside, after = numpy.split(weights, 3, axis=1)
    return numpy.asarray(before[:, ::-1] + inside + after[:, ::-1], numpy.float32)


def _windows(size: int, width: float) -> numpy.ndarray:
    """Return Gaussian weights `(8, size)` float32, each row of sum 1, around the cells' centres."""
    centres = (numpy.arange(_CELLS) + 0.5) * size / _CELLS - 0.5
    weights = numpy.exp(-(((numpy.arange(size) - centres[:, None]) / width) ** 2) / 2)
    return numpy.asarray(weights / weights.sum(axis=1, keepdims=True), numpy.float32)


def _cut(windows: numpy.ndarray) -> _Windows:
    """Restrict windows `(8, size)` to the rows and columns of 8 x 8 regions.

    Axes of regions come first, then of images and channels: `(8, 1, 1, 1, 8, size)` and
    `(1, 8, 1, 1, 8, size)`.
    """
    size = windows.shape[1]
    inside = numpy.arange(size) * _CELLS // size == numpy.arange(_CELLS)[:, None, None]
    parts = windows * inside
    return _Windows(parts[:, None, None, None], parts[None, :, None, None])
