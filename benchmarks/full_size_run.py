"""Time a retraining run with a full-size model.

    python -m benchmarks.full_size_run --work DIR [--answers 60]

Random weights in the official layout stand in for InternVL2-2B, and photos of several sizes for users'
pictures. Each photo gets a question and a follow-up. A model with random weights seldom ends an answer,
so the script writes the rated answers itself. The evaluation makes up to three attempts to draw each
comparison answer, because unfinished answers do not count. The script prints JSON: the seconds that each
worker and the whole run took, and the verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning_loop import Bench
from benchmarks.person import at_random
from benchmarks.photos import SIZES, photo
from benchmarks.random_checkpoint import checkpoint
from inference.internvl2.tiny.shapes import Scene
from inference.messages import Sampling
from storage.chat_records import StoredPicture
from training.data.llava import Lesson
from training.job import Outcome, Progress, WorkerJob, ignore
from training.launcher import ChildTrainer
from training.settings import TrainingSettings

PEOPLE = 20
WORDS = ("a", "very", "funny", "picture", "of", "cats", "that", "laugh", "at", "the", "moon", "in", "their", "hats")


class PhotoBench(Bench):
    """A `Bench` whose pictures are photos of several sizes instead of drawings."""

    photos = itertools.cycle(photo(size, random.Random(1)) for size in SIZES)

    async def keep(self, scene: Scene, rng: random.Random) -> tuple[str, tuple[int, int]]:
        """Store the next photo, whatever the scene, and return its name and a placeholder size of (1, 1)."""
        data, size = next(self.photos) + rng.randbytes(8), (1, 1)
        name = await self.pictures.put(data)
        await self.ledger.pictures.add(
            StoredPicture(name, "image/jpeg", *size, len(data), f"{rng.getrandbits(64):016x}")
        )
        return name, size


class Writer:
    """A stand-in for a model that writes random answers."""

    def __init__(self) -> None:
        self._rng = random.Random(2)

    def answers(self, lessons: Sequence[Lesson], images: Path, sampling: Sampling) -> list[str]:
        """Return an answer of 20 to 60 random words for each lesson."""
        return [" ".join(self._rng.choices(WORDS, k=self._rng.randint(20, 60))) + "." for _ in lessons]


class TimedTrainer(ChildTrainer):
    """A trainer that records how many seconds each kind of worker takes."""

    def __init__(self, settings: TrainingSettings) -> None:
        super().__init__(settings)
        self.seconds: dict[str, float] = {}

    async def run(self, job: WorkerJob, on_progress: Callable[[Progress], None] = ignore) -> Outcome:
        """Carry out one job and record how long it takes."""
        began = time.monotonic()
        outcome = await super().run(job, on_progress)
        self.seconds[type(job).__name__] = round(time.monotonic() - began, 1)
        return outcome


async def carry_out(options: argparse.Namespace) -> dict[str, Any]:
    """Fill a ledger with rated answers, carry out one run, and return the run's measurements."""
    model = options.model or checkpoint(options.work, "2b")
    settings = TrainingSettings(
        recipe="auto", min_raters=1, rater_age=0, min_free_gigabytes=0.1, knobs=options.knobs, device=options.device
    )
    trainer = TimedTrainer(settings)
    bench = PhotoBench(options.work / "data", settings, model, people=PEOPLE, trainer=trainer)
    try:
        await bench.open()
        liked = await bench.chat(Writer(), options.answers // 2, at_random, 1)
        began = time.monotonic()
        run, candidate = await bench.retrain()
        report = json.loads(candidate.report) if candidate else {}
        return {
            "answers": options.answers,
            "liked": liked,
            "run": run.state,
            "reason": str(run.reason or (candidate and candidate.reason)),
            "seconds": round(time.monotonic() - began, 1),
            "workers": trainer.seconds,
            "judged": report.get("taste", {}).get("answers"),
            "questions": report.get("questions"),
            "peak memory": report.get("effort", {}).get("peak_memory"),
        }
    finally:
        await bench.ledger.close()


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a checkpoint in place of random weights")
    parser.add_argument("--answers", type=int, default=60)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--knobs", type=json.loads, default={})
    found = asyncio.run(carry_out(parser.parse_args()))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
