"""Starting and cancelling runs, and acting on their outcomes.

Chat commands and web pages call `RunManager` directly. The schedule and the command line, which runs in another
process, add rows to the ledger; `RunManager.serve` picks them up. The training itself is carried out by the pipeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from bot.admin.canary_trial import Trials
from bot.admin.notifications import AWAITS, AWAITS_TRIAL, NOTICE_SECONDS, Notifications
from bot.admin.refusals import AdminRefusal, NothingNew
from bot.i18n import later
from inference.messages import InferenceError
from storage.errors import NotSaved, RunBusy, StorageError
from storage.learning_records import Model, Run
from storage.ledger import Ledger
from storage.state_machines import RUN_TRANSITIONS, ModelState, RunState
from storage.translatable_reason import Reason
from training.job import TrainingError
from training.pipeline import WITHDRAWN, EndNotSaved, Pipeline
from training.run_folder import CURVE, PICTURE, SHEET, kept_file
from training.run_plan import RunPlan

INTERRUPTED: Final = Reason(
    "the bot stopped during this run; /retrain continues from its last checkpoint if it would train on the same "
    "answers, and otherwise starts over"
)
NOT_TAKEN: Final = later("The new model {model} didn't go live; the previous one keeps answering. {reason}")

log = structlog.get_logger()


@dataclass(eq=False)
class RunManager:
    """Starts and cancels runs. Call `start()` once, then `serve()` periodically, and `stop()` at the end.

    `trainer_missing` returns the reason why no run can start in this environment, or None if runs can start.
    """

    ledger: Ledger
    pipeline: Pipeline
    trials: Trials
    notices: Notifications
    trainer_missing: Callable[[], Reason | None]

    _work: tuple[int, asyncio.Task[None]] | None = field(default=None, init=False)
    _plans: dict[int, RunPlan] = field(default_factory=dict, init=False)
    """The plan of the run that was just requested, by run ID."""
    _over: dict[int, tuple[RunState, str]] = field(default_factory=dict, init=False)
    """The final state and reason, by run ID, of runs whose end has not been recorded yet."""

    async def start(self) -> None:
        """Handle the end of a run that an earlier process left unsettled, if any."""
        await self._end_what_is_over()
        if run := await self.ledger.runs.unsettled():
            self._work = (run.id, asyncio.create_task(self._ended(run.id)))

    async def stop(self) -> None:
        """Cancel the active run, if any.

        If sending the notice of the run's end takes longer than `NOTICE_SECONDS`, the notice is dropped.
        """
        while self._work and not self._work[1].done():
            self._work[1].cancel()
            await asyncio.wait((self._work[1],), timeout=NOTICE_SECONDS)

    async def retrain(self, by: int | None, *, confirmed: bool = False, only: frozenset[int] | None = None) -> Run:
        """Start a run at an admin's request.

        Args:
            by: The admin's user ID, or None for a request from the web page.
            confirmed: Whether to start the run even if there is nothing new to learn from.
            only: The IDs of the exchanges that the run may learn from; None for no limit.

        Raises:
            AdminRefusal: There is no trainer.
            RunBusy: Another run is in progress.
            NothingNew: The run would learn from the same data as the last finished run, and `confirmed` is
                false.
        """
        plan = await self.plan(only)
        last = await self.ledger.runs.last_verdict()
        if last and plan.fingerprint == last[1] and not confirmed:
            raise NothingNew(last[0], plan.selection.futile)
        run = await self.ledger.runs.start("web" if by is None else "admin", by, only=only)
        self._plans = {run.id: plan}
        return run

    def futile(self, run: Run) -> Reason | None:
        """Return the reason why a run that was just requested will end without a new model, if that is known."""
        plan = self._plans.get(run.id)
        return plan.selection.futile if plan else None

    async def plan(self, only: frozenset[int] | None = None) -> RunPlan:
        """Return the plan for a run that would begin now, limited to the exchanges `only` unless it is None.

        Raises `AdminRefusal` if there is no trainer, and the same errors as `RunPlanner.plan`.
        """
        if missing := self.trainer_missing():
            raise AdminRefusal(missing)
        return await self.pipeline.planner.plan(only)

    async def unchanged_since(self) -> Run | None:
        """Return the last finished run if a new run would learn from the same data, otherwise None."""
        return await self.pipeline.planner.unchanged_since()

    async def cancel(self, by: int | None) -> Run | None:
        """Cancel the active run, if any, and return it; `by` is None for a request from the web page."""
        run = await self.ledger.runs.active()
        if run:
            log.info("cancelling", run=run.id, by=by)
            await self.ledger.runs.request_cancel(run.id)
        return run

    async def serve(self) -> None:
        """Cancel the active run if requested, and start a run that is due."""
        if self._work and self._work[1].done():
            number, task = self._work
            self._work = None
            if not task.cancelled() and (error := task.exception()):
                log.error("handling the end of a run failed; retrying at the next start", run=number, exc_info=error)
        if self._work and await self.ledger.runs.cancel_requested(self._work[0]):
            self._work[1].cancel()
            await asyncio.wait((self._work[1],))  # a second cancellation would interrupt its cleanup
        if self._work is None:
            if (over := await self._end_what_is_over()) is not None:
                self._work = (over, asyncio.create_task(self._ended(over)))
            elif (run := await self.ledger.runs.due()) and run.id not in self._over:
                self._work = (run.id, asyncio.create_task(self._execute(run)))

    async def _end_what_is_over(self) -> int | None:
        """Record the end of a run that has stopped but is still active in the ledger.

        Either the run's process died, or the end of the run could not be recorded earlier. While the disk is
        full, the run remains active in the ledger.

        Returns:
            The run's ID if its end has been recorded, otherwise None.
        """
        run = await self.ledger.runs.active()
        if run is None or (run.state is RunState.DUE and run.id not in self._over):
            return None
        state, reason = self._over.get(run.id, (RunState.FAILED, INTERRUPTED))
        try:
            await self.ledger.runs.move(run.id, state, reason=reason)
        except NotSaved:
            return None
        self._over.pop(run.id, None)
        return run.id

    async def _execute(self, run: Run) -> None:
        """Carry out a due run, then handle its outcome, whether or not it succeeded."""
        async with AsyncExitStack() as engine:
            await engine.enter_async_context(self.trials.switch.engine_away(run.id))
            try:
                if missing := self.trainer_missing():
                    self._over[run.id] = (RunState.FAILED, missing)
                else:
                    await self.pipeline.run(run, self.notices.run_changed, self._plans.pop(run.id, None))
            except EndNotSaved as end:
                log.warning("the end of a run could not be saved", run=run.id, state=end.state, reason=end.reason)
                self._over[run.id] = (end.state, end.reason)
            finally:
                await engine.aclose()
                try:
                    await self._ended(run.id)
                finally:
                    await self.trials.switch.stop_after_evaluation()

    async def _ended(self, number: int) -> None:
        """Handle the end of a run: start the trial of an accepted model or promote it, and notify the admins.

        If some of the answers that the run learned from have since been withdrawn, a new run starts without
        them. If the bot crashes or is stopped during these steps, it repeats them the next time it starts; a model
        whose earlier trial could not go on stays a candidate.
        """
        run = await asyncio.shield(self.ledger.runs.get(number))
        if RUN_TRANSITIONS[run.state]:
            return  # its end could not be recorded; `serve` retries
        log.info("run ended", run=run.id, state=run.state, reason=run.reason, model=run.model)
        model = await self.ledger.models.get(run.model) if run.model else None
        again = await self.ledger.run_selections.withdrawn(run.id)
        approve = self.trials.settings.now.training.approve
        if model and model.state is ModelState.CANDIDATE:
            if again:
                model = await self.ledger.models.move(model.id, ModelState.REJECTED, WITHDRAWN)
            elif not approve and not await self.ledger.canaries.latest(model.id):
                model = await self._accept(model)
        elif model:
            again = False  # already rejected, undecided, tried, or promoted by an admin
        awaits = (AWAITS_TRIAL if self.trials.can_try else AWAITS) if approve else ""
        picture = kept_file(run.directory, PICTURE) or kept_file(run.directory, CURVE)
        await self.notices.run_finished(run, model, picture, kept_file(run.directory, SHEET), awaits=awaits)
        if again:
            log.info("starting a new run without withdrawn answers", run=run.id)
            with suppress(RunBusy):
                only = await self.ledger.runs.limit(run)
                await self.ledger.runs.start(run.trigger, run.requested_by, only=only)
        await self.ledger.runs.settle(run.id)
        await self.trials.switch.prune()

    async def _accept(self, candidate: Model) -> Model:
        try:
            return await self.trials.accept(candidate)
        except (AdminRefusal, InferenceError, StorageError, TrainingError) as error:
            log.error("the new model does not answer; the old one stays live", model=candidate.id, error=str(error))
            await self.notices.alert(f"swap:{candidate.id}", NOT_TAKEN, model=candidate.id, reason=str(error))
            return candidate
