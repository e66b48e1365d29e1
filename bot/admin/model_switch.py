"""Change the live model, one change at a time: first the engine, then the ledger.

After a crash between the two the ledger still has the former model, and the next start runs that; if the ledger cannot
record the new model, the engine goes back. No model changes while training has the engine's memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from bot.admin.protocol import AdminRefusal, RejectedModel
from bot.i18n import later
from inference.messages import InferenceError
from storage.errors import StorageError
from storage.learning_records import Model, Promotion
from storage.ledger import Ledger
from storage.model_store import verify
from storage.states import ModelState
from storage.translatable_reason import Reason
from training.job import Progress, TrainingError, ignore

if TYPE_CHECKING:  # the command line, which starts without the engine's client, needs `model_before`
    from inference.serving.deployment import Deployment
    from training.merged_models import MergedModels

RESTING: Final = later(
    "The engine is paused while run {run} trains (training.while_training). Try again when the run has ended, or "
    "/cancel it."
)
GONE: Final = later("The files of {model} were deleted. /models lists the models you can switch to.")
NONE_BEFORE: Final = later("There's no earlier model to go back to. /models lists the models you can switch to.")


log = structlog.get_logger()


class ModelSwitch:
    """Changes the live model. `away_for` is the run that has the engine's memory, None without one."""

    def __init__(
        self, ledger: Ledger, deployment: Deployment, merged: MergedModels, *, pause_while_training: bool
    ) -> None:
        self._ledger = ledger
        self._deployment = deployment
        self._merged = merged
        self._pause = pause_while_training
        self._changing = asyncio.Lock()
        self._refused: dict[int, str] = {}  # promotion → reason that the ledger could not record yet
        self.away_for: int | None = None

    async def promote(
        self,
        model: str,
        by: int | None,
        on_progress: Callable[[Progress], None] = ignore,
        *,
        confirmed: bool = False,
        back: bool = False,
    ) -> Model:
        """Make a model live and record it, with `back` as a rollback; `on_progress` reports the merge of a pruned one.

        Raises RejectedModel for one that was rejected, unless that is `confirmed`, AdminRefusal, InferenceError,
        StorageError or TrainingError; then everything stays as it was. (Only where it cannot be recorded, and the
        engine does not take the former model back either, does `model` answer until the next start.)
        """
        chosen = await self._ledger.models.get(model)
        if chosen.reason and not confirmed:
            raise RejectedModel(chosen)
        async with self._change():
            async with self._exchanged(model, on_progress):
                if (await self._ledger.models.get(model)).state is not ModelState.LIVE:
                    await self._ledger.promotions.make(model, by, back=back)
            await self._prune()
            return await self._ledger.models.get(model)

    async def rollback(
        self, by: int | None, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        """Go back to the model that was live before the present one. Raises as `promote`, and if there is none."""
        return await self.promote(await model_before(self._ledger), by, on_progress, confirmed=confirmed, back=True)

    async def prune(self) -> None:
        """Remove the files of merged models beyond those to keep, when no change of model is running."""
        async with self._changing:
            await self._prune()

    async def carry_out(self, asked: Promotion) -> None:
        """Carry out a change that another process requested; record a refusal with its reason.

        Raises StorageError if that cannot be recorded; the next call only retries the recording.
        """
        if asked.id not in self._refused:
            try:
                async with self._change():
                    async with self._exchanged(asked.model):
                        await self._ledger.promotions.finish(asked.id)
                    await self._prune()
                return
            except (AdminRefusal, InferenceError, StorageError, TrainingError) as error:
                self._refused[asked.id] = str(error)
        await self._ledger.promotions.finish(asked.id, self._refused[asked.id])
        del self._refused[asked.id]

    async def drain(self, node: str) -> None:
        """Take a node out of service, also during a change of model, which may be waiting for it.

        Raises as `Deployment.drain`.
        """
        await self._deployment.drain(node)

    async def undrain(self, node: str) -> None:
        """Take a node back into service, with the live model. Raises AdminRefusal, and as `Deployment.undrain`."""
        async with self._change():
            await self._deployment.undrain(node)

    @asynccontextmanager
    async def engine_away(self, run: int) -> AsyncIterator[None]:
        """Pause the engine if training needs its memory: wait for a change of model to end, and refuse others."""
        if not self._pause:
            yield
            return
        self.away_for = run
        try:
            async with self._changing:
                await self._deployment.pause()
            yield
        finally:
            await self._deployment.resume()
            self.away_for = None

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """One change of model at a time. Raises AdminRefusal while a run has the engine's memory."""
        # asyncio.Lock is fair: a change that passed this check before a run asked for the lock gets it before the run.
        if self.away_for is not None:
            raise AdminRefusal(Reason(RESTING, run=self.away_for))
        async with self._changing:
            yield

    @asynccontextmanager
    async def _exchanged(self, model: str, on_progress: Callable[[Progress], None] = ignore) -> AsyncIterator[None]:
        """Merge and verify a model's files and swap the engine to it; swap back if the block raises StorageError."""
        chosen, live = await self._ledger.models.get(model), await self._ledger.models.live()
        if not chosen.kept:
            raise AdminRefusal(Reason(GONE, model=model))
        if not chosen.directory:
            log.info("merging a pruned model again", model=model)
            chosen = await self._merged.restore(chosen, on_progress)
        if chosen.manifest_hash:
            await asyncio.to_thread(verify, Path(chosen.directory), chosen.manifest_hash)
        await self._deployment.swap(chosen.id, Path(chosen.directory))
        try:
            yield
        except StorageError as error:
            log.error("the engine goes back: the change cannot be recorded", model=model, error=str(error))
            if live is not None:
                await self._deployment.swap(live.id, Path(live.directory))
            raise

    async def _prune(self) -> None:
        status = self._deployment.status()
        in_use = {status.model, *(each.model for each in status.nodes)}
        try:
            await self._merged.prune(in_use)
        except (StorageError, OSError) as error:
            log.warning("merged models were not pruned; it is tried again after the next change", error=str(error))


async def model_before(ledger: Ledger) -> str:
    """Return the model that a rollback leads to. Raises AdminRefusal if there is none."""
    previous = await ledger.models.previous()
    if previous is None:
        raise AdminRefusal(Reason(NONE_BEFORE))
    return previous.id
