"""The XTuner configuration of a run, as a file that XTuner's own tools also accept.

    python -m xtuner.tools.train CONFIG

Types are named by their import paths, which mmengine resolves. Comments mark the requirements of XTuner
0.2.0 and mmengine 0.10.6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmengine.config import Config

from training.data.mixture import Mixture
from training.job import DISLIKED, Job, TrainingError
from training.run_folder import BASE, CHECKED, FEATURES, STATE

_HEAD: Final = '"""A training run of thumbtune, for XTuner 0.2.0: python -m xtuner.tools.train THIS_FILE"""\n\n'

_LOADER_TIMEOUT: Final = 600
"""The time in seconds to wait for a batch from the loader's processes. Without a limit, training would wait forever for
a batch that torch has lost."""

VISUALIZER: Final = {
    "type": "mmengine.visualization.Visualizer",
    "vis_backends": [
        {"type": "mmengine.visualization.LocalVisBackend"},
        {"type": "mmengine.visualization.TensorboardVisBackend"},
    ],
}
"""The visualizer that logs the losses as JSON lines and for TensorBoard."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The length of a training job, and the division of its steps into batches.

    Attributes:
        steps: The total number of optimizer steps.
        warmup: The number of warm-up steps among them.
        batch: The number of samples per batch.
        accumulation: The number of batches that each process computes per step.
        repeats: How many times the dataset contains each row.
    """

    steps: int
    warmup: int
    batch: int
    accumulation: int
    repeats: int

    @property
    def batches(self) -> int:
        """The total number of batches that one process computes."""
        return self.steps * self.accumulation

    @classmethod
    def for_job(cls, job: Job, rows: int, processes: int = 1) -> StepPlan:
        """Plan the steps of a job on `rows` samples.

        A given step trains on the same samples, however many processes share the work.
        """
        pairs = job.batch * job.accumulation
        if pairs % processes:
            raise TrainingError(
                f"{pairs} pairs per step (batch x accumulation) cannot be divided among {processes} processes"
            )
        # mmengine would compute the batches of an incomplete last step and discard their gradients.
        steps = max(1, math.ceil(rows * job.epochs / pairs))
        warmup = min(math.ceil(steps * job.warmup), steps - 1)
        batch = split_batch(pairs // processes, job.batch, job.split)
        return cls(steps, warmup, batch, pairs // processes // batch, math.ceil(steps * pairs / rows))


def split_batch(samples: int, batch: int, split: int) -> int:
    """Return the largest batch size that divides `samples` and is at most `batch` / `split`."""
    largest = max(1, batch // split)
    return next(size for size in range(min(largest, samples), 0, -1) if samples % size == 0)


def config_text(job: Job, plan: StepPlan, mixture: Mixture, *, gpu: bool) -> str:
    """Return the configuration of a job whose base model and data have been prepared in its `work` folder.

    Args:
        job: The job.
        plan: The job's steps.
        mixture: The job's rows.
        gpu: Whether the job trains on GPUs.
    """
    return config_file_text(
        {
            "work_dir": str(Path(job.work) / STATE),
            "model": _model(job, plan, mixture),
            "train_dataloader": _dataloader(job, plan, gpu=gpu),
            **(_deepspeed(job, plan, gpu=gpu) if job.deepspeed else _torch(job, plan, gpu=gpu)),
            **_loop(job, plan),
        }
    )


def config_file_text(configuration: dict[str, Any]) -> str:
    """Return a configuration as the text of a file that XTuner can read."""
    text: str = Config(configuration).pretty_text
    return _HEAD + text


def dataset(job: Job, *, repeats: int, max_length: int) -> dict[str, Any]:
    """Return the dataset section of a job's configuration."""
    return {
        "type": "training.xtuner.dataset.LessonDataset",
        "model_path": str(Path(job.work) / BASE),
        "lessons": {"path": str(Path(job.work) / CHECKED), "images": job.images, "system": job.system},
        "tiles": job.tiles,
        "repeat_times": repeats,
        "max_length": max_length,
    }


def _dataloader(job: Job, plan: StepPlan, *, gpu: bool) -> dict[str, Any]:
    return {
        "batch_size": plan.batch,
        # On a CPU, the loader's processes would compete with the training.
        "num_workers": 4 if gpu else 0,
        "timeout": _LOADER_TIMEOUT if gpu else 0,
        "pin_memory": gpu,
        "dataset": {
            **dataset(job, repeats=plan.repeats, max_length=job.max_length),
            "features": str(Path(job.work) / FEATURES),
            "objective": job.objective,
        },
        "sampler": {
            "type": "training.xtuner.accumulation.StepSampler",
            "passes": plan.repeats,
            "samples": plan.batch * plan.accumulation,
            "seed": job.seed,
        },
        "collate_fn": {"type": "training.xtuner.packing.collate"}
        if job.objective == "sft"
        else {"type": "training.xtuner.preference_model.collate_answers", "objective": job.objective},
    }


