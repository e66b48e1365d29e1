"""Whether somebody waits for a first word, as a byte in a file: 1 while anybody does, else 0.

Another process on the machine maps the file and looks at it as often as it likes, at no cost: a training on the same
card lets the question go first. Knows no engines.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class FirstWords:
    """Counts who waits, and keeps the byte in `file`, which is made anew."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\0")
        with file.open("r+b") as opened:
            self._byte = mmap.mmap(opened.fileno(), 1)
        self._waiting = 0

    @contextmanager
    def awaited(self) -> Iterator[Callable[[], None]]:
        """Somebody waits until what this yields is called, or until the block is left."""
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
