"""The workers as child processes: progress, outcomes, and every way in which a child can end badly."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.children import alive, until
from tests.support.lessons import settings
from tests.training.test_resume import interrupted
from training.job import Job, MergeJob, Outcome, Progress
from training.launcher import ChildTrainer
from training.run_folder import SCALARS

FAKE = Path(__file__).parents[1] / "support" / "fake_trainer.py"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An "interpreter" that runs the fake worker whatever module it is told to run."""
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
    """A job whose worker acts on the cue."""
    work.mkdir(exist_ok=True)
    (work / "cue").write_text(cue)
    return Job(run="1", base="base", data="data", images="images", work=str(work), system="")


def pid(work: Path, rank: str = "") -> int:
    """The process id that the fake worker left, as soon as it is there."""
    return int((work / f"pid{rank}").read_text() or 0)


async def test_progress_and_outcome_arrive(python: Path, tmp_path: Path) -> None:
    """Every progress line is passed on in order, and the outcome is the worker's own; the log has it all."""
    heard: list[Progress] = []
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "good"), heard.append)
    assert outcome == Outcome(ok=True, adapter="adapter", steps=3, seconds=20)
    assert [each.step for each in heard] == [1, 2, 3]
    assert heard[-1] == Progress("training", 3, 3, 1 / 3, 0.0)
    assert '"step": 3' in (tmp_path / "run" / "finetune.log").read_text()
    assert Job.read(tmp_path / "run" / "finetune.json").work == str(tmp_path / "run")


async def test_other_lines_are_no_progress(python: Path, tmp_path: Path) -> None:
    """What a library prints goes to the log and disturbs nothing."""
    heard: list[Progress] = []
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "noise"), heard.append)
    assert outcome.ok
    assert len(heard) == 3
    assert "a library says hello" in (tmp_path / "run" / "finetune.log").read_text()


async def test_a_failed_training_tells_its_reason(python: Path, tmp_path: Path) -> None:
    """The worker's reason comes through word by word, for every step."""
    job(tmp_path / "run", "bad")
    trainer = ChildTrainer(settings(python=str(python)))
    merging = MergeJob("1", "base", "adapter", "out", str(tmp_path / "run"), "")
    assert (await trainer.run(merging)).reason == "row 3 is bad"


async def test_a_dead_worker_tells_its_crash_reason(python: Path, tmp_path: Path) -> None:
    """Without an outcome the reason has the exit code, the last lines and the log's place."""
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "die"))
    assert not outcome.ok
    assert "exit code 3" in outcome.reason
    assert "the cat sat on the keyboard" in outcome.reason
    assert "finetune.log" in outcome.reason


async def test_a_killed_worker_is_said_to_be_killed(python: Path, tmp_path: Path) -> None:
    """SIGKILL is named, with its usual cause."""
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "killed"))
    assert "signal SIGKILL" in outcome.reason
    assert "memory" in outcome.reason


async def test_a_signal_without_a_name_has_its_number(python: Path, tmp_path: Path) -> None:
    """A real-time signal ends a worker as any other does."""
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "timer"))
    assert f"signal {signal.SIGRTMIN + 1}" in outcome.reason


async def test_an_outcome_of_an_earlier_try_does_not_count(python: Path, tmp_path: Path) -> None:
    """A worker that dies where an earlier one succeeded has failed."""
    trainer = ChildTrainer(settings(python=str(python)))
    assert (await trainer.run(job(tmp_path / "run", "good"))).ok
    assert not (await trainer.run(job(tmp_path / "run", "killed"))).ok


async def test_cancelling_kills_the_worker(python: Path, tmp_path: Path) -> None:
    """A cancelled training leaves no process behind."""
    trainer = ChildTrainer(settings(python=str(python)))
    training = asyncio.create_task(trainer.run(job(tmp_path / "run", "hang")))
    await until((tmp_path / "run" / "pid").exists)
    await until(lambda: (tmp_path / "run" / "pid").read_text())
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    assert not alive(pid(tmp_path / "run"))
    assert trainer.pid is None


@pytest.mark.parametrize("end", ["cancelled", "killed"])
async def test_all_processes_of_a_training_end_together(python: Path, tmp_path: Path, end: str) -> None:
    """Those that torchrun has started are gone when a training is cancelled, and when whoever trains is killed."""
    work = tmp_path / "run"
    job(work, "hang").write(tmp_path / "job.json")
    parent = await trains(python, tmp_path / "job.json", processes=2)
    await until(lambda: all((work / f"pid{rank}").exists() and pid(work, rank) for rank in "01"), seconds=60)
    parent.send_signal(signal.SIGINT if end == "cancelled" else signal.SIGKILL)
    await parent.wait()
    await until(lambda: not any(alive(pid(work, rank)) for rank in "01"), seconds=20)


async def test_too_little_memory_is_tried_again_in_smaller_batches(python: Path, tmp_path: Path) -> None:
    """The worker is started again with half the batch until it is enough."""
    outcome = await ChildTrainer(settings(python=str(python))).run(job(tmp_path / "run", "cramped"))
    assert outcome.ok
    assert Job.read(tmp_path / "run" / "finetune.json").split == 4
    assert outcome.seconds == 60, "of all three tries"


async def test_what_was_trained_before_a_crash_counts(python: Path, tmp_path: Path) -> None:
    """The time of a training that goes on is that of its steps so far and of the new process."""
    made = interrupted(tmp_path / "run")
    (tmp_path / "run" / "cue").write_text("good")
    (tmp_path / "run" / SCALARS).write_text('{"time": 2.5, "iter": 40, "step": 10}\n')
    trainer = ChildTrainer(settings(python=str(python)))
    assert (await trainer.run(made)).seconds == 30
    assert (await trainer.run(replace(made, seed=7))).seconds == 20, "another training begins anew"


async def test_a_hanging_worker_is_ended(python: Path, tmp_path: Path) -> None:
    """After training.timeout the worker is killed and the reason says so."""
    trainer = ChildTrainer(settings(python=str(python), timeout=5))
    outcome = await trainer.run(job(tmp_path / "run", "hang"))
    assert "training.timeout" in outcome.reason
    assert not alive(pid(tmp_path / "run"))
    assert " in stuck" in (tmp_path / "run" / "finetune.log").read_text(), "where it stood"


async def test_a_silent_worker_says_where_it_stands(python: Path, tmp_path: Path) -> None:
    """After training.silence it counts as silent and its log has its stack; it goes on, and its outcome is taken."""
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


async def test_all_processes_of_a_silent_training_say_where_they_stand(python: Path, tmp_path: Path) -> None:
    """Those that torchrun has started write one after the other; torchrun, which the signal would end, is not asked."""
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
    """An interpreter that is not there is an outcome with the setting to correct, not an exception."""
    outcome = await ChildTrainer(settings(python="/nowhere/python")).run(job(tmp_path / "run", "good"))
    assert "training.python" in outcome.reason


async def test_a_worker_ends_with_its_parent(python: Path, tmp_path: Path) -> None:
    """When the process that trains is killed, the worker does not live on."""
    job(tmp_path / "run", "hang").write(tmp_path / "job.json")
    parent = await trains(python, tmp_path / "job.json")
    await until(lambda: (tmp_path / "run" / "pid").exists() and pid(tmp_path / "run"))
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await until(lambda: not alive(pid(tmp_path / "run")))


async def trains(python: Path, job_file: Path, **changes: int) -> asyncio.subprocess.Process:
    """A process of its own that trains; SIGINT cancels it, also where a shell's background jobs ignore that."""
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
