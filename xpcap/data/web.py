"""Asking web servers, and nothing but web servers."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, cast

from xpcap.errors import DataError

FAILURES = (OSError, ValueError, http.client.HTTPException)
"""What asking a server and reading its answer may raise; time-outs are OSErrors."""


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but only to http and https."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if not _is_web(newurl):
            raise urllib.error.HTTPError(req.full_url, code, _not_web(newurl), headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_web(url: str) -> None:
    """Refuse an address that is not of a web server.

    Raises
    ------
    DataError
        If it begins with neither http:// nor https://.
    """
    if not _is_web(url):
        raise DataError(_not_web(url))


def open_url(
    url: str, timeout: float, headers: Mapping[str, str] | None = None
) -> http.client.HTTPResponse:
    """Ask a server for what is at an address; redirections are followed, but only to the web.

    Parameters
    ----------
    url
        An address that `check_web` has let through.
    timeout
        Seconds to wait for the server each time.
    headers
        What to tell the server.

    Returns
    -------
    http.client.HTTPResponse
        Close it when done. Opening and reading it may raise any of `FAILURES`.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "xpcap", **(headers or {})})
    opener = urllib.request.build_opener(_WebOnly)
    return cast(http.client.HTTPResponse, opener.open(request, timeout=timeout))


def reason_of(error: Exception) -> str:
    """Say in one line why a server could not be asked, and close what it answered."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    reason = str(getattr(error, "reason", "") or error)
    return " ".join(reason.split()) or type(error).__name__


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _not_web(url: str) -> str:
    return f"{url} is not an http or https address"
