"""Who may read what lies in the data folder: its owner alone, also where the folder was made for others as well."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OURS: Final = ("ledger.db*", "schedule.sqlite*", "pictures", "runs", "logs", "sources")
"""Not `models`: an engine of another user may have been let in there."""


def open_to_others(directory: Path) -> list[Path]:
    """Return what others may read or search in the data folder; nothing where the folder itself keeps them out."""
    if not directory.is_dir() or not _mode(directory) & _OTHERS:
        return []
    return [each for pattern in _OURS for each in sorted(directory.glob(pattern)) if _mode(each) & _OTHERS]


def close_to_others(directory: Path) -> None:
    """Take the permissions of group and others from what is ours in the data folder.

    The folder itself stays as it is: the operator may have made it for more than this. What belongs to another user is
    left alone; `open_to_others` still names it.
    """
    for each in open_to_others(directory):
        with suppress(OSError):
            each.chmod(_mode(each) & ~_OTHERS)


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:  # removed meanwhile, as SQLite does with its log
        return 0
