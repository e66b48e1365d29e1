"""Training on a Ray cluster of three nodes: losses equal to those of one process, progress, cancelling, resuming."""

from __future__ import annotations

import asyncio
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.train_worker import train
from tests.support.lessons import drawn_job, settings
from training.job import Job, Outcome, Progress, outcome_file
from training.launcher import ChildTrainer
from training.xtuner.scalars import losses

STEPS = 12

pytestmark = pytest.mark.timeout(600)


def make_job(folder: Path, *, epochs: float = 4, **changes: Any) -> Job:
    """Return a job with three steps per epoch and four pairs per step."""
    folder.mkdir(exist_ok=True)
    return drawn_job(folder, 12, right=False, batch=1, accumulation=4, targets="", epochs=epochs, **changes)


def on_cluster(cluster: Cluster, processes: int) -> ChildTrainer:
    """Return a trainer that uses this many workers."""
    return ChildTrainer(settings(engine="ray", processes=processes, ray={"address": cluster.address, "num_cpus": 0.5}))


def curve(outcome: Outcome) -> list[float]:
    """Return the loss of each step."""
    assert outcome.ok, outcome.reason
    points = losses(Path(str(outcome.scalars)))
    assert [step for step, _ in points] == list(range(1, STEPS + 1))
    return [loss for _, loss in points]


async def test_two_workers_give_the_losses_of_one_even_if_one_is_killed(
    cluster: Cluster, tmp_path: Path, warm_python: str
) -> None:
    """A worker that dies is replaced, and the job resumes from its last checkpoint.

    Each step's progress is reported. The reference is the same job without Ray.
    """
    alone = await ChildTrainer(settings(python=warm_python)).run(make_job(tmp_path / "alone"))
    killed = list[int]()
    heard = list[Progress]()

    def note(progress: Progress) -> None:
        heard.append(progress)
        if progress.step == 6 and not killed:
            worker = next(each for each in psutil.process_iter() if "RayTrainWorker" in " ".join(each.cmdline()))
            worker.kill()
            killed.append(worker.pid)

    job = make_job(tmp_path / "together", processes=2, save_steps=4)
    together = await on_cluster(cluster, 2).run(job, note)
    assert killed
    assert curve(together) == pytest.approx(curve(alone), rel=1e-2)
    steps = [each.step for each in heard if each.stage == "training" and each.step]
    assert set(steps) == set(range(1, STEPS + 1))
    assert not list(tmp_path.rglob("*.pth")), "a finished job needs no checkpoint"


async def test_a_cancelled_training_frees_its_workers_and_resumes(cluster: Cluster, tmp_path: Path) -> None:
    """After a cancellation the cluster is free again, and the same job resumes from its last checkpoint."""
    job = make_job(tmp_path / "job", epochs=20, save_steps=4)
    reached = asyncio.Event()

    def note(progress: Progress) -> None:
        if progress.step == 6:
            reached.set()

    training = asyncio.create_task(on_cluster(cluster, 1).run(job, note))
    await reached.wait()
    training.cancel()
    await asyncio.gather(training, return_exceptions=True)
    async with asyncio.timeout(60):
        while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
            await asyncio.sleep(0.2)
    heard = list[Progress]()
    outcome = await on_cluster(cluster, 1).run(job, heard.append)
    assert outcome.ok, outcome.reason
    steps = [each.step for each in heard if each.stage == "training" and each.step]
    assert steps[0] > 4 and steps[0] % 4 == 1, "from a checkpoint"
    assert steps == list(range(steps[0], 5 * STEPS + 1))


@pytest.mark.filterwarnings("ignore")  # of the libraries that a worker loads
def test_a_job_that_cannot_be_learned_says_why(tmp_path: Path) -> None:
    """The outcome of a failed job gives the reason, and a second call does not run the job again."""
    job = make_job(tmp_path / "job")
    Path(job.data).write_text("[]")
    job_file = Path(job.work) / "finetune.json"
    job.write(job_file)
    lines: SimpleQueue[str] = SimpleQueue()
    with pytest.raises(RuntimeError):
        train({"job": str(job_file), "progress": lines})
    outcome = Outcome.read(outcome_file(job_file))
    assert not outcome.ok and outcome.reason
    assert Progress.from_json(lines.get()).stage == "checking"
    train({"job": str(job_file), "progress": lines})
    assert lines.empty()
