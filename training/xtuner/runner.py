"""Worker: run an XTuner configuration file with progress. Knows mmengine's Runner and hooks, and no other files."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from xtuner.tools.train import register_function

from training.job import Progress, TrainingError
from training.worker import together


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training: the InternVL model, the log of losses (JSON lines) and the number of optimiser steps."""

    model: torch.nn.Module
    scalars: Path
    steps: int


class OutOfMemory(TrainingError):
    """The training, once begun, found too little memory. `batch` is how many pairs it computed at once."""

    def __init__(self, batch: int) -> None:
        super().__init__(f"there is too little memory to compute {batch} pairs at once")
        self.batch = batch


def train(config_file: Path, say: Callable[[Progress], None], checkpoint: Path | None = None) -> Trained:
    """Do what `python -m xtuner.tools.train CONFIG` does, reporting each step, and go on from a `checkpoint`.

    Raises `OutOfMemory`.
    """
    config = Config.fromfile(config_file)
    register_function(config._cfg_dict)
    if together() > 1:
        config.launcher = "pytorch"
        if not torch.cuda.is_available():
            config.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}
    else:
        config.launcher = "none"
    # One log however often the run is continued; mmengine begins one for each process.
    config.visualizer.save_dir = config.work_dir
    if checkpoint:
        config.resume, config.load_from = True, str(checkpoint)
        # mmengine 0.10.6 loads by the default of torch before 2.6. The file is our own.
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    spread = config.get("strategy", {})
    batches = spread.get("gradient_accumulation_steps") or config.optim_wrapper.get("accumulative_counts", 1)
    runner = RUNNERS.build(config)
    report = _Report(say, batches)
    runner.register_hook(report, priority="VERY_LOW")
    try:
        runner.train()
    except RuntimeError as error:
        if report.begun and out_of_memory(error):
            raise OutOfMemory(config.train_dataloader.batch_size) from error
        raise
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return Trained(model.model, Path(config.work_dir) / "vis_data" / "scalars.json", runner.iter // batches)


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what a GPU's or a CPU's allocator says."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


class _Report(Hook):  # type: ignore[misc]
    """Reports after each optimizer step how far the training is, with the mean loss of the last tenth of its steps."""

    def __init__(self, say: Callable[[Progress], None], batches: int) -> None:
        self._say = say
        self._batches = batches
        self.begun = 0.0
        self._first = 0
        self._losses = deque[float]()

    def before_train(self, runner: Any) -> None:
        self.begun, self._first = time.monotonic(), runner.iter
        self._losses = deque(maxlen=ceil(runner.max_iters / self._batches / 10))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not self.every_n_train_iters(runner, self._batches):
            return
        done = batch_idx + 1
        left = (time.monotonic() - self.begun) / (done - self._first) * (runner.max_iters - done)
        self._losses.append(float(runner.message_hub.get_scalar("train/loss").mean(self._batches)))
        steps = runner.max_iters // self._batches
        self._say(Progress("training", done // self._batches, steps, mean(self._losses), round(left, 1)))
