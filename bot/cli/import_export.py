"""`thumbtune import` and `thumbtune export`: read training data from files and write it to files."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from bot.chat.picture_reencoding import finish_pictures
from bot.cli.terminal import notes, results, run_worker
from bot.config import Settings
from storage.atomic_files import PART
from storage.ledger import Ledger
from storage.picture_files import PictureStore
from training.command_jobs import ImportJob
from training.data.export import DPO, KTO, LLAVA, export
from training.data.imported_sources import ABOUT, SourceInfo
from training.data.selection import choose_pairs
from training.job import TrainingError


async def import_file(
    settings: Settings,
    file: Path,
    images: Path | None,
    *,
    name: str = "",
    repeat_times: float | None = None,
) -> None:
    """Import a LLaVA file as a source for every later run.

    Raises:
        TrainingError: The file cannot be imported. The message names every invalid row.
    """
    name = name or re.sub(r"[^\w.-]+", "-", file.stem).strip("-.")
    if not re.fullmatch(r"\w[\w.-]*", name) or name.endswith(PART):
        raise TrainingError(f"{name!r} is not a valid name for a source: choose a --name of letters and digits")
    if not (folder := (images or file.parent)).is_dir():
        raise TrainingError(f"{folder} is not a folder: pass the folder of the pictures with --images")
    data, base = settings.storage.dir.resolve(), settings.inference.checkpoint().resolve()
    job = ImportJob(
        name=name,
        file=str(file.absolute()),
        images=str(folder.absolute()),
        out=str(data / "sources"),
        base=str(base),
        work=str(data / "logs" / f"import-{name}"),
        system=settings.persona,
        repeat_times=repeat_times,
        threads=settings.training.threads,
        tiles=settings.inference.tiles or 0,
        recipe=str(settings.training.user_config or ""),
        max_length=settings.training.recipe_for(base).max_length,
    )
    outcome = await run_worker(settings.training, job, "checking")
    if not outcome.ok:
        raise TrainingError(outcome.reason)
    made = data / "sources" / name
    about = SourceInfo.read(made / ABOUT)
    often = "with as many samples as liked answers" if repeat_times is None else f"each row {repeat_times:g} times"
    results.print(
        f"Imported {about.rows} rows and {about.pictures} pictures as {name}. Every later run uses them, "
        f"{often}. `thumbtune sources delete {name}` removes them."
    )


async def export_data(ledger: Ledger, settings: Settings, out: Path) -> None:
    """Write the collected training data into the folder `out`.

    Pictures stored by earlier versions are re-encoded first.

    Raises:
        TrainingError: The folder is not empty or cannot be written.
        StorageError: The ledger or a stored picture cannot be read or written.
    """
    await finish_pictures(ledger, notes)
    training = settings.training
    rated = await ledger.votes.rated_exchanges(settings.trust)
    preferences = await ledger.votes.preferences(settings.trust)
    kept = await ledger.pictures.all()
    chosen, counts = await asyncio.to_thread(
        choose_pairs,
        rated,
        {each.sha256: each.phash for each in kept},
        training,
        training.max_tokens(settings.inference.checkpoint()),
    )
    made = await asyncio.to_thread(
        export,
        out.absolute(),
        chosen,
        rated,
        preferences,
        threshold=training.threshold,
        stored=PictureStore(settings.storage.dir / "pictures").path,
        types={each.sha256: each.media_type for each in kept},
    )
    results.print(
        f"{escape(str(out))}: {LLAVA} with {made.liked} liked answers ({counts}), {KTO} with {made.ups} thumbs up and "
        f"{made.downs} down, {DPO} with {made.pairs} pairs, {made.pictures} pictures. People who have opted out of "
        "training are left out."
    )
    counts = replace(counts, newcomers=await ledger.votes.newcomers(settings.trust))
    if counts.waiting:
        results.print(counts.waiting)
