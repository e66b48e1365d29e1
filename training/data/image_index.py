"""Which picture files were read to their end, their sizes and digests: noted once, believed while the file is the same.

A large source has hundreds of thousands of pictures, and decoding them all takes minutes to an hour; a file of the same
length and time of change is not decoded again. Knows files; what a bad one means is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from hashlib import sha256
from pathlib import Path

from inference.images.opening import check_picture


@dataclass(frozen=True, slots=True)
class Look:
    """A whole picture: its size in pixels, the sha256 of its bytes; the file's length and time of change (ns)."""

    width: int
    height: int
    sha256: str
    length: int
    changed: int


class PictureNotes:
    """Notes in a file of JSON lines that only grows; without a file they last as long as the object."""

    def __init__(self, file: Path | None, examine: Callable[[bytes], tuple[int, int, str]] | None = None) -> None:
        """`examine` returns a picture's width, height and sha256; it may make another picture of it, which those are of
        then. Raises `PictureError`.
        """
        self._file = file
        self._examine = examine or _examined
        self._known: dict[str, Look] = {}
        self._fresh: dict[str, Look] = {}
        if file is not None and file.exists():
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    # A process that was killed leaves half a line.
                    with suppress(ValueError, TypeError):
                        name, *values = json.loads(line)
                        self._known[name] = Look(*values)

    def look(self, path: Path, *, note: bool = True) -> Look:
        """What there is to know of a picture file. Raises `PictureError`, OSError, ValueError (no name of a file)."""
        status, name = path.stat(), str(path)
        known = self._known.get(name)
        if known is not None and (known.length, known.changed) == (status.st_size, status.st_mtime_ns):
            return known
        seen = Look(*self._examine(path.read_bytes()), status.st_size, status.st_mtime_ns)
        if note:
            self._known[name] = self._fresh[name] = seen
        return seen

    def fresh(self) -> dict[str, Look]:
        """What was found out since the last call, by the file's name: for another process to `keep`."""
        fresh, self._fresh = self._fresh, {}
        return fresh

    def keep(self, fresh: Mapping[str, Look]) -> None:
        """Believe these from now on, and write them down."""
        self._known |= fresh
        if self._file is not None and fresh:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps([name, *astuple(each)]) + "\n" for name, each in fresh.items())


def _examined(data: bytes) -> tuple[int, int, str]:
    width, height = check_picture(data)
    return width, height, sha256(data).hexdigest()
