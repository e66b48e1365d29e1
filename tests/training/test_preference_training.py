"""Training with KTO and DPO on internvl2-tiny makes liked answers likelier than disliked ones."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.internvl2.tiny import CHECKPOINT
from tests.support.lessons import SYSTEM, drawn_job, drawn_lessons, settings
from training.data.llava import Lesson, Rejected, write_rows
from training.data.row_parser import check_pictures
from training.gate.local_model import LocalModel
from training.job import DISLIKED, RATED, Job, MergeJob, Outcome, Progress, ignore
from training.launcher import ChildTrainer
from training.merge import merge
from training.xtuner.scalars import losses

pytestmark = pytest.mark.long

PAIRS = 16
STEPS = 8


def make_job(folder: Path, **changes: Any) -> Job:
    """Return a job in which playful answers are liked and plain ones are disliked (KTO) or rejected (DPO)."""
    folder.mkdir(exist_ok=True)
    numbers: dict[str, Any] = {"objective": "kto", "epochs": 2, "batch": 4, **changes}
    job = drawn_job(folder, PAIRS, **numbers)
    playful, plain = answers(Path(job.images))
    if job.objective == "kto":
        pairs = zip(playful, plain, strict=True)
        rows = [bad if place % 2 else good for place, (good, bad) in enumerate(pairs)]
    else:
        rows = [
            replace(good, rejected=Rejected(bad.name, bad.turns[-1].text))
            for good, bad in zip(playful, plain, strict=True)
        ]
    write_rows(rows, Path(job.data))
    return job


def answers(images: Path, seed: int = 0) -> tuple[list[Lesson], list[Lesson]]:
    """Return liked lessons with playful answers, and disliked ones with plain answers to the same questions."""
    liked = drawn_lessons(images, PAIRS, seed=seed)
    plain = drawn_lessons(images, PAIRS, seed=seed, manners=("plain",))
    return liked, [
        replace(good.answered(bad.turns[-1].text), liked=False) for good, bad in zip(liked, plain, strict=True)
    ]


def train(job: Job, python: str) -> Outcome:
    """Run the job in as many child processes as it specifies, check that it succeeds and return its outcome."""
    outcome = asyncio.run(ChildTrainer(settings(python=python, processes=job.processes)).run(job))
    assert outcome.ok, outcome.reason
    return outcome


def curve(outcome: Outcome) -> list[float]:
    """Return the loss of each step."""
    return [loss for _, loss in losses(Path(str(outcome.scalars)))]


def mean_log_probability(model: LocalModel, lessons: Sequence[Lesson], images: Path) -> float:
    """Return the mean log-probability per token of the lessons' answers."""
    found = model.log_probabilities(lessons, images)
    return sum(each.nats for each in found) / sum(each.tokens for each in found)


def assert_follows_the_votes(job: Job, outcome: Outcome) -> None:
    """Assert that training made playful answers about new pictures likelier and plain ones less likely."""
    merged = Path(job.work) / "merged"
    merged.mkdir()
    assert merge(MergeJob("1", job.base, str(outcome.adapter), str(merged), work=job.work, system=SYSTEM), ignore).ok
    images = Path(job.images)
    base, model = LocalModel(CHECKPOINT), LocalModel(merged)
    change = []
    for lessons in answers(images, seed=1):
        known = [check_pictures(each, images, where="here") for each in lessons]
        change.append(mean_log_probability(model, known, images) - mean_log_probability(base, known, images))
    assert change[0] > 0.02 > 0 > change[1], change


def test_kto_follows_the_votes(tmp_path: Path, warm_python: str) -> None:
    """Training with KTO makes the liked manner of answering likelier and the disliked one less likely.

    Before the first step, the loss of each answer is one half.
    """
    job = make_job(tmp_path / "run")
    outcome = train(job, warm_python)
    assert (outcome.samples, outcome.steps) == ({RATED: PAIRS // 2, DISLIKED: PAIRS // 2}, STEPS)
    assert curve(outcome)[-1] < curve(outcome)[0]
    assert_follows_the_votes(job, outcome)


@pytest.mark.soak
def test_dpo_follows_the_preferences(tmp_path: Path, warm_python: str) -> None:
    """Training with DPO makes the preferred manner of answering likelier and the rejected one less likely."""
    job = make_job(tmp_path / "run", objective="dpo", epochs=4)
    assert_follows_the_votes(job, train(job, warm_python))


@pytest.mark.soak
@pytest.mark.parametrize("objective", ["kto", "dpo"])
def test_a_step_does_not_depend_on_its_batches(tmp_path: Path, warm_python: str, objective: str) -> None:
    """The loss of a step does not depend on how it is divided into batches or on the number of processes.

    KTO's reference point is that of the whole step.
    """
    ways: dict[str, dict[str, Any]] = {
        "4x1": {},
        "1x4": {"batch": 1, "accumulation": 4},
        "two processes": {"batch": 2, "accumulation": 2, "processes": 2},
    }
    found = [
        curve(train(make_job(tmp_path / name, objective=objective, method="lora", **way), warm_python))
        for name, way in ways.items()
    ]
    for each in found[1:]:
        assert each == pytest.approx(found[0], abs=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_a_killed_training_keeps_its_reference(tmp_path: Path, warm_python: str, method: str) -> None:
    """After being killed, training resumes with the base model as its reference, not the checkpoint's model.

    The losses are therefore the same as without the interruption.
    """
    changes: dict[str, Any] = {"method": method, "learning_rate": 2e-3 if method == "qlora" else 3e-4}
    expected = curve(train(make_job(tmp_path / "whole", **changes), warm_python))
    job = make_job(tmp_path / "killed", **changes, save_steps=3)
    trainer = ChildTrainer(settings(python=warm_python))

    def kill(progress: Progress) -> None:
        if progress.step == 5:
            for pid in trainer.pids:
                os.kill(pid, signal.SIGKILL)

    assert "SIGKILL" in asyncio.run(trainer.run(job, kill)).reason
    assert curve(train(job, warm_python)) == pytest.approx(expected, rel=1e-2)
