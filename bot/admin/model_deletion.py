"""Deletion of a model's files and its adapter; its row in the ledger is kept.

The base model, the live model, a canary and a model whose promotion is pending cannot be deleted. If a
deletion is interrupted, it is completed when it is requested again or the bot next starts.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from bot.admin.refusals import AdminRefusal
from bot.i18n import later
from storage.errors import StorageError
from storage.learning_records import BASE, Actor, Model
from storage.ledger import Ledger
from storage.model_store import ModelStore
from storage.state_machines import ModelState
from storage.translatable_reason import Reason
from training.run_folder import ADAPTER

IS_BASE: Final = later("Training starts from {model}. To start from another model, change inference.model.")
IS_CANARY: Final = later("{model} is a canary: stop it first (/models).")
IS_LIVE: Final = later("{model} is live: switch to another model first (/rollback).")
IS_PENDING: Final = later(
    "A switch to {model} is pending: wait until it is complete, then switch to another model before you delete {model}."
)


def refuse_in_use(model: Model, pending: Collection[str]) -> None:
    """Raise `AdminRefusal` for a model that is in use; `pending` contains the models with a pending promotion."""
    for in_use, why in (
        (model.id == BASE, IS_BASE),
        (model.state is ModelState.CANARY, IS_CANARY),
        (model.state is ModelState.LIVE, IS_LIVE),
        (model.id in pending, IS_PENDING),
    ):
        if in_use:
            raise AdminRefusal(Reason(why, model=model.id))


async def model_files(ledger: Ledger, name: str) -> list[Path]:
    """Return the directories that deleting a model would remove.

    Raises:
        AdminRefusal: The model is in use.
        UnknownRecord: There is no such model.
    """
    model = await ledger.models.get(name)
    refuse_in_use(model, {each.model for each in await ledger.promotions.pending()})
    folder = ledger.path.parent
    return [each for each in (ModelStore(folder / "models").path(name), _adapter(folder, model)) if each.is_dir()]


async def delete_model(ledger: Ledger, name: str, by: Actor | None = None) -> None:
    """Delete a model's files and adapter at the request of an admin, `by`.

    Raises the same errors as `model_files`, and `StorageError` if the bot has since switched to the model or
    the files cannot be deleted.
    """
    await model_files(ledger, name)
    folder = ledger.path.parent
    store = ModelStore(folder / "models")
    aside = await asyncio.to_thread(store.set_aside, name)
    try:
        model = await ledger.models.drop_directory(name, by)
    except StorageError:  # the bot has switched to it in the meantime
        if aside:
            store.restore(aside, name)
        raise
    if aside:
        await asyncio.to_thread(store.discard, aside)
    await asyncio.to_thread(shutil.rmtree, _adapter(folder, model), ignore_errors=True)


def bytes_on_disk(paths: Iterable[Path]) -> int:
    """Return the total size of the files in directories, in bytes. Blocks while it examines every file."""
    return sum(_size(each) for path in paths for each in path.rglob("*"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # deleted in the meantime
        return 0


def _adapter(folder: Path, model: Model) -> Path:
    return folder / "runs" / str(model.run) / ADAPTER
