"""The workers as child processes: a job file in, progress lines, an outcome, an end that is always known.

Knows processes and files, when a worker last told progress, and nothing of what the workers do. A child that dies
without an outcome (killed, out of memory) gives one whose reason says how it ended and what it said last.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Final

from inference.process.child import Child
from training.job import (
    CompareJob,
    EvaluationJob,
    ImportJob,
    Job,
    MergeJob,
    Outcome,
    Progress,
    WorkerJob,
    ignore,
    outcome_file,
)
from training.run_folder import SCALARS
from training.settings import TrainingSettings
from training.xtuner.resume import latest_checkpoint
from training.xtuner.scalars import step_seconds

_WORKERS: Final[dict[type[WorkerJob], tuple[str, str]]] = {
    Job: ("finetune", "training.xtuner.finetune"),
    MergeJob: ("merge", "training.merge"),
    EvaluationJob: ("evaluate", "training.gate.evaluate"),
    ImportJob: ("importing", "training.data.importing"),
    CompareJob: ("compare", "training.gate.comparison"),
}
"""The worker of each kind of job: the name of its files in the run's directory, and its module."""

_TAIL_LINES: Final = 4
_LOG_BYTES: Final = 50_000_000
_STOP_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LastWord:
    """How many `seconds` ago the worker of a run told progress, or began; `silent` if that is too long ago.

    `run` is its job's name for the run, `log` the file with all that the worker wrote.
    """

    run: str
    seconds: float
    silent: bool
    log: Path


