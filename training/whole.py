"""Files that are there whole or not at all, whatever ends the process that writes them. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def write_whole(file: Path, text: str | Iterable[str]) -> None:
    """Write a text, or its pieces one after the other: beside the file first, under its name at the end.

    A process that is killed leaves at most a file that ends in ".part". Raises OSError.
    """
    temporary = file.with_name(file.name + ".part")
    with temporary.open("w", encoding="utf-8") as written:
        written.writelines([text] if isinstance(text, str) else text)
    temporary.replace(file)
