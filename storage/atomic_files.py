"""Atomic file writes: a file appears either complete or not at all, even after a crash.

Files written by `write_durably` also survive a power failure. Only the standard library is used.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o700
"""Mode of a folder with users' texts and pictures, which only the bot's own user may enter."""

PRIVATE_FILE: Final = 0o600
"""Mode of a file with users' texts or pictures, which only the bot's own user may read or write."""

PART: Final = ".part"
"""Suffix of a file that is being written."""

PIECE: Final = 2**23
"""The number of bytes after which `write_through` flushes. fdatasync flushes the whole file, so a commit may wait for
the pieces of all threads that write to it: with the merge's four threads, 0.3 s on a disk with 100 MB/s."""


def write_durably(path: Path, data: bytes, *, temporary_folder: Path | None = None) -> None:
    """Write `data` to `path` through a temporary file that is flushed to disk and then renamed.

    If the process is killed, it leaves behind at most a file whose name ends in `PART`.

    Args:
        path: The file to write.
        data: The file's content.
        temporary_folder: The folder for the temporary file, on the same file system as `path`; by default,
            the folder of `path`.

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
    """Write text, given as one string or in pieces, to a temporary file next to `path` and rename it to `path`.

    The file survives a crash of the process, but not necessarily of the machine. If the process is killed,
    it leaves behind at most a file whose name ends in `PART`.

    Raises:
        OSError: The file cannot be written.
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
    """Flush a file's bytes to disk.

    Raises:
        OSError: The file cannot be opened or flushed.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_through(descriptor: int, data: bytes | memoryview, place: int) -> None:
    """Write `data` to an open file at the byte offset `place`, and flush the file after every `PIECE` bytes.

    If gigabytes were flushed at once, the ledger's commits would wait for seconds. The last bytes, fewer than `PIECE`,
    are left to a later flush.

    Raises:
        OSError: The data cannot be written or flushed.
    """
    left, unflushed = memoryview(data).cast("B"), 0
    while left:
        written = os.pwrite(descriptor, left[: PIECE - unflushed], place)
        unflushed += written
        if unflushed == PIECE:
            os.fdatasync(descriptor)
            unflushed = 0
        left, place = left[written:], place + written


def copy_through(source: str, target: str) -> None:
    """Copy a file with its mode and times, using `write_through`; a `copy_function` for `shutil.copytree`.

    Raises:
        OSError: A file cannot be read or written.
    """
    place = 0
    with Path(source).open("rb") as reader, Path(target).open("wb") as writer:
        while piece := reader.read(PIECE):
            write_through(writer.fileno(), piece, place)
            place += len(piece)
    shutil.copystat(source, target)


def sync_directory(path: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in the folder is not lost in a power failure.

    Raises:
        OSError: The folder cannot be opened or flushed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
