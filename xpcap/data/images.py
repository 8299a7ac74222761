"""Pictures from files and from the web, opened with care."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.web import FAILURES, check_web, open_url, reason_of
from xpcap.errors import DataError
from xpcap.files import read_bytes

MAX_BYTES = 20 * 2**20
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
MOST_PIXELS = 89_000_000  # of any picture
LONGEST_SIDE = 2**16 - 1  # pixels of a picture, as in JPEG; rows take time each
UNSUSPICIOUS, DENSEST = 2**24, 32  # pixels of a picture; and how many for a byte of its file
_TILE = 1024  # pixels on a side
LARGEST_FILE = 2**29  # bytes of a picture's file
_LARGE, _DECODING_LARGE = 2**24, threading.Lock()  # pixels; threads decode such ones in turn

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what it logs


def image_from_url(url: str, timeout: float = 10.0, max_bytes: int = MAX_BYTES) -> numpy.ndarray:
    """Fetch a picture.

    Parameters
    ----------
    url
        An http or https address.
    timeout
        Seconds to wait for the server each time.
    max_bytes
        The largest file accepted.

    Returns
    -------
    array
        `(height, width, 3)` uint8, red, green, blue.

    Raises
    ------
    DataError
        If the address is of another kind, the server does not answer in time or refuses, the
        file is too large, or it is no picture.
    """
    check_web(url)
    try:
        with open_url(url, timeout) as answer:
            content = answer.read(max_bytes + 1)
    except FAILURES as error:
        raise DataError(f"cannot fetch {url}: {reason_of(error)}") from error
    if len(content) > max_bytes:
        raise DataError(f"{url} is larger than {max_bytes} bytes")
    return numpy.asarray(decode_picture(content, url))


def open_picture(path: Path) -> Any:
    """Open a picture file as `decode_picture` does.

    Raises
    ------
    DataError
        If the file is missing, or as `decode_picture`.
    """
    return decode_picture(read_bytes(path, LARGEST_FILE), path)


def decode_picture(content: bytes, name: str | Path) -> Any:
    """Turn a file's bytes into a picture as a person sees it.

    It is turned as its EXIF orientation says, laid on white where it is transparent, and reduced
    from 16 bits to 8.

    Parameters
    ----------
    content
        Of a file in one of `FORMATS`; TIFF without compression. Other formats of Pillow's run other
        programs, or libraries that print and have had holes.
    name
        What to call it if it is no picture.

    Returns
    -------
    PIL.Image.Image
        In red, green and blue, 8 bits each.

    Raises
    ------
    DataError
        If it is broken, no picture, or so large that it may be an attack: more than 89
        million pixels, or than 16.7 million and 32 for a byte of the file, or 65,535 on a side.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        _check_webp(content)  # of which opening takes memory for all pixels
        with _QUIETLY, Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            _check_pixels(opened.size, len(content))
            if opened.tile and opened.tile[0][0] == "libtiff":
                raise ValueError("it is a compressed TIFF; expected one without compression")
            large = opened.width * opened.height > _LARGE
            with _DECODING_LARGE if large else contextlib.nullcontext():
                ImageOps.exif_transpose(opened, in_place=True)
                opened.load()
                return _in_colours(opened)
    except MemoryError:
        raise
    except Exception as error:  # each of Pillow's decoders fails in its own way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is unknown"
        raise DataError(f"{name} cannot be opened as a picture: {reason}") from error


def _in_colours(image: Any) -> Any:
    """Return a loaded picture in red, green and blue; by tiles, so that it is there twice at most.

    One that is so already is returned as it is.
    """
    from PIL import Image

    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    found = Image.new("RGB", image.size)
    for left in range(0, image.width, _TILE):
        for top in range(0, image.height, _TILE):
            box = (left, top, min(left + _TILE, image.width), min(top + _TILE, image.height))
            found.paste(_on_white(image.crop(box)), box)
    return found


def _on_white(image: Any) -> Any:
    """Lay a picture on white where it is transparent."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits; Pillow would cut them off at 255
        image = Image.fromarray((numpy.asarray(image) / 257).astype(numpy.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _check_pixels(sides: tuple[int, int], size: int) -> None:
    """Check that a picture's pixels are not too many, for any file or for one of `size` bytes."""
    pixels = sides[0] * sides[1]
    most = min(MOST_PIXELS, max(UNSUSPICIOUS, DENSEST * size))
    if pixels > most:
        raise ValueError(f"it has {pixels} pixels in {size} bytes; expected at most {most}")
    if max(sides) > LONGEST_SIDE:
        raise ValueError(f"it has {max(sides)} pixels on a side; expected at most {LONGEST_SIDE}")


def _check_webp(content: bytes) -> None:
    """Check the size in the header of a WebP file (RFC 9649), if it is one."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return
    match content[12:16]:
        case b"VP8X":
            sides = [int.from_bytes(content[k : k + 3], "little") + 1 for k in (24, 27)]
        case b"VP8L":
            both = int.from_bytes(content[21:25], "little")
            sides = [(both >> shift & 0x3FFF) + 1 for shift in (0, 14)]
        case _:
            sides = [int.from_bytes(content[k : k + 2], "little") & 0x3FFF for k in (26, 28)]
    _check_pixels((sides[0], sides[1]), len(content))


class _Quietly:
    """Keeps Pillow from warning of what is odd in a file, as long as any thread is inside.

    Filters of warnings belong to the process, not to a thread: the first one sets them, and the
    last one takes them away.
    """

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._inside = 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._counting:
            if not self._inside:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._counting:
            self._inside -= 1
            if not self._inside:
                self._before.__exit__(None, None, None)


_QUIETLY = _Quietly()
