"""The `thumbtune` commands that list, copy and delete stored data.

The commands are `models`, `sources`, `people`, `backup`, `forget` and `sweep`. Nothing that is in use
can be deleted. Before a deletion, the command says how much will be deleted and asks for confirmation.
If the command is killed, the deletion is completed when the command is run again or the bot next starts.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.markup import escape
from rich.table import Table

from bot.admin import model_deletion
from bot.admin.erasure import Erasure
from bot.admin.progress import model_state
from bot.chat.picture_reencoding import finish_pictures
from bot.cli.terminal import CommandRefused, confirm, notes, results
from bot.config import Settings
from bot.i18n import Translator
from bot.live_settings import LiveSettings
from storage.backup import back_up
from storage.counts import Approval
from storage.errors import StorageError
from storage.ledger import FILE_NAME, Ledger
from storage.model_store import ModelStore
from storage.personal_data import PersonalDataSummary
from storage.picture_files import PictureStore
from training.data.imported_sources import ABOUT, SourceInfo, imported, remove_source, source_title
from training.evidence.proportions import wilson_interval
from training.number_format import size

NO_VOTES: Final = "–"


async def models(ledger: Ledger, settings: Settings) -> None:
    """Print every model with its state, its creation date and its approval.

    Approval is the share of 👍 among the votes on a model's answers, with its 95 % interval.
    """
    approvals = await ledger.counts.approvals()
    approve = LiveSettings(settings, await ledger.setting_changes.in_force()).now.training.approve
    say = Translator.load().to("en")
    table = Table("model", "state", "created", "approval", "votes", "run", "folder", "note", box=None)
    for model in await ledger.models.all():
        approval = approvals.get(model.id, Approval())
        table.add_row(
            model.id,
            model_state(model, say, approve=approve),
            f"{datetime.fromtimestamp(model.created, UTC):%Y-%m-%d}",
            _approval_text(approval) if approval.votes else NO_VOTES,
            str(approval.votes),
            str(model.run or ""),
            escape(model.directory),
            escape(model.reason),
        )
    results.print(table)


async def delete_model(ledger: Ledger, name: str, yes: bool) -> None:
    """Delete a model's files and adapter, but keep its row in the ledger.

    Raises:
        AdminRefusal: The model is in use.
        CommandRefused: The operator declines.
    """
    parts = await model_deletion.model_files(ledger, name)
    freed = size(model_deletion.bytes_on_disk(parts))
    if parts:
        if not yes:
            notes.print(f"{name}: {freed} in {' and '.join(map(str, parts))}", soft_wrap=True)
        confirm(f"Permanently delete {name}? It can never be live again.", yes=yes)
    await model_deletion.delete_model(ledger, name)
    results.print(f"{name} was deleted: {freed} freed." if parts else f"{name} has no files on the disk.")


def sources(settings: Settings) -> None:
    """Print the sources of training data other than liked answers.

    Raises:
        TrainingError: A source is damaged.
    """
    table = Table("source", "rows", "pictures", "used", "from", box=None)
    for each in imported(settings.storage.dir / "sources"):
        about = SourceInfo.read(each.path.with_name(ABOUT))
        numbers = str(about.rows), str(about.pictures), _repeat_text(each.repeat_times)
        table.add_row(escape(source_title(str(each.path))), *numbers, escape(about.file))
    for each in settings.training.sources:
        path = f"{escape(str(each.path))} (training.sources)"
        table.add_row(escape(each.path.name), "", "", _repeat_text(each.repeat_times), path)
    if table.row_count:
        results.print(table)
    else:
        results.print("No source has been imported; `thumbtune import` adds one.")


async def delete_source(settings: Settings, name: str, yes: bool) -> None:
    """Delete an imported source with its pictures.

    Raises:
        CommandRefused: There is no such source, a run may be using it, or the operator declines.
        TrainingError: The source is damaged or cannot be deleted.
    """
    known = {source_title(str(each.path)): each.path.parent for each in imported(settings.storage.dir / "sources")}
    if name not in known:
        others = f"the imported ones are {', '.join(known)}" if known else "none has been imported"
        raise CommandRefused(f"There is no imported source {name}: {others}. Others are set in training.sources.")
    if (settings.storage.dir / FILE_NAME).is_file():
        async with Ledger.open(settings.storage.dir) as ledger:
            if run := await ledger.runs.active():
                raise CommandRefused(f"Run {run.id} may be reading {name}: wait until it ends, or cancel it.")
    about = SourceInfo.read(known[name] / ABOUT)
    if not yes:
        notes.print(f"{name}: {about.rows} rows and {about.pictures} pictures")
    confirm(f"Permanently delete {name}?", yes=yes)
    remove_source(known[name])
    results.print(f"{name} was deleted: later runs will not use it.")


async def people(ledger: Ledger, blocked: Collection[int]) -> None:
    """Print all users of the bot, most recently seen first.

    `blocked` is the setting `limits.blocked`, which adds to the people blocked on the web page.
    """
    table = Table("id", "name", "answers", "votes", "last seen (UTC)", "note", box=None)
    for each in sorted(await ledger.people.newest(), key=lambda each: (-each.seen, each.person.id)):
        person = each.person
        marks = (("blocked", each.blocked or person.id in blocked), ("opted out", person.opted_out))
        note = ", ".join(mark for mark, holds in marks if holds)
        seen = f"{datetime.fromtimestamp(each.seen, UTC):%Y-%m-%d %H:%M}"
        table.add_row(str(person.id), escape(person.name), str(each.answers), str(each.rated), seen, note)
    results.print(table)


def _approval_text(approval: Approval) -> str:
    low, high = wilson_interval(approval.ups, approval.votes)
    return f"{100 * approval.share:.0f} % ({100 * low:.0f}–{100 * high:.0f} %)"


def _repeat_text(repeat_times: float | None) -> str:
    return "its share" if repeat_times is None else f"{repeat_times:g} times"


async def backup(ledger: Ledger, out: Path, models: bool) -> None:
    """Copy the ledger, the pictures and, if `models` is true, the models to `out`.

    Pictures stored by earlier versions are re-encoded first. Raises StorageError if pictures that the ledger
    lists are missing.
    """
    await finish_pictures(ledger, notes)
    folder = ledger.path.parent
    kept = ModelStore(folder / "models") if models else None
    with notes.status(f"copying into {out}"):
        made = await back_up(ledger, PictureStore(folder / "pictures"), out, kept)
    named = f", {', '.join(made.models) or 'no trained model'}" if models else ""
    results.print(f"{out}: the database, {made.pictures} pictures{named}. Everything was verified.")
    if made.lost:
        raise StorageError(
            f"{len(made.lost)} pictures that the database lists are missing, here and in the backup; the first is "
            f"{made.lost[0]}: see `thumbtune doctor`."
        )


async def forget(ledger: Ledger, user: int, yes: bool) -> None:
    """Delete everything stored about a user, after confirmation.

    Raises CommandRefused if the deletion is not confirmed.
    """
    erasure = Erasure(ledger)
    await erasure.settle()
    found = await ledger.personal_data.count(user)
    if not found and await ledger.people.get(user) is None:
        results.print(f"Nothing is stored about {user}.")
        return
    if not yes:
        notes.print(f"Stored about {user}: {_counted(found)}.")
    confirm("Permanently delete all of it?", yes=yes)
    gone = await erasure.forget(user)
    results.print(
        f"Deleted: {_counted(gone)}. A model already trained on it stays live until `thumbtune retrain` "
        "replaces it. Backups are not changed."
    )


async def sweep(ledger: Ledger, yes: bool) -> None:
    """Delete the picture files that the ledger does not list, after confirmation.

    Raises CommandRefused if the deletion is not confirmed.
    """
    erasure = Erasure(ledger)
    strays, total = await erasure.strays()
    if not strays:
        results.print("There is nothing to sweep: the database lists every picture file.")
        return
    if not yes:
        notes.print(
            f"{len(strays)} of {total} picture files are not in the database. If the database was lost, or comes from "
            "an old backup, restore the latest backup instead."
        )
    confirm("Permanently delete those files?", yes=yes)
    results.print(f"Deleted: {await erasure.sweep(confirmed=True)} picture files.")


def _counted(found: PersonalDataSummary) -> str:
    """Return the counts in `found` as text, omitting zeros."""
    kinds = {
        "questions with their answers": found.exchanges,
        "pictures that only this person sent": found.pictures,
        "votes": found.votes,
        "corrections": found.corrections,
        "rows in data sets of runs": found.rows,
    }
    counted = [f"{number} {kind}" for kind, number in kinds.items() if number]
    return ", ".join(counted) or "the name and the language"
