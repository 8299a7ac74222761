"""The attention of a caption as one image: the captioned one under the heat map of each word."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.progress import Progress, no_progress
from xpcap.data.vocabulary import END
from xpcap.data.web import is_url
from xpcap.errors import ConfigurationError, DataError
from xpcap.files import check_writable, explained, new_file
from xpcap.runs import Run
from xpcap.runs.attention import Area, Attention, attending, grid_area, grid_side

COLUMNS = 5
_TILE = 224  # pixels of an image's longer side
_GAP, _LINE, _TEXT = 12, 30, 18  # pixels between tiles, for a word, and of its letters
_DIMMED, _STRONGEST = 0.6, 0.8  # brightness of the grey image; opacity of the strongest region
_GLOW, _PAPER, _INK, _SOFT = (255, 212, 59), (255, 255, 255), (27, 31, 36), (87, 96, 106)
_RAMP = (120, 10)  # pixels of the legend
_LEGEND = "weak", "strong: the most attended region of each word"


def figure_paths(run: Run, folder: Path, images: Sequence[str | Path]) -> list[Path]:
    """Return the file of each image's figure in a folder: `NAME.png`, or `NAME-2.png` for another.

    Raises
    ------
    ConfigurationError
        If the run has no attention, or not to the regions of a grid.
    DataError
        If the folder cannot be written to, a figure exists already, or an image is on the web.
    """
    attending([run.model, *run.partners], run.feature_shape)
    if not grid_side(run.config["data"], run.feature_shape[0]):
        raise ConfigurationError(
            f"{run.folder} looks at regions whose places in the image are unknown; expected those"
            " of a square grid, as from xpcap data prepare --output grid"
        )
    check_writable(folder)
    paths: dict[str, Path] = {}
    for image in map(str, images):
        if is_url(image):
            raise DataError(f"{image} is on the web; expected an image file to draw attention over")
        stem, number = Path(image).stem, 1
        name = f"{stem}.png"
        while name.lower() in paths:
            number += 1
            name = f"{stem}-{number}.png"
        paths[name.lower()] = folder / name
    for path in paths.values():
        with explained(path, "write"):
            if path.exists():
                raise DataError(f"{path} exists; expected another folder for the attention")
    return list(paths.values())


def write_figures(
    run: Run,
    paths: Sequence[Path],
    captioned: Sequence[dict[str, Any]],
    open_image: Callable[[str], Any],
    progress: Progress = no_progress,
) -> None:
    """Write the figure of each image that has a caption.

    `captioned` is what `caption_images` or `caption_dataset` returns with attention; `open_image`
    opens an image of it with PIL.
    """
    for done, (path, entry) in enumerate(zip(paths, captioned, strict=True), start=1):
        if entry["captions"]:
            image = open_image(entry["image"])
            words = [found["word"] for found in entry["captions"][0]["words"]]
            area = grid_area(run.config["data"], image.size)
            attention = Attention(words, numpy.array(entry["attention"]))
            figure = attention_figure(image, attention, area)
            with new_file(path) as temporary:
                figure.save(temporary, "PNG")
        progress("attention", done, len(paths))


def not_in_font(words: Iterable[str]) -> str:
    """Return the characters of words, sorted, that a figure shows as boxes: its font lacks them."""
    from PIL import ImageFont

    font = ImageFont.load_default(_TEXT)
    box = bytes(font.getmask("\U0010ffff"))  # no character
    return "".join(sorted(c for c in set().union(*words) if bytes(font.getmask(c)) == box))


def attention_figure(image: Any, attention: Attention, area: Area) -> Any:
    """Draw a `PIL.Image.Image` with a tile for the image and for each word but `<END>`.

    `image` is a `PIL.Image.Image` in RGB, `area` the part of it that a square grid
    covers. Heat maps are interpolated, and relative to each word's most attended region.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = image.copy()
    image.thumbnail((_TILE, _TILE))
    if max(image.size) < _TILE:
        scale = _TILE / max(image.size)
        image = image.resize([max(1, round(scale * size)) for size in image.size])
    font = ImageFont.load_default(_TEXT)
    side = math.isqrt(attention.weights.shape[1])
    tiles = [("", image)] + [
        (word, _heated(image, weights.reshape(side, side), area))
        for word, weights in zip(attention.words, attention.weights, strict=True)
        if word != END
    ]
    width = max(image.width, _TILE // 2)
    columns = min(COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    step = width + _GAP, image.height + _LINE + _GAP
    figure = Image.new(
        "RGB", (_GAP + max(columns, 3) * step[0], _GAP + rows * step[1] + _LINE), _PAPER
    )
    draw = ImageDraw.Draw(figure)
    for k, (word, tile) in enumerate(tiles):
        left, top = _GAP + k % columns * step[0], _GAP + k // columns * step[1]
        figure.paste(tile, (left + (width - tile.width) // 2, top))
        fitting = font
        if draw.textlength(word, font) > width:
            fitting = ImageFont.load_default(max(1, _TEXT * width // draw.textlength(word, font)))
        draw.text((left + width / 2, top + tile.height + 4), word, _INK, fitting, anchor="ma")
    _draw_legend(figure, draw, figure.height - _LINE, ImageFont.load_default(13))
    return figure


def _heated(image: Any, weights: numpy.ndarray, area: Area) -> Any:
    """Return a grey copy of an image that glows where the weights of regions `(S, S)` are large."""
    from PIL import Image

    left, top, right, bottom = (
        round(share * size) for share, size in zip(area, 2 * image.size, strict=True)
    )
    strength = Image.fromarray((weights / (weights.max() or 1.0)).astype(numpy.float32))
    size = max(1, right - left), max(1, bottom - top)
    heat = strength.resize(size, Image.Resampling.BILINEAR)
    opacity = Image.new("L", image.size)
    opacity.paste(heat.point(lambda value: 255 * _STRONGEST * value).convert("L"), (left, top))
    grey = image.convert("L").point(lambda value: _DIMMED * value).convert("RGB")
    grey.paste(_GLOW, (0, 0, *image.size), opacity)
    return grey


def _draw_legend(figure: Any, draw: Any, top: int, font: Any) -> None:
    from PIL import Image

    weak, strong = _LEGEND
    left = _GAP + round(draw.textlength(weak, font)) + _GAP // 2
    grey = Image.new("RGB", _RAMP, (64, 64, 64))
    ramp = _heated(grey, numpy.linspace(0, 1, _RAMP[0])[None], Area())
    draw.text((_GAP, top), weak, _SOFT, font)
    figure.paste(ramp, (left, top + 3))
    draw.text((left + _RAMP[0] + _GAP // 2, top), strong, _SOFT, font)
