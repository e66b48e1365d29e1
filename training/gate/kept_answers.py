"""Answers to questions with known answers, kept in the data folder, so that no model answers one of them twice.

They are about drawn pictures or the operator's own, so no user's data is among them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from storage.atomic_files import write_text

FILES: Final = 12
"""The number of models whose answers are kept: the base, the live one, and those that were used last."""


class KeptAnswers:
    """The answers of one model, by question, in a file that is read when it is first needed."""

    def __init__(self, folder: Path | None, *circumstances: object) -> None:
        """Without a folder, answers are kept in memory. `circumstances` are everything that an answer depends on."""
        name = sha256(json.dumps([str(each) for each in circumstances]).encode()).hexdigest()[:32]
        self._file = folder / f"{name}.json" if folder else None
        self._read: dict[str, str] | None = None

    @property
    def answers(self) -> Mapping[str, str]:
        """The answers by question. A damaged or foreign file counts as empty."""
        if self._read is None:
            self._read = _read(self._file) if self._file else {}
        return self._read

    def add(self, answers: Mapping[str, str]) -> None:
        """Add answers and write the file atomically. On a full disk they are kept in memory."""
        self._read = {**self.answers, **answers}
        if self._file:
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_text(self._file, json.dumps(self._read, ensure_ascii=False, indent=0))

    def close(self) -> None:
        """Mark the file as used, and remove those that have not been used for the longest time."""
        if not self._file:
            return
        with suppress(OSError):
            os.utime(self._file)
            files = sorted(self._file.parent.glob("*.json"), key=lambda each: each.stat().st_mtime, reverse=True)
            for each in files[FILES:]:
                each.unlink()


def _read(file: Path) -> dict[str, str]:
    try:
        found: Any = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        return {}
    return found
