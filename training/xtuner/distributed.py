"""The process group for training: processes started by torchrun, or a single process.

Either each process has its own GPU, or all processes run on the CPU. Rank 0 does all file writing,
reporting and saving.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from mmengine.device import get_device
from xtuner.engine import DeepSpeedStrategy

from training.worker import world_size

_TIMEOUT: Final = timedelta(hours=2)
"""How long the other processes wait while rank 0 checks the data."""


@contextmanager
def process_group(*, gpu: bool) -> Iterator[None]:
    """Join the process group for the duration of the context.

    A single process needs a group too, because XTuner's InternVL_V1_5 calls `dist.get_rank()`.
    """
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world_size() == 1:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    else:
        # mmengine 0.10.6 would initialise it later, and for NCCL only.
        dist.init_process_group("nccl" if gpu else "gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def gathered_weights(model: torch.nn.Module) -> Iterator[None]:
    """If DeepSpeed partitions the trained weights, gather them for the duration of the context.

    Every process must enter the context.
    """
    trained = [each for each in model.parameters() if each.requires_grad]
    if not any(hasattr(each, "ds_id") for each in trained):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(trained):
        yield


class ZeroStrategy(DeepSpeedStrategy):  # type: ignore[misc]
    """A DeepSpeed strategy that partitions a model after every process has loaded it whole.

    At ZeRO stage 3, transformers 4.57.6 loads a model in partitions while an `HfDeepSpeedConfig` is alive,
    and leaves weights of InternVL2 uninitialised. XTuner's own strategy keeps an `HfDeepSpeedConfig` alive;
    this class does not.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.hf_deepspeed_config = None

    def _wrap_model(self, model: Any) -> Any:
        # With stage 3 DeepSpeed moves only the partitions that it creates.
        return super()._wrap_model(model.to(get_device()))
