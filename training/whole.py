"""Files that are there whole or not at all, whatever ends the process that writes them. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

UNFINISHED: Final = ".part"
"""What is put behind the name of a file while it is being written."""


def write_whole(file: Path, text: str | Iterable[str]) -> None:
    """Write a text, or its pieces one after the other: beside the file first, under its name at the end.

    A process that is killed leaves at most a file that ends in ".part", an error leaves none. Raises OSError.
    """
    temporary = file.with_name(file.name + UNFINISHED)
    try:
        with temporary.open("w", encoding="utf-8") as written:
            written.writelines([text] if isinstance(text, str) else text)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
