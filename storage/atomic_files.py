"""Files that appear whole or not at all, also after a crash or a power failure. Standard library only."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o700
"""Mode of a folder for people's words and pictures: only the bot's own user may enter."""

PRIVATE_FILE: Final = 0o600
"""Mode of such a file."""

PART: Final = ".part"
"""Suffix of a file that is being written."""


def write_durably(path: Path, data: bytes, *, temporary_folder: Path | None = None) -> None:
    """Write `data` to `path` by way of a temporary file that is forced to the disk and renamed.

    A process that is killed leaves at most a file that ends in PART.

    Args:
        path: The file.
        data: Its content.
        temporary_folder: Where the temporary file lies, on the same file system; by default beside `path`.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = (temporary_folder or path.parent) / f".{path.name}.{secrets.token_hex(8)}{PART}"
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


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write a text, or its pieces one after the other, to a temporary file beside `path` that is then renamed.

    Survives the death of the process, not of the machine. A process that is killed leaves at most a file that ends in
    PART. Raises `OSError`.
    """
    temporary = path.with_name(path.name + PART)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk. Raises `OSError`."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Force a folder's names to the disk; without it a rename may be lost. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
