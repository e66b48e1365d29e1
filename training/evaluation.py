"""The evaluation of a run's candidate: its jobs beside the training and the merge, and the candidate's engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from storage.learning_records import BASE, Run
from storage.ledger import Ledger
from storage.model_store import ModelStore
from storage.state_machines import RunState
from storage.translatable_reason import Reason
from training.evaluation_jobs import Candidate, Engines, OpeningJob, TasteJob
from training.job import Outcome, Progress, Trainer, TrainingError, WorkerJob, checked, ignore
from training.job_specs import measure_effort, model_name
from training.run_folder import CANDIDATE, TASTE
from training.run_plan import RunPlan
from training.run_progress import RunProgress

CHANGED: Final = Reason(
    "another model went live during the run, so the former model's answers cannot be used to judge the new one"
)

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Evaluation:
    """The evaluation of one run's candidate.

    Attributes:
        run: The run, which has a directory.
        plan: The run's plan.
        workspace: The directory of the candidate.
        progress: The progress of the run.
        tasks: The group of the tasks that run beside the training and the merge. If one fails, the run does.
    """

    run: Run
    plan: RunPlan
    workspace: Path
    progress: RunProgress
    tasks: asyncio.TaskGroup
    ledger: Ledger
    models: ModelStore
    trainer: Trainer
    engines: Engines
    _collecting: asyncio.Task[None] | None = field(default=None, init=False)

    async def begin(self) -> None:
        """Begin to collect answers from the live model's engine while the run trains.

        Raises:
            TrainingError: The live model has changed since the selection.
        """
        name, directory = await self._live()
        opening = self.plan.specs.opening(self.run, directory, self.engines.of(name, directory))
        if opening.engines:
            self._collecting = self.tasks.create_task(self._collect(opening))

    async def _collect(self, opening: OpeningJob) -> None:
        """Carry out the job; if it fails, a later one collects the answers."""
        try:
            await self._carry_out(opening)
        except TrainingError as error:
            log.info("run %s: the answers are collected later: %s", opening.run, error)
        except Exception:
            log.exception("run %s: collecting answers failed", opening.run)

    async def finish(self, trained: Outcome) -> None:
        """Merge the model and judge it.

        Meanwhile, the taste test runs, which does not need the merged model, and the judge prepares itself. The
        candidate's engine is started after the test or, if there is room for it beside the test, once the model is
        merged; the test then waits for the live model's answers, so that fewer jobs compute at once.

        Raises:
            TrainingError: A job failed, or the live model has changed since the selection.
        """
        run, specs, selection, progress = self.run, self.plan.specs, self.plan.selection, self.progress
        folder, merged = Path(run.directory), None
        name, live = await self._live()
        engines, early = self.engines.of(name, live), self.engines.fit_beside_workers(live)
        merging = specs.merge(folder, self.workspace, trained, run=str(run.id))
        counts = await self._counts(name)
        testing = specs.taste(run, selection, live, engines, adapter=str(trained.adapter), **counts)
        judging = specs.evaluate(run, self.workspace, live, engines, live_name=name, curve=trained.curve or "")
        for each in (TASTE, CANDIDATE):
            (folder / each).unlink(missing_ok=True)

        def show(each: Progress) -> None:
            if merged and not early:
                progress.update(each)

        test = self.tasks.create_task(self._test(testing, show, wait=early))
        judge = self.tasks.create_task(self._carry_out(judging, progress.update))
        merged = await self._carry_out(merging, progress.update)
        await progress.move(RunState.EVALUATING, step=0, steps=0)
        tested = 0 if early else (await test).steps
        if self._collecting and not early:
            await self._collecting
        await self._live()  # it may have changed meanwhile
        await self._seal_and_start()
        Candidate(
            engines=[*self.engines.of(name, live), *self.engines.of(model_name(run), self.workspace)],
            effort=measure_effort(selection, await self.ledger.models.trained_on(run.id), trained, merged),
            tested=tested,
            spent=progress.seconds,
        ).write(folder / CANDIDATE)
        await judge
        await self._live()  # it may have changed during the answers

    async def _test(self, testing: TasteJob, on_progress: Callable[[Progress], None], *, wait: bool) -> Outcome:
        if wait and self._collecting:
            await self._collecting
        return await self._carry_out(testing, on_progress)

    async def _carry_out(self, job: WorkerJob, on_progress: Callable[[Progress], None] = ignore) -> Outcome:
        return checked(await self.trainer.run(job, on_progress))

    async def _seal_and_start(self) -> None:
        """Hash the merged model and flush it to disk while its engine starts."""
        sealing = asyncio.create_task(asyncio.to_thread(self.models.seal, self.workspace))
        try:
            await self.engines.start(model_name(self.run), self.workspace)
        finally:
            await asyncio.wait((sealing,))
        await sealing

    async def _live(self) -> tuple[str, Path]:
        """Return the name and the directory of the model that the candidate is compared with.

        It is the live model or, if there is none, the base model.

        Raises:
            TrainingError: The live model has changed since the selection.
        """
        live = await self.ledger.models.live()
        name = BASE if live is None else live.id
        if any(each.rated.exchange.model != name for each in self.plan.selection.judged):
            raise TrainingError(CHANGED)
        return name, self.plan.specs.paths.base if live is None else Path(live.directory)

    async def _counts(self, live: str) -> dict[str, int]:
        """Return the fields of the taste test's job that are counts of earlier runs and of the live model's answers."""
        shown, liked = await self.ledger.votes.shown(live, self.plan.selection.judging_raters)
        return {"attempt": await self.ledger.runs.attempts() + 1, "shown": shown, "liked_of_shown": liked}
