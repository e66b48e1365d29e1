"""The version of Ray that is installed for a Python interpreter, which may differ from the bot's own."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

_SECONDS: Final = 30.0
_PROGRAM: Final = "from importlib.metadata import version; print(version('ray'))"


def ray_version(python: str) -> str:
    """Return the version of Ray for the interpreter `python`, or an empty string if it cannot be run or has no Ray.

    An empty `python` stands for the bot's own interpreter.
    """
    try:
        command = [python or sys.executable, "-c", _PROGRAM]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def ray_cure(section: str) -> str:
    """Return instructions for installing Ray; `section` is the settings section, `inference` or `training`."""
    return f'run make install-ray, and set {section}.python to ".venv/ray/bin/python"'
