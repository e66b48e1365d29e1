"""Remove the directories of merged models, and restore the models from their adapters.

A merged model is as large as the base model, but it can be merged again from the base model and the
adapter within seconds, with byte-for-byte identical files. Only a few models therefore keep their files.
For crash safety, the ledger's row changes before files are removed and after they are restored.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from inference.internvl2.checkpoint_check import weight_bytes
from storage.errors import IllegalTransition, StorageError
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.model_manifest import CARD, read_manifest
from storage.model_store import ModelStore
from storage.state_machines import ANSWERING, ModelState
from storage.translatable_reason import Reason
from training.job import MergeJob, Outcome, Progress, Trainer, TrainingError, checked, ignore
from training.job_specs import TrainingPaths
from training.run_folder import ADAPTER, MERGE_JOB, kept_file
from training.settings import TrainingSettings

log = logging.getLogger(__name__)


async def publish_merged(
    models: ModelStore, name: str, job: MergeJob, run: Callable[[MergeJob], Awaitable[Outcome]]
) -> Path:
    """Merge a model with the worker that `run` starts, publish it as `name`, and return its directory.

    Raises:
        TrainingError: The model cannot be merged.
        StorageError: The model cannot be published.
    """
    workspace = models.workspace(name)
    try:
        checked(await run(replace(job, out=str(workspace))))
        if card := kept_file(job.work, CARD):  # models of earlier versions have none
            shutil.copyfile(card, workspace / CARD)
        directory, _ = await asyncio.to_thread(models.publish, workspace, name)
    finally:
        models.discard(workspace)
    return directory


class MergedModels:
    """A service that prunes merged models and restores them."""

    def __init__(
        self, ledger: Ledger, models: ModelStore, trainer: Trainer, settings: TrainingSettings, paths: TrainingPaths
    ) -> None:
        self._ledger = ledger
        self._models = models
        self._trainer = trainer
        self._settings = settings
        self._paths = paths

    async def prune(self, in_use: Collection[str] = ()) -> list[str]:
        """Remove the directories of all models that need not be kept, and return the names of the removed models.

        A model is kept while it is `in_use`, while its promotion is pending, or while its adapter cannot restore
        it. No model switch may run at the same time. If a directory cannot be removed, the next call tries
        again.
        """
        removed = []
        for model in await self._prunable(in_use):
            with suppress(IllegalTransition):  # a promotion was requested just now
                await self._ledger.models.prune(model.id)
                removed.append(model.id)
        for model in await self._ledger.models.all():
            if model.pruned and self._models.path(model.id).exists():
                try:
                    await asyncio.to_thread(self._remove, model.id)
                except StorageError as error:
                    log.warning("%s was not removed: %s", self._models.path(model.id), error)
        if removed:
            log.info("pruned merged models (their adapters are kept): %s", ", ".join(removed))
        return removed

    async def restore(self, model: Model, on_progress: Callable[[Progress], None] = ignore) -> Model:
        """Merge a pruned model again and record its directory.

        Raises:
            TrainingError: The model cannot be merged, or the result differs from the original.
        """
        path = self._models.path(model.id)
        if not path.exists():
            await self._merge(model, on_progress)
        if (await asyncio.to_thread(read_manifest, path)).hash != model.manifest_hash:
            await asyncio.to_thread(self._remove, model.id)
            raise TrainingError(
                Reason(
                    "{model}, merged again from its adapter, differs from the model that was evaluated: the base "
                    "model, the adapter or thumbtune has changed since. /retrain makes a new one",
                    model=model.id,
                )
            )
        return await self._ledger.models.relocate(model.id, str(path))

    def _remove(self, name: str) -> None:
        """Remove a model's directory atomically.

        If the process is killed in the middle, the bot deletes the rest the next time it starts.
        """
        if (aside := self._models.set_aside(name)) is not None:
            self._models.discard(aside)

    async def _merge(self, model: Model, on_progress: Callable[[Progress], None]) -> None:
        job = self._job(model)
        if job is None:
            raise TrainingError(
                Reason(
                    "The adapter of {model} or its base model is missing: choose another model from /models",
                    model=model.id,
                )
            )
        needed = weight_bytes(self._paths.base) + self._settings.min_free_gigabytes * 1e9
        free = shutil.disk_usage(self._models.directory).free
        if free < needed:
            raise TrainingError(
                Reason(
                    "Only {free} GB are free on the disk that holds {directory}, but merging {model} again needs "
                    "{needed} GB: free up space",
                    free=f"{free / 1e9:.1f}",
                    directory=str(self._models.directory),
                    model=model.id,
                    needed=f"{needed / 1e9:.1f}",
                )
            )
        await publish_merged(self._models, model.id, job, lambda merging: self._trainer.run(merging, on_progress))

    async def _prunable(self, in_use: Collection[str]) -> list[Model]:
        models = await self._ledger.models.all()
        before = await self._ledger.models.previous()
        kept = {*in_use, *(each.model for each in await self._ledger.promotions.pending())}
        kept |= {each.id for each in models if each.state in ANSWERING}
        if (unsettled := await self._ledger.runs.unsettled()) and unsettled.model:
            kept.add(unsettled.model)  # about to go live
        if before is not None:
            kept.add(before.id)
        ours = [
            each
            for each in reversed(models)
            if each.directory and Path(each.directory).absolute().parent == self._models.directory.absolute()
        ]
        others = [each for each in ours if each.id not in kept]
        unrejected = [each for each in others if each.state is not ModelState.REJECTED]
        kept |= {each.id for each in unrejected[: self._settings.keep_models]}
        return [each for each in others if each.id not in kept and self._job(each) is not None]

    def _job(self, model: Model) -> MergeJob | None:
        """Return the job that merged the model, with current paths, or None if the merge cannot be repeated."""
        if model.run is None or not model.manifest_hash:
            return None
        folder = self._paths.runs / str(model.run)
        try:
            job = MergeJob.read(folder / MERGE_JOB)
        except (OSError, ValueError, TypeError):
            return None
        adapter, base = folder / ADAPTER, self._paths.base
        if not (adapter.is_dir() and any(adapter.iterdir()) and base.is_dir()) or Path(job.base) != base:
            return None
        return replace(job, adapter=str(adapter), work=str(folder))
