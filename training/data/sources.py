"""The sources of rows beside the liked answers: those that the settings name, and those that were imported.

An imported source is a folder of its own under the data directory, with all that belongs to it, so that removing the
folder removes the source:

    NAME/rows.jsonl      its rows, every one checked
    NAME/pictures/ab/…   their pictures, named by the sha256 of their bytes
    NAME/source.json     where it came from, and how often it is taken

Knows folders and names; rows are checked by `checking`, drawn by `mixture` and brought in by `importing`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from storage.atomic_files import sync_directory
from training.job import TrainingError
from training.settings import Source

ROWS: Final = "rows.jsonl"
PICTURES: Final = "pictures"
ABOUT: Final = "source.json"
UNDER_WAY: Final = ".part"
"""What the name of a folder ends with while it is being filled, or deleted."""


@dataclass(frozen=True, slots=True)
class About:
    """Of an imported source: the file it came from, how many rows and pictures, how often it is taken (`Source`).

    `clean` is false for one that an earlier version imported, with the pictures as they were.
    """

    file: str
    rows: int
    pictures: int
    repeat_times: float | None = None
    clean: bool = False

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises OSError, ValueError, TypeError for a folder that is no source."""
        return cls(**json.loads((folder / ABOUT).read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Write it into the source's folder."""
        (folder / ABOUT).write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def imported(directory: Path) -> list[Source]:
    """The imported sources under `directory`, by name. Raises `TrainingError` for a folder that is none."""
    found = []
    for folder in sorted(directory.iterdir()) if directory.is_dir() else ():
        if folder.suffix == UNDER_WAY or not folder.is_dir():
            continue
        try:
            times = About.read(folder).repeat_times
            found.append(Source(path=folder / ROWS, images=folder / PICTURES, repeat_times=times))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(f"{folder} is no imported source ({error}): import it again, or remove it") from error
    return found


def remove(folder: Path) -> None:
    """Delete an imported source. Killed half-way, what is left is none. Raises `TrainingError`."""
    going = folder.with_name(folder.name + UNDER_WAY)
    try:
        folder.rename(going)
        sync_directory(folder.parent)
        shutil.rmtree(going)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be deleted ({error}): remove it, and {going.name} beside it") from error


def title(path: str) -> str:
    """What people call a source by its file: an imported one has its folder's name."""
    file = Path(path)
    return file.parent.name if file.name == ROWS else file.name


def present(sources: list[Source]) -> list[Source]:
    """The same sources with whole paths. Raises `TrainingError` for one that is not there."""
    for each in sources:
        if not each.path.is_file():
            raise TrainingError(f"training.sources: there is no file {each.path.absolute()}")
        if not each.folder.is_dir():
            raise TrainingError(f"training.sources: {each.path} has no folder {each.folder.absolute()} of pictures")
    return [each.model_copy(update={"path": each.path.resolve(), "images": each.folder.resolve()}) for each in sources]
