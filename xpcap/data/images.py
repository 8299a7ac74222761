"""Opening untrusted images from files and from the web."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.archive import read_member
from xpcap.data.web import FAILURES, check_web, open_url, reason_of
from xpcap.errors import DataError, first_line
from xpcap.files import read_bytes

MAX_BYTES = 20 * 2**20
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
MOST_PIXELS = 89_000_000  # of any image
LONGEST_SIDE = 2**16 - 1  # in pixels, as in JPEG; decoding takes time per row
UNSUSPICIOUS, DENSEST = 2**24, 32  # pixels of any image; pixels per byte of a larger one
_PIXELS = ((), (3,), (4,))  # numbers per pixel of an array
_TILE = 1024  # pixels per side
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose mode I is 0 to 65,535
_BRANDS = (  # of HEIC and AVIF, in the first box of a file (ISO 14496-12)
    b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis",
)  # fmt: skip
LARGEST_FILE = 2**29  # bytes
_LARGE, _DECODING_LARGE = 2**24, threading.Lock()  # threads decode images of more pixels in turn

logging.getLogger("PIL").addHandler(logging.NullHandler())  # or else Python prints its logs


def image_from_url(url: str, timeout: float = 10.0, max_bytes: int = MAX_BYTES) -> numpy.ndarray:
    """Fetch an RGB image `(height, width, 3)` uint8 from an http or https address.

    A `DataError` is raised if the address is invalid, the server refuses or does not answer within
    `timeout` seconds, the file is too large, or it is not an image.
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
    """Open an image file as `decode_picture` does."""
    return decode_picture(read_bytes(path, LARGEST_FILE), path)


def open_packed(archive: Path, member: str) -> Any:
    """Open an image file in a zip archive as `decode_picture` does."""
    return decode_picture(read_member(archive, member, LARGEST_FILE), f"{archive}/{member}")


def as_images(images: Any) -> list[Any]:
    """Return a list of images, or of the only one, each as `rgb_picture` takes it."""
    from PIL import Image

    if isinstance(images, str | Path | Image.Image) or (
        isinstance(images, numpy.ndarray) and images.ndim != 4
    ):
        images = [images]
    if not isinstance(images, Iterable):
        raise DataError(f"images are of type {type(images).__name__}; expected a list of them")
    return [
        rgb_picture(image) if isinstance(image, Image.Image) else image  # not loaded by threads
        for image in images
    ]


