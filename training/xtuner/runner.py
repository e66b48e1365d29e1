"""Run an XTuner configuration file with mmengine's Runner, and report progress."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, RUNNERS
from xtuner.tools.train import register_function

from storage.translatable_reason import Reason
from training.job import Progress, TrainingError
from training.worker import is_out_of_memory, world_size


class OutOfMemory(TrainingError):
    """Training ran out of memory after it had started, with `batch` samples per batch."""

    def __init__(self, batch: int) -> None:
        self.reason = Reason("not enough memory to compute {batch} pairs at once", batch=batch)
        super().__init__(self.reason)
        self.batch = batch


class KeptModel:
    """The base model, kept in memory together with the initial values of the weights that training changes.

    Training jobs with the same settings reuse the model.
    """

    def __init__(self) -> None:
        self._model: Any = None
        self._settings: dict[str, Any] = {}
        self._weights: dict[str, torch.Tensor] = {}

    def build(self, kind: str, model_path: str, tokens: int, **settings: Any) -> Any:
        """Return the model of type `kind` with its initial weights.

        The model is loaded unless the one in memory has the same settings.
        """
        settings["type"] = kind
        if self._model is None or settings != self._settings:
            self._model, self._settings = None, settings
            self._model = MODELS.build({"model_path": model_path, "tokens": tokens, **settings})
            trained = ((name, each) for name, each in self._model.named_parameters() if each.requires_grad)
            self._weights = {name: each.detach().cpu().clone() for name, each in trained}
        else:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    parameter = self._model.get_parameter(name)
                    parameter.copy_(weight)
                    parameter.grad = None
            self._model.choose_checkpointing(tokens)
        return self._model


def train(
    config_file: Path, say: Callable[[Progress], None], checkpoint: Path | None = None, kept: KeptModel | None = None
) -> tuple[torch.nn.Module, int]:
    """Train as `python -m xtuner.tools.train CONFIG` does, reporting each step.

    If `checkpoint` is given, training resumes from it.

    If `kept` is None, a model is loaded. Otherwise, the model in `kept` is trained and returned, and the
    next training run with `kept` changes it again.

    Returns:
        The InternVL model and the number of optimizer steps.

    Raises:
        OutOfMemory: Memory ran out after training began; a smaller batch may fit.
    """
    config = Config.fromfile(config_file)
    # mmengine 0.10.6 logs and stores the configuration five times, and formatting it takes as long as loading the
    # model. It passes this option of `fromfile` on for only one kind of file.
    object.__setattr__(config, "_format_python_code", False)
    register_function(config._cfg_dict)
    if world_size() > 1:
        config.launcher = "pytorch"
        if not torch.cuda.is_available():
            config.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}
    else:
        config.launcher = "none"
    # Until the process ends, mmengine 0.10.6 keeps a log and a hub under this name (by default, the time in seconds).
    config.experiment_name = str(config_file)
    # By default, mmengine begins a new log in each process; a resumed run continues its own.
    config.visualizer.save_dir = config.work_dir
    if checkpoint:
        config.resume, config.load_from = True, str(checkpoint)
        # mmengine 0.10.6 relies on torch.load's default before torch 2.6. The file is our own.
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    strategy = config.get("strategy", {})
    if kept is not None:
        MODELS.register_module("KeptModel", force=True, module=kept.build)
        config.model = {**config.model, "type": "KeptModel", "kind": config.model["type"]}
    batches = strategy.get("gradient_accumulation_steps") or config.optim_wrapper.get("accumulative_counts", 1)
    runner = RUNNERS.build(config)
    progress = _ProgressHook(say, batches)
    runner.register_hook(progress, priority="VERY_LOW")
    try:
        runner.train()
    except RuntimeError as error:
        if progress.begun and is_out_of_memory(error):
            raise OutOfMemory(config.train_dataloader.batch_size) from error
        raise
    finally:
        # The garbage collector would close the queues that tell the loader's processes to end before it ends the
        # loader, which then waits 5 s for each process (torch 2.13). Dropping the iterator ends them at once.
        loop = runner._train_loop  # `runner.train_loop` would build it
        if hasattr(loop, "dataloader_iterator"):
            del loop.dataloader_iterator
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model.model, runner.iter // batches


class _ProgressHook(Hook):  # type: ignore[misc]
    """Hook that reports each optimizer step with the mean loss over the most recent steps.

    The mean covers up to a tenth of the steps of the training.
    """

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
