"""Removals: files and rows outside the ledger that must be deleted because the rows they belong to were deleted.

They are recorded in the transaction that deletes the rows and dropped once done, so that a crash loses none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sqlite_utils import Database


class RemovalKind(StrEnum):
    """The kind of thing to remove.

    It is a picture's file, an exchange's rows in the files of runs, a session's prompt in an engine's cache, or the
    contents of the write-ahead log.
    """

    PICTURE = "picture"
    ROW = "row"
    SESSION = "session"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Removal:
    """A removal that is due; `name` is a picture's sha256, or the id of an exchange or a session."""

    kind: RemovalKind
    name: str


def add_removals(database: Database, kind: RemovalKind, names: Iterable[object]) -> None:
    """Record removals that are due."""
    database.execute(
        "INSERT INTO removals(kind, name) SELECT ?, value FROM json_each(?) WHERE true ON CONFLICT DO NOTHING",
        (kind, json.dumps([str(each) for each in names])),
    )


def finish_removals(database: Database, removals: Iterable[Removal]) -> None:
    """Mark removals as done."""
    for each in removals:
        database.execute("DELETE FROM removals WHERE kind = ? AND name = ?", (each.kind, each.name))
