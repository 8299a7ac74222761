"""Captioned images as thumbnails, in one HTML file without scripts."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import xpcap
from xpcap import threads
from xpcap.data.progress import Progress, no_progress
from xpcap.data.web import is_url
from xpcap.errors import DataError, printable
from xpcap.files import new_file
from xpcap.report.images import data_url

_AHEAD = 32  # thumbnails in memory
_STYLE = """
h1, header p { overflow-wrap: anywhere; }
.cards { grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); }
.card { margin: 0; padding: .5rem; contain-intrinsic-size: auto 16rem; }
.card img, .absent { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--paper); }
.card img { display: block; }
.absent { display: grid; place-content: center; padding: .5rem; font-size: .875rem; }
.card figcaption { color: var(--ink); }
.card p, .card ol, .card ul { margin: .4rem 0 0; }
.card ol { padding-left: 1.25rem; }
.name, .number { color: var(--soft); font-size: .8rem; }
"""
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{summary}</p>
</header>
<main class="cards">
"""
_FOOT = """</main>
<footer><p>Made by xpcap {version}.</p></footer>
</body>
</html>
"""


def write_contact_sheet(
    path: Path,
    title: str,
    captioned: Sequence[dict[str, Any]],
    open_image: Callable[[str], Any],
    progress: Progress = no_progress,
) -> None:
    """Write what `caption_images` or `caption_dataset` returns, with a thumbnail of each image.

    `open_image` opens an image of `captioned` with PIL, in many threads, or raises `DataError`;
    those on the web are linked instead. Images that cannot be opened are shown by the reason.
    """

    def card(entry: dict[str, Any]) -> str:
        return _card(entry, _picture(entry, open_image))

    broken = sum("error" in entry for entry in captioned)
    summary = f"{len(captioned)} images"
    summary += f", {broken} of which cannot be opened." if broken else "."
    if any(len(entry["captions"]) > 1 for entry in captioned):
        summary += " Numbers are log-probabilities of captions, in nats."
    style = resources.files("xpcap.report").joinpath("page.css").read_text(encoding="utf-8")
    with (
        new_file(path) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
        ThreadPoolExecutor(threads.available()) as pool,
    ):
        file.write(_HEAD.format(title=_text(title), style=style + _STYLE, summary=summary))
        for first in range(0, len(captioned), _AHEAD):
            file.writelines(pool.map(card, captioned[first : first + _AHEAD]))
            progress("thumbnails", min(first + _AHEAD, len(captioned)), len(captioned))
        file.write(_FOOT.format(version=xpcap.__version__))


def _picture(entry: dict[str, Any], open_image: Callable[[str], Any]) -> str:
    """Return the thumbnail of an image, a link, or the reason why there is none."""
    address = entry["image"]
    if is_url(address):
        link = f'<a href="{_text(address)}" rel="noreferrer">open the image</a>'
        return f'<div class="absent">{link}</div>'
    error = entry.get("error")
    try:
        if error is None:
            picture = data_url(open_image(address))
            return f'<img src="{picture}" alt="{_text(address)}" loading="lazy">'
    except DataError as failed:
        error = str(failed)
    return f'<div class="absent">{_text(error.removeprefix(f"{address} "))}</div>'


def _card(entry: dict[str, Any], picture: str) -> str:
    captions = entry["captions"]
    if len(captions) > 1:
        items = (
            f'<li>{_text(found["caption"])} <span class="number">'
            f"{found['log_prob']:.2f}</span></li>"
            for found in captions
        )
        text = f"<ol>{''.join(items)}</ol>"
    else:
        text = "".join(f"<p>{_text(found['caption'])}</p>" for found in captions)
    references = "".join(f"<li>{_text(said)}</li>" for said in entry.get("references", ()))
    if references:
        text += f'<ul class="references" aria-label="References">{references}</ul>'
    return (
        f'<figure class="card">\n{picture}\n<figcaption>{text}'
        f'<p class="name">{_text(entry["image"])}</p></figcaption>\n</figure>\n'
    )


def _text(text: str) -> str:
    return html.escape(printable(text))
