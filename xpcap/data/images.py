"""Fetching a picture from the web, carefully."""

from __future__ import annotations

import http.client
import io
import urllib.error
import urllib.request
from typing import Any

import numpy

from xpcap.errors import DataError

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but only to http and https."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if not _is_web(newurl):
            raise urllib.error.HTTPError(req.full_url, code, _not_web(newurl), headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _not_web(url: str) -> str:
    return f"{url} is not an http or https address"


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
    if not _is_web(url):
        raise DataError(_not_web(url))
    opener = urllib.request.build_opener(_WebOnly)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "xpcap"})
        with opener.open(request, timeout=timeout) as answer:
            content = answer.read(max_bytes + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:  # time-outs are OSErrors
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise DataError(f"cannot fetch {url}: {reason}") from error
    if len(content) > max_bytes:
        raise DataError(f"{url} is larger than {max_bytes} bytes")
    return _decode(content, url)


def _decode(content: bytes, url: str) -> numpy.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{url} has {picture.width}x{picture.height} pixels, too many")
            return numpy.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{url} is not a picture that can be read") from error
