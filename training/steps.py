"""Worker: mmengine's loop and hooks, counted in steps of the optimiser.

mmengine counts batches. Here a step is one of the optimiser everywhere, in the schedule, the log and the checkpoints,
so that a run can be continued with other batches, and one process and several go through the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, repeat
from typing import Any

import torch.distributed as dist
from mmengine.hooks import Hook, LoggerHook, ParamSchedulerHook
from xtuner.dataset.samplers import LengthGroupedSampler
from xtuner.engine.runner import TrainLoop


class StepSampler(LengthGroupedSampler):  # type: ignore[misc]
    """Pairs of like length together, in the same order however a step is cut into batches, from `begin` on."""

    begin = 0

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.begin, None)


class StepLoop(TrainLoop):  # type: ignore[misc]
    """Goes on without what was trained on already; mmengine fetches it, pictures and all, and throws it away."""

    def run(self) -> Any:
        if self._iter:
            loader = self.dataloader
            loader.batch_sampler.sampler.begin = self._iter * loader.batch_size
            self.dataloader_iterator = chain(repeat(None, self._iter), iter(loader))
        return super().run()


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
