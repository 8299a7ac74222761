"""A page that shows what a run has learned: one file, which opens anywhere."""

from xpcap.report.contents import Report, gather
from xpcap.report.libraries import check
from xpcap.report.page import render, write_report

__all__ = ["Report", "check", "gather", "render", "write_report"]
