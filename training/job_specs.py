"""The jobs of a run, built from the settings and the run's directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storage.learning_records import Run, TrainedOn
from training.data.llava import row_name
from training.data.selection import Selection
from training.evaluation_jobs import EvaluationJob, OpeningJob, Rated, RunningEngine, TasteJob
from training.gate.report import Effort
from training.job import RATED, Job, MergeJob, Outcome, TrainingError
from training.run_folder import JUDGED_ROWS, TRAIN_ROWS
from training.settings import Source, TrainingSettings
from training.xtuner.recipes import Recipe


@dataclass(frozen=True, slots=True)
class TrainingPaths:
    """The paths of the files that training reads and writes.

    Attributes:
        base: The base model, from which all training starts.
        runs: The folder of the runs' directories.
        sources: The folder of imported sources.
        answers: The folder of models' answers to questions with known answers; None to keep none.
        yield_file: The file through which an engine on the same GPU asks for priority, or None if there is
            none.
    """

    base: Path
    runs: Path
    sources: Path
    answers: Path | None = None
    yield_file: Path | None = None


@dataclass(frozen=True, slots=True)
class JobSpecs:
    """A factory for the jobs of a run whose directory exists.

    Attributes:
        settings: The training settings.
        paths: The training paths.
        images: The folder of users' pictures.
        system: The chat's system prompt.
        tiles: The maximum number of tiles per picture; 0 for the model's own limit.
    """

    settings: TrainingSettings
    paths: TrainingPaths
    images: Path
    system: str
    tiles: int

    @property
    def recipe(self) -> Recipe:
        """The hyperparameters, with "auto" resolved by the size of the base model.

        Raises:
            TrainingError: The hyperparameters are invalid.
        """
        try:
            return self.settings.recipe_for(self.paths.base)
        except ValueError as error:
            raise TrainingError(f"training.{error}") from error

    def finetune(self, run: Run, selection: Selection, sources: Sequence[Source], previous_losses: str) -> Job:
        """Return the job that trains on the run's rows and on `sources`.

        `previous_losses` is the path of the loss log to draw behind this run's curve, or an empty string.
        """
        folder = Path(run.directory)
        return replace(
            self.finetune_on(sources, folder, run=str(run.id)),
            data=str(folder / TRAIN_ROWS),
            blocks=[each.trained for each in selection.blocks if each.trained < len(selection.train)],
            judged=str(folder / JUDGED_ROWS),
            former=previous_losses,
        )

    def finetune_on(self, sources: Sequence[Source], folder: Path, run: str = "") -> Job:
        """Return the job that trains on the rows of `sources` alone, in `folder`."""
        settings = self.settings
        return Job(
            **self._common(folder, run),
            data="",
            images=str(self.images),
            sources=[each.model_dump(mode="json") for each in sources],
            replay=settings.replay,
            notes=str(self.paths.runs / "pictures.jsonl"),
            device=settings.device,
            seed=settings.seed,
            processes=settings.world_size,
            deepspeed=settings.deepspeed,
            features_gigabytes=settings.features_gigabytes,
            # The engines of another machine have their own GPUs.
            courtesy="" if settings.engine == "ray" else str(self.paths.yield_file or ""),
            recipe=str(settings.user_config or ""),
            **self.recipe.model_dump(),
        )

    def merge(self, folder: Path, out: Path, trained: Outcome, run: str = "") -> MergeJob:
        """Return the job in `folder` that merges the trained adapter and the base into the empty directory `out`."""
        return MergeJob(**self._common(folder, run), adapter=str(trained.adapter), out=str(out))

    def opening(self, run: Run, live: Path, engines: Sequence[RunningEngine]) -> OpeningJob:
        """Return the job that collects answers from the live model's engines while the run trains."""
        return OpeningJob(**self._judging(run, live, engines))

    def taste(
        self, run: Run, selection: Selection, live: Path, engines: Sequence[RunningEngine], **others: Any
    ) -> TasteJob:
        """Return the job that tests whether what the run learned follows the votes.

        `others` are the job's fields about the adapter, earlier runs and the live model's answers.
        """
        return TasteJob(**self._judging(run, live, engines), rated=_rated(selection), **others)

    def evaluate(
        self, run: Run, candidate: Path, live: Path, engines: Sequence[RunningEngine], **others: Any
    ) -> EvaluationJob:
        """Return the job that judges the candidate model in the directory `candidate`.

        `others` are the job's fields about the live model's name and the loss curve.
        """
        return EvaluationJob(
            **self._judging(run, live, engines), candidate=str(candidate), candidate_name=model_name(run), **others
        )

    def _judging(self, run: Run, live: Path, engines: Sequence[RunningEngine]) -> dict[str, Any]:
        settings = self.settings
        return {
            **self._common(Path(run.directory), str(run.id)),
            "live": str(live),
            "data": str(Path(run.directory) / JUDGED_ROWS),
            "images": str(self.images),
            "regression": str(settings.regression or ""),
            "answers": str(self.paths.answers or ""),
            "device": settings.device,
            "max_loss_points": settings.max_loss_points,
            "courtesy": str(self.paths.yield_file or ""),
            "engines": list(engines),
        }

    def _common(self, folder: Path, run: str) -> dict[str, Any]:
        return {
            "run": run,
            "base": str(self.paths.base),
            "work": str(folder),
            "system": self.system,
            "threads": self.settings.threads,
            "tiles": self.tiles,
        }


def _rated(selection: Selection) -> list[Rated]:
    """Return the ratings and sampling settings of the answers used to evaluate the candidate.

    Raters are numbered so that their user IDs are not stored.
    """
    numbers: dict[int | None, int] = {}
    found = []
    for block in selection.blocks:
        for each in block.judged:
            exchange = each.rated.exchange
            found.append(
                Rated(
                    row=row_name(exchange.id),
                    liked=each.lesson.liked,
                    rater=numbers.setdefault(each.rater, len(numbers)),
                    block=block.trained if block.trained < len(selection.train) else 0,
                    temperature=exchange.temperature,
                    top_p=exchange.top_p,
                    max_new_tokens=exchange.max_new_tokens,
                    top_k=exchange.top_k,
                )
            )
    return found


def measure_effort(selection: Selection, taught: TrainedOn, trained: Outcome, merged: Outcome) -> Effort:
    """Summarise the training data and the resources that a run used."""
    counts = selection.counts
    pairs = trained.samples.get(RATED, selection.liked)
    return Effort(
        pairs=pairs,
        too_long=selection.liked - pairs,
        votes=taught.votes,
        raters=taught.people,
        liked=counts.rated - counts.disliked,
        cut=counts.cut,
        corrections=selection.corrections,
        largest_share=selection.largest_share,
        over_share=counts.over_share,
        steps=trained.steps,
        training_seconds=trained.seconds,
        merging_seconds=merged.seconds,
        peak_memory=trained.peak_memory,
        adapter_bytes=sum(each.stat().st_size for each in Path(str(trained.adapter)).rglob("*")),
        taught=trained.samples,
    )


def model_name(run: Run) -> str:
    """Return the name of a run's model."""
    return f"run-{run.id}"
