"""Brings a ledger's tables to this version, and leaves those of a newer one alone.

Knows how migrations are applied; what they do is told in `migrations`. sqlite-utils keeps in `_sqlite_migrations` which
of them were.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from storage.errors import StorageError
from storage.migrations import migrations


def migrate(database: Database, known: Migrations = migrations) -> None:
    """Apply every pending migration of `known`, each in its own transaction with its record.

    Two processes may call this at the same moment: the second waits and finds nothing left to do.
    Raises `StorageError`, having changed nothing, for a ledger that a newer version has migrated further.
    """
    while True:
        database.execute("BEGIN IMMEDIATE")
        try:
            names = [each.name for each in known.pending(database)]
            refuse_newer(database, known)
            if names:
                known.apply(database, stop_before=names[1:2])
        except BaseException:
            database.rollback()
            raise
        database.commit()
        if len(names) <= 1:
            return


def refuse_newer(database: Database, known: Migrations = migrations) -> None:
    """Raise `StorageError` if a newer version has migrated the ledger further than this one knows."""
    applied = [each.name for each in known.applied(database)]
    ours = {each.name for each in known._migrations}  # the library offers no public list of all of them
    strange = [name for name in applied if name not in ours]
    if strange:
        raise StorageError(
            f"This ledger was written by a newer version of thumbtune (it has the migration {strange[-1]}, unknown"
            " here): start that version or a later one. Nothing has been changed."
        )
