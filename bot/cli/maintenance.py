"""`thumbtune backup`, `forget` and `sweep`: what people left with the bot, copied and deleted from the command line.

Knows what to ask and tell an operator. How a copy is made and checked is storage's, what goes with a person the
forgetting's.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bot.admin.erasure import Forgetting
from bot.admin.picture_upgrade import finish_pictures
from bot.cli.terminal import confirm, notes
from storage.backup import back_up
from storage.errors import StorageError
from storage.ledger import Ledger
from storage.model_store import ModelStore
from storage.picture_store import PictureStore
from storage.records import Belongings


async def backup(ledger: Ledger, folder: Path, out: Path, models: bool, console: Console) -> None:
    """Copy the ledger and the pictures of `folder`, and the `models`. Raises StorageError where a picture is lost.

    Pictures that an earlier version stored are cleaned before.
    """
    await finish_pictures(ledger, folder, notes)
    kept = ModelStore(folder / "models") if models else None
    with notes.status(f"copying into {out}"):
        made = await back_up(ledger, PictureStore(folder / "pictures"), out, kept)
    named = f", {', '.join(made.models) or 'no trained model'}" if models else ""
    console.print(f"{out}: the ledger, {made.pictures} pictures{named}. All of it was checked.", highlight=False)
    if made.lost:
        raise StorageError(
            f"{len(made.lost)} pictures of the ledger are missing here and so in the backup, the first is "
            f"{made.lost[0]}: see `thumbtune doctor`."
        )


async def forget(ledger: Ledger, folder: Path, user: int, yes: bool, console: Console) -> None:
    """Delete all that is kept of a person, once that is confirmed. `folder` is `storage.dir`. Raises Refused."""
    forgetting = Forgetting.beside(ledger, folder)
    await forgetting.settle()
    found = await forgetting.belongings(user)
    if not found and await ledger.people.get(user) is None:
        console.print(f"Nothing is kept of {user}.")
        return
    if not yes:
        notes.print(f"Kept of {user}: {_counted(found)}.", highlight=False)
    confirm("Delete all of it, for good?", yes=yes)
    gone = await forgetting.forget(user)
    console.print(
        f"Deleted: {_counted(gone)}. A model that has learned from it already keeps what it has learned until the next "
        "one is trained; `thumbtune retrain` trains it. Backups are left as they are.",
        highlight=False,
    )


async def sweep(ledger: Ledger, folder: Path, yes: bool, console: Console) -> None:
    """Delete the picture files of `folder` that the ledger does not know, once that is confirmed. Raises Refused."""
    forgetting = Forgetting.beside(ledger, folder)
    strays, total = await forgetting.strays()
    if not strays:
        console.print("There is nothing to sweep: the ledger knows every picture file.")
        return
    if not yes:
        notes.print(
            f"{len(strays)} of {total} picture files are unknown to the ledger. If it was lost, or comes from an old "
            "backup, restore the latest backup instead.",
            highlight=False,
        )
    confirm("Delete those files, for good?", yes=yes)
    console.print(f"Deleted: {await forgetting.sweep(confirmed=True)} picture files.", highlight=False)


def _counted(found: Belongings) -> str:
    """What there is, without what there is none of."""
    kinds = {
        "questions with their answers": found.exchanges,
        "pictures that nobody else sent": found.pictures,
        "votes": found.votes,
        "better answers": found.demonstrations,
        "rows in data sets of runs": found.rows,
    }
    counted = [f"{number} {kind}" for kind, number in kinds.items() if number]
    return ", ".join(counted) or "the name and the language"
