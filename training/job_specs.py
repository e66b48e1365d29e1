"""What the workers are told for a run: its three jobs, worded from the settings and from where things lie.

Knows a job's fields and where each of them comes from. What a worker makes of its job is told in job.py; when it is
given is the pipeline's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.records import BASE, Model, Run
from training.data.selection import Counts
from training.gate.report import Effort
from training.job import RATED, EvaluationJob, Job, MergeJob, Outcome
from training.run_folder import HELD_OUT_ROWS, TRAIN_ROWS
from training.settings import Source, TrainingSettings
from training.xtuner.hyperparameters import Recipe


@dataclass(frozen=True, slots=True)
class Places:
    """Directories: the base model all training starts from, and where runs and imported sources are kept.

    `first_words` is the file by which an engine on the same cards asks the workers to step aside, if any does.
    """

    base: Path
    runs: Path
    sources: Path
    first_words: Path | None = None


@dataclass(frozen=True, slots=True)
class Orders:
    """Words the jobs. `images` is the folder of people's pictures, `system` the persona, `tiles` the most of a picture.

    A run has its directory by now.
    """

    settings: TrainingSettings
    places: Places
    images: Path
    system: str
    tiles: int

    def training(self, run: Run, recipe: Recipe, sources: Sequence[Source], former: str) -> Job:
        """Train on the run's rows and the sources; `former` is the log of losses to lay under this one's, or empty."""
        settings, folder = self.settings, Path(run.directory)
        return Job(
            run=str(run.id),
            base=str(self.places.base),
            data=str(folder / TRAIN_ROWS),
            images=str(self.images),
            work=str(folder),
            system=self.system,
            sources=[each.model_dump(mode="json") for each in sources],
            replay=settings.replay,
            held_out=str(folder / HELD_OUT_ROWS),
            notes=str(self.places.runs / "pictures.jsonl"),
            former=former,
            device=settings.device,
            threads=settings.threads,
            seed=settings.seed,
            tiles=self.tiles,
            processes=settings.together,
            deepspeed=settings.deepspeed,
            features_gigabytes=settings.features_gigabytes,
            courtesy=self._courtesy,
            recipe=str(settings.own_recipe or ""),
            **recipe.model_dump(),
        )

    def merging(self, run: Run, out: Path, trained: Outcome) -> MergeJob:
        """Make a checkpoint in `out`, an empty directory, of what was trained."""
        return MergeJob(
            run=str(run.id),
            base=str(self.places.base),
            adapter=str(trained.adapter),
            out=str(out),
            work=run.directory,
            system=self.system,
            threads=self.settings.threads,
            tiles=self.tiles,
        )

    def judging(
        self, run: Run, candidate: Path, live: Model | None, trained: Outcome, merged: Outcome, counts: Counts
    ) -> EvaluationJob:
        """Judge the candidate's directory against the live model, the base where there is none; `counts` says what
        became of the rated answers.
        """
        settings, folder = self.settings, Path(run.directory)
        pairs = trained.samples.get(RATED, run.samples)
        effort = Effort(
            pairs=pairs,
            too_long=run.samples - pairs,
            votes=counts.votes,
            raters=counts.raters,
            liked=counts.rated - counts.disliked,
            cut=counts.cut,
            steps=trained.steps,
            training_seconds=trained.seconds,
            merging_seconds=merged.seconds,
            peak_memory=trained.peak_memory,
            adapter_bytes=sum(each.stat().st_size for each in Path(str(trained.adapter)).rglob("*")),
            taught=trained.samples,
        )
        return EvaluationJob(
            run=str(run.id),
            candidate=str(candidate),
            live=str(self.places.base if live is None else live.directory),
            data=str(folder / HELD_OUT_ROWS),
            images=str(self.images),
            work=str(folder),
            system=self.system,
            regression=str(settings.regression or ""),
            device=settings.device,
            threads=settings.threads,
            tiles=self.tiles,
            max_loss_points=settings.max_loss_points,
            live_name=BASE if live is None else live.id,
            candidate_name=model_name(run),
            curve=trained.curve or "",
            courtesy=self._courtesy,
            effort=effort,
        )

    @property
    def _courtesy(self) -> str:
        beside = self.places.first_words
        return "" if beside is None else str(beside.resolve())


def model_name(run: Run) -> str:
    """What the model of a run is called."""
    return f"run-{run.id}"
