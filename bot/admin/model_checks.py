"""Checks before a model goes live: its evaluation, its files, and which model a rollback would make live."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from bot.admin.refusals import AdminRefusal
from bot.i18n import later
from storage.errors import StorageError
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.model_manifest import verify
from storage.translatable_reason import Reason
from training.gate.report import Report

HARMFUL: Final = later("{model} failed the harm checks and will never answer anyone: {reason}.")
NONE_BEFORE: Final = later("There's no earlier model to go back to. /models lists the models you can switch to.")
ON_TRIAL: Final = later(
    "There's no earlier model to go back to: {live} is live, and {model} is only on trial. ✖ Stop, under the message "
    "about its trial or on the Models page, ends the trial."
)

log = structlog.get_logger()


def refuse_harmful(model: Model) -> None:
    """Raise `AdminRefusal` for a model that failed the harm checks of its evaluation."""
    if model.report and Report.from_json(model.report).harmful:
        raise AdminRefusal(Reason(HARMFUL, model=model.id, reason=model.reason))


def is_intact(model: Model) -> bool:
    """Return whether the names and sizes of a model's files are the same as when it was published."""
    try:
        if model.manifest_hash:
            verify(Path(model.directory), model.manifest_hash, contents=False)
    except StorageError as error:
        log.warning("the files of a model have changed", model=model.id, error=str(error))
        return False
    return Path(model.directory).is_dir()


async def model_before(ledger: Ledger) -> str:
    """Return the model that a rollback would make live. Raises `AdminRefusal` if there is none."""
    previous = await ledger.models.previous()
    if previous is None:
        trial = await ledger.canaries.running()
        raise AdminRefusal(Reason(ON_TRIAL, live=trial.live, model=trial.model) if trial else Reason(NONE_BEFORE))
    return previous.id
