"""Timing of training steps, losses and greedy decoding, and of their matrix products alone."""
