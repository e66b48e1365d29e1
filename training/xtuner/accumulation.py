"""Worker: mmengine's loop and hooks, counted in steps of the optimiser.

mmengine counts batches. Here a step is one of the optimiser everywhere, in the schedule, the log and the checkpoints,
so that a run can be continued with other batches, and one process and several go through the same steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sized
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

from training.xtuner.encoding import UNLEARNED


class StepSampler(LengthGroupedSampler):  # type: ignore[misc]
    """Pairs of like length together, in the same order however a step is cut into batches, from `begin` on.

    The data set is `passes` times the same rows, and all of one pass come before any of the next: shuffled together,
    the copies of a pair, which are of one length, meet in one step. That costs a third more tokens with 50 pairs of
    very different lengths, and 4 % with 200.
    """

    begin = 0

    def __init__(self, dataset: Sized, passes: int = 1, **options: Any) -> None:
        super().__init__(dataset, **options)
        self._rows = len(self.length) // passes
        # As many as XTuner takes of a data set of one pass.
        self._group = self.total_batch_size * (min(self._rows // (self.total_batch_size * 4), 50) or 1)

    def __iter__(self) -> Iterator[int]:
        dice = torch.Generator()
        dice.manual_seed(self.seed + self.epoch)
        order = [
            first + row
            for first in range(0, len(self.length), self._rows)
            for row in get_length_grouped_indices(self.length[: self._rows], self._group, dice)
        ]
        # Whole steps: what the last one lacks is taken from the front.
        order += islice(cycle(order), self.total_size - len(order))
        return islice(order, self.rank + self.begin * self.world_size, None, self.world_size)


class TokenLoop(TrainLoop):  # type: ignore[misc]
    """Make the loss of an optimizer step the mean over its learned tokens.

    A model returns the mean over the tokens of one batch. mmengine and DeepSpeed average the `batches` of a step, and
    the processes average their gradients; short answers would weigh more, depending on which answers share a batch. So
    the batches of a step are read ahead, their tokens are counted over all processes, and each batch's loss is scaled
    by its share of them.
    """

    dataloader_iterator: Iterator[Any]

    def __init__(self, runner: Any, dataloader: Any, batches: int = 1, **settings: Any) -> None:
        super().__init__(runner, dataloader, **settings)
        self._batches = batches
        self._scale = 1.0

    def run(self) -> Any:
        """Train to the end."""
        model = self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model
        model.register_forward_hook(self._scaled)
        self.dataloader_iterator = self._scaling(self.dataloader_iterator)
        return super().run()

    def _scaling(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield each batch once the scale of its loss is set."""
        yield from islice(batches, self._iter)  # mmengine skips these
        while True:
            done, last = self._iter, self.max_iters % self._batches
            step = deque(islice(batches, min(self._batches - done % self._batches, self.max_iters - done)))
            counts = deque(_learned(each) for each in step)
            # What mmengine's OptimWrapper divides by: the last step may have fewer batches.
            averaged = last if done >= self.max_iters - last else self._batches
            mean = _over_processes(sum(counts)) / (averaged * get_world_size())
            while step:
                self._scale = counts.popleft() / mean
                yield step.popleft()

    def _scaled(self, model: Any, given: Any, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**losses, "loss": losses["loss"] * self._scale}


def _learned(batch: dict[str, Any]) -> int:
    """The tokens that a collated batch teaches. The first one of a row follows nothing."""
    return int((batch["data"]["labels"][:, 1:] != UNLEARNED).sum())


def _over_processes(count: int) -> int:
    total = torch.tensor(count)
    all_reduce(total)
    return int(total)


class StepLoop(TokenLoop):
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
