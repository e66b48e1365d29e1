"""The process group for training: processes started by torchrun or Ray Train, or a single process.

Either each process has its own GPU, or all processes run on the CPU. Rank 0 does all file writing,
reporting and saving.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from mmengine.device import get_device
from xtuner.engine import DeepSpeedStrategy

from training.worker import rank, world_size

_TIMEOUT: Final = timedelta(hours=2)
"""The maximum time that the other processes wait while rank 0 checks the data."""


@contextmanager
def process_group(*, gpu: bool) -> Iterator[None]:
    """Join the process group for the duration of the context.

    A single process needs a group too, because XTuner's InternVL_V1_5 calls `dist.get_rank()`. Ray Train's workers
    are in one already.
    """
    if dist.is_initialized():
        yield
        return
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world_size() == 1:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    else:
        # mmengine 0.10.6 would initialize it later, and for NCCL only.
        dist.init_process_group("nccl" if gpu else "gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the trained weights on the CPU, by name; an empty dict on all ranks but 0.

    Weights that DeepSpeed partitions are gathered one at a time, so every process must call this function.
    """
    found: dict[str, torch.Tensor] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            with _gathered(weight):
                if rank() == 0:
                    found[name] = weight.detach().to("cpu", copy=True)
    return found


def _gathered(weight: torch.nn.Parameter) -> AbstractContextManager[None]:
    if not hasattr(weight, "ds_id"):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters([weight])
    return gathered


class ZeroStrategy(DeepSpeedStrategy):  # type: ignore[misc]
    """A DeepSpeed strategy for models that are loaded whole, or by `partitioned_loading` (ZeRO 3).

    XTuner's own strategy keeps an `HfDeepSpeedConfig` alive, which makes transformers 4.57.6 load models in
    partitions and leave weights of InternVL2 uninitialized.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.hf_deepspeed_config = None

    def _wrap_model(self, model: Any) -> Any:
        # With stage 3, DeepSpeed moves only the partitions that it creates.
        return super()._wrap_model(model.to(get_device()))
