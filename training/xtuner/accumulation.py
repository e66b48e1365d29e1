"""mmengine's training loop and hooks, adapted to count optimizer steps.

mmengine counts iterations, one per batch. In this module, the schedule, the log and the checkpoints
count optimizer steps, so that training can continue with a different batch size and takes the same steps
with any number of processes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, cycle, islice, repeat
from math import ceil
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook, LoggerHook, ParamSchedulerHook
from mmengine.model import is_model_wrapper
from torch.utils.data import Sampler
from xtuner.engine.runner import TrainLoop

from training.xtuner.encoding import IGNORE_INDEX


class StepSampler(Sampler[int]):
    """A sampler for one process, in an order independent of the batch size.

    The dataset contains the same rows `passes` times, and each pass, in a new random order, is complete before the
    next begins. Samples about the same pictures follow one another, because a batch computes their common tokens
    only once (`training.xtuner.packing`); but so that a step learns from several pictures, the samples
    about one picture are divided into parts of at most half a step, and the parts are shuffled.

    Attributes:
        begin: The number of this process's samples to skip.
    """

    begin = 0

    def __init__(self, dataset: Any, passes: int, samples: int, seed: int) -> None:
        """Prepare the order of the samples of `dataset`, of which this process computes `samples` in each step."""
        self._pictures: Sequence[tuple[str, ...]] = dataset.pictures[: len(dataset) // passes]
        self._passes = passes
        self._own = samples
        self._seed = seed
        self._steps: int = ceil(len(dataset) / (samples * get_world_size()))

    def __len__(self) -> int:
        return self._steps * self._own

    def __iter__(self) -> Iterator[int]:
        size, random = self._own * get_world_size(), Random(self._seed)
        order: list[int] = []
        for number in range(self._passes):
            order += (number * len(self._pictures) + row for row in self._pass(max(1, size // 2), random))
        # The last step is filled with samples from the beginning.
        order += islice(cycle(order), self._steps * size - len(order))
        steps = (self._largest_first(order[first : first + size]) for first in range(0, len(order), size))
        own = (step[get_rank() :: get_world_size()] for step in steps)
        yield from islice(chain.from_iterable(own), self.begin, None)

    def _pass(self, most: int, random: Random) -> Iterator[int]:
        """Return all rows in a random order, with up to `most` rows about the same pictures next to each other."""
        rows = random.sample(range(len(self._pictures)), len(self._pictures))
        groups = self._grouped(rows)
        parts = [each[first : first + most] for each in groups for first in range(0, len(each), most)]
        random.shuffle(parts)
        return chain.from_iterable(parts)

    def _largest_first(self, step: Sequence[int]) -> list[int]:
        """Return the samples of a step so that as few groups about the same pictures as possible span two batches."""
        return [each for group in sorted(self._grouped(step), key=len, reverse=True) for each in group]

    def _grouped(self, samples: Iterable[int]) -> list[list[int]]:
        """Return the samples in groups about the same pictures."""
        groups = defaultdict[Any, list[int]](list)
        for each in samples:
            groups[self._pictures[each % len(self._pictures)] or each].append(each)
        return list(groups.values())


class StepLoop(TrainLoop):  # type: ignore[misc]
    """A training loop that makes the loss of an optimizer step the mean over its target tokens.

    Target tokens are those with a label. A model returns the mean over the tokens of one batch. mmengine and
    DeepSpeed average the `batches` of a step, and the processes average their gradients. The tokens of short
    answers would therefore weigh more, depending on which answers share a batch. To prevent this bias, the
    loop reads the batches of a step ahead, counts their tokens over all processes, and scales the loss of
    each batch by its share of the tokens.

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
        """Log the optimizer step if this iteration completes it."""
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
