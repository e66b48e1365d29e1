"""The parent side of the training workers: starting child processes, and reading progress and outcomes.

The child side is `training.worker`. If a child process ends without an outcome, for example because it
was killed, the parent creates one whose reason includes the exit code and the last output.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Final

from inference.process.child import Child
from inference.process.warm_python import WarmPython
from storage.translatable_reason import Reason
from training.evaluation_jobs import OpeningJob
from training.job import Job, Outcome, Progress, WorkerJob, ignore, outcome_file
from training.run_folder import SCALARS
from training.settings import TrainingSettings
from training.xtuner.resume import latest_checkpoint
from training.xtuner.scalars import step_seconds

PRELOADED: Final = (
    "anyio._backends._asyncio",
    "httpcore",
    "openai.resources.chat",
    "torch.utils.tensorboard",
    "training.adapter",
    "training.data.mixture",
    "training.gate.answer_backend",
    "training.gate.forgetting",
    "training.gate.local_model",
    "training.gate.prompt_parity",
    "training.gate.run_comparison_sheet",
    "training.plots",
    "training.xtuner.dataset",
    "training.xtuner.internvl_model",
    "training.xtuner.runner",
)
"""What a warm interpreter imports for the workers."""

_IDLE_SECONDS: Final = 60.0
"""How long a warm interpreter waits for the next worker of a run, or for the next run."""

_TAIL_LINES: Final = 4
_LOG_BYTES: Final = 50_000_000
_STOP_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LastProgress:
    """The time since a worker last reported progress, or since it started if it has reported none.

    Attributes:
        run: The run's ID; empty if the worker belongs to no run.
        seconds: The elapsed time in seconds.
        silent: Whether `seconds` has reached the limit `training.silence`.
        log: The worker's log.
    """

    run: str
    seconds: float
    silent: bool
    log: Path


@dataclass(eq=False)
class _Reports:
    """The progress reports of a running worker.

    Attributes:
        run: The run's ID; empty if the worker belongs to no run.
        on_progress: Called with each report.
        last: When the worker last reported progress, or when it started, on the monotonic clock.
        arrived: Set by each report.
        child: The worker, once it has started.
    """

    run: str
    on_progress: Callable[[Progress], None]
    last: float = field(default_factory=monotonic)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    child: Child | None = None

    def read(self, line: str) -> None:
        """Read a line that the worker printed."""
        try:
            progress = Progress.from_json(line)
        except (ValueError, TypeError, AttributeError):
            return  # a line from a library that bypasses sys.stdout; it is in the log
        self.last = monotonic()
        self.arrived.set()
        self.on_progress(progress)


def warm_python(settings: TrainingSettings, logs: Path, modules: Sequence[str] = ()) -> WarmPython:
    """Return an interpreter that preloads the libraries of the workers and `modules`, and starts on first use."""
    return WarmPython(
        settings.python or sys.executable,
        (*PRELOADED, *modules),
        log=logs / "warm-python.log",
        environment=_environment(settings, 1),
        idle=0 if settings.keep_warm else _IDLE_SECONDS,
    )


class ChildTrainer:
    """A `Trainer` that runs each job in a child process, forked from the interpreter `warm` if one is given."""

    def __init__(self, settings: TrainingSettings, warm: WarmPython | None = None) -> None:
        self._settings = settings
        self._warm = warm
        self._running: list[_Reports] = []

    @property
    def last_progress(self) -> LastProgress | None:
        """The last progress of the worker that has been silent the longest, or None if no worker is running."""
        if not self._running:
            return None
        longest = min(self._running, key=lambda each: each.last)
        assert longest.child is not None
        seconds = monotonic() - longest.last
        silent = 0 < self._settings.silence <= seconds
        return LastProgress(longest.run, seconds, silent, longest.child.log_path)

    @property
    def pids(self) -> list[int]:
        """The process IDs of the running workers."""
        return [each.child.pid for each in self._running if each.child and each.child.pid]

    async def run(self, job: WorkerJob, on_progress: Callable[[Progress], None] = ignore) -> Outcome:
        """Run the worker of a job until it ends; cancelling this call kills the worker.

        A fine-tuning job that runs out of memory is restarted with smaller batches. The `seconds` of its outcome
        include all attempts and, if the job resumes interrupted training, the time already spent on it.
        """
        if not isinstance(job, Job):
            return await self._run_once(job, on_progress)
        spent = await asyncio.to_thread(_spent_before, job)
        while True:
            outcome = await self._run_once(job, on_progress)
            spent += outcome.seconds
            if not outcome.too_large:
                return replace(outcome, seconds=spent)
            job = replace(job, split=2 * job.split)
            log.warning("run %s: %s; retrying with smaller batches", job.run, outcome.reason)

    async def _run_once(self, job: WorkerJob, on_progress: Callable[[Progress], None]) -> Outcome:
        step = job.worker[0]
        job_file = Path(job.work) / f"{step}.json"
        outcome = outcome_file(job_file)
        job_file.parent.mkdir(parents=True, exist_ok=True)
        job.write(job_file)
        outcome.unlink(missing_ok=True)  # of an earlier attempt
        log_file = job_file.with_suffix(".log")
        processes = self._settings.world_size if step == "finetune" else 1
        command = await self._command(job, job_file, processes)
        reports = _Reports(getattr(job, "run", ""), on_progress)
        try:
            child = await Child.start(
                command,
                log=log_file,
                log_bytes=_LOG_BYTES,
                log_files=1,
                environment={
                    **_environment(self._settings, processes),
                    # transformers copies a checkpoint's model code here before importing it (by default, to the
                    # home folder).
                    "HF_MODULES_CACHE": str(job_file.parent / "modules"),
                },
                on_line=reports.read,
            )
        except OSError as error:
            return Outcome(ok=False, reason=f"{command[0]} cannot be started ({error}): correct training.python")
        reports.child = child
        self._running.append(reports)
        watching = asyncio.create_task(self._watch(child, reports.arrived))
        try:
            async with asyncio.timeout(self._settings.timeout):
                await child.wait()
        except TimeoutError:
            await child.dump_stacks()
            reason = Reason("{step} took longer than training.timeout; the log is {log}", step=step, log=str(log_file))
            return Outcome(ok=False, reason=reason, log=str(log_file))
        finally:
            watching.cancel()
            # This runs after a cancellation too. SIGTERM comes first: torchrun's processes have their own sessions, and
            # torchrun ends them.
            await asyncio.shield(child.stop(_STOP_SECONDS))
            self._running.remove(reports)
        try:
            return Outcome.read(outcome)
        except FileNotFoundError:
            reason = _crash_reason(step, child.how_it_ended(), child.tail(_TAIL_LINES), log_file)
            return Outcome(ok=False, reason=reason, log=str(log_file))

    async def _command(self, job: WorkerJob, file: Path, processes: int) -> list[str]:
        """Return the command line of a job's worker; the warm interpreter, if there is one, is started for it.

        A job that only asks engines does not wait for the interpreter, which imports what the other jobs need.
        """
        step, module = job.worker
        python = self._settings.python or sys.executable
        if step == "finetune" and self._settings.engine == "ray":
            return [python, "-m", "cluster.training", *self._cluster(), str(file)]
        if processes > 1:
            launcher = ("torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
            return [python, "-m", *launcher, "-m", module, str(file)]
        command = [python, "-m", module, str(file)]
        if self._warm is None:
            return command
        if not isinstance(job, OpeningJob):
            await self._warm.start()
        return self._warm.forked(command)

    async def _watch(self, child: Child, reported: asyncio.Event) -> None:
        """Write a worker's stacks to its log whenever it has reported no progress for `training.silence` seconds."""
        while True:
            reported.clear()
            try:
                async with asyncio.timeout(self._settings.silence or None):
                    await reported.wait()
            except TimeoutError:
                log.warning("a worker has reported no progress for %d s: %s", self._settings.silence, child.log_path)
                await child.dump_stacks()
                await reported.wait()
                log.warning("the worker continues: %s", child.log_path)

    def _cluster(self) -> list[str]:
        """Return the command-line options for training on a Ray cluster."""
        ray = self._settings.ray
        return [f"--address={ray.address}", f"--num-cpus={ray.num_cpus}", f"--num-gpus={ray.num_gpus}"]


