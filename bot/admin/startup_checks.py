"""Checks at startup: which model is live, whether its files and the ledger are intact, and whether Ray is installed.

File sizes are compared before the engine starts. File hashes and the ledger's pages are checked in the
background, because reading gigabytes takes a long time. If the files of the live model have changed, the
base model replaces it.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bot.admin.model_switch import ModelSwitch
from bot.admin.notifications import Notifications
from bot.admin.refusals import AdminRefusal
from bot.config import ConfigError, Settings
from bot.i18n import later
from inference.engines.ray_version import ray_cure, ray_version
from inference.messages import InferenceError
from storage.errors import StorageError
from storage.integrity import quick_faults
from storage.learning_records import BASE, Model
from storage.ledger import Ledger
from storage.model_manifest import verify
from storage.state_machines import ModelState, Verdict
from storage.translatable_reason import Reason

RETRY_SECONDS: Final = 30.0

GONE: Final = later(
    "The files of the live model {model} are missing from {folder}. The base model answers instead. Put the files back "
    "and send /promote {model}, or send /retrain."
)
CHANGED: Final = later(
    "The files of the live model {model} have changed since it was created. The base model answers instead. {reason}"
)
STUCK: Final = later(
    "The files of the live model {model} have changed since it was created, and the base model can't replace it "
    "yet. I'll keep trying. {reason}"
)
LEDGER_DAMAGED: Final = later(
    'The database is damaged. Stop me, restore the latest backup made by "thumbtune backup", and start me again. '
    "{faults}"
)

FILES_GONE: Final = Reason("its files are missing")

log = structlog.get_logger()


Trouble = tuple[str, Reason]
"""An alert to send: its key, by which repeated alerts are recognized, and its text."""


async def refuse_missing_ray(settings: Settings) -> None:
    """Raise `ConfigError` if an engine is set to `ray` but its interpreter does not have Ray.

    The engine's process would fail at every start.
    """
    inference, training = settings.inference, settings.training
    for section, engine, python in (
        ("inference", inference.engine, inference.python),
        ("training", training.engine, training.python),
    ):
        if engine == "ray" and not await asyncio.to_thread(ray_version, python):
            lacks = f"which {python or sys.executable} lacks"
            raise ConfigError(f'{section}.engine = "ray" needs Ray, {lacks}: {ray_cure(section)}.')


async def settle_live_model(ledger: Ledger, base: Path, models: Path) -> tuple[Model, Trouble | None]:
    """Return the model to start with, and an alert if the live model had to be replaced.

    On the first start, the base model is added to the ledger. If `base` (the setting `inference.model`)
    later differs from the directory in the ledger, there are two cases. If the earlier directory still
    exists, the operator has chosen another base model, which goes live; if not, the base model has only
    moved. A trained model whose directory is missing is searched for in `models`. If the files of the live
    model are missing (for example, after a restore without models) or differ in size from the published
    ones, the base model goes live. If the files of any other model are missing, the ledger records that they
    are gone.
    """
    known = {model.id: model for model in await ledger.models.all()}
    if BASE not in known:
        await ledger.models.add(Model(BASE, str(base), ModelState.LIVE, None, 0.0))
    elif known[BASE].directory != str(base):
        chosen_again = Path(known[BASE].directory).is_dir()
        await ledger.models.relocate(BASE, str(base))
        if chosen_again and known[BASE].state is not ModelState.LIVE:
            log.warning("inference.model changed: the new base model is live; /promote brings an earlier model back")
            await ledger.promotions.make(BASE)
    gone = []
    for model in known.values():
        moved = models / model.id
        if model.id == BASE or (model.directory and Path(model.directory).is_dir()):
            continue
        if moved.is_dir():
            await ledger.models.relocate(model.id, str(moved))
        elif model.directory:
            gone.append(model)
    live = await ledger.models.live()
    if live is None:  # earlier versions could crash between adding and promoting the base model
        await ledger.promotions.make(BASE)
        live = await ledger.models.get(BASE)
    trouble = await asyncio.to_thread(_unfit, live, contents=False)
    if trouble:
        log.error("the files of the live model have changed: the base model replaces it", model=live.id)
        await ledger.promotions.make(BASE)
        live = await ledger.models.get(BASE)
    trial = await ledger.canaries.running()
    if trial is not None and trial.model in {model.id for model in gone}:
        await ledger.canaries.end(trial.id, Verdict.STOPPED, FILES_GONE)
    for model in gone:
        log.info("the files of a model are gone", model=model.id, directory=model.directory)
        await ledger.models.drop_directory(model.id)
    return live, trouble


@dataclass(eq=False)
class StartupChecks:
    """Checks the ledger's pages and the live model's files once, in the background.

    Args:
        unfit: The alert that `settle_live_model` returned, if any; it is sent first.
    """

    ledger: Ledger
    switch: ModelSwitch
    notices: Notifications
    live: Model
    unfit: Trouble | None

    async def run(self) -> None:
        """Run the checks once; if cancelled, do not wait for a file that is still being hashed."""
        if self.unfit:
            await self.notices.alert(*self.unfit)
        loop = asyncio.get_running_loop()
        reader = ThreadPoolExecutor(1)  # shutdown does not wait for it, unlike for the loop's default executor
        try:
            if faults := await loop.run_in_executor(reader, _ledger_faults, self.ledger.path):
                log.error("the ledger is damaged", faults=faults)
                await self.notices.alert("ledger damaged", Reason(LEDGER_DAMAGED, faults=faults))
            trouble = await loop.run_in_executor(reader, _unfit, self.live)
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
        if trouble:
            log.error("the files of the live model have changed", model=self.live.id)
            await self._replace(trouble)

    async def _replace(self, trouble: Trouble) -> None:
        """Replace the live model with the base model, then send the alert `trouble`.

        If the replacement fails, it is retried.
        """
        while (live := await self.ledger.models.live()) and live.id == self.live.id:
            try:
                await self.switch.promote(BASE, None)
            except AdminRefusal:  # a run uses the engine's memory
                await asyncio.sleep(RETRY_SECONDS)
            except (InferenceError, StorageError) as error:
                log.error("the base model cannot replace the live one", error=str(error))
                await self.notices.alert(f"stuck:{live.id}", Reason(STUCK, model=live.id, reason=str(error)))
                await asyncio.sleep(RETRY_SECONDS)
        await self.notices.alert(*trouble)


def _unfit(model: Model, *, contents: bool = True) -> Trouble | None:
    """Return an alert if a trained model's files are missing or differ from its manifest.

    If `contents` is false, only the names and sizes of the files are compared.
    """
    if model.id == BASE:
        return None
    if not model.directory or not Path(model.directory).is_dir():
        return f"files:{model.id}", Reason(GONE, model=model.id, folder=model.directory)
    try:
        if model.manifest_hash:
            verify(Path(model.directory), model.manifest_hash, contents=contents)
    except StorageError as error:
        return f"files:{model.id}", Reason(CHANGED, model=model.id, reason=str(error))
    return None


def _ledger_faults(path: Path) -> str:
    try:
        return "; ".join(quick_faults(path))
    except StorageError as error:
        return str(error)
