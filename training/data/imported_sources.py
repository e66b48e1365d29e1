"""Imported sources: folders of rows used for training in addition to the liked answers.

Removing the folder of a source removes the source. The layout of a folder is:

    NAME/rows.jsonl      the rows, all of them valid
    NAME/pictures/ab/…   the pictures, named by the sha256 of their bytes
    NAME/source.json     where the source came from, and how many times each row is used
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage.atomic_files import PART, sync_directory
from training.job import TrainingError
from training.json_record import Record
from training.settings import Source

ROWS: Final = "rows.jsonl"
PICTURES: Final = "pictures"
ABOUT: Final = "source.json"
"""The file of a source with its `SourceInfo`."""


@dataclass(frozen=True, slots=True)
class SourceInfo(Record):
    """The contents of a source's `ABOUT` file.

    Attributes:
        file: The imported file.
        rows: The number of rows.
        pictures: The number of pictures.
        repeat_times: How many times each row is used, as in `training.settings.Source`.
        clean: Whether the pictures were re-encoded when imported; earlier versions kept them unchanged.
    """

    file: str
    rows: int
    pictures: int
    repeat_times: float | None = None
    clean: bool = False


def source_folders(directory: Path) -> list[Path]:
    """Return the folders of the imported sources in `directory`, sorted by name.

    Folders that are being filled or deleted are left out.
    """
    folders = sorted(directory.iterdir()) if directory.is_dir() else []
    return [each for each in folders if each.suffix != PART and each.is_dir()]


def imported(directory: Path) -> list[Source]:
    """Return the imported sources in `directory`, sorted by name.

    Raises:
        TrainingError: A folder in `directory` is not a source.
    """
    found = []
    for folder in source_folders(directory):
        try:
            times = SourceInfo.read(folder / ABOUT).repeat_times
            found.append(Source(path=folder / ROWS, images=folder / PICTURES, repeat_times=times))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(
                f"{folder} is not an imported source ({error}): import it again or remove it"
            ) from error
    return found


def remove_source(folder: Path) -> None:
    """Delete an imported source.

    If a crash interrupts the deletion, the remaining files no longer count as a source.

    Raises:
        TrainingError: The folder cannot be deleted.
    """
    part = folder.with_name(folder.name + PART)
    try:
        folder.rename(part)
        sync_directory(folder.parent)
        shutil.rmtree(part)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be deleted ({error}): remove it, and also {part.name}") from error


def source_title(path: str) -> str:
    """Return the display name of a source; for an imported source, the name of its folder."""
    file = Path(path)
    return file.parent.name if file.name == ROWS else file.name
