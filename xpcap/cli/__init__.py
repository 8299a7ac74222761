"""The command line: commands translate options into calls of the library, and nothing else.

Results are printed to stdout, progress and messages to stderr. A mistake of the user ends in one
line and exit status 2.
"""

from xpcap.cli._main import main

__all__ = ["main"]
