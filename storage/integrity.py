"""Read-only checks of the ledger, its pictures and the live model, for backups and the `doctor` command."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from storage.base import every, first
from storage.chat_records import PictureState
from storage.connection import inspecting
from storage.errors import StorageError
from storage.migrations import refuse_newer
from storage.model_manifest import verify
from storage.picture_files import PictureStore

_NAMED = 8
"""The maximum number of faults to list."""


def refuse_lost_ledger(path: Path) -> None:
    """Raise `StorageError` if pictures or trained models exist but the ledger is missing or contains no models.

    Every ledger contains the base model from the bot's first start onwards. If the bot started with an empty
    ledger, all pictures would be treated as stray files.
    """
    beside = path.parent
    left = next((each for kept in ("pictures/??/*", "models/*/manifest.json") for each in beside.glob(kept)), None)
    if left is None or _has_models(path):
        return
    raise StorageError(
        f"{path} is {'empty' if path.exists() else 'missing'}, but {left} exists: the database was lost. Restore the "
        "latest backup (thumbtune backup) in its place. To start without it, move the folders pictures and models away."
    )


def _has_models(path: Path) -> bool:
    if not path.exists():
        return False
    with inspecting(path) as database:
        tables = first(database, "SELECT 1 FROM sqlite_master WHERE name = 'models'")
        return tables is not None and first(database, "SELECT 1 FROM models") is not None


def database_faults(connection: sqlite3.Connection) -> list[str]:
    """Return descriptions of the damaged pages and dangling references that SQLite finds in a database."""
    faults = [row[0] for row in connection.execute(f"PRAGMA integrity_check({_NAMED})") if row[0] != "ok"]
    faults += [f"a row of {row[0]} without its {row[2]}" for row in connection.execute("PRAGMA foreign_key_check")]
    return faults[:_NAMED]


def quick_faults(path: Path) -> list[str]:
    """Return descriptions of the damage that a quick check finds in the ledger's file.

    The file may be in use. The check covers only the file's pages and is much faster than `ledger_faults`.

    Raises:
        StorageError: The file cannot be read.
    """
    with inspecting(path) as database:
        return [row[0] for row in database.execute(f"PRAGMA quick_check({_NAMED})") if row[0] != "ok"]


def live_model_fault(path: Path) -> str:
    """Return a description of the fault in the live model's files, or an empty string if there is none.

    The result is also empty if the live model was never published.

    Raises:
        StorageError: The ledger cannot be read.
    """
    with inspecting(path) as database:
        row = first(database, "SELECT id, directory, manifest_hash FROM models WHERE state = 'live'")
    if row is None or not row["manifest_hash"]:
        return ""
    noted, beside = Path(row["directory"]), path.parent / "models" / row["id"]
    try:
        verify(noted if noted.is_dir() else beside, row["manifest_hash"])
    except StorageError as error:
        return str(error)
    return ""


def ledger_faults(path: Path) -> list[str]:
    """Return descriptions of the damage and dangling references in the ledger's file.

    The file may be in use.

    Raises:
        StorageError: The file cannot be read or was written by a newer release.
    """
    with inspecting(path) as database:
        refuse_newer(database)
        return database_faults(database.conn)


def picture_faults(path: Path, pictures: PictureStore) -> list[str]:
    """Return descriptions of the faults in the ledger's pictures: missing files and wrong file sizes.

    The ledger at `path` may come from an older release that did not store picture states. Quarantined
    pictures are skipped, because backups leave them out.

    Raises:
        StorageError: The ledger cannot be read.
    """
    with inspecting(path) as database:
        rows = every(database, "SELECT * FROM pictures")
    faults = []
    for row in rows:
        if dict(row).get("state") == PictureState.QUARANTINED:
            continue
        file = pictures.path(row["sha256"])
        if not file.is_file():
            faults.append(f"{file} is missing")
        elif file.stat().st_size != row["size"]:
            faults.append(f"{file} has {file.stat().st_size} bytes instead of {row['size']}")
    return faults
