"""Changes of the live model and the canary, one at a time: first in the engine, then in the ledger.

After a crash between the two steps, the ledger still names the former model, so the bot starts with that
model again. If the ledger cannot record the new model, the engine switches back. The live model cannot
change while training uses the engine's memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bot.admin.model_checks import is_intact, model_before, refuse_harmful
from bot.admin.model_deletion import delete_model
from bot.admin.refusals import AdminRefusal, RejectedModel
from bot.i18n import later
from inference.messages import InferenceError
from inference.serving.deployment import Deployment
from storage.errors import StorageError
from storage.learning_records import Actor, Model, Promotion, Trial
from storage.ledger import Ledger
from storage.model_manifest import verify
from storage.state_machines import ModelState, Verdict
from storage.translatable_reason import Reason
from training.job import Progress, TrainingError, ignore
from training.merged_models import MergedModels

RESTING: Final = later(
    "The engine is paused while run {run} trains (training.while_training). Try again when the run has ended, or "
    "/cancel it."
)
GONE: Final = later("The files of {model} were deleted. /models lists the models you can switch to.")
TRIED: Final = later("{model} is still a canary: stop it or promote it first (/models).")
CANNOT_GO_ON: Final = Reason("its trial could not go on after a restart")

log = structlog.get_logger()


@dataclass(eq=False)
class ModelSwitch:
    """Changes the live model and the canary.

    `away_for` is the ID of the run that is using the engine's memory, or None if there is none.
    """

    ledger: Ledger
    deployment: Deployment
    merged: MergedModels
    pause_while_training: bool

    def __post_init__(self) -> None:
        self.away_for: int | None = None
        self._changing = asyncio.Lock()
        self._refused: dict[int, str] = {}  # promotion → reason that the ledger could not record yet

    async def promote(
        self,
        model: str,
        by: Actor | None,
        on_progress: Callable[[Progress], None] = ignore,
        *,
        confirmed: bool = False,
        back: bool = False,
        why: str = "",
    ) -> Model:
        """Make a model live and record the change, ending any canary trial.

        If an error is raised, nothing has changed, with one exception: if the change cannot be recorded and the
        engine cannot switch back to the former model either, `model` keeps answering until the bot is restarted.

        Args:
            model: The ID of the model.
            by: The admin who asked for the change, or None if no admin did.
            on_progress: Receives progress if the model has to be merged again because its files were removed.
            confirmed: Whether to promote the model even if it is rejected or undecided.
            back: Whether to record the change as a rollback.
            why: The reason for a change that no admin asked for; see `Promotions.make`.

        Raises:
            RejectedModel: The model is rejected or undecided, and `confirmed` is false.
            AdminRefusal: The model is known to do harm, its files were deleted, or a run is using the engine's
                memory.
            InferenceError: The engine cannot be switched to the model.
            StorageError: The model's files are damaged, or the change cannot be recorded.
            TrainingError: The model has to be merged again, but cannot be.
        """
        chosen = await self.ledger.models.get(model)
        refuse_harmful(chosen)
        if chosen.reason and not confirmed:
            raise RejectedModel(chosen)
        async with self._change():
            async with self._exchanged(model, on_progress):
                if (await self.ledger.models.get(model)).state is not ModelState.LIVE:
                    await self.ledger.promotions.make(model, by, back=back, why=why)
            await self._prune()
            return await self.ledger.models.get(model)

    async def rollback(
        self,
        by: Actor | None,
        on_progress: Callable[[Progress], None] = ignore,
        *,
        confirmed: bool = False,
        why: str = "",
    ) -> Model:
        """Go back to the previous live model.

        Raises `AdminRefusal` if there is no previous model, and the same errors as `promote`.
        """
        before = await model_before(self.ledger)
        return await self.promote(before, by, on_progress, confirmed=confirmed, back=True, why=why)

    @property
    def can_try(self) -> bool:
        """Whether a canary can run beside the live model."""
        return self.deployment.can_try

    async def start_for_evaluation(self, model: str, directory: Path) -> None:
        """Start the engine of a model beside the live one, without conversations, unless a canary or a run prevents it.

        Raises:
            EngineUnavailable: The engine did not start.
        """
        async with self._changing:
            if self.can_try and self.away_for is None and not await self.ledger.canaries.running():
                log.info("starting an engine for the evaluation, without conversations", model=model)
                await self.deployment.start_canary(model, directory, share=0)

    async def stop_after_evaluation(self) -> None:
        """Stop the engine that `start_for_evaluation` started, unless its model has since become a canary or live."""
        async with self._changing:
            if self.deployment.canary_is_idle:
                await self.deployment.stop_canary()

    async def begin_trial(self, model: str, share: float, by: Actor | None = None) -> Model:
        """Let a candidate answer a share of the conversations, and record the trial.

        `by` is the admin who approved it, or None.

        Raises the same errors as `promote`.
        """
        async with self._change():
            if trial := await self.ledger.canaries.running():
                raise AdminRefusal(Reason(TRIED, model=trial.model))
            chosen = await self._complete(model, ignore)
            await self.deployment.start_canary(chosen.id, Path(chosen.directory), share)
            try:
                await self.ledger.canaries.start(model, share, by)
            except StorageError:
                await self.deployment.stop_canary()
                raise
            return await self.ledger.models.get(model)

    async def end_trial(self, trial: Trial, verdict: Verdict, reason: str, by: Actor | None = None) -> Model:
        """End a trial, so that its conversations go to the live model.

        `by` is the admin who decided this, or None.

        Raises the same errors as `Canaries.end`; after an error, the canary stays in service.
        """
        async with self._changing:
            await self.deployment.stop_canary()
            try:
                await self.ledger.canaries.end(trial.id, verdict, reason, by)
            finally:
                await self._keep_trial()
            await self._prune()
            return await self.ledger.models.get(trial.model)

    async def resume_trial(self) -> None:
        """Start the canary of the running trial again after a restart, or end the trial if it cannot go on."""
        trial = await self.ledger.canaries.running()
        if trial is None:
            return
        model = await self.ledger.models.get(trial.model)
        if self.can_try and await asyncio.to_thread(is_intact, model):
            await self._keep_trial()
        else:
            log.warning("the trial of a canary cannot continue", model=trial.model)
            await self.ledger.canaries.end(trial.id, Verdict.VOID, CANNOT_GO_ON)

    async def delete(self, model: str, by: Actor) -> None:
        """Delete a model's files at the request of an admin, `by`, once no model change is in progress.

        Raises the same errors as `bot.admin.model_deletion.delete_model`.
        """
        async with self._changing:
            await delete_model(self.ledger, model, by)

    async def prune(self) -> None:
        """Remove the files of merged models that need not be kept, once no model change is in progress."""
        async with self._changing:
            await self._prune()

    async def serve(self) -> None:
        """Carry out the model changes that other processes have requested in the ledger, one after the other."""
        for asked in await self.ledger.promotions.pending():
            await self.carry_out(asked)

    async def carry_out(self, asked: Promotion) -> None:
        """Carry out a change that another process requested, or record why it was refused.

        Raises `StorageError` if the refusal cannot be recorded; the next call then only tries to record it.
        """
        if asked.id not in self._refused:
            try:
                async with self._change():
                    async with self._exchanged(asked.model):
                        await self.ledger.promotions.finish(asked.id)
                    await self._prune()
                return
            except (AdminRefusal, InferenceError, StorageError, TrainingError) as error:
                self._refused[asked.id] = str(error)
        await self.ledger.promotions.finish(asked.id, self._refused[asked.id])
        del self._refused[asked.id]

    @asynccontextmanager
    async def engine_away(self, run: int) -> AsyncIterator[None]:
        """Pause the engine for the duration of the context if training needs its memory.

        A model change in progress is allowed to finish first; new changes are refused during the pause.
        """
        if not self.pause_while_training:
            yield
            return
        self.away_for = run
        try:
            async with self._changing:
                await self.deployment.pause()
            yield
        finally:
            await self.deployment.resume()
            self.away_for = None

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """Hold the lock on model changes for the duration of the context.

        Raises `AdminRefusal` while a run uses the engine's memory.
        """
        # asyncio.Lock is fair: a change that passed this check before a run requested the lock gets it before the run.
        if self.away_for is not None:
            raise AdminRefusal(Reason(RESTING, run=self.away_for))
        async with self._changing:
            yield

    async def _complete(self, model: str, on_progress: Callable[[Progress], None]) -> Model:
        """Return a model whose files have been checked, merging it again first if its files were removed."""
        chosen = await self.ledger.models.get(model)
        refuse_harmful(chosen)
        if not chosen.kept:
            raise AdminRefusal(Reason(GONE, model=model))
        if not chosen.directory:
            log.info("merging a model again because its files were removed", model=model)
            chosen = await self.merged.restore(chosen, on_progress)
        if chosen.manifest_hash:
            await asyncio.to_thread(verify, Path(chosen.directory), chosen.manifest_hash)
        return chosen

    @asynccontextmanager
    async def _exchanged(self, model: str, on_progress: Callable[[Progress], None] = ignore) -> AsyncIterator[None]:
        """Switch the engine to a model, and back again if the body of the context raises `StorageError`."""
        chosen, live = await self._complete(model, on_progress), await self.ledger.models.live()
        try:
            await self.deployment.swap(chosen.id, Path(chosen.directory))
            try:
                yield
            except StorageError as error:
                log.error("the engine is switched back: the change cannot be recorded", model=model, error=str(error))
                if live is not None:
                    await self.deployment.swap(live.id, Path(live.directory))
                raise
        except (InferenceError, StorageError):
            await self._keep_trial()  # the swap may have stopped the canary's engine
            raise

    async def _keep_trial(self) -> None:
        """Make sure that the canary's engine runs if the ledger has a running trial."""
        if trial := await self.ledger.canaries.running():
            model = await self.ledger.models.get(trial.model)
            self.deployment.run_canary(model.id, Path(model.directory), trial.share)

    async def _prune(self) -> None:
        status = self.deployment.status()
        in_use = {status.model, *(each.model for each in status.nodes)}
        try:
            await self.merged.prune(in_use)
        except (StorageError, OSError) as error:
            log.warning("files of merged models not removed; retrying after the next change", error=str(error))
