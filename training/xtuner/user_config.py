"""Adapt an operator's XTuner configuration (`training.recipe = "my_config.py"`) to a run.

The run's base model, rows and directory replace the model, the dataset and the directory named in the
configuration; every step is logged, and training can be resumed from checkpoints. Everything else stays
as configured, with three exceptions: `OptimWrapper` replaces `AmpOptimWrapper`, which cannot clip the
bfloat16 gradients of XTuner's InternVL on a GPU (mmengine 0.10.6); `StepLoop` replaces XTuner's
`TrainLoop`, so that the loss of a step is the mean over its tokens even with smaller batches; and the
hook that logs a sample is removed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from mmengine.config import Config

from training.job import Job, TrainingError
from training.run_folder import BASE, STATE
from training.xtuner.config_file import VISUALIZER, config_file_text, dataset, split_batch

_MAX_LENGTH: Final = 8192
_REQUIRED: Final = (
    "model.model_path",
    "train_dataloader.dataset.type",
    "train_dataloader.batch_size",
    "optim_wrapper.optimizer",
)
_ITERATIONS: Final = ("begin", "end", "T_max", "total_iters")


def user_config_text(job: Job, *, rows: int, processes: int) -> str:
    """Return the text of the configuration `job.recipe`, adapted to the job.

    The job's base model and data must be prepared in its `work` folder.

    Args:
        job: The job.
        rows: The number of prepared rows.
        processes: The number of processes that share the rows.

    Raises:
        TrainingError: The configuration cannot be used.
    """
    return config_file_text(_adopt(_read(job.recipe), job, rows / processes))


def user_max_length(recipe: str) -> int:
    """Return the maximum number of tokens per row that a user's configuration accepts.

    Raises:
        TrainingError: The configuration cannot be used.
    """
    value = _read(recipe)["train_dataloader"]["dataset"].get("max_length", _MAX_LENGTH)
    if not isinstance(value, int):
        raise TrainingError(f"{recipe} has a max_length of {value!r}: correct it to a number of tokens")
    return value


def _read(recipe: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = Config.fromfile(recipe).to_dict()
    except Exception as error:
        raise TrainingError(f"{recipe} is not a configuration that XTuner can read ({error}): correct it") from error
    for name in _REQUIRED:
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            raise TrainingError(
                f"{recipe} has no {name}: start from XTuner's own configuration for InternVL "
                "(xtuner copy-cfg internvl_v2_internlm2_2b_qlora_finetune .)"
            )
    return config


def _adopt(config: dict[str, Any], job: Job, rows: float) -> dict[str, Any]:
    config = _substitute(config, config["model"]["model_path"], str(Path(job.work) / BASE))
    loader, wrapper = config["train_dataloader"], config["optim_wrapper"]
    options = loader["dataset"]
    repeats = options.get("repeat_times", 1)
    loader["dataset"] = dataset(job, repeats=repeats, max_length=options.get("max_length", _MAX_LENGTH))
    if wrapper["type"].endswith("AmpOptimWrapper"):
        for name in ("dtype", "loss_scale", "use_fp16"):
            wrapper.pop(name, None)
        wrapper["type"] = "mmengine.optim.OptimWrapper"

    batch, accumulation = loader["batch_size"], wrapper.get("accumulative_counts", 1)
    samples = batch * accumulation
    loader["batch_size"] = split_batch(samples, batch, job.split)
    batches = wrapper["accumulative_counts"] = samples // loader["batch_size"]
    _scale_iterations(config, batches // accumulation)
    _drop_empty_warmup(config, math.ceil(rows * repeats / loader["batch_size"]))

    if str(config["train_cfg"].get("type", "")).endswith(".TrainLoop"):
        config["train_cfg"] |= {"type": "training.xtuner.accumulation.StepLoop", "batches": batches}
    hooks = config.setdefault("default_hooks", {})
    hooks["logger"] = {"type": "training.xtuner.accumulation.StepLogger", "batches": batches}
    hooks.setdefault("checkpoint", {"type": "mmengine.hooks.CheckpointHook", "by_epoch": False, "interval": -1})
    hooks["checkpoint"]["save_optimizer"] = True
    # XTuner's DatasetInfoHook logs a sample with users' texts, which erasure would not find in the log.
    kept = [each for each in config.get("custom_hooks") or [] if not str(each["type"]).endswith("DatasetInfoHook")]
    config["custom_hooks"] = [*kept, {"type": "training.xtuner.accumulation.MeanLoss"}]
    config["log_processor"] = {"by_epoch": False, "window_size": batches}
    config["visualizer"] = VISUALIZER
    config["work_dir"] = str(Path(job.work) / STATE)
    config["load_from"], config["resume"] = None, False
    # Resumed training needs the data in the same order.
    config["randomness"] = {"deterministic": False, **(config.get("randomness") or {}), "seed": job.seed}
    return config


def _scale_iterations(config: dict[str, Any], factor: int) -> None:
    """Multiply all values counted in iterations by `factor`, because smaller batches take more iterations."""
    for each in [config["train_cfg"], *(config.get("param_scheduler") or [])]:
        counted = ("max_iters",) if "by_epoch" not in each else () if each["by_epoch"] else _ITERATIONS
        for name in counted:
            if each.get(name) is not None:
                each[name] *= factor


def _drop_empty_warmup(config: dict[str, Any], batches: int) -> None:
    """Remove any warm-up shorter than one batch, which mmengine 0.10.6 rejects.

    `batches` is the number of batches per epoch.
    """
    config["param_scheduler"] = [
        each
        for each in config.get("param_scheduler") or []
        if not each.get("convert_to_iter_based") or int(each["begin"] * batches) < int(each["end"] * batches)
    ]


def _substitute(value: Any, old: str, new: str) -> Any:
    """Return a copy of a nested value with every string equal to `old` replaced by `new`."""
    if isinstance(value, dict):
        return {name: _substitute(each, old, new) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_substitute(each, old, new) for each in value)
    return new if isinstance(value, str) and value == old else value
