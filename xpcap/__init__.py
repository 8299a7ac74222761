"""xpcap: image captioning with hand-written backpropagation, one code for NumPy and CuPy.

>>> import xpcap
>>> with xpcap.use_backend("cpu"):
...     model = xpcap.CaptioningRNN({"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3}, seed=0)
>>> sorted(model.params)
['W_embed', 'W_proj', 'W_vocab', 'Wh', 'Wx', 'b', 'b_proj', 'b_vocab']
"""

from xpcap import gradcheck, layers, optim
from xpcap.backend import Backend, namespace, open_backend, to_host, use_backend
from xpcap.errors import XpcapError
from xpcap.models import CaptioningRNN
from xpcap.threads import use_threads

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "CaptioningRNN",
    "XpcapError",
    "gradcheck",
    "layers",
    "namespace",
    "open_backend",
    "optim",
    "to_host",
    "use_backend",
    "use_threads",
]
