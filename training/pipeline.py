"""One retraining from votes to a judged model: select → validate → train → merge → evaluate → candidate or rejected.

Knows the order, the ledger's states, and what a run's directory holds before the workers begin; the heavy steps are
the trainer's (child processes), and whether a candidate goes live is the bot's. Training starts from the base model
with all that is selected, never from the last merge, so that nothing drifts and what was forgotten is gone.
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
from storage.ledger import Ledger
from storage.model_store import ModelStore
from storage.picture_store import PictureStore
from storage.records import ALIKE, Model, Run, Trust
from storage.states import ModelState, RunState
from training.data.llava import lesson, write_rows
from training.data.selection import TRAIN, Counts, Selection, select_pairs
from training.data.sources import imported, resolved, title
from training.gate.factual_set import read_set
from training.gate.report import Report
from training.job import Outcome, Trainer, TrainingError
from training.job_specs import Orders, Places, model_name
from training.reporter import OnChange, Reporter, told
from training.run_folder import FEATURES, HELD_OUT_ROWS, LOSSES, REPORT, TRAIN_ROWS
from training.settings import Source, TrainingSettings
from training.trainable import untrainable
from training.xtuner.hyperparameters import Recipe
from training.xtuner.resume import adopt_checkpoints, state_bytes

T = TypeVar("T")

WITHDRAWN: Final = "answers that it learned from were withdrawn meanwhile"
"""Why a run failed, or its model was rejected after all."""

_FORMER_RUNS: Final = 20

log = logging.getLogger(__name__)


class RunFailed(TrainingError):
    """A step of the run came to nothing. The text is the run's reason."""


