"""What a command must say of a mistake."""

import re


def one_line(result, message):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert re.search(message, lines[-1]), result.stderr
    assert lines[-1].startswith("xpcap: ")
    assert all(line.startswith(("device: ", "data: ", "features: ")) for line in lines[:-1]), (
        result.stderr
    )
