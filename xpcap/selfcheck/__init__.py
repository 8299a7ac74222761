"""Proving an installation: every layer's gradients and the worked cases, on any device."""
