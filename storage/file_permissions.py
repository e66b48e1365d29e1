"""Permissions of the data folder: only its owner may read it, also where the folder itself was created for others."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OURS: Final = ("ledger.db*", "schedule.sqlite*", "pictures", "runs", "logs", "sources", "answers")
"""Not `models`: an engine of another user may have been let in there."""


def open_to_others(directory: Path) -> list[Path]:
    """Return the entries that others may read or search; nothing where the folder itself keeps others out."""
    if not directory.is_dir() or not _mode(directory) & _OTHERS:
        return []
    return [each for pattern in _OURS for each in sorted(directory.glob(pattern)) if _mode(each) & _OTHERS]


def close_to_others(directory: Path) -> None:
    """Take the permissions of group and others from the bot's files in the data folder.

    The folder itself stays as it is, because the operator may use it for more. Files of another user stay too;
    `open_to_others` still names them.
    """
    for each in open_to_others(directory):
        with suppress(OSError):
            each.chmod(_mode(each) & ~_OTHERS)


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:  # removed meanwhile, as SQLite does with its log
        return 0
