"""`python -m xpcap` is `xpcap`."""

from xpcap.cli import main

main(prog_name="xpcap")
