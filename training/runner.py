"""Worker: run an XTuner configuration file with progress. Knows mmengine's Runner and hooks, and no other files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from xtuner.tools.train import register_function

from training.job import Progress


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training: the model in memory, the log of losses (JSON lines) and the number of batches."""

    model: Any
    scalars: Path
    steps: int


def train(config_file: Path, say: Callable[[Progress], None]) -> Trained:
    """Do what `python -m xtuner.tools.train CONFIG` does, reporting each batch."""
    config = Config.fromfile(config_file)
    register_function(config._cfg_dict)
    config.launcher = "none"
    runner = Runner.from_cfg(config)
    runner.register_hook(_Report(say), priority="VERY_LOW")
    runner.train()
    scalars = Path(runner.log_dir) / "vis_data" / "scalars.json"
    return Trained(runner.model, scalars, runner.iter)


class _Report(Hook):  # type: ignore[misc]
    """Says after each batch how far the training is."""

    def __init__(self, say: Callable[[Progress], None]) -> None:
        self._say = say
        self._begun = 0.0

    def before_train(self, runner: Any) -> None:
        self._begun = time.monotonic()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        done, steps = batch_idx + 1, runner.max_iters
        left = (time.monotonic() - self._begun) / done * (steps - done)
        self._say(Progress("training", done, steps, float(outputs["loss"]), round(left, 1)))