def rgb_picture(image: Any) -> Any:
    """Return an image as an 8-bit RGB `PIL.Image.Image`.

    It is a file name, a PIL image, or an array of 8-bit pixels `(height, width)` or `(height,
    width, 3)`, or 4 with opacity. The EXIF orientation is applied.
    """
    from PIL import Image, ImageOps

    if isinstance(image, str | Path):
        return open_picture(Path(image))
    if isinstance(image, numpy.ndarray):
        if image.dtype != numpy.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in _PIXELS:
            raise DataError(
                f"an image is an array {image.shape} of {image.dtype}; expected uint8 (height,"
                " width), (height, width, 3) or (height, width, 4)"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise DataError(
            f"an image is of type {type(image).__name__}; expected a file name, PIL image or array"
        )
    try:
        return in_rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # Pillow loads an opened file only now, and raises many types
        name = getattr(image, "filename", "") or "an image"
        raise DataError(f"{name} cannot be opened as an image: {first_line(error)}") from error


def open_stored(address: str | Path) -> Any:
    """Open an image file, or one in a zip archive at `ARCHIVE.zip/MEMBER`, as `decode_picture`."""
    path = Path(address)
    for archive in path.parents:
        if archive.suffix == ".zip" and os.path.isfile(archive):
            return open_packed(archive, path.relative_to(archive).as_posix())
    return open_picture(path)


def decode_picture(content: bytes, name: str | Path) -> Any:
    """Decode an image file, called `name` in messages, as an 8-bit RGB `PIL.Image.Image`.

    The EXIF orientation is applied, then `in_rgb`. The file is in one of `FORMATS`; TIFF without
    compression. Pillow's other formats run external programs, or libraries that print or have had
    vulnerabilities.

    Raises
    ------
    DataError
        If it is damaged, not an image, not convertible, or so large that it may be an attack: more
        than 89 million pixels, or more than 16.7 million and 32 per byte of the file, or 65,535 on
        a side.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        _check_format(content)
        _check_webp(content)  # first, as opening allocates all pixels
        with _QUIETLY, Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            _check_pixels(opened.size, len(content))
            if opened.tile and opened.tile[0][0] == "libtiff":
                raise ValueError("it is a compressed TIFF; expected one without compression")
            _check_tiff(opened)
            large = opened.width * opened.height > _LARGE
            with _DECODING_LARGE if large else contextlib.nullcontext():
                ImageOps.exif_transpose(opened, in_place=True)
                opened.load()
                return in_rgb(opened)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types
        reason = first_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = f"its format is unknown; expected one of {', '.join(FORMATS)}"
        raise DataError(f"{name} cannot be opened as an image: {reason}") from error


def in_rgb(image: Any) -> Any:
    """Convert a `PIL.Image.Image` of any mode to 8-bit RGB, if needed, with two copies in memory.

    Transparent areas become white, and 16 bits are reduced to 8. Signed or 32-bit integers and
    floats raise a `DataError`: nothing says which of their values are black and white.
    """
    from PIL import Image

    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    sixteen_bits = image.format in _SIXTEEN_BITS if image.mode == "I" else image.mode[:4] == "I;16"
    if image.mode in ("I", "F") and not sixteen_bits:
        kind = "32-bit floats" if image.mode == "F" else "32-bit or signed integers"
        raise DataError(
            f"its pixels are {kind}, of unknown black and white; expected unsigned 8 or 16 bits"
        )
    found = Image.new("RGB", image.size)
    for left in range(0, image.width, _TILE):
        for top in range(0, image.height, _TILE):
            box = (left, top, min(left + _TILE, image.width), min(top + _TILE, image.height))
            tile = image.crop(box)
            found.paste(_on_white(_in_eight_bits(tile) if sixteen_bits else tile), box)
    return found


def _in_eight_bits(image: Any) -> Any:
    """Reduce 16 bits, which Pillow would clip at 255; the transparent level becomes white."""
    from PIL import Image

    levels = numpy.asarray(image)
    reduced = (levels / 257).astype(numpy.uint8)
    reduced[levels == image.info.get("transparency", -1)] = 255
    return Image.fromarray(reduced)


def _on_white(image: Any) -> Any:
    """Convert an image to RGB on white."""
    from PIL import Image

    if image.has_transparency_data:
        if image.mode == "La":  # which Pillow converts to LA alone
            image = image.convert("LA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _check_format(content: bytes) -> None:
    """Refuse an empty file, and say what opens images in HEIC and AVIF format."""
    if not content:
        raise ValueError("it is empty")
    if content[4:8] == b"ftyp" and content[8:12] in _BRANDS:
        name = "AVIF" if content[8:11] == b"avi" else "HEIC"
        raise ValueError(
            f"it is in {name} format; convert it to JPEG first, for example by ImageMagick:"
            f" magick a.{name.lower()} a.jpg"
        )


def _check_tiff(image: Any) -> None:
    """Refuse a TIFF whose levels Pillow would take for others."""
    if image.format != "TIFF" or image.mode not in ("L", "I;16"):
        return
    bits, signs = image.tag_v2.get(258, ()), image.tag_v2.get(339, ())
    white_is_zero = image.tag_v2.get(262) == 0
    if 12 in bits or 2 in signs or (white_is_zero and 16 in bits):
        raise ValueError(
            "it is a TIFF of 12 bits, signed, or of 16 bits with 0 for white; expected unsigned"
            " 8 or 16 bits with 0 for black"
        )


def _check_pixels(sides: tuple[int, int], size: int) -> None:
    """Check the number of pixels, absolutely and for a file of `size` bytes."""
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
    """Ignores Pillow's warnings while any thread is inside.

    Warning filters belong to the process: the first thread sets them, the last one restores them.
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
