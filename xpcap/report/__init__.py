"""A self-contained HTML page about one run or two."""

from xpcap.report.contents import Report, gather
from xpcap.report.page import check, render, write_report

__all__ = ["Report", "check", "gather", "render", "write_report"]
