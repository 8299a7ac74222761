"""Pictures from files and from the web, opened with care."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.web import FAILURES, check_web, open_url, reason_of
from xpcap.errors import DataError
from xpcap.files import explained

MAX_BYTES = 20 * 2**20
_OPENING = threading.Lock()
_LARGE, _DECODING_LARGE = 2**24, threading.Lock()  # pixels; threads decode such ones in turn


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
    with explained(path, "read"):
        content = path.read_bytes()
    return decode_picture(content, path)


def decode_picture(content: bytes, name: str | Path) -> Any:
    """Turn a file's bytes into a picture as a person sees it.

    It is turned as its EXIF orientation says, laid on white where it is transparent, and reduced
    from 16 bits to 8.

    Parameters
    ----------
    content
        Of a file of any format that Pillow reads.
    name
        What to call it if it is no picture.

    Returns
    -------
    PIL.Image.Image
        In red, green and blue, 8 bits each.

    Raises
    ------
    DataError
        If it is broken, no picture, or so large that it may be an attack.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        # filters of warnings belong to the process, not to a thread: one at a time
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(content))
        large = opened.width * opened.height > _LARGE
        with opened, _DECODING_LARGE if large else contextlib.nullcontext():
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits; Pillow would cut them off at 255
                image = Image.fromarray((numpy.asarray(image) / 257).astype(numpy.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # each of Pillow's decoders fails in its own way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is unknown"
        raise DataError(f"{name} cannot be opened as a picture: {reason}") from error
