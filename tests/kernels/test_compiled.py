"""Functions that numba compiles once and keeps for later processes."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba", reason="needs the extra fast")

CODE = """
import hashlib, numpy, xpcap
xpcap.use_threads(1)
words = {"<NULL>": 0, "<START>": 1, "<END>": 2, **{str(k): k for k in range(3, 63)}}
model = xpcap.CaptioningRNN(words, 20, 16, 24, "gru", seed=1, backend="cpu")
rng = numpy.random.default_rng(0)
features, captions = rng.standard_normal((10, 20)), rng.integers(3, 60, (10, 9))
_, gradients = model.loss(features, captions)
print(hashlib.sha256(b"".join(gradient.tobytes() for gradient in gradients.values())).hexdigest())
"""


def test_results_do_not_depend_on_who_compiled(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def bits():
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    compiled = bits()
    assert list(tmp_path.rglob("*.nbi")), "nothing was kept"
    assert bits() == compiled
