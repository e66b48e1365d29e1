"""What an admin can have done: retrain, cancel, promote, roll back, take engines out of service and back.

Requests come from chat commands, from the schedule and from the command line (another process); the latter two leave
rows in the ledger, which the mailbox here picks up. Knows when a run begins, and what its end brings about. How a run
works inside is the pipeline's; how the model is changed is the changeover's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog

from bot.admin.erasure import Forgetting
from bot.admin.model_switch import Changeover
from bot.admin.monitoring import Overview, Vitals
from bot.admin.notifications import Notices
from bot.admin.protocol import AdminRefusal
from bot.i18n import later
from inference.messages import InferenceError
from inference.serving.deployment_status import NodeStatus
from storage.errors import NotSaved, RunBusy, StorageError
from storage.learning_records import Model, Run
from storage.ledger import Ledger
from storage.reason import Reason
from storage.states import RUN_TRANSITIONS, ModelState, RunState
from training.job import Progress, TrainingError, ignore
from training.pipeline import WITHDRAWN, EndNotSaved, Pipeline, RunPlan
from training.run_folder import CURVE, PICTURE, SHEET, kept_file

RUNS: Final = "runs"
PROMOTIONS: Final = "promotions"
DELETIONS: Final = "deletions"

MAILBOX_SECONDS = 1.0
BACKOFF_SECONDS: Final = 30.0
"""The longest pause after errors; the first ones are shorter."""

TELL_SECONDS = 0.7
INTERRUPTED: Final = Reason(
    "the bot ended while this run was under way; /retrain goes on from its last checkpoint, if it has one and would "
    "train on the same answers, else begins anew"
)
UNSAVED: Final = later("I can't save anything right now. {reason}")
FAILS: Final = later(
    "A background task is failing ({duty}). I'll keep retrying, less and less often; see my log for details. {reason}"
)
NOT_TAKEN: Final = later("The new model {model} didn't go live; the previous one keeps answering. {reason}")

log = structlog.get_logger()


def pause_after(failures: int) -> float:
    """How long a duty of the mailbox rests after so many failures in a row, in seconds."""
    return min(MAILBOX_SECONDS * 2.0 ** min(failures, 10), max(BACKOFF_SECONDS, MAILBOX_SECONDS))


class Operations:
    """One object for chat commands, schedule and command line. `start()` once, `stop()` at the end."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        pipeline: Pipeline,
        changeover: Changeover,
        vitals: Vitals,
        notices: Notices,
        forgetting: Forgetting,
        trainer_missing: Callable[[], Reason | None],
    ) -> None:
        """`trainer_missing` says why no run could start in this environment, None if one could."""
        self._ledger = ledger
        self._pipeline = pipeline
        self._changeover = changeover
        self._vitals = vitals
        self._notices = notices
        self._forgetting = forgetting
        self._trainer_missing = trainer_missing
        self._wake = {duty: asyncio.Event() for duty in (RUNS, PROMOTIONS, DELETIONS)}
        self._tasks: list[asyncio.Task[None]] = []
        self._work: tuple[int, asyncio.Task[None]] | None = None
        self._plans: dict[int, RunPlan] = {}  # what the run that was just requested trains on
        self._over: dict[int, tuple[RunState, str]] = {}  # run → its end, which is yet to be written

    async def start(self) -> None:
        """Settle what an earlier process left behind, then begin to serve the mailbox.

        Runs, changes of model and deletions are served side by side: a change of model may take minutes.
        """
        await self._end_what_is_over()
        if run := await self._ledger.runs.unsettled():
            self._work = (run.id, asyncio.create_task(self._ended(run.id)))
        duties = {RUNS: self._serve_runs, PROMOTIONS: self._serve_promotions, DELETIONS: self._serve_deletions}
        self._tasks = [asyncio.create_task(self._repeat(duty, serve)) for duty, serve in duties.items()]
        self._tasks.append(asyncio.create_task(self._changeover.prune()))

    async def stop(self) -> None:
        """End the run under way, if any, as cancelled, and stop. An admin who cannot be told within a moment is not."""
        for task in (*self._tasks, *((self._work[1],) if self._work else ())):
            while not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=TELL_SECONDS)

    async def retrain(self, by: int) -> Run:
        """Start a run. Raises AdminRefusal without a trainer, RunBusy while another is under way."""
        plan = await self.plan()
        run = await self._ledger.runs.start("admin", by)
        self._plans = {run.id: plan}
        self._wake[RUNS].set()
        return run

    async def plan(self) -> RunPlan:
        """What a run would be now. Raises as `retrain` does where none could begin, but for a run under way."""
        if missing := self._trainer_missing():
            raise AdminRefusal(missing)
        return await self._pipeline.plan()

    async def cancel(self, by: int) -> Run | None:
        """Cancel the run under way; None if there is none."""
        run = await self._ledger.runs.active()
        if run:
            log.info("cancelling", run=run.id, by=by)
            await self._ledger.runs.request_cancel(run.id)
            self._wake[RUNS].set()
        return run

    async def promote(
        self, model: str, by: int | None, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        """Let the engine answer with `model`. Raises as `Changeover.promote`."""
        return await self._changeover.promote(model, by, on_progress, confirmed=confirmed)

    async def rollback(
        self, by: int | None, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        """Let the engine answer with the model before. Raises as `Changeover.rollback`."""
        return await self._changeover.rollback(by, on_progress, confirmed=confirmed)

    def nodes(self) -> Sequence[NodeStatus]:
        """The places that answer."""
        return self._vitals.nodes()

    async def drain(self, node: str, by: int) -> None:
        """Take a node out of service. Raises as `Deployment.drain`."""
        log.info("node is taken out of service", node=node, by=by)
        await self._changeover.drain(node)

    async def undrain(self, node: str, by: int) -> NodeStatus:
        """Take a node back into service; how it is then. Raises as `Changeover.undrain`."""
        log.info("node is taken back into service", node=node, by=by)
        await self._changeover.undrain(node)
        return next(each for each in self.nodes() if each.name == node)

    async def models(self) -> list[Model]:
        """Every kept model, oldest first."""
        return await self._ledger.models.all()

    async def overview(self) -> Overview:
        """How the bot is."""
        return await self._vitals.overview()

    async def _repeat(self, duty: str, serve: Callable[[], Awaitable[None]]) -> None:
        """Serve one duty of the mailbox for ever; an error that stays is logged and told once."""
        failures, known = 0, ""
        while True:
            try:
                await serve()
                failures, known = 0, ""
            except Exception as error:  # whatever it was, the next request must be heard
                failures += 1
                if (found := f"{type(error).__name__}: {error}") != known:
                    known = found
                    log.exception("mailbox", duty=duty)
                    if not isinstance(error, NotSaved):  # of that the admins hear as UNSAVED
                        await self._notices.alert(f"mailbox:{duty}", FAILS, duty=duty, reason=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_after(failures)):
                    await self._wake[duty].wait()
            self._wake[duty].clear()

    async def _serve_runs(self) -> None:
        """Begin the run that is due, and end the one that is to be cancelled."""
        if self._work and self._work[1].done():
            number, task = self._work
            self._work = None
            if not task.cancelled() and (error := task.exception()):
                log.error("the end of a run is left to the next start", run=number, exc_info=error)
        if self._work and await self._ledger.runs.cancel_requested(self._work[0]):
            self._work[1].cancel()
            await asyncio.wait((self._work[1],))  # a second cancellation would cut short how it ends
        if self._work is None:
            if (over := await self._end_what_is_over()) is not None:
                self._work = (over, asyncio.create_task(self._ended(over)))
            elif (run := await self._ledger.runs.due()) and run.id not in self._over:
                self._work = (run.id, asyncio.create_task(self._execute(run)))

    async def _serve_promotions(self) -> None:
        """Carry out the changes of model that other processes have asked for, one after the other."""
        for asked in await self._ledger.promotions.pending():
            await self._changeover.carry_out(asked)

    async def _serve_deletions(self) -> None:
        """Remove what has to follow deleted rows, and alert while the ledger takes no more."""
        if self._ledger.trouble:
            await self._notices.alert("ledger", UNSAVED, reason=self._ledger.trouble)
        await self._forgetting.settle()

    async def _end_what_is_over(self) -> int | None:
        """Write the end of a run that is under way in the ledger and nowhere else; return the run if that was written.

        The process that carried it out died, or its end could not be written when it came. A disk that is still full
        leaves it for the next look.
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
        """One run from due to its end, whatever that is; the admins hear of it in every case."""
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
        """What the end of a run brings about, by what the ledger says of it: its model answers if it was accepted, the
        admins hear of it, and one from which somebody withdrew begins again without them.

        What a crash or a stop leaves of this, the next start does.
        """
        run = await asyncio.shield(self._ledger.runs.get(number))
        if RUN_TRANSITIONS[run.state]:
            return  # that could not be written: the mailbox will
        log.info("run ended", run=run.id, state=run.state, reason=run.reason, model=run.model)
        model = await self._ledger.models.get(run.model) if run.model else None
        again = await self._ledger.runs.withdrawn(run.id)
        if model and model.state is ModelState.CANDIDATE:
            if again:
                model = await self._ledger.models.move(model.id, ModelState.REJECTED, WITHDRAWN)
            else:
                model = await self._go_live(model)
        elif model:
            again = False  # it came to what it would have come to without them, or is what people chose
        picture = kept_file(run.directory, PICTURE) or kept_file(run.directory, CURVE)
        await self._notices.run_finished(run, model, picture, kept_file(run.directory, SHEET))
        if again:
            log.info("a run begins again without what was withdrawn", run=run.id)
            with suppress(RunBusy):
                await self._ledger.runs.start(run.trigger, run.requested_by)
        await self._ledger.runs.settle(run.id)
        await self._changeover.prune()

    async def _go_live(self, candidate: Model) -> Model:
        try:
            return await self._changeover.promote(candidate.id, None)
        except (InferenceError, StorageError, TrainingError) as error:
            log.error("the new model does not go live; the old one stays", model=candidate.id, error=str(error))
            await self._notices.alert(f"swap:{candidate.id}", NOT_TAKEN, model=candidate.id, reason=str(error))
            return candidate
