"""Rotation of a log file that another program keeps open, by copying and truncating the file.

Like logrotate's copytruncate, this method requires the program to have opened the file for appending,
and may lose a line written during the copy.
"""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Final

_FILES: Final = 3


def rotate(log: Path, *, above: int) -> None:
    """Rotate a log file, keeping three old files.

    The content of `log` moves to `log.1`, that of `log.1` to `log.2`, and so on. Nothing happens if `log` is
    missing or is no larger than `above` bytes.

    Raises:
        OSError: A file cannot be moved or written.
    """
    if not log.is_file() or log.stat().st_size <= above:
        return
    old = [log.with_name(f"{log.name}.{number}") for number in range(1, _FILES + 1)]
    for newer, older in reversed(list(pairwise(old))):
        if newer.exists():
            newer.replace(older)
    shutil.copyfile(log, old[0])
    os.truncate(log, 0)
