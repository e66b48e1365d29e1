"""A signal to other processes on the machine that an answer's first token is awaited.

The signal is one byte in a memory-mapped file, 1 or 0. A training run on the same GPU polls the byte at
no cost and yields the GPU.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class FirstTokenSignal:
    """Count of awaited first tokens; the byte in `file` is 1 while the count is above 0.

    If `file` exists, it is overwritten.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\0")
        with file.open("r+b") as opened:
            self._byte = mmap.mmap(opened.fileno(), 1)
        self._waiting = 0

    @contextmanager
    def awaited(self) -> Iterator[Callable[[], None]]:
        """Count a first token as awaited until the yielded function is called or the block ends."""
        waiting = True

        def arrived() -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                self._count(-1)

        self._count(1)
        try:
            yield arrived
        finally:
            arrived()

    def _count(self, more: int) -> None:
        self._waiting += more
        self._byte[0] = int(self._waiting > 0)
