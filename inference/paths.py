"""Paths in settings: `~` is the user's home, as in a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error}: give the whole path") from error


LocalPath = Annotated[Path, AfterValidator(_expanded)]
"""A file or folder of this machine."""

LocalText = Annotated[str, AfterValidator(lambda text: str(_expanded(Path(text))) if text.startswith("~") else text)]
"""Text that is a path of this machine, or may be one."""
