"""mmengine's training loop and hooks, adapted to count optimizer steps.

mmengine counts iterations, one per batch. In this module, the schedule, the log and the checkpoints
count optimizer steps, so that training can continue with a different batch size and takes the same steps
with any number of processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence, Sized
from itertools import chain, cycle, islice, repeat
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook, LoggerHook, ParamSchedulerHook
from mmengine.model import is_model_wrapper
from xtuner.dataset.samplers import LengthGroupedSampler
from xtuner.dataset.samplers.length_grouped import get_length_grouped_indices
from xtuner.engine.runner import TrainLoop

from training.xtuner.encoding import IGNORE_INDEX


class StepSampler(LengthGroupedSampler):  # type: ignore[misc]
    """A sampler that groups samples of similar length, in an order independent of the batch size.

    The dataset contains the same rows `passes` times, and each pass is complete before the next begins.
    XTuner instead shuffles all passes together, so that copies of a sample, which have the same length, end
    up in one step. Because of padding, complete passes process a third more tokens for 50 samples of very
    different lengths, and 4 % more for 200.

    Attributes:
        begin: The number of this process's samples to skip.
    """

    begin = 0

    def __init__(self, dataset: Sized, passes: int = 1, **options: Any) -> None:
        super().__init__(dataset, **options)
        self._rows = len(self.length) // passes
        # The size of XTuner's LengthGroupedSampler for a dataset of one pass.
        self._group = self.total_batch_size * (min(self._rows // (self.total_batch_size * 4), 50) or 1)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        order = [
            first + row
            for first in range(0, len(self.length), self._rows)
            for row in get_length_grouped_indices(self.length[: self._rows], self._group, generator)
        ]
        # The last step is filled with samples from the beginning.
        order += islice(cycle(order), self.total_size - len(order))
        return islice(order, self.rank + self.begin * self.world_size, None, self.world_size)


class StepLoop(TrainLoop):  # type: ignore[misc]
    """A training loop that makes the loss of an optimizer step the mean over its target tokens.

    A model returns the mean over the tokens of one batch. mmengine and DeepSpeed average the `batches` of a
    step, and the processes average their gradients. The tokens of short answers would therefore weigh more,
    depending on which answers share a batch. To prevent this bias, the loop reads the batches of a step
    ahead, counts their tokens over all processes, and scales the loss of each batch by its share of the
    tokens.

    With a `StepSampler`, resumed training starts at its first new sample; mmengine's own loop loads and
    discards all earlier samples.
    """

    dataloader_iterator: Iterator[Any]

    def __init__(self, runner: Any, dataloader: Any, batches: int = 1, **settings: Any) -> None:
        super().__init__(runner, dataloader, **settings)
        self._batches = batches
        self._scale = 1.0

    @property
    def model(self) -> Any:
        """The model without its wrapper for multi-process training."""
        return self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model

    def run(self) -> Any:
        """Run the training until it ends."""
        loader = self.dataloader
        sampler = getattr(loader.batch_sampler, "sampler", None)
        if self._iter and isinstance(sampler, StepSampler):
            sampler.begin = self._iter * loader.batch_size
            self.dataloader_iterator = chain(repeat(None, self._iter), iter(loader))
        scaling = self.model.register_forward_hook(self._scale_loss)
        self.dataloader_iterator = self._set_scales(self.dataloader_iterator)
        try:
            return super().run()
        finally:
            scaling.remove()  # the model may be trained again

    def _set_scales(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield each batch after setting the scale of its loss."""
        yield from islice(batches, self._iter)  # skipped by mmengine's loop
        while True:
            done, last = self._iter, self.max_iters % self._batches
            step = deque(islice(batches, min(self._batches - done % self._batches, self.max_iters - done)))
            counts = deque(learned_tokens(each["data"]["labels"]) for each in step)
            self.prepare_step(step)
            # mmengine's OptimWrapper divides by this number: the last step may have fewer batches.
            averaged = last if done >= self.max_iters - last else self._batches
            mean = _sum_over_processes(sum(counts)) / (averaged * get_world_size())
            while step:
                self._scale = counts.popleft() / mean
                yield step.popleft()

    def prepare_step(self, batches: Sequence[Any]) -> None:
        """Prepare for an optimizer step with the given batches of this process.

        The default implementation does nothing.
        """

    def _scale_loss(self, model: Any, inputs: Any, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**losses, "loss": losses["loss"] * self._scale}


def learned_tokens(labels: torch.Tensor) -> int:
    """Count the target tokens of a batch from its labels, [B, N].

    The first position of each row is not counted, because it is never predicted.
    """
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


def _sum_over_processes(count: int) -> int:
    total = torch.tensor(count)
    all_reduce(total)
    return int(total)


class StepSchedule(ParamSchedulerHook):  # type: ignore[misc]
    """A hook that updates the learning rate after each optimizer step of `batches` iterations."""

    def __init__(self, batches: int) -> None:
        self._batches = batches

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance the schedule if the iteration ends an optimizer step."""
        if self.every_n_train_iters(runner, self._batches):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Save the number of optimizer steps in the checkpoint."""
        checkpoint["meta"]["steps"] = checkpoint["meta"]["iter"] // self._batches

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Set the iteration count from the checkpoint's step count, as the number of batches per step may differ."""
        checkpoint["meta"]["iter"] = checkpoint["meta"]["steps"] * self._batches


class StepLogger(LoggerHook):  # type: ignore[misc]
    """A hook that logs each optimizer step under its number."""

    def __init__(self, batches: int) -> None:
        super().__init__(log_metric_by_epoch=False)
        self._batches = batches

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Log the optimizer step if the iteration ends one."""
        if self.every_n_train_iters(runner, self._batches):
            scalars, text = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
            runner.logger.info(text)
            step = (runner.iter + 1) // self._batches
            runner.visualizer.add_scalars(scalars, step=step, file_path=self.json_log_path)


class MeanLoss(Hook):  # type: ignore[misc]
    """A hook that reports the mean loss over all processes; mmengine logs only the first process's loss."""

    priority = "HIGHEST"  # before the hooks that read the loss

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Average the loss over the processes."""
        if runner.world_size > 1:
            dist.all_reduce(outputs["loss"])
            outputs["loss"] /= runner.world_size
