"""Removals: data outside the ledger that must be deleted because its ledger rows were deleted.

A removal is recorded in the transaction that deletes the rows, and the record is dropped only once the
removal is done, so no removal is lost in a crash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from storage.database import Database


class RemovalKind(StrEnum):
    """The kind of data to remove.

    PICTURE stands for a picture's file, ROW for an exchange's rows in the files of runs, SESSION for a
    session's prompt in an engine's cache, and LOG for the contents of the write-ahead log.
    """

    PICTURE = "picture"
    ROW = "row"
    SESSION = "session"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Removal:
    """A pending removal.

    Attributes:
        name: The SHA-256 of a picture, or the ID of an exchange or a session; empty for the write-ahead log.
    """

    kind: RemovalKind
    name: str


def add_removals(database: Database, kind: RemovalKind, names: Iterable[object]) -> None:
    """Record pending removals."""
    database.execute(
        "INSERT INTO removals(kind, name) SELECT ?, value FROM json_each(?) WHERE true ON CONFLICT DO NOTHING",
        (kind, json.dumps([str(each) for each in names])),
    )


def finish_removals(database: Database, removals: Iterable[Removal]) -> None:
    """Mark removals as done."""
    for each in removals:
        database.execute("DELETE FROM removals WHERE kind = ? AND name = ?", (each.kind, each.name))
