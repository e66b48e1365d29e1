"""Rotates a log file that another program holds open, which no renaming would turn to a new one.

What it has written is copied and the file emptied (logrotate calls it copytruncate): the program must have opened it
for appending, and a line that it writes in that very moment may be lost. The logs that we write ourselves are
process.py's.
"""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path


def rotate(log: Path, *, above: int, files: int) -> None:
    """Where `log` has more than `above` bytes, make them `log.1`, the former ones `log.2` …, and keep `files` of these.

    Does nothing where there is no file. Raises OSError.
    """
    if not log.is_file() or log.stat().st_size <= above:
        return
    old = [log.with_name(f"{log.name}.{number}") for number in range(1, files + 1)]
    for newer, older in reversed(list(pairwise(old))):
        if newer.exists():
            newer.replace(older)
    shutil.copyfile(log, old[0])
    os.truncate(log, 0)
