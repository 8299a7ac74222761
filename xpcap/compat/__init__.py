"""The function names and layouts of two courses, computed by `xpcap.layers`."""
