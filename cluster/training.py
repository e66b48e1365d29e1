"""Run a fine-tuning job on a Ray cluster, with one worker for each of the job's processes.

    python -m cluster.training --address auto --num-cpus 1 --num-gpus 1 JOB.json

The bot starts this process in place of torchrun if `training.engine` is "ray". It prints the progress of
rank 0, and stops the workers when it is terminated. The job's files must have the same paths on every node.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any, Final

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from cluster.train_worker import train
from inference.process.parent_watch import watch_parent
from training.job import Job, outcome_file

_FAILURES: Final = 2
"""How many times a job is resumed after losing a worker."""

_TIMEOUT_SECONDS: Final = 2 * 3600
"""How long the other workers wait while rank 0 checks the data."""

_END_SECONDS: Final = 10.0
_PASSED_ON: Final = (
    *("HF_MODULES_CACHE", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"),
    *("TOKENIZERS_PARALLELISM", "PYTORCH_CUDA_ALLOC_CONF"),
)
"""Environment variables that the bot sets for training processes, passed on to the workers."""


def _print_lines(lines: Any) -> None:
    while (line := lines.get()) is not None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the process from the command line."""
    parser = argparse.ArgumentParser(prog="python -m cluster.training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--address", default="auto", help="address of the cluster")
    parser.add_argument("--num-cpus", type=float, default=1, help="CPU cores per worker")
    parser.add_argument("--num-gpus", type=float, default=0, help="GPUs per worker")
    parser.add_argument("job", type=Path)
    options = parser.parse_args(arguments)
    watch_parent(_END_SECONDS)
    job_file = options.job.resolve()
    job = Job.read(job_file)
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    ray.init(address=options.address, runtime_env={"env_vars": passed_on})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    progress = Queue(actor_options={"num_cpus": 0})
    printing = Thread(target=_print_lines, args=(progress,), daemon=True)
    printing.start()
    storage = Path(job.work) / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    resources = {"CPU": options.num_cpus, "GPU": options.num_gpus}
    trainer = TorchTrainer(
        train,
        train_loop_config={"job": str(job_file), "progress": progress},
        scaling_config=ScalingConfig(
            num_workers=job.processes,
            use_gpu=options.num_gpus > 0,
            resources_per_worker={name: each for name, each in resources.items() if each},
        ),
        run_config=RunConfig(
            name="run", storage_path=str(storage), failure_config=FailureConfig(max_failures=_FAILURES)
        ),
        torch_config=TorchConfig(timeout_s=_TIMEOUT_SECONDS),
    )
    try:
        trainer.fit()
    except Exception:
        # If the job itself failed, the bot reads the reason from the outcome.
        if not outcome_file(job_file).exists():
            raise
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    progress.put(None)
    printing.join()


if __name__ == "__main__":
    main()
