"""Worker: an XTuner configuration of one's own, with our data put in.

What is put in: the base model wherever the configuration names its own, the run's rows in place of its data set, the
run's directory, a log of every step, and what continuing after a crash takes. All else is the configuration's, with
three exceptions. `OptimWrapper` replaces `AmpOptimWrapper`, which cannot clip the bfloat16 gradients of XTuner's
InternVL on a GPU. `TokenLoop` replaces XTuner's `TrainLoop`, so that the loss of a step is the mean over its tokens
also where it is computed in smaller batches. The hook that logs a sample is left out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from mmengine.config import Config

from training.job import Job, TrainingError
from training.run_folder import STATE
from training.xtuner.config_file import VISUALIZER, config_file_text, divided, lessons

_MAX_LENGTH: Final = 8192
_NEEDED: Final = (
    "model.model_path",
    "train_dataloader.dataset.type",
    "train_dataloader.batch_size",
    "optim_wrapper.optimizer",
)
_COUNTED: Final = ("begin", "end", "T_max", "total_iters")


def own_config_text(job: Job, *, base: Path, data: Path, rows: int, processes: int) -> str:
    """The configuration `job.recipe` on a prepared `base` directory and `data` file of `rows` rows.

    Raises `TrainingError`.
    """
    return config_file_text(_adopted(_read(job.recipe), job, base=base, data=data, rows=rows / processes))


def own_max_length(recipe: str) -> int:
    """The most tokens of a pair that the configuration takes. Raises `TrainingError`."""
    found = _read(recipe)["train_dataloader"]["dataset"].get("max_length", _MAX_LENGTH)
    if not isinstance(found, int):
        raise TrainingError(f"{recipe} has a max_length of {found!r}: correct it to a number of tokens")
    return found


def _read(recipe: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = Config.fromfile(recipe).to_dict()
    except Exception as error:
        raise TrainingError(f"{recipe} is no configuration that XTuner reads ({error}): correct it") from error
    for name in _NEEDED:
        found: Any = config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            raise TrainingError(
                f"{recipe} has no {name}: start from XTuner's own for InternVL "
                "(xtuner copy-cfg internvl_v2_internlm2_2b_qlora_finetune .)"
            )
    return config


def _adopted(config: dict[str, Any], job: Job, *, base: Path, data: Path, rows: float) -> dict[str, Any]:
    config = _with(config, config["model"]["model_path"], str(base))
    loader, wrapper = config["train_dataloader"], config["optim_wrapper"]
    theirs = loader["dataset"]
    repeats, max_length = theirs.get("repeat_times", 1), theirs.get("max_length", _MAX_LENGTH)
    loader["dataset"] = lessons(job, base=base, data=data, repeats=repeats, max_length=max_length)
    if wrapper["type"].endswith("AmpOptimWrapper"):
        for name in ("dtype", "loss_scale", "use_fp16"):
            wrapper.pop(name, None)
        wrapper["type"] = "mmengine.optim.OptimWrapper"

    given, batches = loader["batch_size"], wrapper.get("accumulative_counts", 1)
    loader["batch_size"] = divided(given * batches, given, job.split)
    wrapper["accumulative_counts"] = given * batches // loader["batch_size"]
    _stretch(config, wrapper["accumulative_counts"] // batches)
    _drop_empty(config, math.ceil(rows * repeats / loader["batch_size"]))

    if str(config["train_cfg"].get("type", "")).endswith(".TrainLoop"):
        config["train_cfg"] |= {
            "type": "training.xtuner.accumulation.TokenLoop",
            "batches": wrapper["accumulative_counts"],
        }
    hooks = config.setdefault("default_hooks", {})
    hooks["logger"] = {"type": "training.xtuner.accumulation.StepLogger", "batches": wrapper["accumulative_counts"]}
    hooks.setdefault("checkpoint", {"type": "mmengine.hooks.CheckpointHook", "by_epoch": False, "interval": -1})
    hooks["checkpoint"]["save_optimizer"] = True
    config["custom_hooks"] = [
        *_discreet(config.get("custom_hooks") or []),
        {"type": "training.xtuner.accumulation.MeanLoss"},
    ]
    config["log_processor"] = {"by_epoch": False, "window_size": wrapper["accumulative_counts"]}
    config["visualizer"] = VISUALIZER
    config["work_dir"] = str(Path(job.work) / STATE)
    config["load_from"], config["resume"] = None, False
    # The order of the data has to be the same again when the run is continued.
    config["randomness"] = {"deterministic": False, **(config.get("randomness") or {}), "seed": job.seed}
    return config


def _stretch(config: dict[str, Any], factor: int) -> None:
    """Smaller batches are more of them: what is counted in batches grows by `factor`."""
    for each in [config["train_cfg"], *(config.get("param_scheduler") or [])]:
        counted = ("max_iters",) if "by_epoch" not in each else () if each["by_epoch"] else _COUNTED
        for name in counted:
            if each.get(name) is not None:
                each[name] *= factor


def _drop_empty(config: dict[str, Any], batches: int) -> None:
    """Leave out a warm-up that is shorter than a batch, of so many in an epoch: mmengine would refuse it."""
    config["param_scheduler"] = [
        each
        for each in config.get("param_scheduler") or []
        if not each.get("convert_to_iter_based") or int(each["begin"] * batches) < int(each["end"] * batches)
    ]


def _discreet(hooks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without XTuner's hook that writes a sample into the log: people's words, which would stay there for ever."""
    return [each for each in hooks if not str(each["type"]).endswith("DatasetInfoHook")]


def _with(value: Any, old: str, new: str) -> Any:
    """The value with every text `old` in it replaced."""
    if isinstance(value, dict):
        return {name: _with(each, old, new) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with(each, old, new) for each in value)
    return new if isinstance(value, str) and value == old else value