class ChildTrainer:
    """The `Trainer` that starts `python -m training.…` for each step. One step at a time."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._child: Child | None = None
        self._run_at_work = ""
        self._spoke = 0.0
        self._news = asyncio.Event()

    @property
    def last_word(self) -> LastWord | None:
        """Of the worker at work, None between steps."""
        if self._child is None:
            return None
        seconds = monotonic() - self._spoke
        silent = 0 < self._settings.silence <= seconds
        return LastWord(self._run_at_work, seconds, silent, self._child.log_path)

    @property
    def pid(self) -> int | None:
        """The process at work, None between steps."""
        return None if self._child is None else self._child.pid

    async def run(self, job: WorkerJob, on_progress: Callable[[Progress], None] = ignore) -> Outcome:
        """Run the worker of a job to its end; cancelling kills it.

        A fine-tuning that runs out of memory starts again with smaller batches. Its outcome's seconds are those of all
        attempts, and of the steps that it continues from.
        """
        if not isinstance(job, Job):
            return await self._run(job, on_progress)
        spent = await asyncio.to_thread(_spent_before, job)
        while True:
            outcome = await self._run(job, on_progress)
            spent += outcome.seconds
            if not outcome.too_large:
                return replace(outcome, seconds=spent)
            job = replace(job, split=2 * job.split)
            log.warning("run %s: %s; trying with smaller ones", job.run, outcome.reason)

    async def _run(self, job: WorkerJob, on_progress: Callable[[Progress], None]) -> Outcome:
        step, module = _WORKERS[type(job)]
        job_file = Path(job.work) / f"{step}.json"
        outcome = _laid_out(job, job_file)
        written = job_file.with_suffix(".log")
        command = [self._settings.python or sys.executable]
        if step == "finetune" and self._settings.world_size > 1:
            command += ["-m", "torch.distributed.run", *self._torchrun()]
        command += ["-m", module, str(job_file)]
        self._run_at_work, self._spoke = getattr(job, "run", ""), monotonic()
        try:
            child = await Child.start(
                command,
                log=written,
                log_bytes=_LOG_BYTES,
                log_files=1,
                environment=self._environment(
                    job_file.parent, self._settings.local_processes if step == "finetune" else 1
                ),
                on_line=lambda line: self._report(line, on_progress),
            )
        except OSError as error:
            return Outcome(ok=False, reason=f"{command[0]} cannot be started ({error}): correct training.python")
        self._child = child
        attending = asyncio.create_task(self._attend(child))
        try:
            async with asyncio.timeout(self._settings.timeout):
                await child.wait()
        except TimeoutError:
            await child.dump_stacks()
            reason = f"{step} took longer than training.timeout; the log is {written}"
            return Outcome(ok=False, reason=reason, log=str(written))
        finally:
            attending.cancel()
            # Whatever ends the wait, a cancelled task included, nothing is left running. Asked first: torchrun's
            # processes are in sessions of their own, and it is who ends them.
            await asyncio.shield(child.stop(_STOP_SECONDS))
            self._child = None
        try:
            return Outcome.read(outcome)
        except FileNotFoundError:
            reason = _last_words(step, child.how_it_ended(), child.tail(_TAIL_LINES), written)
            return Outcome(ok=False, reason=reason, log=str(written))

    async def _attend(self, child: Child) -> None:
        """Each time that a worker falls silent have its log show where it stands."""
        while True:
            self._news.clear()
            try:
                async with asyncio.timeout(self._settings.silence or None):
                    await self._news.wait()
            except TimeoutError:
                log.warning("a worker has told no progress for %d s: %s", self._settings.silence, child.log_path)
                await child.dump_stacks()
                await self._news.wait()
                log.warning("the worker goes on: %s", child.log_path)

    def _report(self, line: str, on_progress: Callable[[Progress], None]) -> None:
        try:
            progress = Progress.from_json(line)
        except (ValueError, TypeError, AttributeError):
            return  # a library that writes past sys.stdout; the log has it
        self._spoke = monotonic()
        self._news.set()
        on_progress(progress)

    def _torchrun(self) -> list[str]:
        """What torchrun is told. On other hosts the same command is run by hand, with its own --node-rank."""
        options = [f"--nproc-per-node={self._settings.local_processes}"]
        if self._settings.hosts == 1:
            return ["--standalone", *options]
        host, _, port = self._settings.rendezvous.rpartition(":")
        options += [f"--nnodes={self._settings.hosts}", "--node-rank=0"]
        return [*options, f"--master-addr={host}", f"--master-port={port}"]

    def _environment(self, work: Path, processes: int) -> dict[str, str]:
        threads = self._settings.threads or max(1, len(os.sched_getaffinity(0)) // processes)
        cards = ",".join(map(str, self._settings.gpus))
        return {
            **({"CUDA_VISIBLE_DEVICES": cards} if cards else {}),
            # Where transformers copies the model code of a checkpoint before it imports it; by default into the home.
            "HF_MODULES_CACHE": str(work / "modules"),
            # Read when torch is imported; a worker beside an engine must not take every core by itself.
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            # Waiting threads sleep. Spinning ones take the cores from the engine that answers meanwhile: on two cores
            # that others were using too, a training needed 35 s of processor time with them and 22 s without.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            # Batches of many lengths leave holes in fixed segments of a GPU's memory.
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            # Nothing here is to be fetched; a missing file must be an error and not a download.
            "HF_HUB_OFFLINE": "1",
        }


def _spent_before(job: Job) -> float:
    """Seconds of the training that was cut short and is gone on from, 0 where none is."""
    log = Path(job.work) / SCALARS
    return step_seconds(log) if log.is_file() and latest_checkpoint(job) else 0.0


def _laid_out(job: WorkerJob, job_file: Path) -> Path:
    """Write the job file, remove what an earlier try left, and say where the outcome will be."""
    job_file.parent.mkdir(parents=True, exist_ok=True)
    job.write(job_file)
    outcome = outcome_file(job_file)
    outcome.unlink(missing_ok=True)
    return outcome


def _last_words(step: str, how: str, tail: str, log: Path) -> str:
    if how == "signal SIGKILL":
        how += ", often for want of memory"
    return f"the {step} process died ({how}); it said last: {tail or 'nothing'} (all of it in {log})"
