"""The GPU memory that a benchmark uses, sampled with nvidia-smi."""

from __future__ import annotations

import subprocess


class Memory:
    """A sampler that records, twenty times a second, the GPU memory used beyond the first sample."""

    def __init__(self) -> None:
        line = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "50"]
        self._process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._first = int(self._process.stdout.readline())

    def peak(self) -> float:
        """Stop sampling and return the peak in bytes."""
        self._process.terminate()
        text, _ = self._process.communicate()
        most = max(int(line) for line in [str(self._first), *text.split()])
        return (most - self._first) * 2.0**20
