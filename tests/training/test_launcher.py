"""Workers as child processes: progress, outcomes, and every way in which a child can fail."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from inference.process.warm_python import WarmPython
from tests.support.children import alive, until
from tests.support.lessons import settings
from tests.training.test_resume import interrupted
from training.evaluation_jobs import OpeningJob
from training.job import Job, MergeJob, Outcome, Progress
from training.launcher import ChildTrainer
from training.run_folder import SCALARS

FAKE = Path(__file__).parents[1] / "support" / "fake_trainer.py"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Provide the path of an interpreter that runs the fake worker instead of the requested module."""
    script = tmp_path / "python"
    script.write_text(
        f"""#!/bin/sh
        export PYTHONPATH={FAKE.parents[2]}
        case "$*" in
        *torch.distributed.run*) exec {sys.executable} $(echo "$*" | sed "s#-m training#{FAKE} -m training#") ;;
        *) exec {sys.executable} {FAKE} "$@" ;;
        esac
        """
    )
    script.chmod(0o755)
    return script


def job(work: Path, cue: str) -> Job:
    """Return a job in the folder `work` that makes the fake worker behave as `cue` says."""
    work.mkdir(exist_ok=True)
    (work / "cue").write_text(cue)
    return Job(run="1", base="base", data="data", images="images", work=str(work), system="")


def pid(work: Path, rank: str = "") -> int:
    """Return the process ID that the fake worker wrote to the folder `work`, or 0 if the file is still empty.

    `rank` selects one of several processes.
    """
    return int((work / f"pid{rank}").read_text() or 0)


async def test_progress_and_outcome_arrive(python: Path, tmp_path: Path) -> None:
    """A worker's progress lines are reported in order, its outcome is returned, and its output is logged."""
    heard: list[Progress] = []
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "good"), heard.append)
    assert outcome == Outcome(ok=True, adapter="adapter", steps=3, seconds=20)
    assert [each.step for each in heard] == [1, 2, 3]
    assert heard[-1] == Progress("training", 3, 3, 1 / 3, 0.0)
    assert '"step": 3' in (tmp_path / "run" / "finetune.log").read_text()
    assert Job.read(tmp_path / "run" / "finetune.json").work == str(tmp_path / "run")


async def test_other_lines_are_not_progress(python: Path, tmp_path: Path) -> None:
    """Output lines that are not progress, such as a library's messages, are logged and not reported."""
    heard: list[Progress] = []
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "noise"), heard.append)
    assert outcome.ok
    assert len(heard) == 3
    assert "a library says hello" in (tmp_path / "run" / "finetune.log").read_text()


async def test_a_failed_worker_has_its_reason(python: Path, tmp_path: Path) -> None:
    """The outcome of a failed job contains the reason that the worker gave, whatever the kind of job."""
    job(tmp_path / "run", "bad")
    trainer = ChildTrainer(settings(python=str(python)))
    merging = MergeJob("1", "base", "adapter", "out", work=str(tmp_path / "run"), system="")
    assert (await trainer.run(merging)).reason == "row 3 is bad"


async def test_a_crashed_worker_has_its_last_output(python: Path, tmp_path: Path) -> None:
    """If a worker crashes, the outcome's reason contains the exit code, the last output and the log's path."""
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "die"))
    assert not outcome.ok
    assert "exit code 3" in outcome.reason
    assert "the cat sat on the keyboard" in outcome.reason
    assert "finetune.log" in outcome.reason


async def test_a_killed_worker_has_its_signal(python: Path, tmp_path: Path) -> None:
    """If a worker is killed, the outcome's reason names SIGKILL and its usual cause, a lack of memory."""
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "killed"))
    assert "signal SIGKILL" in outcome.reason
    assert "memory" in outcome.reason


async def test_a_signal_without_a_name_has_its_number(python: Path, tmp_path: Path) -> None:
    """A signal without a name, such as a real-time signal, appears in the outcome's reason as a number."""
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "timer"))
    assert f"signal {signal.SIGRTMIN + 1}" in outcome.reason


