"""Worker: the XTuner configuration of a run, as a file that XTuner's own tools run again.

    python -m xtuner.tools.train CONFIG

Knows the traps of XTuner 0.2.0 and mmengine 0.10.6 that the configuration steers around. Types are named by their
import paths, which mmengine resolves. Leaves reading data and starting the Runner to `finetune`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmengine.config import Config

from training.job import Job, TrainingError
from training.run_folder import STATE

_HEAD: Final = '"""One run of thumbtune\'s training, for XTuner 0.2.0: python -m xtuner.tools.train THIS_FILE"""\n\n'

_BATCH_SECONDS: Final = 600
"""So long the training waits for a batch from the processes that read. What they lose on the way never comes: torch
says so in the log and nowhere else."""

VISUALIZER: Final = {
    "type": "mmengine.visualization.Visualizer",
    "vis_backends": [
        {"type": "mmengine.visualization.LocalVisBackend"},
        {"type": "mmengine.visualization.TensorboardVisBackend"},
    ],
}
"""A log of losses as JSON lines and as TensorBoard files."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run is: `steps` of the optimiser, of which `warmup` warm up, over data repeated `repeats` times.

    In each step every process computes `accumulation` batches of `batch` pairs.
    """

    steps: int
    warmup: int
    batch: int
    accumulation: int
    repeats: int

    @property
    def batches(self) -> int:
        """Batches of one process in all."""
        return self.steps * self.accumulation

    @classmethod
    def of(cls, job: Job, rows: int, processes: int = 1) -> Plan:
        """For so many rows of data. However many processes there are, a step has the same pairs."""
        pairs = job.batch * job.accumulation
        if pairs % processes:
            raise TrainingError(
                f"{pairs} pairs a step (batch x accumulation) cannot be shared by {processes} processes"
            )
        # A whole number of steps: what is left over would be computed and thrown away.
        steps = max(1, math.ceil(rows * job.epochs / pairs))
        warmup = min(math.ceil(steps * job.warmup), steps - 1)
        batch = divided(pairs // processes, job.batch, job.split)
        return cls(steps, warmup, batch, pairs // processes // batch, math.ceil(steps * pairs / rows))


def divided(pairs: int, batch: int, split: int) -> int:
    """The largest batch that so many pairs can be cut into, at most `batch` / `split` of them in each."""
    most = max(1, batch // split)
    return next(size for size in range(min(most, pairs), 0, -1) if pairs % size == 0)


def config_text(job: Job, plan: Plan, *, base: Path, data: Path, longest: int, features: Path, gpu: bool) -> str:
    """The configuration of `job` on a prepared `base` directory and `data` file.

    The `longest` row has so many tokens; `features` is the folder of what the vision tower made of the pictures.
    """
    return config_file_text(_configuration(job, plan, base, data, longest, features, gpu=gpu))


def config_file_text(configuration: dict[str, Any]) -> str:
    """A configuration as a file that XTuner reads."""
    text: str = Config(configuration).pretty_text
    return _HEAD + text


def _configuration(
    job: Job, plan: Plan, base: Path, data: Path, longest: int, features: Path, *, gpu: bool
) -> dict[str, Any]:
    return {
        "work_dir": str(Path(job.work) / STATE),
        "model": _model(job, base, plan.batch * longest),
        "train_dataloader": {
            "batch_size": plan.batch,
            # Reading beside the GPU; on a CPU there is nothing to do it beside.
            "num_workers": 4 if gpu else 0,
            "timeout": _BATCH_SECONDS if gpu else 0,
            "pin_memory": gpu,
            "dataset": {
                **lessons(job, base=base, data=data, repeats=plan.repeats, max_length=job.max_length),
                "features": str(features),
            },
            "sampler": {
                "type": "training.xtuner.accumulation.StepSampler",
                "passes": plan.repeats,
                "length_property": "modality_length",
                "per_device_batch_size": plan.batch * plan.accumulation,
                "seed": job.seed,
            },
            "collate_fn": {"type": "xtuner.dataset.collate_fns.default_collate_fn"},
        },
        **(_deepspeed(job, plan, gpu=gpu) if job.deepspeed else _torch(job, plan, gpu=gpu)),
        "param_scheduler": _schedule(plan),
        # The data is repeated within one epoch; between epochs mmengine sleeps two seconds.
        "train_cfg": {
            "type": "training.xtuner.accumulation.StepLoop",
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


def lessons(job: Job, *, base: Path, data: Path, repeats: int, max_length: int) -> dict[str, Any]:
    """The data set of a run."""
    return {
        "type": "training.xtuner.dataset.LikedAnswers",
        "model_path": str(base),
        "data_path": str(data),
        "image_folder": job.images,
        "system": job.system,
        "tiles": job.tiles,
        "repeat_times": repeats,
        "max_length": max_length,
    }


def _model(job: Job, base: Path, tokens: int) -> dict[str, Any]:
    whole = job.method == "full"
    return {
        "type": "training.xtuner.internvl_model.InternVL2",
        "model_path": str(base),
        "freeze_llm": not whole,
        "freeze_visual_encoder": True,
        "quantization_llm": job.method == "qlora",
        "quantization_vit": False,
        "projector": job.projector,
        "checkpointing": job.checkpointing,
        "tokens": tokens,
        "courtesy": job.courtesy,
        # XTuner puts every linear layer in the place of None.
        "llm_lora": None if whole else _lora(job, job.rank, job.targets or None, task_type="CAUSAL_LM"),
        "visual_encoder_lora": _lora(job, job.vision_rank, None) if job.vision_rank else None,
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


def _torch(job: Job, plan: Plan, *, gpu: bool) -> dict[str, Any]:
    """AmpOptimWrapper cannot clip bfloat16 gradients on a GPU; what is trained is float32 and the model casts."""
    return {
        "optim_wrapper": {
            "type": "mmengine.optim.OptimWrapper",
            "optimizer": _optimizer(job, gpu=gpu),
            "clip_grad": {"max_norm": job.clip, "error_if_nonfinite": True},
            "accumulative_counts": plan.accumulation,
        }
    }


def _deepspeed(job: Job, plan: Plan, *, gpu: bool) -> dict[str, Any]:
    """What `xtuner.tools.train --deepspeed` would put in. Weights are bfloat16, their masters float32."""
    return {
        "runner_type": "FlexibleRunner",
        "strategy": {
            "type": "training.xtuner.zero.Spread",
            "config": {
                "zero_optimization": {"stage": job.deepspeed, "overlap_comm": True},
                "bf16": {"enabled": True},
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
        # As its authors advise where the learning rate warms up.
        "prodigy": {"type": "prodigyopt.Prodigy", "decouple": True, "safeguard_warmup": True},
    }
    return {**kinds[job.optimizer], **common}


def _schedule(plan: Plan) -> list[dict[str, Any]]:
    """Counted in steps: as shares of an epoch a short warm-up rounds to nothing, which mmengine refuses."""
    warming = {"type": "mmengine.optim.LinearLR", "start_factor": 1e-2, "by_epoch": False, "begin": 0}
    cosine = {"type": "mmengine.optim.CosineAnnealingLR", "eta_min": 0.0, "by_epoch": False}
    return [
        # Its last step is the first at the full rate: an end one earlier would leave a single step's rate for good.
        *([{**warming, "end": plan.warmup + 1}] if plan.warmup else []),
        {**cosine, "begin": plan.warmup, "end": plan.steps},
    ]
