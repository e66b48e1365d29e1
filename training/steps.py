"""Worker: mmengine's hooks, counted in steps of the optimiser.

mmengine counts batches. Here a step is one of the optimiser everywhere, in the schedule, the log and the checkpoints,
so that a run can be continued with other batches, and one process and several go through the same steps.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from mmengine.hooks import Hook, LoggerHook, ParamSchedulerHook


class StepSchedule(ParamSchedulerHook):  # type: ignore[misc]
    """Moves the learning rate on after each optimiser step, which has so many `batches`."""

    def __init__(self, batches: int) -> None:
        self._batches = batches

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.every_n_train_iters(runner, self._batches):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"]["steps"] = checkpoint["meta"]["iter"] // self._batches

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        # Saved when a step may have had another number of batches.
        checkpoint["meta"]["iter"] = checkpoint["meta"]["steps"] * self._batches


class StepLogger(LoggerHook):  # type: ignore[misc]
    """Logs each optimiser step under its number."""

    def __init__(self, batches: int) -> None:
        super().__init__(log_metric_by_epoch=False)
        self._batches = batches

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.every_n_train_iters(runner, self._batches):
            scalars, text = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
            runner.logger.info(text)
            step = (runner.iter + 1) // self._batches
            runner.visualizer.add_scalars(scalars, step=step, file_path=self.json_log_path)


class MeanLoss(Hook):  # type: ignore[misc]
    """Of several processes reports the mean of their losses; mmengine's log has the first one's alone."""

    priority = "HIGHEST"  # before whoever reads it

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.world_size > 1:
            dist.all_reduce(outputs["loss"])
            outputs["loss"] /= runner.world_size
