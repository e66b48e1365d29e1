"""Files that are there as a whole or not at all, also after the machine lost its power.

Knows files; knows nothing of what is in them.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o700
"""The mode of a folder that we make for people's words and pictures: open to the bot's own user alone."""

PRIVATE_FILE: Final = 0o600
"""The same for a file."""


def write_durably(path: Path, data: bytes, *, by_way_of: Path | None = None) -> None:
    """Write `data` to `path`: to a temporary file first, forced to the disk, then renamed.

    `by_way_of` is the folder for the temporary file, on the same file system (else that of `path`). A process that
    is killed leaves at most a file ending in ".part" there. Raises `OSError`.
    """
    temporary = (by_way_of or path.parent) / f".{path.name}.{secrets.token_hex(8)}.part"
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, PRIVATE_FILE)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk. Raises `OSError`."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Force a folder's names to the disk: without it a rename may be lost. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