class EndNotSaved(TrainingError):
    """A run is over, and the ledger takes nothing: it is still under way there. `state` and `reason` are its end."""

    def __init__(self, state: RunState, reason: str) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run that began now would train on: how many pairs, how many kept apart to judge by, and what else.

    `corrections` is how many of the pairs are better answers that people showed.
    `recipe` is the file that has the numbers where that is a configuration of one's own.
    """

    pairs: int
    held_out: int
    counts: Counts
    sources: tuple[str, ...]
    recipe: Recipe | Path
    corrections: int = 0


class Pipeline:
    """Carries out runs, one at a time (the ledger sees to that)."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        pictures: PictureStore,
        models: ModelStore,
        trainer: Trainer,
        settings: TrainingSettings,
        places: Places,
        system: str,
        tiles: int = 0,
        trust: Trust = ALIKE,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`system` is the chat's persona; `tiles` the most tiles a picture is cut into (0: as the model says).

        `ready` is awaited before a run selects: it returns when all stored pictures are clean.
        """
        self._ledger = ledger
        self._pictures = pictures
        self._models = models
        self._trainer = trainer
        self._settings = settings
        self._trust = trust
        self._places = places
        self._ready = ready
        self._orders = Orders(settings, places, pictures.directory, system, tiles)

    @property
    def recipe(self) -> Recipe:
        """The numbers to train with, "auto" resolved by the size of the base model."""
        try:
            return self._settings.recipe_for(self._places.base)
        except ValueError as error:
            raise TrainingError(f"training.{error}") from error

    async def check(self) -> Plan:
        """What a run would be now. Raises `TrainingError`, saying what to do, if it could not even start."""
        sources = self._prepared()
        found = await self._select()
        titles = tuple(title(str(each.path)) for each in sources)
        return Plan(
            len(found.train),
            len(found.held_out),
            found.counts,
            titles,
            self._settings.own_recipe or self.recipe,
            found.corrections,
        )

    async def run(self, run: Run, on_change: OnChange) -> Model | None:
        """Carry out a run that is due, to its end in the ledger: done with a model, failed or cancelled.

        Returns the new model, a candidate or rejected with its reason; None when the run failed. `on_change` is
        awaited for every change of state and about once a second of progress. Cancelling the task ends the child
        and the run as cancelled; once the model is being published that comes too late, and changes nothing. Raises
        `EndNotSaved` when its end could not be written.
        """
        workspace: Path | None = None
        try:
            if await self._ledger.runs.cancel_requested(run.id):
                raise asyncio.CancelledError
            workspace = self._models.workspace(model_name(run))
            return await self._run(run, workspace, on_change)
        except asyncio.CancelledError:
            await asyncio.shield(self._end(run, RunState.CANCELLED, "cancelled", on_change))
            raise
        except (TrainingError, StorageError, OSError) as error:
            await self._end(run, RunState.FAILED, str(error), on_change)
            return None
        except Exception as error:
            await self._end(run, RunState.FAILED, f"{type(error).__name__}: {error}", on_change)
            raise
        finally:
            if workspace is not None:
                self._models.discard(workspace)
            features = self._places.runs / str(run.id) / FEATURES
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, features, ignore_errors=True))

    async def _run(self, run: Run, workspace: Path, on_change: OnChange) -> Model:
        if self._ready is not None:
            await self._ready()
        sources = self._prepared()
        selection = await self._select()
        folder = self._places.runs / str(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        await self._ledger.runs.freeze_selection(run.id, selection.rows())
        run = await self._ledger.runs.move(
            run.id,
            RunState.TRAINING,
            directory=str(folder),
            raters=selection.counts.raters,
        )
        await told(on_change, run)
        write_rows((each.lesson for each in selection.train), folder / TRAIN_ROWS, self._file)
        write_rows((each.lesson for each in selection.held_out), folder / HELD_OUT_ROWS, self._file)

        async with Reporter(self._ledger, run.id, on_change) as report:
            job = self._orders.training(run, self.recipe, sources, await self._former_losses(run))
            if await asyncio.to_thread(adopt_checkpoints, job, self._earlier(run)):
                log.info("run %s goes on from the last checkpoint of one that was cut short", run.id)
            trained = _good(await self._trainer.run(job, report))
            await told(on_change, await self._ledger.runs.move(run.id, RunState.MERGING, step=0, steps=0))
            merged = _good(await self._trainer.run(self._orders.merging(run, workspace, trained), report))
            await told(on_change, await self._ledger.runs.move(run.id, RunState.EVALUATING, step=0, steps=0))
            live = await self._ledger.models.live()
            taught = await self._ledger.models.taught(run.id)
            counts = replace(selection.counts, votes=taught.votes, raters=taught.people)
            judging = self._orders.judging(run, workspace, live, trained, merged, counts)
            judging = replace(judging, effort=replace(judging.effort, corrections=selection.corrections))
            _good(await self._trainer.run(judging, report))
        return await _undisturbed(self._publish(run, folder, workspace, on_change))

    async def _publish(self, run: Run, folder: Path, workspace: Path, on_change: OnChange) -> Model:
        if await self._ledger.runs.withdrawn(run.id):
            raise RunFailed(WITHDRAWN)
        verdict = Report.read(folder / REPORT)
        directory, manifest_hash = await asyncio.to_thread(self._models.publish, workspace, model_name(run))
        model = Model(
            id=model_name(run),
            directory=str(directory),
            state=ModelState.CANDIDATE if verdict.accepted else ModelState.REJECTED,
            run=run.id,
            created=0.0,
            reason=verdict.reason,
            report=verdict.to_json(),
            manifest_hash=manifest_hash,
        )
        await self._ledger.models.add(model)
        await told(on_change, await self._ledger.runs.move(run.id, RunState.DONE, model=model.id))
        return await self._ledger.models.get(model.id)

    async def _select(self) -> Selection:
        rated = await self._ledger.votes.rated_exchanges(self._trust)
        phashes = {each.sha256: each.phash for each in await self._ledger.pictures.all()}
        live = await self._ledger.models.live()
        taught = set[int]()
        if live is not None and live.run is not None:
            taught = {exchange for exchange, side in await self._ledger.runs.selection(live.run) if side == TRAIN}
        settings = self._settings

        def choose() -> Selection:
            return select_pairs(
                rated,
                phashes,
                settings,
                max_length=settings.most_tokens(self._places.base),
                seen={name for each in rated if each.exchange.id in taught for name in lesson(each).pictures},
            )

        return await asyncio.to_thread(choose)

    def _prepared(self) -> list[Source]:
        """The sources of a run that can begin: what only a later step needs is looked at before hours of training."""
        if wrong := untrainable(self._places.base):
            raise TrainingError(wrong)
        self._check_disk()
        if self._settings.regression:
            read_set(self._settings.regression)
        return resolved([*self._settings.sources, *imported(self._places.sources)])

    def _check_disk(self) -> None:
        """A merged model is as large as the base. Trained weights and the optimiser's state are 12 bytes a weight in a
        checkpoint, and 4 in the adapter; an adapter of InternVL2-2B has rank / 2048 of its weights. The oldest
        checkpoint is removed before another is written, and the end leaves one in any case (mmengine 0.10.6,
        hooks/checkpoint_hook.py). What earlier runs have left is removed when this one begins, and counts as free.
        """
        base, recipe = weight_bytes(self._places.base), self.recipe
        trained = base / 2 * (1 if recipe.method == "full" else min(1, recipe.rank / 2048))
        kept = recipe.keep_checkpoints if recipe.save_steps else 1
        needed = base + trained * (12 * kept + 4) + self._settings.min_free_gigabytes * 1e9
        free = shutil.disk_usage(self._models.directory).free + sum(state_bytes(each) for each in self._runs())
        if free < needed:
            raise TrainingError(
                f"{free / 1e9:.1f} GB are free on the disk of {self._models.directory}, a run needs "
                f"{needed / 1e9:.1f} GB: remove old models, or lower training.min_free_gigabytes"
            )

    def _file(self, sha256: str) -> str:
        return self._pictures.path(sha256).relative_to(self._pictures.directory).as_posix()

    def _earlier(self, run: Run) -> list[Path]:
        """The directories of other runs, the newest first."""
        folders = [each for each in self._runs() if each.name != str(run.id)]
        return sorted(folders, key=lambda each: int(each.name), reverse=True)

    def _runs(self) -> list[Path]:
        return [each for each in self._places.runs.glob("*") if each.name.isdigit()]

    async def _former_losses(self, run: Run) -> str:
        """The log of losses of the newest finished run before this one, empty without one."""
        for each in await self._ledger.runs.latest(_FORMER_RUNS):
            kept = Path(each.directory) / LOSSES
            if each.id < run.id and each.state is RunState.DONE and kept.is_file():
                return str(kept)
        return ""

    async def _end(self, run: Run, state: RunState, reason: str, on_change: OnChange) -> None:
        # A cancellation that comes after the end changes nothing any more.
        with suppress(IllegalTransition):
            try:
                ended = await self._ledger.runs.move(run.id, state, reason=reason)
            except NotSaved as error:
                raise EndNotSaved(state, reason) from error
            await told(on_change, ended)


async def _undisturbed(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end, whoever cancels that: a model is published whole or not."""
    task, caller = asyncio.create_task(work), asyncio.current_task()
    assert caller is not None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            caller.uncancel()
    return task.result()


def _good(outcome: Outcome) -> Outcome:
    if not outcome.ok:
        raise RunFailed(outcome.reason)
    return outcome
