"""`thumbtune backup`, `forget` and `sweep`: copy and delete the stored data."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bot.admin.erasure import Erasure
from bot.admin.picture_upgrade import finish_pictures
from bot.cli.terminal import confirm, notes
from storage.backup import back_up
from storage.errors import StorageError
from storage.ledger import Ledger
from storage.model_store import ModelStore
from storage.personal_data import PersonalDataSummary
from storage.picture_store import PictureStore


async def backup(ledger: Ledger, folder: Path, out: Path, models: bool, console: Console) -> None:
    """Copy the ledger, the pictures and, with `models`, the models of `folder`.

    Pictures stored by earlier versions are cleaned first. Raises StorageError if pictures are lost.
    """
    await finish_pictures(ledger, folder, notes)
    kept = ModelStore(folder / "models") if models else None
    with notes.status(f"copying into {out}"):
        made = await back_up(ledger, PictureStore(folder / "pictures"), out, kept)
    named = f", {', '.join(made.models) or 'no trained model'}" if models else ""
    console.print(f"{out}: the ledger, {made.pictures} pictures{named}. Everything was checked.", highlight=False)
    if made.lost:
        raise StorageError(
            f"{len(made.lost)} pictures that the ledger lists are missing, here and in the backup; the first is "
            f"{made.lost[0]}: see `thumbtune doctor`."
        )


async def forget(ledger: Ledger, folder: Path, user: int, yes: bool, console: Console) -> None:
    """Delete everything stored about a person, after confirmation. `folder` is `storage.dir`. Raises CommandRefused."""
    forgetting = Erasure.beside(ledger, folder)
    await forgetting.settle()
    found = await forgetting.belongings(user)
    if not found and await ledger.people.get(user) is None:
        console.print(f"Nothing is stored about {user}.")
        return
    if not yes:
        notes.print(f"Stored about {user}: {_counted(found)}.", highlight=False)
    confirm("Permanently delete all of it?", yes=yes)
    gone = await forgetting.forget(user)
    console.print(
        f"Deleted: {_counted(gone)}. A model already trained on it stays live until the next one, which "
        "`thumbtune retrain` trains. Backups are not changed.",
        highlight=False,
    )


async def sweep(ledger: Ledger, folder: Path, yes: bool, console: Console) -> None:
    """Delete the picture files of `folder` that the ledger does not list, after confirmation. Raises CommandRefused."""
    forgetting = Erasure.beside(ledger, folder)
    strays, total = await forgetting.strays()
    if not strays:
        console.print("There is nothing to sweep: the ledger lists every picture file.")
        return
    if not yes:
        notes.print(
            f"{len(strays)} of {total} picture files are not in the ledger. If the ledger was lost, or comes from an "
            "old backup, restore the latest backup instead.",
            highlight=False,
        )
    confirm("Permanently delete those files?", yes=yes)
    console.print(f"Deleted: {await forgetting.sweep(confirmed=True)} picture files.", highlight=False)


def _counted(found: PersonalDataSummary) -> str:
    """Return the counts as text, leaving out zeros."""
    kinds = {
        "questions with their answers": found.exchanges,
        "pictures that only this person sent": found.pictures,
        "votes": found.votes,
        "corrections": found.corrections,
        "rows in data sets of runs": found.rows,
    }
    counted = [f"{number} {kind}" for kind, number in kinds.items() if number]
    return ", ".join(counted) or "the name and the language"
