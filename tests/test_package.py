import subprocess
import sys

import xpcap

HEAVY = ("cupy", "matplotlib", "h5py", "PIL", "click", "rich")


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_xpcap_imports_nothing_heavy():
    found = python(f"import sys, xpcap; print(*(m for m in {HEAVY} if m in sys.modules))")
    assert found == []


def test_the_command_line_starts_without_the_heavy_parts():
    heavy = ("cupy", "matplotlib", "h5py", "PIL", "rich")
    found = python(f"import sys, xpcap.cli; print(*(m for m in {heavy} if m in sys.modules))")
    assert found == []


def test_public_names_exist():
    for name in xpcap.__all__:
        assert getattr(xpcap, name).__doc__
    assert xpcap.__version__
