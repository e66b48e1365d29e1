"""The GPU memory that a benchmark uses, sampled with nvidia-smi."""

from __future__ import annotations

import os
import subprocess


def memory_query() -> list[str]:
    """Return the command that prints the memory in use, in MiB, on the first GPU that this process may use."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return ["nvidia-smi", f"--id={first}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]


class Memory:
    """A sampler that records, twenty times a second, how much GPU memory use has risen since the first sample."""

    def __init__(self) -> None:
        line = [*memory_query(), "-lms", "50"]
        self._process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._first = int(self._process.stdout.readline())

    def peak(self) -> float:
        """Stop sampling and return the peak in bytes."""
        self._process.terminate()
        text, _ = self._process.communicate()
        most = max(int(line) for line in [str(self._first), *text.split()])
        return (most - self._first) * 2.0**20
