"""The report as one HTML file: no server, no network, no external script.

All text is escaped by Jinja, and the page's content security policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

import xpcap
from xpcap.evaluation import METRICS
from xpcap.files import new_file
from xpcap.report.contents import Report
from xpcap.report.plots import load, plots


def check() -> None:
    """Check that all libraries are installed, before any work that would be lost."""
    load("jinja2")
    load("matplotlib")


def write_report(path: Path, report: Report) -> None:
    """Render a report and write it to a file."""
    html = render(report)
    with new_file(path) as temporary:
        # JSON can contain lone surrogates, which UTF-8 cannot encode
        temporary.write_text(html, encoding="utf-8", errors="replace")


def render(report: Report) -> str:
    """Return the page as HTML."""
    environment = load("jinja2").Environment(autoescape=True, trim_blocks=True)
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = [run.name for run in report.runs]
    scores = [run.evaluation.scores.corpus for run in report.runs]
    headings = ("Best", "Worst", "Most changed" if len(names) == 1 else "Most different")
    chosen = zip(headings, (report.best, report.worst, report.different), strict=True)
    html: str = environment.from_string(_read("page.html")).render(
        report=report,
        title=f"xpcap report: {' and '.join(names)}",
        images=len(report.runs[0].evaluation.images),
        metrics=[(name, [score[name] for score in scores]) for name in scores[0]],
        phrases=METRICS,
        chosen=[(heading, places) for heading, places in chosen if places],
        kinds={kind for entry in report.entries for one in entry.captions for kind in one.maps},
        plots=plots(report.runs),
        layered=any(run.layers for run in report.runs),
        style=_read("page.css"),
        script=script,
        script_hash=f"sha256-{digest}",
        version=xpcap.__version__,
    )
    return html


def _read(name: str) -> str:
    return resources.files("xpcap.report").joinpath(name).read_text(encoding="utf-8")
