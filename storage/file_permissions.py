"""Permissions that keep the bot's files in the data folder private, even if other users can enter the folder."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OURS: Final = ("ledger.db*", "schedule.sqlite*", "pictures", "runs", "logs", "sources", "answers")
"""`models` is left out, because an engine that runs as another user may have been given access to it."""


def open_to_others(directory: Path) -> list[Path]:
    """Return the bot's files and folders in `directory` that are accessible to users other than their owner.

    The list is empty if `directory` itself keeps other users out.
    """
    if not directory.is_dir() or not _mode(directory) & _OTHERS:
        return []
    return [each for pattern in _OURS for each in sorted(directory.glob(pattern)) if _mode(each) & _OTHERS]


def close_to_others(directory: Path) -> None:
    """Remove the permissions of group and others from the bot's files in the data folder.

    The folder's own permissions are left unchanged, because the operator may use the folder for other things
    too. Files owned by another user cannot be changed; `open_to_others` still returns them.
    """
    for each in open_to_others(directory):
        with suppress(OSError):
            each.chmod(_mode(each) & ~_OTHERS)


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:  # the file was removed in the meantime, as SQLite may do with its log
        return 0
