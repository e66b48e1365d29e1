"""Carry out a run: select → validate → train → merge → evaluate → candidate, undecided or rejected.

Child processes do the heavy steps, and the bot decides whether a candidate goes live. All training
starts from the base model with all selected pairs, never from the last merged model, so that errors do
not accumulate and erased data has no effect.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from storage.atomic_files import write_text
from storage.errors import IllegalTransition, NotSaved, StorageError
from storage.learning_records import Model, Run
from storage.model_manifest import CARD
from storage.picture_files import PictureStore
from storage.state_machines import ModelState, RunState
from storage.translatable_reason import Reason
from training.background import task_group, uninterrupted
from training.data.llava import write_rows
from training.data.selection import Selection
from training.evaluation import Evaluation
from training.evaluation_jobs import Engines, NoEngines
from training.gate.report import Decision, Report
from training.job import Job, Trainer, TrainingError, checked
from training.job_specs import model_name
from training.model_card import model_card
from training.run_folder import FEATURES, JUDGED_ROWS, LOSSES, REPORT, TRAIN_ROWS, kept_file, run_folders
from training.run_plan import RunPlan, RunPlanner
from training.run_progress import OnChange, RunProgress
from training.xtuner.resume import adopt_checkpoints, remove_blocks

WITHDRAWN: Final = Reason("answers that it learned from have been withdrawn")
"""The reason why a run failed, or why its model was rejected later."""

STATES: Final = {
    Decision.ACCEPTED: ModelState.CANDIDATE,
    Decision.UNDECIDED: ModelState.UNDECIDED,
    Decision.REJECTED: ModelState.REJECTED,
}
"""The state of a model for each decision of the evaluation."""

_PREVIOUS_RUNS: Final = 20

log = logging.getLogger(__name__)


class EndNotSaved(TrainingError):
    """A run has ended in `state` for `reason`, but the ledger cannot be written to and still lists it as active."""

    def __init__(self, state: RunState, reason: str) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason


class Pipeline:
    """A pipeline that carries out runs one at a time; the ledger does not allow concurrent runs.

    Attributes:
        planner: The object that plans the runs. If it is replaced, a run that is already planned keeps its settings.
    """

    def __init__(
        self,
        planner: RunPlanner,
        pictures: PictureStore,
        trainer: Trainer,
        ready: Callable[[], Awaitable[None]] | None = None,
        engines: Engines | None = None,
    ) -> None:
        """Create a pipeline.

        `ready`, if given, is awaited before a run starts; it returns once all stored pictures have been
        re-encoded. Without `engines`, the workers load the models that they evaluate.
        """
        self.planner = planner
        self._ledger, self._models, self._runs = planner.ledger, planner.models, planner.specs.paths.runs
        self._pictures = pictures
        self._trainer = trainer
        self._ready = ready
        self._engines = engines or NoEngines()

    async def run(self, run: Run, on_change: OnChange, plan: RunPlan | None = None) -> Model | None:
        """Carry out a due run until the ledger records its end: done (with a model), failed or cancelled.

        Cancelling the task ends the child process and marks the run as cancelled. Cancellation has no effect
        while the model is being published.

        Args:
            run: The run.
            on_change: Called and awaited on every change of state, and about once a second while there is
                progress.
            plan: The run's plan, if it has just been made; if None, a plan is made.

        Returns:
            The new model, which is a candidate, undecided, or rejected with a reason; None if the run failed.

        Raises:
            EndNotSaved: The ledger cannot record the end of the run.
        """
        workspace: Path | None = None
        progress = RunProgress(self._ledger, run.id, on_change)
        try:
            if await self._ledger.runs.cancel_requested(run.id):
                raise asyncio.CancelledError
            workspace = self._models.workspace(model_name(run))
            return await self._run(run, plan, workspace, progress)
        except asyncio.CancelledError:
            await asyncio.shield(_end(progress, RunState.CANCELLED, "cancelled"))
            raise
        except (TrainingError, StorageError, OSError) as error:
            await _end(progress, RunState.FAILED, str(error))
            return None
        except Exception as error:
            await _end(progress, RunState.FAILED, f"{type(error).__name__}: {error}")
            raise
        finally:
            if workspace is not None:
                self._models.discard(workspace)
            features = self._runs / str(run.id) / FEATURES
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, features, ignore_errors=True))

    async def _run(self, run: Run, plan: RunPlan | None, workspace: Path, progress: RunProgress) -> Model:
        if self._ready is not None:
            await self._ready()
        plan = await self._freeze(run, plan)
        selection, specs = plan.selection, plan.specs
        folder = self._runs / str(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        run = await progress.move(RunState.TRAINING, directory=str(folder), raters=selection.counts.raters)
        write_rows((each.lesson for each in selection.train), folder / TRAIN_ROWS, self._picture_file)
        write_rows((each.lesson for each in selection.judged), folder / JUDGED_ROWS, self._picture_file)
        async with progress, task_group() as tasks:
            job = specs.finetune(run, selection, plan.sources, await self._previous_losses(run))
            if await asyncio.to_thread(adopt_checkpoints, job, run_folders(self._runs, but=run.id)):
                log.info("run %s continues from the last checkpoint of an interrupted one", run.id)
            evaluation = Evaluation(
                run,
                plan,
                workspace,
                progress,
                tasks,
                self._ledger,
                self._models,
                self._trainer,
                self._engines,
            )
            await evaluation.begin()
            trained = checked(await self._trainer.run(job, progress.update))
            await progress.move(RunState.MERGING, step=0, steps=0)
            await evaluation.finish(trained)
        await asyncio.to_thread(remove_blocks, folder)
        return await uninterrupted(self._publish(run, job, workspace, progress))

    async def _freeze(self, run: Run, plan: RunPlan | None) -> RunPlan:
        """Store a run's selection and return its plan; plan again if data in `plan` was erased or re-encoded."""
        if plan is not None and await asyncio.to_thread(self._has_pictures, plan.selection):
            with suppress(StorageError):
                await self._store(run, plan)
                if await self._ledger.run_selections.withdrawn(run.id):
                    raise TrainingError(WITHDRAWN)
                return plan
        plan = await self.planner.plan(await self._ledger.runs.limit(run))
        await self._store(run, plan)
        return plan

    async def _store(self, run: Run, plan: RunPlan) -> None:
        selection = plan.selection
        judged = {each.id for each in selection.judged}
        await self._ledger.run_selections.freeze(
            run.id, selection.rows(), plan.fingerprint, judged=judged, reviews=plan.reviews
        )

    def _has_pictures(self, selection: Selection) -> bool:
        names = {name for pair in (*selection.train, *selection.judged) for name in pair.lesson.pictures}
        return all(self._pictures.path(name).is_file() for name in names)

    async def _publish(self, run: Run, job: Job, workspace: Path, progress: RunProgress) -> Model:
        if await self._ledger.run_selections.withdrawn(run.id):
            raise TrainingError(WITHDRAWN)
        folder = Path(job.work)
        verdict = Report.read(folder / REPORT)
        # The run keeps a copy of the card, which a merge that restores the model adds again.
        write_text(folder / CARD, await asyncio.to_thread(model_card, model_name(run), job, verdict))
        shutil.copyfile(folder / CARD, workspace / CARD)
        directory, manifest_hash = await asyncio.to_thread(self._models.publish, workspace, model_name(run))
        model = Model(
            id=model_name(run),
            directory=str(directory),
            state=STATES[verdict.decision],
            run=run.id,
            created=0.0,
            reason=verdict.reason,
            report=verdict.to_json(),
            manifest_hash=manifest_hash,
        )
        await self._ledger.models.add(model)
        await progress.move(RunState.DONE, model=model.id)
        return await self._ledger.models.get(model.id)

    def _picture_file(self, sha256: str) -> str:
        return self._pictures.path(sha256).relative_to(self._pictures.directory).as_posix()

    async def _previous_losses(self, run: Run) -> str:
        """Return the path of the loss log of the newest finished run before this one, or an empty string."""
        for each in await self._ledger.runs.latest(_PREVIOUS_RUNS):
            if each.id < run.id and each.state is RunState.DONE and (losses := kept_file(each.directory, LOSSES)):
                return str(losses)
        return ""


async def _end(progress: RunProgress, state: RunState, reason: str) -> None:
    # A cancellation after the end has no effect.
    with suppress(IllegalTransition):
        try:
            await progress.move(state, reason=reason)
        except NotSaved as error:
            raise EndNotSaved(state, reason) from error
