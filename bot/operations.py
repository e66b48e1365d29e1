"""What an admin can have done: retrain, cancel, promote, roll back; and what there is to see.

The only place that knows the order of a change of model: engine first, ledger second, so that a crash between the
two leaves the old model in the ledger and the next start simply runs it. Requests come from chat commands, from the
schedule and from the command line (another process); the latter two leave rows in the ledger, which the mailbox
here picks up. How a run works inside is the pipeline's; how engines are exchanged is the deployment's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from bot.forgetting import Forgetting
from bot.handlers.admin import AdminRefusal
from bot.notices import Notices
from bot.schedule import Schedule
from bot.translation import later
from inference.deployment import Deployment
from inference.messages import InferenceError
from inference.status import Status
from inference.supervisor import State
from storage.errors import RunBusy, StorageError
from storage.ledger import Ledger
from storage.models import verify
from storage.records import Model, Promotion, Run
from storage.states import ModelState, RunState
from training.pipeline import Pipeline, Plan
from training.run_folder import CURVE, PICTURE, SHEET

MAILBOX_SECONDS = 1.0
TELL_SECONDS = 0.7
RUNS_SHOWN = 10
INTERRUPTED: Final = later(
    "the bot ended while this run was under way; /retrain goes on from its last checkpoint, if it has one and would "
    "train on the same answers, else begins anew"
)
RESTING: Final = later(
    "The engine rests while run {run} trains (training.while_training): promote again when the run has ended, or "
    "/cancel it."
)
NONE_BEFORE: Final = later("There is no earlier model to go back to; /models lists those that can be promoted.")
UNSAVED: Final = later("I can save nothing just now; people are answered all the same. {reason}")
NOT_TAKEN: Final = later("The new model {model} does not come up; the one before goes on answering. {reason}")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Overview:
    """What an operator sees at a glance. `curve` is the newest run with a loss curve, `sheets` all with a sheet."""

    live: str
    engine: Status
    runs: list[Run]
    models: list[Model]
    counts: Mapping[str, int]
    next_run: datetime | None
    schedule: str
    curve: int | None
    sheets: frozenset[int]


class Operations:
    """One object for chat commands, schedule, command line and web pages. `start()` once, `stop()` at the end."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        deployment: Deployment,
        pipeline: Pipeline,
        notices: Notices,
        schedule: Schedule,
        forgetting: Forgetting,
        trainer_missing: Callable[[], str],
        pause_while_training: bool,
    ) -> None:
        """`trainer_missing` is one sentence when no run could start in this environment, else empty."""
        self._ledger = ledger
        self._deployment = deployment
        self._pipeline = pipeline
        self._notices = notices
        self._schedule = schedule
        self._forgetting = forgetting
        self._trainer_missing = trainer_missing
        self._pause = pause_while_training
        self._wake = asyncio.Event()
        self._changing = asyncio.Lock()
        self._away_for: int | None = None
        self._mailbox: asyncio.Task[None] | None = None
        self._work: tuple[int, asyncio.Task[None]] | None = None

    async def start(self) -> None:
        """Settle what an earlier process left behind, then begin to serve the mailbox."""
        for run in await self._ledger.fail_interrupted_runs(INTERRUPTED):
            await self._notices.run_finished(run, None)
        self._mailbox = asyncio.create_task(self._serve_mailbox())

    async def stop(self) -> None:
        """End the run under way, if any, as cancelled, and stop. An admin who cannot be told within a moment is not."""
        for task in (self._mailbox, self._work[1] if self._work else None):
            while task and not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=TELL_SECONDS)

    async def retrain(self, by: int) -> Run:
        """Start a run. Raises AdminRefusal without a trainer, RunBusy while another is under way."""
        await self.plan()
        run = await self._ledger.start_run("admin", by)
        self._wake.set()
        return run

    async def plan(self) -> Plan:
        """What a run would be now. Raises as `retrain` does where none could begin, but for a run under way."""
        if missing := self._trainer_missing():
            raise AdminRefusal(missing)
        return await self._pipeline.check()

    async def cancel(self, by: int) -> Run | None:
        """Cancel the run under way; None if there is none."""
        run = await self._ledger.active_run()
        if run:
            log.info("cancelling", run=run.id, by=by)
            await self._ledger.request_cancel(run.id)
            self._wake.set()
        return run

    async def promote(self, model: str, by: int | None) -> Model:
        """Let the engine answer with `model` and record it.

        Raises AdminRefusal, InferenceError or StorageError; then everything stays as it was.
        """
        async with self._change():
            await self._exchange(model)
            if (await self._ledger.model(model)).state is not ModelState.LIVE:
                await self._ledger.promote(model, by)
            return await self._ledger.model(model)

    async def rollback(self, by: int | None) -> Model:
        """Go back to the model that was live before the present one. Raises as `promote`, and if there is none."""
        return await self.promote(await model_before(self._ledger), by)

    async def models(self) -> list[Model]:
        """Every kept model, oldest first."""
        return await self._ledger.models()

    async def _serve_mailbox(self) -> None:
        while True:
            try:
                await self._look_into_mailbox()
            except Exception:  # whatever it was, the next request must be heard
                log.exception("mailbox")
            with suppress(TimeoutError):
                async with asyncio.timeout(MAILBOX_SECONDS):
                    await self._wake.wait()
            self._wake.clear()

    async def _look_into_mailbox(self) -> None:
        if self._ledger.trouble:
            await self._notices.alert("ledger", UNSAVED, reason=self._ledger.trouble)
        if self._work and self._work[1].done():
            self._work = None
        if self._work and await self._ledger.cancel_requested(self._work[0]):
            self._work[1].cancel()
            await asyncio.wait((self._work[1],))  # a second cancellation would cut short how it ends
        if self._work is None and (run := await self._ledger.due_run()):
            self._work = (run.id, asyncio.create_task(self._execute(run)))
        for asked in await self._ledger.pending_promotions():
            await self._carry_out(asked)
        await self._forgetting.settle()

    async def _carry_out(self, asked: Promotion) -> None:
        try:
            async with self._change():
                await self._exchange(asked.model)
                await self._ledger.finish_promotion(asked.id)
        except (AdminRefusal, InferenceError, StorageError) as error:
            await self._ledger.finish_promotion(asked.id, str(error))

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """One change of model at a time. Raises AdminRefusal while a run has the engine's memory."""
        # Who has come this far before a run asks for the lock has it before the run: the lock's queue is in order.
        if self._away_for is not None:
            raise AdminRefusal(RESTING, run=self._away_for)
        async with self._changing:
            yield

    @asynccontextmanager
    async def _engine_away(self, run: int) -> AsyncIterator[None]:
        """Where training is to have the memory alone: wait for a change of model to end, and let no other begin."""
        if not self._pause:
            yield
            return
        self._away_for = run
        try:
            async with self._changing:
                await self._deployment.pause()
            yield
        finally:
            await self._deployment.resume()
            self._away_for = None

    async def _exchange(self, model: str) -> None:
        """Swap the engine to a kept model, its files checked against their manifest first."""
        chosen = await self._ledger.model(model)
        if chosen.manifest_hash:
            await asyncio.to_thread(verify, Path(chosen.directory))
        await self._deployment.swap(chosen.id, Path(chosen.directory))

    async def _execute(self, run: Run) -> None:
        """One run from due to its end, whatever that is; the admins hear of it in every case."""
        model: Model | None = None
        async with AsyncExitStack() as engine:
            await engine.enter_async_context(self._engine_away(run.id))
            try:
                if missing := self._trainer_missing():
                    await self._ledger.move_run(run.id, RunState.FAILED, reason=missing)
                else:
                    model = await self._pipeline.run(run, self._notices.run_changed)
            finally:
                await engine.aclose()
                await self._ended(run, model)

    async def _ended(self, run: Run, model: Model | None) -> None:
        """Tell the admins what came of a run; let its model answer where it was accepted."""
        ended = await asyncio.shield(self._ledger.run(run.id))
        log.info("run ended", run=run.id, state=ended.state, reason=ended.reason, model=ended.model)
        if model and model.state is ModelState.CANDIDATE:
            model = await self._go_live(model)
        await self._begin_again(ended)
        picture = kept_file(ended, PICTURE) or kept_file(ended, CURVE)
        await self._notices.run_finished(ended, model, picture, kept_file(ended, SHEET))

    async def _begin_again(self, ended: Run) -> None:
        """Put another run in the place of one that came to nothing because of somebody who left, or opted out."""
        lost = await self._ledger.withdrawn(ended.id)
        if lost and ended.state in (RunState.CANCELLED, RunState.FAILED):
            log.info("a run begins again without what was withdrawn", run=ended.id, exchanges=lost)
            with suppress(RunBusy):
                await self._ledger.start_run(ended.trigger, ended.requested_by)

    async def _go_live(self, candidate: Model) -> Model:
        try:
            return await self.promote(candidate.id, None)
        except (InferenceError, StorageError) as error:
            log.error("the new model does not answer; the old one stays", model=candidate.id, error=str(error))
            await self._notices.alert(f"swap:{candidate.id}", NOT_TAKEN, model=candidate.id, reason=str(error))
            return candidate

    async def overview(self) -> Overview:
        """What the operator page and /status show."""
        live = await self._ledger.live_model()
        runs = await self._ledger.runs(RUNS_SHOWN)
        curves = [run.id for run in runs if kept_file(run, CURVE)]
        return Overview(
            live=live.id if live else "",
            engine=self._deployment.status(),
            runs=runs,
            models=await self._ledger.models(),
            counts=await self._ledger.counts(),
            next_run=self._schedule.next_time(),
            schedule=self._schedule.cron,
            curve=curves[0] if curves else None,
            sheets=frozenset(run.id for run in runs if kept_file(run, SHEET)),
        )

    async def ping(self) -> dict[str, str]:
        """Each service's own word: "ok" or what is wrong."""
        status = self._deployment.status()
        try:
            await self._ledger.live_model()
            ledger = self._ledger.trouble or "ok"
        except StorageError as error:
            ledger = str(error)
        engine = "ok" if status.state is State.READY or status.paused else str(status.last_error or status.state)
        return {"ledger": ledger, "engine": engine}

    async def numbers(self) -> tuple[dict[str, float], dict[str, str], dict[str, dict[str, float]]]:
        """Everything countable, by metric name; what is running; what is countable of each node, by the node's name."""
        status = self._deployment.status()
        numbers: dict[str, float] = dict(await self._ledger.counts())
        numbers |= {f"engine_{name}": value for name, value in asdict(status.counters).items()}
        numbers |= {
            "engine_ready": status.state is State.READY,
            "engine_restarts": status.restarts,
            "engine_in_flight": status.in_flight,
            "engine_waiting": status.waiting,
            "engine_uptime_seconds": status.uptime,
            "engine_prompt_tokens": status.seen.prompt_tokens,
            "engine_cached_tokens": status.seen.cached_tokens,
            "engine_completion_tokens": status.seen.completion_tokens,
            "engine_encoded_tiles": status.seen.encoded_tiles,
            "engine_first_token_seconds_median": status.seen.first_token_median,
            "engine_first_token_seconds_p99": status.seen.first_token_p99,
        }
        engines = await self._deployment.engine_numbers()
        nodes: dict[str, dict[str, float]] = {
            node.name: {
                "ready": node.state is State.READY,
                "away": node.away,
                "in_flight": node.in_flight,
                "chats": node.chats,
                "waiting": node.waiting,
                "answered": node.seen.answered,
                "prompt_tokens": node.seen.prompt_tokens,
                "cached_tokens": node.seen.cached_tokens,
                "encoded_tiles": node.seen.encoded_tiles,
                "first_token_seconds_median": node.seen.first_token_median,
                "first_token_seconds_p99": node.seen.first_token_p99,
                **engines.get(node.name, {}),
            }
            for node in status.nodes
        }
        return numbers, {"model": status.model, "engine": status.engine}, nodes

    async def kept_file(self, run: int, name: str) -> Path | None:
        """A file that a run has left, None while there is none. Raises UnknownRecord."""
        return kept_file(await self._ledger.run(run), name)


def kept_file(run: Run, name: str) -> Path | None:
    """The file of that name in a run's directory, None where there is none."""
    path = Path(run.directory) / name
    return path if run.directory and path.is_file() else None


async def model_before(ledger: Ledger) -> str:
    """Which model a rollback leads to. Raises AdminRefusal if there is none."""
    previous = await ledger.previous_model()
    if previous is None:
        raise AdminRefusal(NONE_BEFORE)
    return previous.id
