"""The captioner: parameters, loss and gradients, and one decoding step."""

from xpcap.models.captioner import CaptioningRNN

__all__ = ["CaptioningRNN"]