async def test_an_outcome_of_an_earlier_attempt_is_ignored(python: Path, tmp_path: Path) -> None:
    """A crashed worker counts as failed, even if an earlier attempt in the same folder succeeded."""
    trainer = ChildTrainer(settings(python=str(python)))
    assert (await trainer.run(job(tmp_path / "run", "good"))).ok
    assert not (await trainer.run(job(tmp_path / "run", "killed"))).ok


async def test_cancelling_kills_the_worker(python: Path, tmp_path: Path) -> None:
    """Cancelling a training job kills its worker and leaves no process behind."""
    trainer = ChildTrainer(settings(python=str(python)))
    training = asyncio.create_task(trainer.run(job(tmp_path / "run", "hang")))
    await until((tmp_path / "run" / "pid").exists)
    await until(lambda: (tmp_path / "run" / "pid").read_text())
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    assert not alive(pid(tmp_path / "run"))
    assert trainer.pids == []


@pytest.mark.parametrize("end", ["cancelled", "killed"])
async def test_all_processes_of_a_training_end_together(python: Path, tmp_path: Path, end: str) -> None:
    """All torchrun processes end when the training job is cancelled or its parent process is killed."""
    work = tmp_path / "run"
    job(work, "hang").write(tmp_path / "job.json")
    parent = await start_training(python, tmp_path / "job.json", processes=2)
    await until(lambda: all((work / f"pid{rank}").exists() and pid(work, rank) for rank in "01"), seconds=60)
    parent.send_signal(signal.SIGINT if end == "cancelled" else signal.SIGKILL)
    await parent.wait()
    await until(lambda: not any(alive(pid(work, rank)) for rank in "01"), seconds=20)


async def test_out_of_memory_is_retried_with_smaller_batches(python: Path, tmp_path: Path) -> None:
    """A worker that runs out of memory is restarted with half the batch size until the batch fits."""
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "cramped"))
    assert outcome.ok
    assert Job.read(tmp_path / "run" / "finetune.json").split == 4
    assert outcome.seconds == 60, "of all three tries"


async def test_the_time_before_a_crash_counts(python: Path, tmp_path: Path) -> None:
    """The duration of a resumed training job includes the steps taken before the interruption."""
    made = interrupted(tmp_path / "run")
    (tmp_path / "run" / "cue").write_text("good")
    (tmp_path / "run" / SCALARS).write_text('{"time": 2.5, "iter": 40, "step": 10}\n')
    trainer = ChildTrainer(settings(python=str(python)))
    assert (await trainer.run(made)).seconds == 30
    assert (await trainer.run(replace(made, seed=7))).seconds == 20, "a different training starts from the beginning"


async def test_a_hanging_worker_is_ended(python: Path, tmp_path: Path) -> None:
    """A worker that exceeds `training.timeout` is killed, and the outcome's reason names the setting."""
    trainer = ChildTrainer(settings(python=str(python), timeout=5))
    outcome = await trainer.run(job(tmp_path / "run", "hang"))
    assert "training.timeout" in outcome.reason
    assert not alive(pid(tmp_path / "run"))
    assert " in stuck" in (tmp_path / "run" / "finetune.log").read_text(), "where it stood"


async def test_a_silent_worker_writes_its_stack(python: Path, tmp_path: Path) -> None:
    """After `training.silence` seconds without progress, a worker's stack is written to its log.

    The worker continues, and its outcome counts.
    """
    trainer, heard = ChildTrainer(settings(python=str(python), silence=0.5)), list[Progress]()
    work, log = tmp_path / "run", tmp_path / "run" / "finetune.log"
    training = asyncio.create_task(trainer.run(job(work, "pause"), heard.append))
    await until(lambda: len(heard) == 3)
    await until(lambda: trainer.last_progress is not None and trainer.last_progress.silent)
    word = trainer.last_progress
    assert word is not None and (word.run, word.log) == ("1", log)
    assert word.seconds >= 0.5
    await until(lambda: " in main" in log.read_text())
    (work / "go").touch()
    assert (await training).ok
    assert len(heard) == 4
    assert trainer.last_progress is None


