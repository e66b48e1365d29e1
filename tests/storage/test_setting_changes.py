"""Changes of settings in the ledger: the latest of a key counts, and all are kept."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from storage.ledger import FILE_NAME, Ledger
from storage.setting_changes import recorded_changes


async def test_the_latest_change_counts(tmp_path: Path) -> None:
    """A key has its latest value, in the order of the changes; an undone one has none, and the history is complete."""
    async with Ledger.open(tmp_path, clock=lambda: 5.0) as ledger:
        record = ledger.setting_changes
        for key, value in (("a.b", 1), ("a.c", [7, -8]), ("a.b", "每周"), ("a.d", True), ("a.d", None)):
            await record.add(key, value, "Olga")
        in_force = await record.in_force()
        assert [(each.key, each.value, each.reviewer, each.created) for each in in_force] == [
            ("a.c", [7, -8], "Olga", 5.0),
            ("a.b", "每周", "Olga", 5.0),
        ]
        assert recorded_changes(tmp_path / FILE_NAME) == in_force
        assert [each.value for each in await record.latest(3)] == [None, True, "每周"]


async def test_a_change_is_never_rewritten(tmp_path: Path) -> None:
    """The table refuses to change a recorded row."""
    async with Ledger.open(tmp_path) as ledger:
        await ledger.setting_changes.add("a.b", 1, "Olga")
    with (
        closing(sqlite3.connect(tmp_path / FILE_NAME)) as database,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        database.execute("UPDATE settings SET reviewer = 'nobody'")


def test_no_ledger_and_an_older_one_have_no_changes(tmp_path: Path) -> None:
    """Without a ledger, and with one that an earlier version wrote, there are no changes; nothing is created."""
    assert recorded_changes(tmp_path / FILE_NAME) == []
    assert list(tmp_path.iterdir()) == []
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        database.execute("CREATE TABLE users (id INTEGER)")
    assert recorded_changes(tmp_path / FILE_NAME) == []
