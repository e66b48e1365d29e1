"""Changes to settings that operators made on the web page (table `settings`).

A change does not overwrite earlier ones; only the latest change to a key counts. A change without a value undoes those
before it.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from storage.base import Queries, every, first
from storage.connection import inspecting

# With max(), SQLite takes the other columns from the row with the maximum: https://www.sqlite.org/quirks.html
_IN_FORCE: Final = (
    "SELECT * FROM (SELECT key, value, reviewer, created, max(id) AS id FROM settings GROUP BY key)"
    " WHERE value IS NOT NULL ORDER BY id"
)


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A change to a setting.

    Attributes:
        key: The setting's path, such as "training.min_rated".
        value: The new value, as decoded from JSON; None if the change undoes earlier ones.
        reviewer: The name with which the operator logged in, or "web".
    """

    key: str
    value: Any
    reviewer: str
    created: float = 0.0
    id: int = 0


class SettingChanges(Queries):
    """The changes to settings in the ledger."""

    async def add(self, key: str, value: Any, reviewer: str) -> None:
        """Record that the operator `reviewer` changed a setting or, if the value is None, undid its changes."""
        text = None if value is None else json.dumps(value, ensure_ascii=False)
        await self._execute(
            "INSERT INTO settings(key, value, reviewer, created) VALUES (?, ?, ?, ?)",
            (key, text, reviewer, self._clock()),
        )

    async def in_force(self) -> list[SettingChange]:
        """Return the latest change of each key that is still in effect, oldest first."""
        return await self._list(_change, _IN_FORCE)

    async def latest(self, most: int) -> list[SettingChange]:
        """Return the latest changes, newest first."""
        return await self._list(_change, "SELECT * FROM settings ORDER BY id DESC LIMIT ?", [most])


def recorded_changes(path: Path) -> list[SettingChange]:
    """Return the changes in force in the ledger at `path`, oldest first, without creating or migrating it.

    Raises:
        StorageError: The ledger cannot be read.
    """
    if not path.exists():
        return []
    with inspecting(path) as database:
        if first(database, "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'settings'") is None:
            return []  # written by an earlier version
        return [_change(row) for row in every(database, _IN_FORCE)]


def _change(row: sqlite3.Row) -> SettingChange:
    value = None if row["value"] is None else json.loads(row["value"])
    return SettingChange(row["key"], value, row["reviewer"], row["created"], row["id"])
