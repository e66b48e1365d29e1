"""A lock that allows only one bot per data folder.

Two bots would end each other's runs and take turns answering. The kernel releases the file lock however
the process ends. Commands that run alongside the bot do not take the lock.
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
"""How long to wait for the lock: `bot_is_running` in another process holds it for a moment."""


@contextmanager
def lock_data_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a data folder while the block runs.

    Raises:
        ConfigError: Another bot holds the lock.
    """
    try:
        with FileLock(folder / FILE_NAME, timeout=_LOOK_SECONDS):
            yield
    except Timeout as error:
        raise ConfigError(f"Another bot is running on {folder}: stop it first, or set another storage.dir.") from error


def bot_is_running(folder: Path) -> bool:
    """Return whether a bot is running on the data folder `folder`, without writing anything."""
    if not (folder / FILE_NAME).exists():
        return False
    try:
        with FileLock(folder / FILE_NAME, timeout=0):
            return False
    except Timeout:
        return True