def _environment(settings: TrainingSettings, processes: int) -> dict[str, str]:
    """Return the variables that libraries read on import, for a worker of `processes` processes."""
    cores = len(os.sched_getaffinity(0)) // processes
    if settings.engine == "ray":
        cores = int(settings.ray.num_cpus)
    threads = settings.threads or max(1, cores)
    # With "cpu", libraries must not see a GPU when they are imported.
    cards = "" if settings.device == "cpu" else ",".join(map(str, settings.gpus))
    return {
        **({"CUDA_VISIBLE_DEVICES": cards} if cards or settings.device == "cpu" else {}),
        # torch reads these on import. A worker must leave cores for the engine.
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Idle OpenMP threads sleep, because spinning takes cores from the engine: on two busy cores, a training run
        # took 35 s of processor time with spinning threads and 22 s with sleeping ones.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        # Batches of different lengths fragment torch's default segments of GPU memory.
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        # torch asks the driver's library for GPUs, which does not initialize CUDA: see `inference.process.fork_server`.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        # A missing file must be an error, not a download.
        "HF_HUB_OFFLINE": "1",
    }


def _spent_before(job: Job) -> float:
    """Return the seconds already spent on the interrupted training that `job` resumes, or 0 if there is none."""
    log = Path(job.work) / SCALARS
    return step_seconds(log) if log.is_file() and latest_checkpoint(job) else 0.0


def _crash_reason(step: str, how: str, tail: str, log: Path) -> Reason:
    if how == "signal SIGKILL":
        how += ", often because memory ran out"
    return Reason(
        "the {step} process died ({how}); its last output: {words} (see {log})",
        step=step,
        how=how,
        words=tail or "nothing",
        log=str(log),
    )
