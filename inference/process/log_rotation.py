"""Rotation of a log file that another program keeps open, by copying and truncating the file.

Like logrotate's copytruncate, the method requires that the program opened the file for appending, and it
may lose a line written during the copy.
"""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Final

_FILES: Final = 3


def rotate(log: Path, *, above: int) -> None:
    """Move the content of `log` to `log.1`, that of `log.1` to `log.2` and so on, and keep three of these.

    Does nothing if the file is missing or has at most `above` bytes. Raises OSError.
    """
    if not log.is_file() or log.stat().st_size <= above:
        return
    old = [log.with_name(f"{log.name}.{number}") for number in range(1, _FILES + 1)]
    for newer, older in reversed(list(pairwise(old))):
        if newer.exists():
            newer.replace(older)
    shutil.copyfile(log, old[0])
    os.truncate(log, 0)
