"""HTTP and HTTPS requests, and no others."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, cast

from xpcap.errors import DataError

FAILURES = (OSError, ValueError, http.client.HTTPException)
"""Exceptions of `open_url` and of reading its answer; time-outs are OSErrors."""


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https only."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        try:
            check_web(newurl)
        except DataError as error:
            raise urllib.error.HTTPError(req.full_url, code, str(error), headers, fp) from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_url(address: str) -> bool:
    """Whether an address begins with http:// or https://."""
    return address.lower().startswith(("http://", "https://"))


def check_web(url: str) -> None:
    """Raise a `DataError` unless `is_url`."""
    if not is_url(url):
        raise DataError(f"{url} is not an http or https address")


def open_url(
    url: str, timeout: float, headers: Mapping[str, str] | None = None
) -> http.client.HTTPResponse:
    """Send a GET request to an address checked by `check_web`; the caller closes the response.

    `timeout` is in seconds, for each answer of the server. Opening and reading the response may
    raise any of `FAILURES`.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "xpcap", **(headers or {})})
    opener = urllib.request.build_opener(_WebOnly)
    return cast(http.client.HTTPResponse, opener.open(request, timeout=timeout))


def reason_of(error: Exception) -> str:
    """Describe one of `FAILURES` in one line, and close the response it may hold."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    reason = str(getattr(error, "reason", "") or error)
    return " ".join(reason.split()) or type(error).__name__