async def test_two_workers_report_separately(python: Path, tmp_path: Path) -> None:
    """Of two workers that run at the same time, the one that has been silent for longer counts as the last progress."""
    trainer = ChildTrainer(settings(python=str(python), silence=0.5))
    heard: list[tuple[str, Progress]] = []
    both = []
    for name in ("first", "second"):
        note = partial(lambda name, progress: heard.append((name, progress)), name)
        both.append(asyncio.create_task(trainer.run(job(tmp_path / name, "pause"), note)))
        await until(lambda: len(heard) == 3 * len(both))
    assert len(trainer.pids) == 2
    assert trainer.last_progress and trainer.last_progress.log == tmp_path / "first" / "finetune.log"
    (tmp_path / "first" / "go").touch()
    assert (await both[0]).ok
    assert trainer.last_progress and trainer.last_progress.log == tmp_path / "second" / "finetune.log"
    (tmp_path / "second" / "go").touch()
    assert (await both[1]).ok
    assert Counter(name for name, _ in heard) == {"first": 4, "second": 4}
    assert trainer.last_progress is None


async def test_all_processes_of_a_silent_training_write_their_stacks(python: Path, tmp_path: Path) -> None:
    """If a training job with several processes is silent, each process in turn writes its stack to the log.

    torchrun itself gets no signal, because a signal would end it.
    """
    trainer = ChildTrainer(settings(python=str(python), processes=2, silence=0.5))
    work = tmp_path / "run"
    training = asyncio.create_task(trainer.run(job(work, "hang")))

    def standing() -> set[int]:
        log = work / "finetune.log"
        found = re.findall(r"stacks of process (\d+)", log.read_text() if log.exists() else "")
        return {int(number) for number in found}

    await until(lambda: len(standing()) == 2, seconds=60)
    assert standing() == {pid(work, rank) for rank in "01"}
    await until(lambda: (work / "finetune.log").read_text().count(" in stuck") >= 2)
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training


async def test_a_missing_interpreter_is_named(tmp_path: Path) -> None:
    """If the Python interpreter is missing, the outcome names the setting to correct, and nothing is raised."""
    outcome = await ChildTrainer(settings(python="/nowhere/python")).run(job(tmp_path / "run", "good"))
    assert "training.python" in outcome.reason


async def test_only_workers_that_need_its_libraries_wait_for_the_warm_interpreter(tmp_path: Path) -> None:
    """A job that only asks engines starts at once; for another job, the interpreter is started first."""
    found = {"PYTHONPATH": str(FAKE.parents[2])}
    warm = WarmPython(sys.executable, ("colorsys",), log=tmp_path / "warm.log", environment=found, idle=0)
    trainer = ChildTrainer(settings(python=sys.executable), warm)
    try:
        asking = OpeningJob(run="1", live="", data="", images="", work=str(tmp_path), system="")
        assert (await trainer.run(asking)).ok
        assert not warm.running
        merging = MergeJob("1", "no base", "no adapter", str(tmp_path), work=str(tmp_path), system="")
        assert not (await trainer.run(merging)).ok
        assert warm.running
    finally:
        await warm.stop()


async def test_a_worker_ends_with_its_parent(python: Path, tmp_path: Path) -> None:
    """A worker ends when its parent process is killed."""
    job(tmp_path / "run", "hang").write(tmp_path / "job.json")
    parent = await start_training(python, tmp_path / "job.json")
    await until(lambda: (tmp_path / "run" / "pid").exists() and pid(tmp_path / "run"))
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await until(lambda: not alive(pid(tmp_path / "run")))


async def start_training(python: Path, job_file: Path, **changes: int) -> asyncio.subprocess.Process:
    """Start a process that runs the training job in `job_file`, with `changes` to the settings.

    SIGINT cancels the job, even if a shell has made its background jobs ignore SIGINT.
    """
    script = (
        "import asyncio, json, signal, sys; from pathlib import Path; from training.job import Job;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from training.launcher import ChildTrainer; from training.settings import TrainingSettings;"
        "settings = TrainingSettings.for_tiny(python=sys.argv[1], **json.loads(sys.argv[3]));"
        "asyncio.run(ChildTrainer(settings).run(Job.read(Path(sys.argv[2]))))"
    )
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(python), str(job_file), json.dumps(changes)),
        cwd=FAKE.parents[2],
        stderr=asyncio.subprocess.DEVNULL,
    )
