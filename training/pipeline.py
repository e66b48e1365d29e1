"""Carry out a run: select → validate → train → merge → evaluate → candidate, undecided or rejected.

Child processes do the heavy steps, and the bot decides whether a candidate goes live. Every training starts from the
base model with all selected pairs, never from the last merge, so that no error accumulates and erased data has no
effect.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from inference.internvl2.checkpoint_check import weight_bytes
from storage.errors import IllegalTransition, NotSaved, StorageError
from storage.learning_records import BASE, EQUAL_TRUST, Model, Preference, RatedExchange, Run, Trust
from storage.ledger import Ledger
from storage.model_store import ModelStore
from storage.picture_store import PictureStore
from storage.states import ModelState, RunState
from storage.translatable_reason import Reason
from training.base_model_check import untrainable
from training.data.blocks import Live
from training.data.llava import write_rows
from training.data.rejected_answers import with_rejected
from training.data.selection import TRAIN, WORSE, Selection, select_pairs
from training.data.sources import imported, resolved
from training.gate.factual_set import check_decidable
from training.gate.report import Decision, Report
from training.inputs import fingerprint, preferences, unchanged_since
from training.job import Outcome, Trainer, TrainingError
from training.job_specs import JobSpecs, Reference, measure_effort, model_name
from training.run_folder import FEATURES, JUDGED_ROWS, LOSSES, REPORT, TRAIN_ROWS
from training.run_progress import OnChange, RunProgress
from training.settings import Source
from training.xtuner.hyperparameters import Recipe
from training.xtuner.resume import adopt_checkpoints, remove_blocks, state_bytes

T = TypeVar("T")

WITHDRAWN: Final = Reason("answers that it learned from have been withdrawn")
"""The reason why a run failed, or why its model was rejected later."""

CHANGED: Final = Reason("another model went live during the run, and its answers were to judge the new one")

STATES: Final = {
    Decision.ACCEPTED: ModelState.CANDIDATE,
    Decision.UNDECIDED: ModelState.UNDECIDED,
    Decision.REJECTED: ModelState.REJECTED,
}
"""The state of a model for each decision of the evaluation."""

_PREVIOUS_RUNS: Final = 20

log = logging.getLogger(__name__)


class RunFailed(TrainingError):
    """A step of the run failed. The text is the run's reason."""


