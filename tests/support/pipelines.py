"""Support for pipeline tests: a real ledger with real pictures, models and files, and a fake trainer.

The trainer is fake because the real steps (training, merging and evaluation) take a minute.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inference.internvl2.tiny import CHECKPOINT
from inference.messages import Picture, Role, Turn
from storage.chat_records import Chat, Exchange, Person
from storage.learning_records import Model, Rating, Run
from storage.ledger import Ledger
from storage.model_store import ModelStore
from storage.picture_files import PictureStore
from storage.state_machines import ModelState
from tests.support.ledgers import exchange, picture
from tests.support.lessons import SYSTEM, photo, seen, settings
from training.evaluation_jobs import Candidate, Engines, EvaluationJob, OpeningJob, TasteJob
from training.gate.report import Decision, Report
from training.job import Job, MergeJob, Outcome, Progress, WorkerJob, ignore
from training.job_specs import JobSpecs, TrainingPaths
from training.pipeline import Pipeline
from training.run_folder import CANDIDATE, LOSSES, REPORT
from training.run_plan import RunPlan, RunPlanner

TESTED = 3
"""The number of steps of a taste test."""

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "black", "white", "grey", "pink")


@dataclass
class FakeTrainer:
    """A trainer that finishes each step at once and writes the files that the real step would write.

    Attributes:
        fails: The name of the step that fails.
        hangs: The name of the step that waits until it is cancelled or `over` is set.
        candidate: The candidate of the last evaluation.
    """

    fails: str = ""
    report: Report = field(default_factory=lambda: Report(Decision.ACCEPTED))
    jobs: list[Job | MergeJob | OpeningJob | TasteJob | EvaluationJob] = field(default_factory=list)
    taught: dict[str, int] = field(default_factory=dict)
    hangs: str = ""
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    candidate: Candidate = field(default_factory=Candidate)

    async def run(self, job: WorkerJob, on_progress: Callable[[Progress], None] = ignore) -> Outcome:
        assert isinstance(job, Job | MergeJob | OpeningJob | TasteJob | EvaluationJob)
        self.jobs.append(job)
        match job:
            case Job():
                step = "train"
                on_progress(Progress("training", 7, 9, 0.5, 12.0))
                (Path(job.work) / LOSSES).write_text("")
            case MergeJob():
                step = "merge"
                (Path(job.out) / "model.safetensors").write_bytes(b"weights")
            case OpeningJob():
                step = job.worker[0]
            case TasteJob():
                step = "taste"
            case EvaluationJob():
                step = "evaluate"
                file = Path(job.work) / CANDIDATE
                while not file.exists():
                    await asyncio.sleep(0.01)
                self.candidate = Candidate.read(file)
                self.report.write(Path(job.work) / REPORT)
        if step == self.hangs:
            self.hanging.set()
            await self.over.wait()
        failed = step == self.fails
        return Outcome(
            ok=not failed,
            reason="it rained" if failed else "",
            adapter="adapter",
            steps=TESTED if step == "taste" else 0,
            samples=self.taught,
        )


class Room:
    """A training pipeline and its ledger, to which `fill` adds ten liked answers about ten pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger.open(folder)
        self.pictures = PictureStore(folder / "pictures")
        self.models = ModelStore(folder / "models")
        self.trainer = FakeTrainer()
        self.base = folder / "base"
        self.changes: list[Run] = []

    def pipeline(self, engines: Engines | None = None, **changes: Any) -> Pipeline:
        """Return a pipeline that uses this ledger and `engines`; `changes` override its training settings."""
        specs = JobSpecs(
            settings(**{"min_rated": 10, "near_duplicate": 0, **changes}),
            TrainingPaths(self.base, self.folder / "runs", self.folder / "sources"),
            self.pictures.directory,
            SYSTEM,
            tiles=0,
        )
        return Pipeline(RunPlanner(self.ledger, self.models, specs), self.pictures, self.trainer, engines=engines)

    async def fill(self) -> None:
        """Add a user, the base model as the live model, and ten pictures with one liked answer each."""
        self.base.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(CHECKPOINT / name, self.base / name)
        await self.ledger.models.add(Model("base", str(self.base), ModelState.LIVE, None, 1.0))
        await self.ledger.people.save(Person(1), Chat(1))
        for number, colour in enumerate(COLOURS):
            await self.like(10 * number, colour)

    async def like(self, update: int, colour: str) -> Exchange:
        """Add a picture in the given colour with one liked answer, and return the exchange."""
        name = await self.pictures.put(photo(colour))
        await self.ledger.pictures.add(picture(name, phash=f"{update:016x}"))
        session = await self.ledger.sessions.restart(1, 1)
        asked = Turn(Role.USER, "Which colour?", (Picture(b"", name),))
        made = exchange(session, update, pictures=(name,), question=asked.text, answer=f"It is {colour}!")
        made = replace(made, prompt_hash=seen(made, asked))
        number = (await self.ledger.exchanges.record(made)).id
        await self.ledger.votes.cast(Rating(number, 1, 1, update + 1))
        return made

    async def run(self, pipeline: Pipeline | None = None, plan: RunPlan | None = None) -> tuple[Run, Model | None]:
        """Carry out one training run to its end, and return the run and the new model, if any."""
        run = await self.ledger.runs.start("command")
        model = await (pipeline or self.pipeline()).run(run, self.note, plan)
        return await self.ledger.runs.get(run.id), model

    async def note(self, run: Run) -> None:
        """Append `run` to `changes`; the pipeline calls this method as its progress callback."""
        self.changes.append(run)
