"""Tell other processes of this machine whether an answer's first token is awaited: one byte in a mapped file, 1 or 0.

A training on the same GPU polls it at no cost and yields.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class FirstWords:
    """Counts awaited first tokens and keeps the byte in `file`, which is overwritten."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\0")
        with file.open("r+b") as opened:
            self._byte = mmap.mmap(opened.fileno(), 1)
        self._waiting = 0

    @contextmanager
    def awaited(self) -> Iterator[Callable[[], None]]:
        """Count one awaited first token until the yielded function is called or the block ends."""
        still = True

        def heard() -> None:
            nonlocal still
            if still:
                still = False
                self._count(-1)

        self._count(1)
        try:
            yield heard
        finally:
            heard()

    def _count(self, more: int) -> None:
        self._waiting += more
        self._byte[0] = int(self._waiting > 0)
