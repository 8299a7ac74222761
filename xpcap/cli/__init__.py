"""The command line: it translates options and calls the library, and nothing else.

Results go to standard output, talk to standard error. A user's mistake is one line and exit 2.
"""

from xpcap.cli._main import main

__all__ = ["main"]
