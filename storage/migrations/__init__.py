"""The ledger's schema migrations: SQL files, each applied once and in order.

Never edit a file that has been released; add a new one. A migration is recorded, under its file name
without the suffix, in the transaction that applies it. Columns are named after the fields of the
records; "update" is quoted because it is an SQL keyword. Deleting a user deletes the user's sessions,
exchanges and votes. A picture is kept as long as an exchange shows it or a sender of the picture is
recorded.
"""

from __future__ import annotations

from pathlib import Path

from storage.database import Database, Migrations
from storage.errors import StorageError

migrations = Migrations("thumbtune")


def _add(file: Path) -> None:
    @migrations(name=file.stem)
    def apply(database: Database) -> None:
        database.executescript(file.read_text(encoding="utf-8"))


for _file in sorted(Path(__file__).parent.glob("*.sql")):
    _add(_file)


def migrate(database: Database, known: Migrations = migrations) -> None:
    """Apply every pending migration in `known`, and record each in the transaction that applies it.

    Two processes may call this function at the same time: the second waits and finds nothing to do.

    Raises:
        StorageError: The ledger was written by a newer release. Nothing has been changed.
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
    """Raise `StorageError` if a newer release has applied migrations that `known` does not contain."""
    ours = {each.name for each in known._migrations}  # the library offers no public list of all of them
    strange = [each.name for each in known.applied(database) if each.name not in ours]
    if strange:
        raise StorageError(
            f"This database was written by a newer version of thumbtune (it has the migration {strange[-1]}, unknown"
            " here): start that version or a later one. Nothing has been changed."
        )
