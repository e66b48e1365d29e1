"""XTuner 0.2.0's shipped QLoRA configuration for InternVL2-2B as a baseline, with the necessary changes.

The changes are the paths, batches of 4, a learning rate of 2e-5, the warm-up (the shipped configuration
asks for a share of an epoch that rounds to zero), and `OptimWrapper` (the shipped mixed precision cannot
clip bfloat16 gradients on a GPU). benchmarks/peers/training.py fills in the paths, the dropout and how many
times the data is repeated.
"""

# mypy: ignore-errors
# mmengine defines the shipped file's names when it reads this one.
from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper

with read_base():
    from xtuner.configs.internvl.v2.internvl_v2_internlm2_2b_qlora_finetune import *  # noqa: F403

batches = 48
warmup = 1

train_dataloader.update(batch_size=4)  # noqa: F405
train_dataloader["sampler"].update(per_device_batch_size=4, seed=0)  # noqa: F405

optim_wrapper.update(type=OptimWrapper, accumulative_counts=1)  # noqa: F405
optim_wrapper["optimizer"].update(lr=2e-5)  # noqa: F405
for _only_mixed in ("loss_scale", "dtype"):
    optim_wrapper.pop(_only_mixed)  # noqa: F405

param_scheduler = [
    {"type": LinearLR, "start_factor": 1e-2, "by_epoch": False, "begin": 0, "end": warmup + 1},
    {"type": CosineAnnealingLR, "eta_min": 0.0, "by_epoch": False, "begin": warmup, "end": batches},
]

custom_hooks = []
default_hooks["logger"].update(interval=1)  # noqa: F405
log_processor = {"by_epoch": False, "window_size": 1}
randomness = {"seed": 0, "deterministic": False}
