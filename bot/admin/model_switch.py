"""Which model answers, and at which nodes: one change of model at a time, the engine first, the ledger second.

So a crash between the two leaves the old model in the ledger, and the next start simply runs it; when the ledger does
not take the new one the engine goes back. The only place that knows this order, and that no model changes while a run
has the engine's memory. Who asks and who is told is the operations'; how engines are exchanged is the deployment's.
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
from storage.reason import Reason
from storage.states import ModelState
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


class Changeover:
    """Changes the model that answers. `away_for` is the run that has the engine's memory, None without one."""

    def __init__(
        self, ledger: Ledger, deployment: Deployment, merged: MergedModels, *, pause_while_training: bool
    ) -> None:
        self._ledger = ledger
        self._deployment = deployment
        self._merged = merged
        self._pause = pause_while_training
        self._changing = asyncio.Lock()
        self._refused: dict[int, str] = {}  # promotion → why it was, where that is yet to be written
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
        """Let the engine answer with `model` and record it, with `back` as a rollback. A pruned model is merged first,
        with `on_progress`.

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
        """Remove the files of merged models that are no longer kept, once no model changes."""
        async with self._changing:
            await self._prune()

    async def carry_out(self, asked: Promotion) -> None:
        """A change that another process asked for; a refusal is recorded with its reason.

        Raises StorageError where that cannot be recorded; called again, it tries nothing but that.
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
        """Take a node out of service, also in the middle of a change of model: it may be what that waits for.

        Raises as `Deployment.drain`.
        """
        await self._deployment.drain(node)

    async def undrain(self, node: str) -> None:
        """Take a node back into service, with the live model. Raises AdminRefusal, and as `Deployment.undrain`."""
        async with self._change():
            await self._deployment.undrain(node)

    @asynccontextmanager
    async def engine_away(self, run: int) -> AsyncIterator[None]:
        """Where training is to have the memory alone: wait for a change of model to end, and let no other begin."""
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
        # Who has come this far before a run asks for the lock has it before the run: the lock's queue is in order.
        if self.away_for is not None:
            raise AdminRefusal(Reason(RESTING, run=self.away_for))
        async with self._changing:
            yield

    @asynccontextmanager
    async def _exchanged(self, model: str, on_progress: Callable[[Progress], None] = ignore) -> AsyncIterator[None]:
        """Swap the engine to a kept model, its files merged again if need be and checked against their manifest; and
        back if it cannot be recorded, which is for the block to do.
        """
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
    """Which model a rollback leads to. Raises AdminRefusal if there is none."""
    previous = await ledger.models.previous()
    if previous is None:
        raise AdminRefusal(Reason(NONE_BEFORE))
    return previous.id
