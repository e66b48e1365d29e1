"""One bot at a time on a data folder: a second one would end the first one's runs and answer with it in turns.

A lock on a file, which the kernel lets go with the process however that ends. Commands beside a running bot do not
take it; they can see whether there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from bot.config import ConfigError

FILE_NAME: Final = "bot.lock"

_LOOK_SECONDS: Final = 1.0
"""Somebody who only looks whether a bot is at work holds the lock for a moment."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, this process is the one bot on the folder. Raises ConfigError where another one is."""
    try:
        with FileLock(folder / FILE_NAME, timeout=_LOOK_SECONDS):
            yield
    except Timeout as error:
        raise ConfigError(f"Another bot is at work on {folder}: end it first, or set another storage.dir.") from error


def at_work(folder: Path) -> bool:
    """Whether a bot is at work on the folder, which stays as it is."""
    if not (folder / FILE_NAME).exists():
        return False
    try:
        with FileLock(folder / FILE_NAME, timeout=0):
            return False
    except Timeout:
        return True
