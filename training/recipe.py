"""Worker: the XTuner configuration of a run, as a file that XTuner's own tools run again.

    python -m xtuner.tools.train CONFIG

Knows the traps of XTuner 0.2.0 and mmengine 0.10.6 that the configuration steers around. Leaves reading data and
starting the Runner to `finetune`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from training.job import Job

_CONFIG: Final = '''\
"""One run of thumbtune's training, for XTuner 0.2.0: python -m xtuner.tools.train THIS_FILE"""

from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.visualization import LocalVisBackend, Visualizer
from peft import LoraConfig
from torch.optim import AdamW
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.dataset.samplers import LengthGroupedSampler
from xtuner.engine.runner import TrainLoop

from training.dataset import LikedAnswers
from training.model import InternVL2

work_dir = {work!r}

model = dict(
    type=InternVL2,
    model_path={base!r},
    freeze_llm=True,
    freeze_visual_encoder=True,
    quantization_llm=True,
    quantization_vit=False,
    projector={projector},
    checkpointing={checkpointing},
    llm_lora=dict(
        type=LoraConfig,
        r={rank},
        lora_alpha={alpha},
        lora_dropout={dropout},
        target_modules={targets},
        task_type="CAUSAL_LM",
    ),
)

train_dataloader = dict(
    batch_size={batch},
    num_workers={loaders},
    dataset=dict(
        type=LikedAnswers,
        model_path={base!r},
        data_path={data!r},
        image_folder={images!r},
        system={system!r},
        tiles={tiles},
        repeat_times={repeats},
        max_length={max_length},
    ),
    sampler=dict(
        type=LengthGroupedSampler,
        length_property="modality_length",
        per_device_batch_size={samples_per_step},
    ),
    collate_fn=dict(type=default_collate_fn),
)

# AmpOptimWrapper cannot clip bfloat16 gradients on a GPU; what is trained is float32 and the model casts by itself.
optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr={learning_rate}, betas=(0.9, 0.999), weight_decay={weight_decay}),
    clip_grad=dict(max_norm={clip}, error_if_nonfinite=True),
    accumulative_counts={accumulation},
)

# Counted in batches: as shares of an epoch a short warm-up rounds to nothing, which mmengine refuses.
param_scheduler = [{warming}
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=False, begin={warmup}, end={batches}),
]

# The data is repeated within one epoch; between epochs mmengine sleeps two seconds.
train_cfg = dict(type=TrainLoop, max_iters={batches})

default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, save_optimizer=False, by_epoch=False, interval={batches}, max_keep_ckpts=1),
    sampler_seed=dict(type=DistSamplerSeedHook),
)

visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend)])
log_processor = dict(by_epoch=False, window_size=1)
log_level = "INFO"
randomness = dict(seed={seed}, deterministic=False)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
load_from = None
resume = False
'''

_WARMING: Final = """
    dict(type=LinearLR, start_factor=1e-2, by_epoch=False, begin=0, end={warmup}),"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run is: `batches` in all, of which `warmup` warm up, over data repeated `repeats` times."""

    batches: int
    warmup: int
    repeats: int

    @classmethod
    def of(cls, job: Job, rows: int) -> Plan:
        """For so many rows of data."""
        batches = max(1, math.ceil(rows * job.epochs / job.batch))
        # A whole number of optimiser steps: what is left over would be computed and thrown away.
        batches = math.ceil(batches / job.accumulation) * job.accumulation
        warmup = min(math.ceil(batches * job.warmup), batches - 1)
        return cls(batches, warmup, math.ceil(batches * job.batch / rows))


def config_text(job: Job, *, base: Path, data: Path, rows: int, gpu: bool) -> str:
    """The configuration of `job` on a prepared `base` directory and `data` file of `rows` rows."""
    plan = Plan.of(job, rows)
    return _CONFIG.format(
        work=str(Path(job.work) / "xtuner"),
        base=str(base),
        data=str(data),
        images=job.images,
        system=job.system,
        tiles=job.tiles,
        repeats=plan.repeats,
        batches=plan.batches,
        warmup=plan.warmup,
        warming=_WARMING.format(warmup=plan.warmup) if plan.warmup else "",
        max_length=job.max_length,
        projector=job.projector,
        checkpointing=job.checkpointing,
        rank=job.rank,
        alpha=job.alpha,
        dropout=job.dropout,
        # XTuner puts every linear layer in the place of None.
        targets=repr(job.targets or None),
        batch=job.batch,
        samples_per_step=job.batch * job.accumulation,
        accumulation=job.accumulation,
        learning_rate=job.learning_rate,
        weight_decay=job.weight_decay,
        clip=job.clip,
        seed=job.seed,
        # Tiling beside the GPU; on a CPU there is nothing to do it beside.
        loaders=4 if gpu else 0,
    )
