"""xpcap: image captioning with hand-written backpropagation, one code for NumPy and CuPy.

>>> import xpcap
>>> with xpcap.use_backend("cpu"):
...     model = xpcap.CaptioningRNN({"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3}, seed=0)
>>> sorted(model.params)
['W_embed', 'W_proj', 'W_vocab', 'Wh', 'Wx', 'b', 'b_proj', 'b_vocab']
"""

import importlib
from typing import TYPE_CHECKING, Any

from xpcap import gradcheck, layers, optim
from xpcap.backend import Backend, namespace, open_backend, to_host, use_backend
from xpcap.errors import Stopped, XpcapError
from xpcap.models import CaptioningRNN
from xpcap.threads import use_threads

if TYPE_CHECKING:
    from xpcap.api import Run, open_run, prepare, train

__version__ = "0.1.0"

_API = ("Run", "open_run", "prepare", "train")

__all__ = [
    "Backend",
    "CaptioningRNN",
    "Run",
    "Stopped",
    "XpcapError",
    "gradcheck",
    "layers",
    "namespace",
    "open_backend",
    "open_run",
    "optim",
    "prepare",
    "to_host",
    "train",
    "use_backend",
    "use_threads",
]


def __getattr__(name: str) -> Any:
    """Import what is above the models when it is first used."""
    if name in _API:
        return getattr(importlib.import_module("xpcap.api"), name)
    raise AttributeError(f"module 'xpcap' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
