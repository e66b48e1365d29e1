"""The actions of admins: retrain, cancel, approve, promote, roll back, drain nodes and take them back.

Chat commands call the service directly. The schedule and the command line (another process) leave rows in the ledger,
which background loops pick up. The service starts runs and acts on their end; the pipeline carries them out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog

from bot.admin.canary import Trials
from bot.admin.canary_standing import Standing
from bot.admin.erasure import Erasure
from bot.admin.monitoring import Monitoring, Overview
from bot.admin.notifications import Notifications
from bot.admin.protocol import AdminRefusal, NothingNew
from bot.admin.teacher_notes import TeacherNotes
from bot.i18n import later
from inference.messages import InferenceError
from inference.serving.deployment_status import NodeStatus
from storage.errors import NotSaved, RunBusy, StorageError
from storage.learning_records import Model, Run
from storage.ledger import Ledger
from storage.states import RUN_TRANSITIONS, ModelState, RunState
from storage.translatable_reason import Reason
from training.job import Progress, TrainingError, ignore
from training.pipeline import WITHDRAWN, EndNotSaved, Pipeline, RunPlan
from training.run_folder import CURVE, PICTURE, SHEET, kept_file

RUNS: Final = "runs"
PROMOTIONS: Final = "promotions"
DELETIONS: Final = "deletions"
CANARY: Final = "canary"
NOTES: Final = "notes"

MAILBOX_SECONDS = 1.0
BACKOFF_SECONDS: Final = 30.0
"""The longest pause after errors; the first pauses are shorter."""

TELL_SECONDS = 0.7
INTERRUPTED: Final = Reason(
    "the bot stopped during this run; /retrain continues from its last checkpoint if it would train on the same "
    "answers, and otherwise starts over"
)
UNSAVED: Final = later("I can't save anything right now. {reason}")
FAILS: Final = later(
    "A background task is failing ({duty}). I'll keep retrying, less and less often; see my log for details. {reason}"
)
NOT_TAKEN: Final = later("The new model {model} didn't go live; the previous one keeps answering. {reason}")

log = structlog.get_logger()


def pause_after(failures: int) -> float:
    """Return the pause of a background loop, in seconds, after `failures` consecutive failures."""
    return min(MAILBOX_SECONDS * 2.0 ** min(failures, 10), max(BACKOFF_SECONDS, MAILBOX_SECONDS))


class AdminService:
    """Serves requests from chat, schedule and command line. Call `start()` once and `stop()` at the end."""

    def __init__(  # noqa: PLR0913 - the parts that it brings together
        self,
        *,
        ledger: Ledger,
        pipeline: Pipeline,
        trials: Trials,
        vitals: Monitoring,
        notices: Notifications,
        forgetting: Erasure,
        notes: TeacherNotes,
        trainer_missing: Callable[[], Reason | None],
    ) -> None:
        """`trainer_missing` returns why no run can start in this environment, or None if one can."""
        self._ledger = ledger
        self._pipeline = pipeline
        self._trials = trials
        self._changeover = trials.switch
        self._vitals = vitals
        self._notices = notices
        self._forgetting = forgetting
        self._notes = notes
        self._trainer_missing = trainer_missing
        self._wake = {duty: asyncio.Event() for duty in (RUNS, PROMOTIONS, DELETIONS, CANARY, NOTES)}
        self._tasks: list[asyncio.Task[None]] = []
        self._work: tuple[int, asyncio.Task[None]] | None = None
        self._plans: dict[int, RunPlan] = {}  # what the run that was just requested trains on
        self._over: dict[int, tuple[RunState, str]] = {}  # run → its end, which is not recorded yet

    async def start(self) -> None:
        """Finish what an earlier process left undone, then start the background loops.

        Runs, changes of model, deletions, the canary and notes have a loop each, because a change of model may take
        minutes.
        """
        await self._end_what_is_over()
        if run := await self._ledger.runs.unsettled():
            self._work = (run.id, asyncio.create_task(self._ended(run.id)))
        duties = {
            RUNS: self._serve_runs,
            PROMOTIONS: self._serve_promotions,
            DELETIONS: self._serve_deletions,
            CANARY: self._trials.look,
            NOTES: self._notes.send,
        }
        self._tasks = [asyncio.create_task(self._repeat(duty, serve)) for duty, serve in duties.items()]
        self._tasks.append(asyncio.create_task(self._changeover.prune()))

    async def stop(self) -> None:
        """Cancel the active run, if any, and stop. A notice that takes longer than TELL_SECONDS is dropped."""
        for task in (*self._tasks, *((self._work[1],) if self._work else ())):
            while not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=TELL_SECONDS)

    async def retrain(self, by: int, *, confirmed: bool = False) -> Run:
        """Start a run.

        Raises AdminRefusal if there is no trainer, RunBusy while another run is under way, and NothingNew as described
        in the protocol.
        """
        plan = await self.plan()
        last = await self._ledger.runs.last_verdict()
        if last and plan.fingerprint == last[1] and not confirmed:
            raise NothingNew(last[0])
        run = await self._ledger.runs.start("admin", by)
        self._plans = {run.id: plan}
        self._wake[RUNS].set()
        return run

    async def plan(self) -> RunPlan:
        """Return the plan of a run that would begin now.

        Raises AdminRefusal if there is no trainer, and what `Pipeline.plan` raises.
        """
        if missing := self._trainer_missing():
            raise AdminRefusal(missing)
        return await self._pipeline.plan()

    async def unchanged_since(self) -> Run | None:
        """Return the last finished run if nothing is new since it, or None if there is something new to learn from."""
        return await self._pipeline.unchanged_since()

    async def cancel(self, by: int) -> Run | None:
        """Cancel the run under way and return it, or return None if there is none."""
        run = await self._ledger.runs.active()
        if run:
            log.info("cancelling", run=run.id, by=by)
            await self._ledger.runs.request_cancel(run.id)
            self._wake[RUNS].set()
        return run

    async def promote(
        self, model: str, by: int | None, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        """Make a model live. Raises what `ModelSwitch.promote` raises."""
        return await self._changeover.promote(model, by, on_progress, confirmed=confirmed)

    async def rollback(
        self, by: int | None, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        """Make the previous model live. Raises what `ModelSwitch.rollback` raises."""
        return await self._changeover.rollback(by, on_progress, confirmed=confirmed)

    async def standing(self) -> Standing | None:
        """Return how the running trial stands, or None if there is none."""
        return await self._trials.standing()

    async def approve(self, model: str, by: int) -> Model:
        """Let a candidate that waits for approval answer. Raises what `Trials.approved` raises."""
        return await self._trials.approved(model, by)

    async def stop_canary(self, model: str, by: int) -> Model:
        """End the trial of a canary. Raises what `Trials.stop` raises."""
        return await self._trials.stop(model, by)

    def nodes(self) -> Sequence[NodeStatus]:
        """Return the status of every node."""
        return self._vitals.nodes()

    async def drain(self, node: str, by: int) -> None:
        """Take a node out of service. Raises what `Deployment.drain` raises."""
        log.info("node is taken out of service", node=node, by=by)
        await self._changeover.drain(node)

    async def undrain(self, node: str, by: int) -> NodeStatus:
        """Take a node back into service; return its status. Raises what `ModelSwitch.undrain` raises."""
        log.info("node is taken back into service", node=node, by=by)
        await self._changeover.undrain(node)
        return next(each for each in self.nodes() if each.name == node)

    async def models(self) -> list[Model]:
        """Return every model, oldest first."""
        return await self._ledger.models.all()

    async def overview(self) -> Overview:
        """Return the state of the bot."""
        return await self._vitals.overview()

    async def _repeat(self, duty: str, serve: Callable[[], Awaitable[None]]) -> None:
        """Serve one duty for ever, with backoff after errors; a persistent error is logged and reported once."""
        failures, known = 0, ""
        while True:
            try:
                await serve()
                failures, known = 0, ""
            except Exception as error:  # keep serving later requests
                failures += 1
                if (found := f"{type(error).__name__}: {error}") != known:
                    known = found
                    log.exception("background loop failed", duty=duty)
                    if not isinstance(error, NotSaved):  # reported as UNSAVED
                        await self._notices.alert(f"mailbox:{duty}", FAILS, duty=duty, reason=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_after(failures)):
                    await self._wake[duty].wait()
            self._wake[duty].clear()

    async def _serve_runs(self) -> None:
        """Start the due run, and end the one to be cancelled."""
        if self._work and self._work[1].done():
            number, task = self._work
            self._work = None
            if not task.cancelled() and (error := task.exception()):
                log.error("acting on the end of a run failed; the next start retries", run=number, exc_info=error)
        if self._work and await self._ledger.runs.cancel_requested(self._work[0]):
            self._work[1].cancel()
            await asyncio.wait((self._work[1],))  # a second cancellation would interrupt its cleanup
        if self._work is None:
            if (over := await self._end_what_is_over()) is not None:
                self._work = (over, asyncio.create_task(self._ended(over)))
            elif (run := await self._ledger.runs.due()) and run.id not in self._over:
                self._work = (run.id, asyncio.create_task(self._execute(run)))

    async def _serve_promotions(self) -> None:
        """Carry out the changes of model that other processes have requested, one after the other."""
        for asked in await self._ledger.promotions.pending():
            await self._changeover.carry_out(asked)

    async def _serve_deletions(self) -> None:
        """Finish deletions, and alert while the ledger cannot be written."""
        if self._ledger.trouble:
            await self._notices.alert("ledger", UNSAVED, reason=self._ledger.trouble)
        await self._forgetting.settle()

    async def _end_what_is_over(self) -> int | None:
        """Record the end of a run that is active only in the ledger; return its id if the end was recorded.

        Its process died, or its end could not be recorded earlier. While the disk is full the run stays active.
        """
        run = await self._ledger.runs.active()
        if run is None or (run.state is RunState.DUE and run.id not in self._over):
            return None
        state, reason = self._over.get(run.id, (RunState.FAILED, INTERRUPTED))
        try:
            await self._ledger.runs.move(run.id, state, reason=reason)
        except NotSaved:
            return None
        self._over.pop(run.id, None)
        return run.id

    async def _execute(self, run: Run) -> None:
        """Carry out a due run, and act on its end whether it succeeded or not."""
        async with AsyncExitStack() as engine:
            await engine.enter_async_context(self._changeover.engine_away(run.id))
            try:
                if missing := self._trainer_missing():
                    self._over[run.id] = (RunState.FAILED, missing)
                else:
                    await self._pipeline.run(run, self._notices.run_changed, self._plans.pop(run.id, None))
            except EndNotSaved as end:
                log.warning("the end of a run could not be saved", run=run.id, state=end.state, reason=end.reason)
                self._over[run.id] = (end.state, end.reason)
            finally:
                await engine.aclose()
                await self._ended(run.id)

    async def _ended(self, number: int) -> None:
        """Act on the end of a run: an accepted model answers, in a trial or at once, and the admins are notified.

        A run that learned from answers that have since been withdrawn starts again without them. After a crash or a
        stop the next start repeats this.
        """
        run = await asyncio.shield(self._ledger.runs.get(number))
        if RUN_TRANSITIONS[run.state]:
            return  # its end could not be recorded; `_serve_runs` retries
        log.info("run ended", run=run.id, state=run.state, reason=run.reason, model=run.model)
        model = await self._ledger.models.get(run.model) if run.model else None
        again = await self._ledger.runs.withdrawn(run.id)
        if model and model.state is ModelState.CANDIDATE:
            if again:
                model = await self._ledger.models.move(model.id, ModelState.REJECTED, WITHDRAWN)
            elif not self._trials.approve:
                model = await self._accept(model)
        elif model:
            again = False  # already rejected, tried, or promoted by an admin
        picture = kept_file(run.directory, PICTURE) or kept_file(run.directory, CURVE)
        await self._notices.run_finished(
            run, model, picture, kept_file(run.directory, SHEET), approve=self._trials.approve
        )
        if again:
            log.info("run starts again without withdrawn answers", run=run.id)
            with suppress(RunBusy):
                await self._ledger.runs.start(run.trigger, run.requested_by)
        await self._ledger.runs.settle(run.id)
        await self._changeover.prune()

    async def _accept(self, candidate: Model) -> Model:
        try:
            return await self._trials.accept(candidate)
        except (AdminRefusal, InferenceError, StorageError, TrainingError) as error:
            log.error("the new model does not answer; the old one stays", model=candidate.id, error=str(error))
            await self._notices.alert(f"swap:{candidate.id}", NOT_TAKEN, model=candidate.id, reason=str(error))
            return candidate