class EndNotSaved(TrainingError):
    """A run has ended in `state` for `reason`, and the ledger, which cannot be written, still has it as active."""

    def __init__(self, state: RunState, reason: str) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The data and the hyperparameters of a run that starts now.

    Attributes:
        selection: The pairs.
        sources: The other sources.
        recipe: The hyperparameters, or the user's configuration file that has them.
        fingerprint: The hash of all inputs (`training.inputs`).
    """

    selection: Selection
    sources: tuple[Source, ...]
    recipe: Recipe | Path
    fingerprint: str = ""


class Pipeline:
    """Carry out runs, one at a time (the ledger allows no second one)."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        pictures: PictureStore,
        models: ModelStore,
        trainer: Trainer,
        specs: JobSpecs,
        trust: Trust = EQUAL_TRUST,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`ready` is awaited before a run starts: it returns when all stored pictures are re-encoded."""
        self._ledger = ledger
        self._pictures = pictures
        self._models = models
        self._trainer = trainer
        self._specs = specs
        self._settings = specs.settings
        self._paths = specs.paths
        self._trust = trust
        self._ready = ready

    async def plan(self) -> RunPlan:
        """Check that a run can start, and select what it trains on.

        Raises:
            TrainingError: It cannot start; the text has the next step.
        """
        if wrong := untrainable(self._paths.base):
            raise TrainingError(wrong)
        self._check_disk()
        check_decidable(self._settings.regression, self._settings.max_loss_points)
        sources = resolved([*self._settings.sources, *imported(self._paths.sources)])
        rated = await self._ledger.votes.rated_exchanges(self._trust)
        pairs = await preferences(self._ledger, self._specs, self._trust)
        return RunPlan(
            await self._select(rated, pairs),
            tuple(sources),
            self._settings.user_config or self._specs.recipe,
            await asyncio.to_thread(fingerprint, rated, self._specs, pairs),
        )

    async def unchanged_since(self) -> Run | None:
        """Return the last run with a verdict if a run that starts now would learn from the same data, else None."""
        return await unchanged_since(self._ledger, self._specs, self._trust)

    async def run(self, run: Run, on_change: OnChange, plan: RunPlan | None = None) -> Model | None:
        """Carry out a run that is due, until the ledger has its end: done with a model, failed or cancelled.

        Cancelling the task ends the child process and marks the run as cancelled. It has no effect while the model is
        being published.

        Args:
            run: The run.
            on_change: Awaited for every change of state and about once a second of progress.
            plan: What it trains on, if it has just been selected.

        Returns:
            The new model, which is a candidate, undecided, or rejected with its reason; None if the run failed.

        Raises:
            EndNotSaved: The end cannot be written.
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
            features = self._paths.runs / str(run.id) / FEATURES
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, features, ignore_errors=True))

    async def _run(self, run: Run, plan: RunPlan | None, workspace: Path, progress: RunProgress) -> Model:
        if self._ready is not None:
            await self._ready()
        plan = await self._freeze(run, plan)
        selection = plan.selection
        folder = self._paths.runs / str(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        run = await progress.move(RunState.TRAINING, directory=str(folder), raters=selection.counts.raters)
        write_rows((each.lesson for each in selection.train), folder / TRAIN_ROWS, self._picture_file)
        write_rows((each.lesson for each in selection.judged), folder / JUDGED_ROWS, self._picture_file)
        async with progress:
            job = self._specs.finetune(run, selection, plan.sources, await self._previous_losses(run))
            if await asyncio.to_thread(adopt_checkpoints, job, self._earlier_runs(run)):
                log.info("run %s continues from the last checkpoint of an interrupted one", run.id)
            trained = _checked(await self._trainer.run(job, progress.update))
            await progress.move(RunState.MERGING, step=0, steps=0)
            merging = self._specs.merge(run, workspace, trained)
            merged = _checked(await self._trainer.run(merging, progress.update))
            await progress.move(RunState.EVALUATING, step=0, steps=0)
            effort = measure_effort(run, selection, await self._ledger.models.trained_on(run.id), trained, merged)
            reference = await self._reference(selection)
            evaluation = self._specs.evaluate(run, workspace, reference, selection, trained, effort)
            _checked(await self._trainer.run(evaluation, progress.update))
            await asyncio.to_thread(remove_blocks, folder)
        return await _uninterrupted(self._publish(run, folder, workspace, progress))

    async def _freeze(self, run: Run, plan: RunPlan | None) -> RunPlan:
        """Store the selection of a run; select again if what the plan names has been erased or re-encoded since."""
        if plan is not None and await asyncio.to_thread(self._has_pictures, plan.selection):
            with suppress(StorageError):
                await self._ledger.runs.freeze_selection(run.id, plan.selection.rows(), plan.fingerprint)
                if await self._ledger.runs.withdrawn(run.id):
                    raise RunFailed(WITHDRAWN)
                return plan
        plan = await self.plan()
        await self._ledger.runs.freeze_selection(run.id, plan.selection.rows(), plan.fingerprint)
        return plan

    def _has_pictures(self, selection: Selection) -> bool:
        names = {name for pair in (*selection.train, *selection.judged) for name in pair.lesson.pictures}
        return all(self._pictures.path(name).is_file() for name in names)

    async def _publish(self, run: Run, folder: Path, workspace: Path, progress: RunProgress) -> Model:
        if await self._ledger.runs.withdrawn(run.id):
            raise RunFailed(WITHDRAWN)
        verdict = Report.read(folder / REPORT)
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

    async def _select(self, rated: list[RatedExchange], preferences: list[Preference]) -> Selection:
        phashes = {each.sha256: each.phash for each in await self._ledger.pictures.all()}
        live = await self._ledger.models.live()
        taught = frozenset[int]()
        if live is not None and live.run is not None:
            frozen = await self._ledger.runs.selection(live.run)
            taught = frozenset(exchange for exchange, split in frozen if split in (TRAIN, WORSE))
        objective = self._specs.recipe.objective
        selection = await asyncio.to_thread(
            select_pairs,
            rated,
            phashes,
            self._settings,
            live=Live(BASE if live is None else live.id, taught),
            objective=objective,
            max_length=self._settings.max_tokens(self._paths.base),
            newcomers=await self._ledger.votes.newcomers(self._trust),
        )
        if objective == "dpo":
            return replace(selection, train=tuple(with_rejected(selection.train, preferences)))
        return selection

    async def _reference(self, selection: Selection) -> Reference:
        """Return the model that the candidate is compared with.

        Raises:
            RunFailed: The live model has changed since the selection.
        """
        live = await self._ledger.models.live()
        name = BASE if live is None else live.id
        if any(each.rated.exchange.model != name for each in selection.judged):
            raise RunFailed(CHANGED)
        raters = {rater for each in selection.judged for rater in each.rated.raters}
        shown, liked = await self._ledger.votes.shown(name, raters)
        return Reference(
            name,
            self._paths.base if live is None else Path(live.directory),
            attempt=await self._ledger.runs.attempts() + 1,
            shown=shown,
            liked_of_shown=liked,
        )

    def _check_disk(self) -> None:
        """Check that the disk has space for a run. Raises `TrainingError`.

        A merged model is as large as the base. A trained weight takes 12 bytes in a checkpoint, with the optimizer's
        state, and 4 in the adapter; an adapter of InternVL2-2B has rank / 2048 of its weights. mmengine removes the
        oldest checkpoint before it writes another, and leaves one at the end in any case (mmengine 0.10.6,
        hooks/checkpoint_hook.py). The state of earlier runs is removed when this one starts, and counts as free.
        """
        base, recipe = weight_bytes(self._paths.base), self._specs.recipe
        trained = base / 2 * (1 if recipe.method == "full" else min(1, recipe.rank / 2048))
        kept = recipe.keep_checkpoints if recipe.save_steps else 1
        needed = base + trained * (12 * kept + 4) + self._settings.min_free_gigabytes * 1e9
        free = shutil.disk_usage(self._models.directory).free + sum(state_bytes(each) for each in self._runs())
        if free < needed:
            raise TrainingError(
                Reason(
                    "Only {free} GB are free on the disk of {directory}, but a run needs {needed} GB: remove old "
                    "models, or lower training.min_free_gigabytes",
                    free=f"{free / 1e9:.1f}",
                    directory=str(self._models.directory),
                    needed=f"{needed / 1e9:.1f}",
                )
            )

    def _picture_file(self, sha256: str) -> str:
        return self._pictures.path(sha256).relative_to(self._pictures.directory).as_posix()

    def _earlier_runs(self, run: Run) -> list[Path]:
        """Return the directories of other runs, newest first."""
        folders = [each for each in self._runs() if each.name != str(run.id)]
        return sorted(folders, key=lambda each: int(each.name), reverse=True)

    def _runs(self) -> list[Path]:
        return [each for each in self._paths.runs.glob("*") if each.name.isdigit()]

    async def _previous_losses(self, run: Run) -> str:
        """Return the log of losses of the newest finished run before this one, or an empty string if there is none."""
        for each in await self._ledger.runs.latest(_PREVIOUS_RUNS):
            log_file = Path(each.directory) / LOSSES
            if each.id < run.id and each.state is RunState.DONE and log_file.is_file():
                return str(log_file)
        return ""


async def _end(progress: RunProgress, state: RunState, reason: str) -> None:
    # A cancellation after the end has no effect.
    with suppress(IllegalTransition):
        try:
            await progress.move(state, reason=reason)
        except NotSaved as error:
            raise EndNotSaved(state, reason) from error


async def _uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end despite cancellations of this task: a model is published completely or not at all."""
    task, caller = asyncio.create_task(work), asyncio.current_task()
    assert caller is not None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            caller.uncancel()
    return task.result()


def _checked(outcome: Outcome) -> Outcome:
    if not outcome.ok:
        raise RunFailed(outcome.reason)
    return outcome
