"""The CPU engine: a small inference server for InternVL2 that needs no GPU."""