def _loop(job: Job, plan: StepPlan) -> dict[str, Any]:
    return {
        "param_scheduler": _schedule(plan),
        # The dataset repeats its rows within one epoch: mmengine 0.10.6 sleeps two seconds between epochs.
        "train_cfg": {
            "type": "training.xtuner.accumulation.StepLoop"
            if job.objective == "sft"
            else "training.xtuner.preference_model.PreferenceLoop",
            "max_iters": plan.batches,
            "batches": plan.accumulation,
        },
        "default_hooks": {
            "timer": {"type": "mmengine.hooks.IterTimerHook"},
            "logger": {"type": "training.xtuner.accumulation.StepLogger", "batches": plan.accumulation},
            "param_scheduler": {"type": "training.xtuner.accumulation.StepSchedule", "batches": plan.accumulation},
            "checkpoint": {
                "type": "mmengine.hooks.CheckpointHook",
                "by_epoch": False,
                "interval": plan.accumulation * job.save_steps or -1,
                "max_keep_ckpts": job.keep_checkpoints,
                # The adapter is saved right afterwards; a checkpoint with AdamW's moments takes 5 s at full size.
                "save_last": False,
            },
            "sampler_seed": {"type": "mmengine.hooks.DistSamplerSeedHook"},
        },
        "visualizer": VISUALIZER,
        "custom_hooks": [{"type": "training.xtuner.accumulation.MeanLoss"}],
        "log_processor": {"by_epoch": False, "window_size": plan.accumulation},
        "log_level": "INFO",
        "randomness": {"seed": job.seed, "deterministic": False},
        "env_cfg": {"cudnn_benchmark": False, "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
        "load_from": None,
        "resume": False,
    }


def _model(job: Job, plan: StepPlan, mixture: Mixture) -> dict[str, Any]:
    full = job.method == "full"
    return {
        **_objective(job, mixture),
        "model_path": str(Path(job.work) / BASE),
        "freeze_llm": not full,
        "freeze_visual_encoder": True,
        "quantization_llm": job.method == "qlora",
        "quantization_vit": False,
        "projector": job.projector,
        "checkpointing": job.checkpointing,
        # DPO computes both answers of a pair at once.
        "tokens": plan.batch * mixture.longest * (2 if job.objective == "dpo" else 1),
        "yield_file": job.courtesy,
        **({"partitioned": True} if job.deepspeed == 3 else {}),
        # XTuner replaces None with every linear layer.
        "llm_lora": None if full else _lora(job, job.rank, job.targets or None, task_type="CAUSAL_LM"),
        "visual_encoder_lora": _lora(job, job.vision_rank, None) if job.vision_rank else None,
    }


def _objective(job: Job, mixture: Mixture) -> dict[str, Any]:
    if job.objective == "sft":
        return {"type": "training.xtuner.internvl_model.InternVL2"}
    return {
        "type": "training.xtuner.preference_model.PreferenceModel",
        "objective": job.objective,
        "kl_penalty": job.kl_penalty,
        "rows": mixture.rows,
        "disliked": mixture.samples.get(DISLIKED, 0),
    }


def _lora(job: Job, rank: int, targets: str | None, **more: str) -> dict[str, Any]:
    return {
        "type": "peft.LoraConfig",
        "r": rank,
        "lora_alpha": job.alpha * rank / job.rank,
        "lora_dropout": job.dropout,
        "target_modules": targets,
        **more,
    }


def _torch(job: Job, plan: StepPlan, *, gpu: bool) -> dict[str, Any]:
    """Return the optimizer settings for training without DeepSpeed.

    OptimWrapper is used because mmengine 0.10.6's AmpOptimWrapper cannot clip XTuner's bfloat16 gradients on
    a GPU.
    """
    return {
        "optim_wrapper": {
            "type": "mmengine.optim.OptimWrapper",
            "optimizer": _optimizer(job, gpu=gpu),
            "clip_grad": {"max_norm": job.clip, "error_if_nonfinite": True},
            "accumulative_counts": plan.accumulation,
        }
    }


def _deepspeed(job: Job, plan: StepPlan, *, gpu: bool) -> dict[str, Any]:
    """Return the settings that `xtuner.tools.train --deepspeed` adds: bfloat16 weights, float32 master weights."""
    return {
        "runner_type": "FlexibleRunner",
        "strategy": {
            "type": "training.xtuner.distributed.ZeroStrategy",
            "config": {
                "zero_optimization": {"stage": job.deepspeed, "overlap_comm": True},
                "bf16": {"enabled": gpu},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
            },
            "gradient_accumulation_steps": plan.accumulation,
            "train_micro_batch_size_per_gpu": plan.batch,
            "gradient_clipping": job.clip,
            "exclude_frozen_parameters": True,
        },
        "optim_wrapper": {"type": "DeepSpeedOptimWrapper", "optimizer": _optimizer(job, gpu=gpu)},
    }


def _optimizer(job: Job, *, gpu: bool) -> dict[str, Any]:
    common = {"lr": job.learning_rate, "betas": (job.beta1, job.beta2), "weight_decay": job.weight_decay}
    kinds: dict[str, dict[str, Any]] = {
        "adamw": {"type": "torch.optim.AdamW", "fused": gpu},
        "paged_adamw_8bit": {"type": "bitsandbytes.optim.PagedAdamW8bit"},
        "dadapt_adam": {"type": "dadaptation.DAdaptAdam", "decouple": True},
        # Its authors advise safeguard_warmup for a learning rate with a warm-up (github.com/konstmish/prodigy).
        "prodigy": {"type": "prodigyopt.Prodigy", "decouple": True, "safeguard_warmup": True},
    }
    return {**kinds[job.optimizer], **common}


def _schedule(plan: StepPlan) -> list[dict[str, Any]]:
    """Return the learning-rate schedule, counted in steps.

    Expressed as a share of an epoch, a short warm-up would be rounded to zero length, which mmengine 0.10.6
    rejects.
    """
    warmup = {"type": "mmengine.optim.LinearLR", "start_factor": 1e-2, "by_epoch": False, "begin": 0}
    cosine = {"type": "mmengine.optim.CosineAnnealingLR", "eta_min": 0.0, "by_epoch": False}
    return [
        # The last step of the warm-up is the first at the full rate. With one step fewer, LinearLR would never raise
        # the rate in a warm-up of one step.
        *([{**warmup, "end": plan.warmup + 1}] if plan.warmup else []),
        {**cosine, "begin": plan.warmup, "end": plan.steps},
    ]
