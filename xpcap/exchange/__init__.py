"""Export and import of weights: PyTorch's layers, the course's dict of parameters, ONNX."""

from xpcap.exchange.exporting import FORMATS, export_run
from xpcap.exchange.importing import import_run
from xpcap.exchange.torch_layout import from_torch, to_torch

__all__ = ["FORMATS", "export_run", "from_torch", "import_run", "to_torch"]
