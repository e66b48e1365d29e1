"""An index of valid picture files with their sizes and digests, so that each file is decoded only once.

A source may have hundreds of thousands of pictures, which take from minutes to an hour to decode. A file
whose length and modification time are unchanged is not decoded again.
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
class ImageInfo:
    """The size in pixels and the SHA-256 of a valid picture, and the length and modification time (ns) of its file."""

    width: int
    height: int
    sha256: str
    length: int
    changed: int


class ImageIndex:
    """An index of picture files, in an append-only file of JSON lines or, if there is no file, in memory."""

    def __init__(self, file: Path | None, examine: Callable[[bytes], tuple[int, int, str]] | None = None) -> None:
        """Read the index from `file`, if there is one.

        Args:
            file: The file of the index; None to keep the index in memory.
            examine: A function that takes a picture's bytes and returns the width, height and SHA-256 of the picture
                or, if the function converts it, of the converted picture.
        """
        self._file = file
        self._examine = examine or _examine
        self._known: dict[str, ImageInfo] = {}
        self._new: dict[str, ImageInfo] = {}
        if file is not None and file.exists():
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    # A killed process may leave an incomplete line.
                    with suppress(ValueError, TypeError):
                        name, *values = json.loads(line)
                        self._known[name] = ImageInfo(*values)

    def get(self, path: Path, *, add: bool = True) -> ImageInfo:
        """Return the entry of a picture file, decoding the file if its entry is missing or outdated.

        If `add` is true, the new entry is added to the index; otherwise, it is only kept in memory.

        Raises:
            PictureError: The picture cannot be decoded.
            OSError: The file cannot be read.
            ValueError: The path is not a valid file name.
        """
        status, name = path.stat(), str(path)
        known = self._known.get(name)
        if known is not None and (known.length, known.changed) == (status.st_size, status.st_mtime_ns):
            return known
        info = ImageInfo(*self._examine(path.read_bytes()), status.st_size, status.st_mtime_ns)
        self._known[name] = info
        if add:
            self._new[name] = info
        return info

    def take_new(self) -> dict[str, ImageInfo]:
        """Return the entries added since the last call, by file name.

        The caller passes the entries to the process that writes the index.
        """
        new, self._new = self._new, {}
        return new

    def write(self, new: Mapping[str, ImageInfo]) -> None:
        """Add the entries `new` to the index and append them to its file."""
        self._known |= new
        if self._file is not None and new:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps([name, *astuple(each)]) + "\n" for name, each in new.items())


def _examine(data: bytes) -> tuple[int, int, str]:
    width, height = check_picture(data)
    return width, height, sha256(data).hexdigest()
